//! The peer process: the process at the other end of the QMP socket.
//!
//! Other users may be able to replace the socket, by a link to another VM's socket for example. The
//! socket file, the directories on the way to it and the peer are therefore verified before the
//! first command, and the verified file is the one that is connected to.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, lstat, open};
use rustix::io::Errno;

use crate::permissions::{self, PermissionIssue};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    /// The user that must listen at the socket; `None` for the owner of the socket file.
    pub uid: Option<u32>,
    /// Whether the socket's directory may be writable by other users.
    pub trust_directory: bool,
    /// Only directories below it are checked.
    pub root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Unknown(#[from] io::Error),
    #[error(
        "it runs as user {actual} and must run as user {expected}; if QEMU runs as user {actual}, write \
         `user: {actual}` into the config"
    )]
    WrongUser { actual: u32, expected: u32 },
    #[error(
        "the socket belongs to user {actual} and must belong to user {expected} or to root; if QEMU runs as \
         user {actual}, write `user: {actual}` into the config"
    )]
    WrongOwner { actual: u32, expected: u32 },
    #[error(
        "{} is a symbolic link of user {owner}, who could point it at another VM's socket; write the \
         path of the socket itself into the config",
        path.display()
    )]
    Link { path: PathBuf, owner: u32 },
    #[error(
        "{0}, so another user could replace the socket; move the socket, or write \
         `trust_socket_directory: true` into the config"
    )]
    UnsafeDirectory(PermissionIssue),
}

/// A socket file that was verified. It stays the same file, whatever the path leads to later.
#[derive(Debug)]
pub struct SocketPath {
    file: OwnedFd,
    expected: u32,
    owner: u32,
}

impl PeerPolicy {
    /// Opens the socket file and verifies it: it must belong to the expected user or to root, and
    /// no other user may be able to replace it. If the config names no user, the file's owner is expected.
    ///
    /// Returns the kernel's error if there is no such file, and `None` if it is not a socket.
    pub fn open(&self, socket: &Path) -> Result<Result<Option<SocketPath>, Errno>, PeerError> {
        let (file, stat) = match open_file(socket) {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Ok(Ok(None));
        }
        let owner = stat.st_uid;
        let expected = self.uid.unwrap_or(owner);
        if owner != expected && owner != 0 {
            return Err(PeerError::WrongOwner { actual: owner, expected });
        }
        let link = lstat(socket).map_err(io::Error::from)?;
        if FileType::from_raw_mode(link.st_mode) == FileType::Symlink
            && ![0, expected].contains(&link.st_uid)
        {
            return Err(PeerError::Link { path: socket.to_path_buf(), owner: link.st_uid });
        }
        match self.directory_issue(socket, owner)? {
            Some(issue) => Err(PeerError::UnsafeDirectory(issue)),
            None => Ok(Ok(Some(SocketPath { file, expected, owner }))),
        }
    }

    /// The reason for which another user could replace the socket, which belongs to `owner`. The socket
    /// need not exist.
    ///
    /// If the config names no user, a directory with a sticky bit is unsafe, because everybody can
    /// create the socket there.
    pub fn directory_issue(
        &self,
        socket: &Path,
        owner: u32,
    ) -> io::Result<Option<PermissionIssue>> {
        if self.trust_directory {
            return Ok(None);
        }
        let owners = [0, self.uid.unwrap_or(owner)];
        permissions::directory_issue(socket, &self.root, &owners, self.uid.is_some())
    }
}

fn open_file(socket: &Path) -> Result<(OwnedFd, Stat), Errno> {
    let file = open(socket, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&file)?;
    Ok((file, stat))
}

impl SocketPath {
    /// A path that leads to this file, even if another one has taken its place.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Verifies the user that listens. Root may only listen at a socket of its own: a user could have
    /// connected root's process to the socket.
    pub fn check_peer(&self, uid: u32) -> Result<(), PeerError> {
        if uid == self.expected || (uid == 0 && self.owner == 0) {
            return Ok(());
        }
        Err(PeerError::WrongUser { actual: uid, expected: self.expected })
    }
}
