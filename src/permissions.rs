//! Who can change a file: the file itself, and every directory on the way to it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::text::shell_word;

/// A file or directory that others can change, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionIssue {
    /// The file or directory.
    pub path: PathBuf,
    /// What lets others in.
    pub kind: PermissionKind,
}

/// What lets others change a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionKind {
    /// It belongs to this user.
    Owner(u32),
    /// Its mode lets a group or everybody write.
    Mode(u32),
}

const STICKY: u32 = 0o1000;

/// The issue of one file or directory. In a directory with the sticky bit no user can replace files that
/// belong to another.
pub fn file_issue(metadata: &Metadata, path: &Path, owners: &[u32]) -> Option<PermissionIssue> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let kind = if !owners.contains(&owner) {
        PermissionKind::Owner(owner)
    } else if mode & 0o022 != 0 && !(metadata.is_dir() && mode & STICKY != 0) {
        PermissionKind::Mode(mode & 0o7777)
    } else {
        return None;
    };
    Some(PermissionIssue { path: path.to_path_buf(), kind })
}

/// The first issue of a file, or of the directories on the way to it, links followed.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
pub fn path_issue(path: &Path, owners: &[u32]) -> io::Result<Option<PermissionIssue>> {
    let real = path.canonicalize()?;
    match file_issue(&fs::metadata(&real)?, &real, owners) {
        None => directories_issue(path, owners),
        found => Ok(found),
    }
}

/// The first issue of the directories on the way to a file.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
pub fn directories_issue(path: &Path, owners: &[u32]) -> io::Result<Option<PermissionIssue>> {
    directory_issue(path, owners, true)
}

/// The same; unless `sticky_is_safe`, a directory in which others can make new files counts as well,
/// though they cannot delete the existing ones.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
pub fn directory_issue(
    path: &Path,
    owners: &[u32],
    sticky_is_safe: bool,
) -> io::Result<Option<PermissionIssue>> {
    let real = path.canonicalize()?;
    // A link stands in a directory of its own.
    for directory in real.ancestors().skip(1).chain(path.parent()) {
        if directory.as_os_str().is_empty() {
            continue;
        }
        let metadata = fs::metadata(directory)?;
        let found = file_issue(&metadata, directory, owners).or_else(|| {
            let open = !sticky_is_safe && metadata.mode() & 0o022 != 0;
            let kind = PermissionKind::Mode(metadata.mode() & 0o7777);
            open.then(|| PermissionIssue { path: directory.to_path_buf(), kind })
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

impl PermissionIssue {
    /// The command that closes it.
    pub fn remedy(&self) -> String {
        let path = shell_word(&self.path.to_string_lossy());
        match self.kind {
            PermissionKind::Owner(_) => format!("chown root {path}"),
            PermissionKind::Mode(_) => format!("chmod go-w {path}"),
        }
    }
}
