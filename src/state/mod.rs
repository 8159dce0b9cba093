//! The state of a port between the events of its device.
//!
//! All of it is disposable: with the whole directory deleted, devices are still attached and detached
//! rightly. [`dir`] keeps the directory safe, [`lock`] is the waiting, [`record`] is what is
//! written; [`history`] is what was, [`guest_ports`] where in the guests, [`kept`] what stays with the
//! host, and [`socket_file`] distinguishes a guest from the one before it.

pub mod dir;
pub mod guest_ports;
pub mod history;
pub mod kept;
pub mod lock;
pub mod no_usb_host;
pub mod record;
pub mod socket_file;
