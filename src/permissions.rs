//! Who can change a file: the file itself, and every directory on the way to it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};
use std::{fmt, io};

use crate::text::shell_word;

/// A file or directory that others can change, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionIssue {
    pub path: PathBuf,
    pub kind: PermissionKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionKind {
    /// It belongs to this user.
    Owner(u32),
    /// Its mode lets a group or everybody write.
    Mode(u32),
}

const STICKY: u32 = 0o1000;

/// As many as the kernel follows (`include/linux/namei.h`: `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// The issue of one file or directory. In a directory with the sticky bit no user can replace files that
/// belong to another, but everybody can make new ones.
fn file_issue(
    metadata: &Metadata,
    path: &Path,
    owners: &[u32],
    sticky_is_safe: bool,
) -> Option<PermissionIssue> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let is_sticky = metadata.is_dir() && mode & STICKY != 0;
    let kind = if !owners.contains(&owner) {
        PermissionKind::Owner(owner)
    } else if mode & 0o022 != 0 && !(is_sticky && sticky_is_safe) {
        PermissionKind::Mode(mode & 0o7777)
    } else {
        return None;
    };
    Some(PermissionIssue { path: path.to_path_buf(), kind })
}

/// The first issue of a file, or of the directories on the way to it, links followed.
pub fn path_issue(path: &Path, owners: &[u32]) -> io::Result<Option<PermissionIssue>> {
    open_file_issue(path, &fs::metadata(path)?, owners)
}

/// The same for a file that is open and has this metadata.
pub fn open_file_issue(
    path: &Path,
    metadata: &Metadata,
    owners: &[u32],
) -> io::Result<Option<PermissionIssue>> {
    match file_issue(metadata, &path.canonicalize()?, owners, true) {
        None => directory_issue(path, Path::new("/"), owners, true),
        found => Ok(found),
    }
}

/// The first issue of the directories below `top` on the way to a file, and of the links among them.
/// The file need not exist. Unless `sticky_is_safe`, a directory in which others can make new files
/// counts as well, though they cannot delete the existing ones.
pub fn directory_issue(
    path: &Path,
    top: &Path,
    owners: &[u32],
    sticky_is_safe: bool,
) -> io::Result<Option<PermissionIssue>> {
    let mut path = path::absolute(path)?;
    for _ in 0..MAX_LINKS {
        let mut link = None;
        let ancestors: Vec<&Path> = path.ancestors().take_while(|at| at.starts_with(top)).collect();
        for (depth, at) in ancestors.iter().enumerate().rev() {
            let metadata = match fs::symlink_metadata(at) {
                Err(error) if depth == 0 && error.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                metadata => metadata?,
            };
            if metadata.is_symlink() {
                if !owners.contains(&metadata.uid()) {
                    let kind = PermissionKind::Owner(metadata.uid());
                    return Ok(Some(PermissionIssue { path: at.to_path_buf(), kind }));
                }
                link = Some(at.to_path_buf());
                break;
            }
            if depth == 0 {
                return Ok(None);
            }
            let issue = file_issue(&metadata, at, owners, sticky_is_safe);
            if issue.is_some() {
                return Ok(issue);
            }
        }
        // Outside of `top` nothing is checked.
        let Some(link) = link else { return Ok(None) };
        let rest = path.strip_prefix(&link).unwrap_or(Path::new("")).to_path_buf();
        let target = link.parent().unwrap_or(&link).join(fs::read_link(&link)?);
        path =
            path::absolute(if rest.as_os_str().is_empty() { target } else { target.join(rest) })?;
    }
    Err(io::Error::other(format!("{}: too many symbolic links", path.display())))
}

impl PermissionIssue {
    pub fn remedy(&self) -> String {
        let path = shell_word(&self.path.to_string_lossy());
        match self.kind {
            PermissionKind::Owner(_) => format!("chown root {path}"),
            PermissionKind::Mode(_) => format!("chmod go-w {path}"),
        }
    }
}

impl fmt::Display for PermissionIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.kind {
            PermissionKind::Owner(owner) => write!(f, "{path} belongs to user {owner}"),
            PermissionKind::Mode(mode) => write!(f, "others can write to {path} (mode {mode:o})"),
        }
    }
}
