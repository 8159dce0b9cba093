//! What is fuzzed: everything that comes from outside, one function for each kind of input.
//!
//! Each takes any bytes and must come to an end without a panic; what else has to hold is asserted.
//! `cargo fuzz` finds inputs, and the corpus that it found is run as ordinary tests.

pub mod arguments;
pub mod check;
pub mod config;
pub mod descriptors;
pub mod environment;
mod host;
pub mod monitor;
pub mod names;
pub mod packet;
pub mod qmp;
mod script;
pub mod state;
pub mod sysfs;
pub mod usbhost;

/// What takes an input.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 12] = [
    ("environment", environment::run),
    ("packet", packet::run),
    ("config", config::run),
    ("state", state::run),
    ("qmp", qmp::run),
    ("usbhost", usbhost::run),
    ("monitor", monitor::run),
    ("sysfs", sysfs::run),
    ("arguments", arguments::run),
    ("names", names::run),
    ("descriptors", descriptors::run),
    ("check", check::run),
];
