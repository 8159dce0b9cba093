//! The state folder: would it be used, or is something in its way, or in it.

use std::path::PathBuf;

use super::finding::Finding;
use super::report::several;
use crate::port::Port;
use crate::text::shell_word;

/// What was found where state is kept.
#[derive(Debug, Default)]
pub struct StateLook {
    /// `/tmp/hotplugger` as paths begin here.
    pub path: PathBuf,
    /// `/tmp`.
    pub parent: Option<Stat>,
    /// `/tmp/hotplugger` itself, links not followed.
    pub folder: Option<Stat>,
    /// The files in it; none if they cannot be listed.
    pub files: Option<Vec<String>>,
    /// The ports with a device in them.
    pub plugged: Vec<Port>,
    /// The users it may belong to.
    pub owners: Vec<u32>,
}

/// What lstat(2) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Whether it is a folder, and no link to one.
    pub folder: bool,
    /// The owner.
    pub owner: u32,
    /// The permission bits.
    pub mode: u32,
}

/// Judges the folder.
pub fn judge(look: &StateLook) -> Vec<Finding> {
    let path = look.path.display();
    let parent = look.path.parent().unwrap_or(&look.path);
    let word = shell_word(&look.path.to_string_lossy());
    let open = |stat: Stat| stat.mode & 0o022 != 0 && stat.mode & 0o1000 == 0;
    let parent_word = shell_word(&parent.to_string_lossy());
    let remedy = match look.parent {
        Some(stat) if !look.owners.contains(&stat.owner) => {
            Some(format!("chown root {parent_word}"))
        }
        Some(stat) if open(stat) => Some(format!("chmod 1777 {parent_word}")),
        Some(stat) if stat.folder => None,
        _ => Some(format!("mkdir -m 1777 {parent_word}")),
    };
    if let Some(remedy) = remedy {
        let what = "others can rename what is in it, or it is no folder; state is kept in \
                    /run/hotplugger meanwhile";
        return vec![Finding::warning("tmp-unsafe", parent.display(), what).run(remedy)];
    }
    let unsafe_because = match look.folder {
        None => {
            return vec![Finding::ok("state-safe", path, "not there yet, made on the first plug")];
        }
        Some(stat) if !stat.folder => Some("it is no folder".to_owned()),
        Some(stat) if !look.owners.contains(&stat.owner) => {
            Some(format!("it belongs to user {}", stat.owner))
        }
        Some(stat) if stat.mode & 0o077 != 0 => {
            Some(format!("others can look into it (mode {:o})", stat.mode))
        }
        Some(_) => None,
    };
    if let Some(why) = unsafe_because {
        let what = format!("{why}, so state is kept in /run/hotplugger meanwhile");
        return vec![Finding::warning("state-unsafe", path, what).run(format!("rm -r {word}"))];
    }
    let mut findings = vec![Finding::ok("state-safe", path, "only root can use it")];
    let left = leftovers(look);
    if !left.is_empty() {
        let words: Vec<String> =
            left.iter().map(|name| shell_word(&look.path.join(name).to_string_lossy())).collect();
        let what = format!("{} of devices that are gone: harmless", several(left.len(), "file"));
        let path = look.path.display();
        findings.push(
            Finding::note("state-leftovers", path, what).run(format!("rm {}", words.join(" "))),
        );
    }
    findings
}

/// Records of ports that are empty now, and what a write that was cut off left.
fn leftovers(look: &StateLook) -> Vec<&str> {
    let left = |name: &str| {
        let record = name.strip_prefix("port-");
        let port = record.and_then(|name| name.strip_suffix(".json"));
        match port.and_then(|port| port.parse::<Port>().ok()) {
            Some(port) => !look.plugged.contains(&port),
            None => record.is_some_and(|name| name.ends_with(".json.new")),
        }
    };
    let names = look.files.iter().flatten().map(String::as_str);
    names.filter(|name| left(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(parent: u32, folder: Option<(bool, u32, u32)>, files: &[&str]) -> StateLook {
        StateLook {
            path: "/tmp/hotplugger".into(),
            parent: Some(Stat { folder: true, owner: 0, mode: parent }),
            folder: folder.map(|(folder, owner, mode)| Stat { folder, owner, mode }),
            files: Some(files.iter().map(|name| (*name).to_owned()).collect()),
            plugged: vec!["1-1".parse().unwrap()],
            owners: vec![0],
        }
    }

    fn codes(look: &StateLook) -> Vec<&'static str> {
        judge(look).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_the_program_would_not_use_is_told() {
        assert_eq!(codes(&look(0o1777, None, &[])), ["state-safe"]);
        assert_eq!(codes(&look(0o1777, Some((true, 0, 0o700)), &[])), ["state-safe"]);
        assert_eq!(codes(&look(0o777, None, &[])), ["tmp-unsafe"]);
        for folder in [(false, 0, 0o777), (true, 7, 0o700), (true, 0, 0o750)] {
            assert_eq!(codes(&look(0o1777, Some(folder), &[])), ["state-unsafe"]);
        }
    }

    #[test]
    fn leftovers_are_records_of_empty_ports() {
        let files = ["port-1-1.json", "port-1-2.json", "port-1-1.json.new", "qmp-1.lock", "x"];
        let look = look(0o1777, Some((true, 0, 0o700)), &files);
        assert_eq!(leftovers(&look), ["port-1-2.json", "port-1-1.json.new"]);
        assert_eq!(codes(&look), ["state-safe", "state-leftovers"]);
    }
}
