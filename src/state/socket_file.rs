//! The identity of the file at a socket's path. A QEMU that is started again creates another file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::root::Root;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    pub inode: u64,
    /// When it was created, in nanoseconds since 1970. No process writes to a socket's file.
    pub made: i64,
}

impl SocketFile {
    pub fn at(root: &Root, socket: &Path) -> Option<Self> {
        let file = root.path(socket).metadata().ok()?;
        let made = file.mtime().saturating_mul(1_000_000_000).saturating_add(file.mtime_nsec());
        Some(Self { inode: file.ino(), made })
    }
}
