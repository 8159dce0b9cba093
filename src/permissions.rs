//! Who can change a file: the file itself, and every folder on the way to it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::text::shell_word;

/// A file or folder that others can change, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionIssue {
    /// The file or folder.
    pub path: PathBuf,
    /// What lets others in.
    pub door: PermissionKind,
}

/// What lets others change a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionKind {
    /// It belongs to this user.
    Owner(u32),
    /// Its mode lets a group or everybody write.
    Mode(u32),
}

const STICKY: u32 = 0o1000;

/// The weakness of one file or folder. In a directory with the sticky bit no user can replace files that
/// belong to another.
pub fn weakness(metadata: &Metadata, path: &Path, owners: &[u32]) -> Option<PermissionIssue> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let door = if !owners.contains(&owner) {
        PermissionKind::Owner(owner)
    } else if mode & 0o022 != 0 && !(metadata.is_dir() && mode & STICKY != 0) {
        PermissionKind::Mode(mode & 0o7777)
    } else {
        return None;
    };
    Some(PermissionIssue { path: path.to_path_buf(), door })
}

/// The first weakness of a file, or of the folders on the way to it, links followed.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
pub fn weakness_on_the_way(path: &Path, owners: &[u32]) -> io::Result<Option<PermissionIssue>> {
    let real = path.canonicalize()?;
    match weakness(&fs::metadata(&real)?, &real, owners) {
        None => weakness_of_folders(path, owners),
        found => Ok(found),
    }
}

/// The first weakness of the folders on the way to a file.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
pub fn weakness_of_folders(path: &Path, owners: &[u32]) -> io::Result<Option<PermissionIssue>> {
    open_folder(path, owners, true)
}

/// The same; unless `sticky_is_safe`, a folder in which others can make new files counts as well,
/// though they cannot delete the existing ones.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
pub fn open_folder(
    path: &Path,
    owners: &[u32],
    sticky_is_safe: bool,
) -> io::Result<Option<PermissionIssue>> {
    let real = path.canonicalize()?;
    // A link stands in a folder of its own.
    for folder in real.ancestors().skip(1).chain(path.parent()) {
        if folder.as_os_str().is_empty() {
            continue;
        }
        let metadata = fs::metadata(folder)?;
        let found = weakness(&metadata, folder, owners).or_else(|| {
            let open = !sticky_is_safe && metadata.mode() & 0o022 != 0;
            let door = PermissionKind::Mode(metadata.mode() & 0o7777);
            open.then(|| PermissionIssue { path: folder.to_path_buf(), door })
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
        match self.door {
            PermissionKind::Owner(_) => format!("chown root {path}"),
            PermissionKind::Mode(_) => format!("chmod go-w {path}"),
        }
    }
}
