//! The guest as QMP shows it: its USB buses, and the usb-host objects that hotplugger makes there.

pub mod attach;
pub mod bus;
pub mod fake;
pub mod hmp;
pub mod objects;
pub mod ports;

use serde_json::json;

pub use self::attach::attach;
pub use self::objects::detach;
pub use crate::qmp::Qmp;
use crate::qmp::{Error, UsbHostProblem};

/// Makes a modular QEMU load its usb-host module: [`Error::NoUsbHost`] if it cannot. It has no other
/// effect.
pub fn load_usb_host(qmp: &mut dyn Qmp) -> Result<(), Error> {
    match qmp.execute("device-list-properties", json!({ "typename": "usb-host" })) {
        Ok(_) => Ok(()),
        Err(Error::Command { .. }) => Err(Error::NoUsbHost(UsbHostProblem::Missing)),
        Err(error) => Err(error),
    }
}
