//! hotplugger passes a USB port of a Linux host through to a QEMU guest.
//!
//! The program is a one-shot that udev runs on each event of a USB device. [`hook`] takes the
//! event from udev's environment, [`plan`] decides, [`guest`] does it over [`qmp`], [`state`]
//! remembers, [`outcome`] is the line about it. See ARCHITECTURE.md for the map.

pub mod attach;
pub mod check;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod deadline;
pub mod detach;
pub mod device_id;
pub mod devpath;
pub mod event;
pub mod guest;
pub mod host;
pub mod install;
pub mod journal;
pub mod libvirt;
pub mod location;
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
