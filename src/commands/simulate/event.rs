//! Events to play: from sysfs, from a recording, from the environment.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::event::uevent::Uevent;
use crate::host::dry_run::DryRun;
use crate::host::sysfs::UsbDevice;
use crate::host::topology::read::devpath_of;
use crate::port::{BusNum, DevNum, Port};
use crate::root::Root;
use crate::text::sanitize;

/// The variables of one uevent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event(BTreeMap<String, String>);

/// A recording is not larger.
const MAX_BYTES: u64 = 16 << 20;

impl Event {
    /// The event in this process' environment.
    pub fn of_environment() -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self(env::vars_os().map(|(name, value)| (text(name), text(value))).collect())
    }

    /// The event that the kernel would send for the device at `target`, a path below /sys or a
    /// port's name.
    pub fn of_sysfs(root: &Root, target: &Path, action: &str) -> Result<Self> {
        let port = target.to_str().and_then(|name| name.parse::<Port>().ok());
        let path = match port {
            Some(port) => root.path(format!("/sys/bus/usb/devices/{port}")),
            None => root.path(target),
        };
        let shown = target.display();
        let Some(devpath) = devpath_of(&root.path("/sys"), &path) else {
            bail!("{shown}: nothing is plugged there, or it is no path below /sys");
        };
        let uevent = fs::read_to_string(path.join("uevent"))
            .with_context(|| format!("{shown}: no device, it has no `uevent` file"))?;
        let mut variables = variables(&uevent);
        for (name, value) in [
            ("ACTION", action),
            ("DEVPATH", devpath.as_str()),
            ("SUBSYSTEM", "usb"),
            ("SEQNUM", "0"),
        ] {
            variables.insert(name.to_owned(), value.to_owned());
        }
        Ok(Self(variables))
    }

    /// A variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// ACTION.
    pub fn action(&self) -> &str {
        self.get("ACTION").unwrap_or_default()
    }

    /// All variables.
    pub fn variables(&self) -> Vec<(String, String)> {
        self.0.clone().into_iter().collect()
    }

    /// Lets the rehearsal suppose that the event's device is plugged, or pulled.
    pub fn suppose(&self, rehearsal: &DryRun<'_>) {
        let Ok(uevent) = Uevent::from_variables(|name| self.get(name).map(str::to_owned)) else {
            return;
        };
        if self.get("DEVTYPE") != Some("usb_device") {
            return;
        }
        if self.action() == "remove" {
            let id = uevent.devpath.port().zip(uevent.devnum);
            let id = id.map(|(port, devnum)| DeviceId { port, devnum });
            rehearsal.without_device(&uevent.devpath, id);
        } else if let Some(device) = self.device(&uevent) {
            rehearsal.with_device(&uevent.devpath, device);
        }
    }

    /// What the event says of its device; the rest is as with most devices.
    fn device(&self, uevent: &Uevent) -> Option<UsbDevice> {
        let mut ids = self.get("PRODUCT").unwrap_or_default().split('/');
        let mut id = || ids.next().and_then(|id| u16::from_str_radix(id, 16).ok()).unwrap_or(0);
        Some(UsbDevice {
            busnum: uevent.busnum.unwrap_or(BusNum(uevent.devpath.port()?.bus().0)),
            devnum: uevent.devnum.unwrap_or(DevNum(0)),
            class: uevent.class.unwrap_or(0),
            authorized: true,
            vendor_id: id(),
            product_id: id(),
            speed: None,
            product: self.get("ID_MODEL").map(|model| sanitize(&model.replace('_', " "), 64)),
            serial: self.get("ID_SERIAL_SHORT").map(str::to_owned),
        })
    }
}

/// The events in a file: blocks of `NAME=VALUE` lines with blank lines between them, as
/// `udevadm monitor -p` prints them, or one such block. The kernel's events, if it has any: udev's
/// tell the same once more.
pub fn recorded(file: &Path) -> Result<Vec<Event>> {
    let shown = file.display();
    let size = fs::metadata(file).with_context(|| format!("{shown}"))?.len();
    if size > MAX_BYTES {
        bail!("{shown}: larger than 16 MiB, this is no recording of uevents");
    }
    let text = fs::read(file).with_context(|| format!("{shown}"))?;
    let events = blocks(&String::from_utf8_lossy(&text));
    if events.is_empty() {
        bail!(
            "{shown}: no event with ACTION and DEVPATH in it; record with `udevadm monitor -k -p`"
        );
    }
    Ok(events)
}

fn blocks(text: &str) -> Vec<Event> {
    let text = text.replace("\r\n", "\n");
    let kernel = text.contains("\nKERNEL[") || text.starts_with("KERNEL[");
    text.split("\n\n")
        .filter(|block| !kernel || block.trim_start().starts_with("KERNEL["))
        .map(|block| Event(variables(block)))
        .filter(|event| {
            event.get("ACTION").is_some()
                && event.get("DEVPATH").is_some_and(|path| path.parse::<DevPath>().is_ok())
        })
        .collect()
}

fn variables(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let named = pairs.filter(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MONITOR: &str = "monitor will print the received events for:\nUDEV - the event which udev \
        sends out after rule processing\nKERNEL - the kernel uevent\n\nKERNEL[300.565910] add      \
        /devices/x/usb1/1-3 (usb)\nACTION=add\nDEVPATH=/devices/x/usb1/1-3\nSUBSYSTEM=usb\n\nUDEV  \
        [300.6] add      /devices/x/usb1/1-3 (usb)\nACTION=add\nDEVPATH=/devices/x/usb1/1-3\nA=b=c\n\n";

    #[test]
    fn the_kernels_events_are_played_and_udevs_only_without_them() {
        let events = blocks(MONITOR);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].get("SUBSYSTEM"), Some("usb"));
        let events = blocks(&MONITOR[MONITOR.find("UDEV  [").unwrap()..]);
        assert_eq!(events[0].get("A"), Some("b=c"));
        assert_eq!(blocks("ACTION=add\nDEVPATH=/devices/x\n").len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(ACTION=|DEVPATH=|/devices/|KERNEL\\[|\n|=|\\PC){0,40}") {
            blocks(&text);
        }
    }
}
