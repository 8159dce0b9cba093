//! Who can change a file: the file itself, and every directory on the way to it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};

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

/// As many as the kernel follows (`include/linux/namei.h`: `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

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

/// The first issue of the directories on the way to a file, and of the links among them.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
pub fn directories_issue(path: &Path, owners: &[u32]) -> io::Result<Option<PermissionIssue>> {
    directory_issue(path, Path::new("/"), owners, true)
}

/// The same for the directories below `top`. Unless `sticky_is_safe`, a directory in which others can
/// make new files counts as well, though they cannot delete the existing ones.
///
/// # Errors
///
/// A file or directory on the way cannot be read.
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
            let metadata = fs::symlink_metadata(at)?;
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
            let issue = file_issue(&metadata, at, owners).or_else(|| {
                let is_open = !sticky_is_safe && metadata.mode() & 0o022 != 0;
                let kind = PermissionKind::Mode(metadata.mode() & 0o7777);
                is_open.then(|| PermissionIssue { path: at.to_path_buf(), kind })
            });
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
    /// The command that closes it.
    pub fn remedy(&self) -> String {
        let path = shell_word(&self.path.to_string_lossy());
        match self.kind {
            PermissionKind::Owner(_) => format!("chown root {path}"),
            PermissionKind::Mode(_) => format!("chmod go-w {path}"),
        }
    }
}
