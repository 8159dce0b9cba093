//! The state directory: whether it can be used, and its files.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::{Finding, plural};
use super::trusted_owners;
use crate::host::topology::Topology;
use crate::port::Port;
use crate::root::Root;
use crate::state::kept;
use crate::text::shell_word;

pub fn directory(root: &Root) -> PathBuf {
    root.path("/tmp/hotplugger")
}

/// Whether only root can list its files.
pub fn is_hidden(root: &Root) -> bool {
    let path = directory(root);
    path.symlink_metadata().is_ok_and(|directory| directory.is_dir()) && fs::read_dir(path).is_err()
}

pub fn check(root: &Root, topology: &Topology) -> Vec<Finding> {
    let (parent, path) = (root.path("/tmp"), directory(root));
    let owners = trusted_owners(root);
    let word = |path: &Path| shell_word(&path.to_string_lossy());
    // /tmp itself may be a link.
    let remedy = match fs::metadata(&parent) {
        Ok(tmp) if !owners.contains(&tmp.uid()) => Some(format!("chown root {}", word(&parent))),
        Ok(tmp) if tmp.mode() & 0o022 != 0 && tmp.mode() & 0o1000 == 0 => {
            Some(format!("chmod 1777 {}", word(&parent)))
        }
        Ok(tmp) if tmp.is_dir() => None,
        _ => Some(format!("mkdir -m 1777 {}", word(&parent))),
    };
    if let Some(remedy) = remedy {
        let what = "other users can rename the files in it, or it is not a directory; until this is fixed, \
                    state is kept in /run/hotplugger";
        return vec![Finding::warning("tmp-unsafe", parent.display(), what).run(remedy)];
    }
    let Ok(metadata) = path.symlink_metadata() else {
        return vec![Finding::ok("state-safe", path.display(), "created on the first plug")];
    };
    if let Some(why) = unsafe_because(&metadata, &owners) {
        let what = format!("{why}; until this is fixed, state is kept in /run/hotplugger");
        let finding = Finding::warning("state-unsafe", path.display(), what);
        return vec![finding.run(format!("rm -r {}", word(&path)))];
    }
    let mut findings = vec![Finding::ok("state-safe", path.display(), "only root can use it")];
    let plugged = topology.ports().into_iter().filter(|port| port.plugged.is_some());
    let left = leftovers(&path, &plugged.map(|port| &port.port).collect::<Vec<_>>());
    if !left.is_empty() {
        let what = format!("{} of unplugged devices; they do no harm", plural(left.len(), "file"));
        let words: Vec<String> = left.iter().map(|name| word(&path.join(name))).collect();
        findings.push(
            Finding::note("state-leftovers", path.display(), what)
                .run(format!("rm {}", words.join(" "))),
        );
    }
    findings.extend(kept::read_unlocked(root).iter().map(|port| {
        let what = "a person keeps the port with the host, whatever is plugged into it";
        Finding::note("port-kept", port, what).run(format!("hotplugger attach {}", port.sysname()))
    }));
    findings
}

fn unsafe_because(directory: &Metadata, owners: &[u32]) -> Option<String> {
    let (owner, mode) = (directory.uid(), directory.mode() & 0o7777);
    if !directory.is_dir() {
        Some("it is not a directory".to_owned())
    } else if !owners.contains(&owner) {
        Some(format!("it belongs to user {owner}"))
    } else {
        (mode & 0o077 != 0).then(|| format!("other users can read it (mode {mode:o})"))
    }
}

/// Records of empty ports, and temporary files of an interrupted write.
fn leftovers(directory: &Path, plugged: &[&Port]) -> Vec<String> {
    let is_left = |name: &String| {
        let Some(record) = name.strip_prefix("port-") else { return false };
        match record.strip_suffix(".json").and_then(|port| port.parse::<Port>().ok()) {
            Some(port) => !plugged.contains(&&port),
            None => record.ends_with(".json.new"),
        }
    };
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut left: Vec<String> = names.filter(is_left).collect();
    left.sort();
    left
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        fs::create_dir(root.path("/tmp")).unwrap();
        chmod(&root.path("/tmp"), 0o1777);
        (dir, root)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn codes(root: &Root) -> Vec<&'static str> {
        check(root, &Topology::default()).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn unsafe_directory_is_reported() {
        let (_dir, root) = root();
        let path = directory(&root);
        assert_eq!(codes(&root), ["state-safe"]);
        fs::write(&path, "").unwrap();
        assert_eq!(codes(&root), ["state-unsafe"]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        chmod(&path, 0o750);
        assert_eq!(codes(&root), ["state-unsafe"]);
        chmod(&path, 0o700);
        assert_eq!(codes(&root), ["state-safe"]);
        let metadata = path.metadata().unwrap();
        assert_eq!(unsafe_because(&metadata, &trusted_owners(&root)), None);
        let why = unsafe_because(&metadata, &[metadata.uid() + 1]);
        assert_eq!(why, Some(format!("it belongs to user {}", metadata.uid())));
        chmod(&root.path("/tmp"), 0o777);
        assert_eq!(codes(&root), ["tmp-unsafe"]);
    }

    #[test]
    fn leftovers_are_records_of_empty_ports() {
        let (_dir, root) = root();
        let path = directory(&root);
        fs::create_dir(&path).unwrap();
        chmod(&path, 0o700);
        for name in ["port-1-1.json", "port-1-2.json", "port-1-1.json.new", "qmp-1.lock", "x"] {
            fs::write(path.join(name), "").unwrap();
        }
        let plugged = "1-1".parse().unwrap();
        assert_eq!(leftovers(&path, &[&plugged]), ["port-1-1.json.new", "port-1-2.json"]);
        assert_eq!(codes(&root), ["state-safe", "state-leftovers"]);
    }
}
