//! What the tests share: a host in a folder, events as udev has them, a real QEMU, a hostile one.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod hostile;
pub(crate) mod proxy;
pub(crate) mod qemu;
pub(crate) mod report;
pub(crate) mod root;
pub(crate) mod scenario;
pub(crate) mod udev;
