//! hotplugger passes a USB port of a Linux host through to a QEMU guest.
//!
//! udev runs the program once for each event of a USB device. [`event`] handles the event,
//! [`attach`] and [`detach`] take a device to a guest and back, [`guest`] knows QEMU's commands,
//! [`qmp`] its protocol, [`state`] the records. docs/developers/architecture.md has
//! the path of one plug.

pub mod attach;
pub mod check;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod detach;
pub mod device_id;
pub mod devpath;
pub mod driver_guard;
pub mod event;
pub mod guest;
pub mod host;
pub mod install;
pub mod journal;
pub mod location;
pub mod monitor;
pub mod outcome;
pub mod output;
pub mod permissions;
pub mod policy;
pub mod port;
pub mod qmp;
pub mod root;
pub mod speed;
pub mod state;
pub mod sync;
pub mod text;
pub mod uevent;
pub mod unconfirmed;
pub mod usb_device;
