//! Uevents: the kernel's messages about a device, from udev's environment or a netlink packet.
//!
//! Pure. The meaning of a uevent for a port is [`UsbEvent`]; the reaction to it is `plan`'s
//! matter.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::clock::Monotonic;
use crate::devpath::{DevPath, DevPathError, is_root_hub};
use crate::port::{BusNum, DevNum, Port};
use crate::usb_device::CLASS_HUB;

/// One uevent, as far as hotplugger reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    pub action: Action,
    pub devpath: DevPath,
    pub subsystem: String,
    /// In the subsystem `usb`: `usb_device` or `usb_interface`.
    pub devtype: String,
    /// The device class, the first number of TYPE; 9 is a hub. Absent outside USB.
    pub class: Option<u8>,
    /// Only `usb_device` events have it.
    pub busnum: Option<BusNum>,
    /// Only `usb_device` events have it. The number 0 of a device in reset counts as none.
    pub devnum: Option<DevNum>,
    /// Unique, increasing over all events since boot. Absent when simulated by hand.
    pub seqnum: Option<u64>,
    /// Whether user space triggered the event (`udevadm trigger`): the kernel marks those with
    /// SYNTH_UUID (`lib/kobject_uevent.c`: `kobject_synth_uevent`).
    pub synthetic: bool,
    /// `USEC_INITIALIZED`, when udev first saw the device. The kernel's own events do not have it.
    pub initialized_at: Option<Monotonic>,
}

/// The kernel's `enum kobject_action` (`include/linux/kobject.h`), as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Add,
    Remove,
    /// A driver was bound; for a `usb_device` the last event of a plug (kernel 4.14 and later).
    Bind,
    /// Never acted on.
    Unbind,
    /// `change`, `move`, `online`, `offline` and future ones. Never acted on.
    Other,
}

/// A uevent that may concern a port: of a USB device that is not a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbEvent {
    pub kind: EventKind,
    /// The DEVPATH of the `usb_device`, also when the event is of one of its interfaces.
    pub device: DevPath,
    pub port: Port,
    pub devnum: Option<DevNum>,
    pub seqnum: Option<u64>,
    pub synthetic: bool,
    /// When udev first saw the device. `None` in events of interfaces.
    pub initialized_at: Option<Monotonic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    DeviceAdd,
    InterfaceAdd,
    DeviceBind,
    DeviceRemove,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UeventError {
    #[error("{0} is not in the environment")]
    Missing(&'static str),
    #[error("DEVPATH {0}")]
    DevPath(DevPathError),
    #[error("{0} is not a number the kernel writes")]
    Value(&'static str),
}

impl Uevent {
    /// Reads a uevent. `get` returns its variables, from the environment or from a packet.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, UeventError> {
        let action = get("ACTION").ok_or(UeventError::Missing("ACTION"))?;
        let devpath = get("DEVPATH").ok_or(UeventError::Missing("DEVPATH"))?;
        let initialized = get("USEC_INITIALIZED").and_then(|usec| usec.parse().ok());
        Ok(Self {
            action: Action::from_name(&action),
            devpath: devpath.parse().map_err(UeventError::DevPath)?,
            subsystem: get("SUBSYSTEM").unwrap_or_default(),
            devtype: get("DEVTYPE").unwrap_or_default(),
            class: get("TYPE").and_then(|kind| kind.split('/').next()?.parse().ok()),
            busnum: number(&get, "BUSNUM")?.map(BusNum),
            devnum: number(&get, "DEVNUM")?.filter(|devnum| *devnum != 0).map(DevNum),
            seqnum: number(&get, "SEQNUM")?,
            synthetic: get("SYNTH_UUID").is_some(),
            initialized_at: initialized.map(Monotonic),
        })
    }

    /// Reads a packet of the multicast group of uevents: `ACTION@DEVPATH` and the variables,
    /// each ended by NUL (`lib/kobject_uevent.c`: `kobject_uevent_env`).
    ///
    /// `None` for a packet of another form.
    pub fn from_packet(packet: &[u8]) -> Option<Self> {
        let mut variables = BTreeMap::new();
        for entry in packet.split(|byte| *byte == 0).skip(1) {
            let Ok(entry) = std::str::from_utf8(entry) else { continue };
            if let Some((name, value)) = entry.split_once('=') {
                variables.insert(name, value);
            }
        }
        Self::from_variables(|name| variables.get(name).map(|value| (*value).to_owned())).ok()
    }

    /// The meaning of this uevent for a port. `None` if it has no meaning for any port: another
    /// subsystem or action, a hub, a root hub.
    pub fn usb(&self) -> Option<UsbEvent> {
        if self.subsystem != "usb" || self.class == Some(CLASS_HUB) {
            return None;
        }
        let (kind, device) = match (self.devtype.as_str(), self.action) {
            ("usb_device", Action::Add) => (EventKind::DeviceAdd, self.devpath.clone()),
            ("usb_device", Action::Bind) => (EventKind::DeviceBind, self.devpath.clone()),
            ("usb_device", Action::Remove) => (EventKind::DeviceRemove, self.devpath.clone()),
            ("usb_interface", Action::Add) => (EventKind::InterfaceAdd, self.devpath.parent()?),
            _ => return None,
        };
        if is_root_hub(device.sysname()) {
            return None;
        }
        let port = device.port()?;
        if self.busnum.is_some_and(|busnum| busnum != port.bus()) {
            return None;
        }
        // udev saw an interface later than its device.
        let initialized_at = self.initialized_at.filter(|_| kind != EventKind::InterfaceAdd);
        let (devnum, seqnum, synthetic) = (self.devnum, self.seqnum, self.synthetic);
        Some(UsbEvent { kind, device, port, devnum, seqnum, synthetic, initialized_at })
    }
}

impl Action {
    pub fn from_name(name: &str) -> Self {
        match name {
            "add" => Self::Add,
            "unbind" => Self::Unbind,
            "remove" => Self::Remove,
            "bind" => Self::Bind,
            _ => Self::Other,
        }
    }
}

/// Reads the decimal variable `name`; BUSNUM and DEVNUM have leading zeros
/// (`drivers/usb/core/usb.c`: `usb_dev_uevent`).
fn number<T: std::str::FromStr>(
    get: impl Fn(&str) -> Option<String>,
    name: &'static str,
) -> Result<Option<T>, UeventError> {
    get(name).map(|text| text.parse().map_err(|_| UeventError::Value(name))).transpose()
}

#[cfg(test)]
mod tests;
