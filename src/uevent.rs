//! Uevents: the kernel's messages about a device, from udev's environment or a netlink packet.
//!
//! Pure. The meaning of a uevent for a port is [`UsbEvent`]; the reaction to it is `plan`'s
//! matter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::devpath::{DevPath, DevPathError, is_root_hub};
use crate::port::{BusNum, DevNum, Port};
use crate::usb_device::CLASS_HUB;

/// One uevent, as far as hotplugger reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// The device it happened to.
    pub devpath: DevPath,
    /// The kernel's subsystem, `usb` for all that hotplugger acts on.
    pub subsystem: String,
    /// `usb_device` or `usb_interface`; the kernel's word for other subsystems.
    pub devtype: String,
    /// The device class, the first number of TYPE; 9 is a hub. Absent outside USB.
    pub class: Option<u8>,
    /// BUSNUM; only `usb_device` events have it.
    pub busnum: Option<BusNum>,
    /// DEVNUM; only `usb_device` events have it, and a device in reset has 0, which is none.
    pub devnum: Option<DevNum>,
    /// SEQNUM: unique, increasing over all events since boot. Absent when simulated by hand.
    pub seqnum: Option<u64>,
    /// Whether user space asked for the event (`udevadm trigger`): the kernel marks those with
    /// SYNTH_UUID (`lib/kobject_uevent.c`: `kobject_synth_uevent`).
    pub synthetic: bool,
}

/// The kernel's `enum kobject_action` (`include/linux/kobject.h`), as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The device is there.
    Add,
    /// The device is gone.
    Remove,
    /// A driver has it; for a `usb_device` the last event of a plug (kernel 4.14 and later).
    Bind,
    /// A driver has let it go; never acted on.
    Unbind,
    /// `change`, `move`, `online`, `offline` and what may come: never acted on.
    Other,
}

/// A uevent that may concern a port: of a USB device that is no hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbEvent {
    /// What happened.
    pub kind: EventKind,
    /// The DEVPATH of the `usb_device`, also when the event is of one of its interfaces.
    pub device: DevPath,
    /// The port the device is in.
    pub port: Port,
    /// The device's number, if the event says it.
    pub devnum: Option<DevNum>,
    /// SEQNUM, if the event has one.
    pub seqnum: Option<u64>,
    /// Whether user space asked for the event.
    pub synthetic: bool,
}

/// The events that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// `add` of the `usb_device`.
    DeviceAdd,
    /// `add` of a `usb_interface`.
    InterfaceAdd,
    /// `bind` of the `usb_device`.
    DeviceBind,
    /// `remove` of the `usb_device`.
    DeviceRemove,
}

/// A mistake in a uevent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UeventError {
    /// A variable that every uevent has is not there.
    Missing(&'static str),
    /// DEVPATH is none.
    DevPath(DevPathError),
    /// A variable has a value the kernel does not write.
    Value(&'static str),
}

impl Uevent {
    /// Reads a uevent. `get` returns its variables, from the environment or from a packet.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, UeventError> {
        let action = get("ACTION").ok_or(UeventError::Missing("ACTION"))?;
        let devpath = get("DEVPATH").ok_or(UeventError::Missing("DEVPATH"))?;
        Ok(Self {
            action: Action::from_name(&action),
            devpath: devpath.parse().map_err(UeventError::DevPath)?,
            subsystem: get("SUBSYSTEM").unwrap_or_default(),
            devtype: get("DEVTYPE").unwrap_or_default(),
            class: match get("TYPE") {
                Some(kind) => kind.split('/').next().and_then(|class| class.parse().ok()),
                None => None,
            },
            busnum: number(&get, "BUSNUM")?.map(BusNum),
            devnum: number(&get, "DEVNUM")?.filter(|devnum| *devnum != 0).map(DevNum),
            seqnum: number(&get, "SEQNUM")?,
            synthetic: get("SYNTH_UUID").is_some(),
        })
    }

    /// Reads a packet of the multicast group of uevents: `ACTION@DEVPATH` and the variables,
    /// each ended by NUL (`lib/kobject_uevent.c`: `kobject_uevent_env`).
    ///
    /// None for a packet of another form.
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
        let (devnum, seqnum, synthetic) = (self.devnum, self.seqnum, self.synthetic);
        Some(UsbEvent { kind, device, port, devnum, seqnum, synthetic })
    }
}

impl Action {
    /// The action of that name.
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

/// The variables of a uevent worth keeping: the kernel's own and what udev's `usb_id`, `path_id`
/// and hardware database said. At most 100, each of at most 1024 bytes, so that no environment
/// makes the state file large.
pub fn properties(
    variables: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    const KERNEL: [&str; 14] = [
        "ACTION",
        "BUSNUM",
        "DEVNAME",
        "DEVNUM",
        "DEVPATH",
        "DEVTYPE",
        "DRIVER",
        "MAJOR",
        "MINOR",
        "PRODUCT",
        "SEQNUM",
        "SUBSYSTEM",
        "SYNTH_UUID",
        "TYPE",
    ];
    variables
        .into_iter()
        .filter(|(name, value)| {
            (KERNEL.contains(&name.as_str())
                || name.starts_with("ID_")
                || name == "TAGS"
                || name == "USEC_INITIALIZED")
                && name.len() <= 128
                && value.len() <= 1024
        })
        .take(100)
        .collect()
}

/// Reads the decimal variable `name`; BUSNUM and DEVNUM have leading zeros
/// (`drivers/usb/core/usb.c`: `usb_dev_uevent`).
fn number<T: std::str::FromStr>(
    get: impl Fn(&str) -> Option<String>,
    name: &'static str,
) -> Result<Option<T>, UeventError> {
    get(name).map(|text| text.parse().map_err(|_| UeventError::Value(name))).transpose()
}

impl std::fmt::Display for UeventError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "{name} is not in the environment"),
            Self::DevPath(error) => write!(f, "DEVPATH {error}"),
            Self::Value(name) => write!(f, "{name} is not a number the kernel writes"),
        }
    }
}

impl std::error::Error for UeventError {}

#[cfg(test)]
mod tests;
