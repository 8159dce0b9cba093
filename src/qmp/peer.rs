//! The peer process: the process at the other end of the QMP socket.
//!
//! Other users may be able to replace the socket. A device's file descriptor is therefore passed only
//! to the user that the config names.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::permissions::{self, PermissionIssue, PermissionKind};

/// Which peer may receive a file descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerPolicy {
    /// The user that must listen at the socket; `None` for the owner of the socket file.
    pub uid: Option<u32>,
    /// Whether the socket's directory may be writable by other users.
    pub trust_directory: bool,
}

/// Why a peer may not receive a file descriptor.
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
        "{}, so another user could replace the socket; move the socket, or write \
         `trust_socket_directory: true` into the config",
        describe(.0)
    )]
    UnsafeDirectory(PermissionIssue),
}

fn describe(PermissionIssue { path, kind }: &PermissionIssue) -> String {
    let path = path.display();
    match kind {
        PermissionKind::Owner(owner) => format!("{path} belongs to user {owner}"),
        PermissionKind::Mode(mode) => format!("others can write to {path} (mode {mode:o})"),
    }
}

impl PeerPolicy {
    /// Checks the peer that listens at `socket` as the user `actual`.
    ///
    /// It must be the expected user, or root, which can open any device by itself. Only these two may
    /// be able to replace the socket. If the config names no user, the socket's owner is expected,
    /// and a directory with a sticky bit is unsafe, because everybody can create the socket there.
    pub fn check(&self, socket: &Path, actual: u32) -> Result<(), PeerError> {
        let expected = match self.uid {
            Some(uid) => uid,
            None => fs::metadata(socket)?.uid(),
        };
        if actual != expected && actual != 0 {
            return Err(PeerError::WrongUser { actual, expected });
        }
        if self.trust_directory {
            return Ok(());
        }
        let sticky_is_safe = self.uid.is_some();
        match permissions::directory_issue(socket, &[0, expected], sticky_is_safe)? {
            Some(issue) => Err(PeerError::UnsafeDirectory(issue)),
            None => Ok(()),
        }
    }
}
