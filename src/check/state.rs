//! The state directory: whether it can be used, and its files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::{Finding, plural};
use super::trusted_owners;
use crate::devpath::DevPath;
use crate::host::topology::Topology;
use crate::port::Port;
use crate::root::Root;
use crate::state::kept;
use crate::text::shell_word;

#[derive(Debug, Default)]
pub struct StateFacts {
    /// `/tmp/hotplugger`, below the root.
    pub path: PathBuf,
    /// `/tmp`.
    pub parent: Option<Stat>,
    /// `/tmp/hotplugger` itself, links not followed.
    pub directory: Option<Stat>,
    /// The files in it; `None` if they cannot be listed.
    pub files: Option<Vec<String>>,
    pub plugged: Vec<Port>,
    /// The ports that a person keeps with the host.
    pub kept: Vec<DevPath>,
    pub owners: Vec<u32>,
}

/// What lstat(2) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Whether it is a directory, and not a link to one.
    pub is_directory: bool,
    pub owner: u32,
    pub mode: u32,
}

pub fn check(facts: &StateFacts) -> Vec<Finding> {
    let path = facts.path.display();
    let parent = facts.path.parent().unwrap_or(&facts.path);
    let word = shell_word(&facts.path.to_string_lossy());
    let open = |stat: Stat| stat.mode & 0o022 != 0 && stat.mode & 0o1000 == 0;
    let parent_word = shell_word(&parent.to_string_lossy());
    let remedy = match facts.parent {
        Some(stat) if !facts.owners.contains(&stat.owner) => {
            Some(format!("chown root {parent_word}"))
        }
        Some(stat) if open(stat) => Some(format!("chmod 1777 {parent_word}")),
        Some(stat) if stat.is_directory => None,
        _ => Some(format!("mkdir -m 1777 {parent_word}")),
    };
    if let Some(remedy) = remedy {
        let what = "other users can rename the files in it, or it is not a directory; until this is fixed, \
                    state is kept in /run/hotplugger";
        return vec![Finding::warning("tmp-unsafe", parent.display(), what).run(remedy)];
    }
    let unsafe_because = match facts.directory {
        None => {
            return vec![Finding::ok("state-safe", path, "created on the first plug")];
        }
        Some(stat) if !stat.is_directory => Some("it is not a directory".to_owned()),
        Some(stat) if !facts.owners.contains(&stat.owner) => {
            Some(format!("it belongs to user {}", stat.owner))
        }
        Some(stat) if stat.mode & 0o077 != 0 => {
            Some(format!("other users can read it (mode {:o})", stat.mode))
        }
        Some(_) => None,
    };
    if let Some(why) = unsafe_because {
        let what = format!("{why}; until this is fixed, state is kept in /run/hotplugger");
        return vec![Finding::warning("state-unsafe", path, what).run(format!("rm -r {word}"))];
    }
    let mut findings = vec![Finding::ok("state-safe", path, "only root can use it")];
    let left = leftovers(facts);
    if !left.is_empty() {
        let words: Vec<String> =
            left.iter().map(|name| shell_word(&facts.path.join(name).to_string_lossy())).collect();
        let what = format!("{} of unplugged devices; they do no harm", plural(left.len(), "file"));
        let path = facts.path.display();
        findings.push(
            Finding::note("state-leftovers", path, what).run(format!("rm {}", words.join(" "))),
        );
    }
    findings.extend(facts.kept.iter().map(|port| {
        let what = "a person keeps the port with the host, whatever is plugged into it";
        Finding::note("port-kept", port, what).run(format!("hotplugger attach {}", port.sysname()))
    }));
    findings
}

/// Records of empty ports, and temporary files of an interrupted write.
fn leftovers(facts: &StateFacts) -> Vec<&str> {
    let left = |name: &str| {
        let record = name.strip_prefix("port-");
        let port = record.and_then(|name| name.strip_suffix(".json"));
        match port.and_then(|port| port.parse::<Port>().ok()) {
            Some(port) => !facts.plugged.contains(&port),
            None => record.is_some_and(|name| name.ends_with(".json.new")),
        }
    };
    let names = facts.files.iter().flatten().map(String::as_str);
    names.filter(|name| left(name)).collect()
}

pub fn gather(root: &Root, topology: &Topology) -> StateFacts {
    let path = root.path("/tmp/hotplugger");
    let plugged = topology.ports().into_iter().filter(|port| port.plugged.is_some());
    let directory = stat(&path);
    let is_directory = directory.is_some_and(|stat| stat.is_directory);
    StateFacts {
        parent: path.parent().and_then(|parent| {
            // /tmp itself may be a link.
            stat(&parent.canonicalize().ok()?)
        }),
        directory,
        files: is_directory.then(|| names(&path)).flatten(),
        plugged: plugged.map(|port| port.port.clone()).collect(),
        kept: kept::read_unlocked(root),
        owners: trusted_owners(root),
        path,
    }
}

fn stat(path: &Path) -> Option<Stat> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let mode = metadata.mode() & 0o7777;
    Some(Stat { is_directory: metadata.is_dir(), owner: metadata.uid(), mode })
}

fn names(directory: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Some(names)
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;

    fn facts(parent: u32, directory: Option<(bool, u32, u32)>, files: &[&str]) -> StateFacts {
        StateFacts {
            path: "/tmp/hotplugger".into(),
            parent: Some(Stat { is_directory: true, owner: 0, mode: parent }),
            directory: directory.map(|(is_directory, owner, mode)| Stat {
                is_directory,
                owner,
                mode,
            }),
            files: Some(files.iter().map(|name| (*name).to_owned()).collect()),
            plugged: vec!["1-1".parse().unwrap()],
            kept: Vec::new(),
            owners: vec![0],
        }
    }

    fn codes(facts: &StateFacts) -> Vec<&'static str> {
        check(facts).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn unsafe_directory_is_reported() {
        assert_eq!(codes(&facts(0o1777, None, &[])), ["state-safe"]);
        assert_eq!(codes(&facts(0o1777, Some((true, 0, 0o700)), &[])), ["state-safe"]);
        assert_eq!(codes(&facts(0o777, None, &[])), ["tmp-unsafe"]);
        for directory in [(false, 0, 0o777), (true, 7, 0o700), (true, 0, 0o750)] {
            assert_eq!(codes(&facts(0o1777, Some(directory), &[])), ["state-unsafe"]);
        }
    }

    #[test]
    fn leftovers_are_records_of_empty_ports() {
        let files = ["port-1-1.json", "port-1-2.json", "port-1-1.json.new", "qmp-1.lock", "x"];
        let facts = facts(0o1777, Some((true, 0, 0o700)), &files);
        assert_eq!(leftovers(&facts), ["port-1-2.json", "port-1-1.json.new"]);
        assert_eq!(codes(&facts), ["state-safe", "state-leftovers"]);
    }
}
