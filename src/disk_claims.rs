//! Exclusive opens of a USB device's disks.

use std::os::fd::OwnedFd;

/// While this lives, nothing on the host can mount or otherwise claim the disks.
#[derive(Debug, Default)]
pub struct DiskClaims {
    /// Closed when they are dropped.
    _files: Vec<OwnedFd>,
}

impl DiskClaims {
    pub fn new(files: Vec<OwnedFd>) -> Self {
        Self { _files: files }
    }
}
