//! What a guest has, in terms of QMP: our objects in it, attaching a device, detaching it.
//!
//! Knows QEMU's commands and words, and no socket: everything goes through [`Qmp`].

pub mod attach;
pub mod bus;
pub mod error;
pub mod fake;
pub mod fdset;
pub mod hmp;
pub mod objects;
pub mod ports;

pub use crate::qmp::Qmp;
