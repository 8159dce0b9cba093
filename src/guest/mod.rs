//! What a guest has, in terms of QMP: our objects in it, attaching a device, detaching it.
//!
//! Knows QEMU's commands and words, and no socket: everything goes through [`Qmp`].

pub mod attach;
pub mod bus;
pub mod detach;
pub mod fdset;
pub mod model;
pub mod object;
pub mod refusal;
pub mod seat;
pub mod view;

pub use crate::qmp::Qmp;
