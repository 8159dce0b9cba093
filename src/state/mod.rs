//! What is remembered of a port between the events of its device.
//!
//! All of it is disposable: with the whole folder deleted, devices are still attached and detached
//! rightly. [`dir`] keeps the folder safe, [`lock`] is the waiting, [`record`] is what is
//! written; [`history`] is what was, and [`seat`] where in the guests.

pub mod dir;
pub mod history;
pub mod lock;
pub mod record;
pub mod seat;
