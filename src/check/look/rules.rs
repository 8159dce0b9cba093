//! udev's rules files, in the order in which udev prefers them.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::check::rule::{RulesFile, RulesLook};
use crate::install::UDEVD_RUNS;
use crate::root::Root;

/// udev's folders (udev(7)); `/lib` where it is no link to `/usr/lib`.
const FOLDERS: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];

/// No rules file is larger.
const MAX_BYTES: u64 = 1 << 20;

pub(super) fn look(root: &Root) -> RulesLook {
    let files = FOLDERS.iter().flat_map(|folder| files(&root.path(folder))).collect();
    let control = fs::metadata(root.path(UDEVD_RUNS));
    RulesLook {
        files,
        udevd: control.is_ok_and(|control| control.file_type().is_socket()),
        folder: root.path(FOLDERS[0]),
    }
}

fn files(folder: &Path) -> Vec<RulesFile> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<RulesFile> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rules"))
        .map(|path| RulesFile { text: read(&path).unwrap_or_default(), path })
        .collect();
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

/// The text; none of what is no plain file, such as the /dev/null that masks another.
fn read(path: &Path) -> Option<String> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
