//! hotplugger passes a USB port of a Linux host through to a QEMU guest.
//!
//! The program is a one-shot that udev runs on each event of a USB device. [`hook`] takes the
//! event from udev's environment, [`plan`] decides, [`guest`] does it over [`qmp`], [`state`]
//! remembers, [`outcome`] is the line about it. See ARCHITECTURE.md for the map.

pub mod check;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod deadline;
pub mod device_id;
pub mod devpath;
pub mod drivers;
pub mod guest;
pub mod hook;
pub mod host;
pub mod in_use;
pub mod journal;
pub mod libvirt;
pub mod location;
pub mod netlink;
pub mod node;
pub mod outcome;
pub mod output;
pub mod passwd;
pub mod pieces;
pub mod plan;
pub mod port;
pub mod qmp;
pub mod root;
pub mod settle;
pub mod speed;
pub mod state;
pub mod sync;
pub mod sysfs;
pub mod text;
pub mod topology;
pub mod transfer;
pub mod trust;
pub mod uevent;
