//! What a guest has, in terms of QMP: our objects in it, attaching a device, detaching it.
//!
//! Knows QEMU's commands and words, and no socket: everything goes through [`Qmp`].

pub mod attach;
pub mod controller;
pub mod detach;
pub mod object;
pub mod view;

#[cfg(test)]
pub(crate) mod scripted;

pub use crate::qmp::Qmp;
