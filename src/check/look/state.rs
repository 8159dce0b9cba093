//! The state folder, without making it or following a link.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::owners;
use crate::check::state::{Stat, StateLook};
use crate::host::topology::Topology;
use crate::root::Root;

pub(super) fn look(root: &Root, topology: &Topology) -> StateLook {
    let path = root.path("/tmp/hotplugger");
    let plugged = topology.ports().into_iter().filter(|port| port.plugged.is_some());
    let folder = stat(&path);
    let is_folder = folder.is_some_and(|stat| stat.folder);
    StateLook {
        parent: path.parent().and_then(|parent| {
            // /tmp itself may well be a link.
            stat(&parent.canonicalize().ok()?)
        }),
        folder,
        files: is_folder.then(|| names(&path)).flatten(),
        plugged: plugged.map(|port| port.port.clone()).collect(),
        owners: owners(root),
        path,
    }
}

fn stat(path: &Path) -> Option<Stat> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let mode = metadata.mode() & 0o7777;
    Some(Stat { folder: metadata.is_dir(), owner: metadata.uid(), mode })
}

fn names(folder: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Some(names)
}
