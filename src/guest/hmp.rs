//! HMP, QEMU's monitor for people: `info usbhost` lists the host's devices as QEMU sees them, `info
//! usb` the guest's devices.
//!
//! Both are text with product names, which devices choose and which may contain line ends. The text
//! is used only where it agrees with sysfs. HMP adds details; attaching works without it.

use serde_json::{Value, json};

use crate::device_id::DeviceId;
use crate::port::{DevNum, Port};
use crate::qmp::{Error, Qmp};
use crate::speed::Speed;
use crate::text::sanitize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    pub port: Port,
    pub devnum: DevNum,
    /// Whether QEMU could read its name. QEMU must open the device for that.
    pub has_name: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDeviceInfo {
    /// The guest's port, such as `2`, or `4.1` behind QEMU's own hub.
    pub port: Option<String>,
    pub speed: Option<Speed>,
    pub product: Option<String>,
}

/// Returns the host's devices as QEMU sees them, or `None` if QEMU refuses HMP.
///
/// The command is part of the usb-host module, so the module must be loaded.
pub fn host_devices(qmp: &mut dyn Qmp) -> Result<Option<Vec<HostDevice>>, Error> {
    super::load_usb_host(qmp)?;
    Ok(run(qmp, "info usbhost")?.map(|text| parse_info_usbhost(&text)))
}

/// Returns the details of our object that QEMU shows.
pub fn guest_device(qmp: &mut dyn Qmp, id: &DeviceId) -> Result<GuestDeviceInfo, Error> {
    Ok(run(qmp, "info usb")?.map(|text| parse_info_usb(&text, id)).unwrap_or_default())
}

/// Runs an HMP command, or returns `None` if QEMU refuses it. No text from outside becomes part of
/// one.
pub(super) fn run(qmp: &mut dyn Qmp, command: &'static str) -> Result<Option<String>, Error> {
    match qmp.execute("human-monitor-command", json!({ "command-line": command })) {
        Ok(Value::String(text)) => Ok(Some(text)),
        Ok(_) => Err(Error::Protocol(format!("the reply to {command} is not text"))),
        Err(Error::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads `  Bus 1, Addr 5, Port 1.4.2, Speed 12 Mb/s` and the line after it
/// (`hw/usb/host-libusb.c`: `hmp_info_usbhost`).
fn parse_info_usbhost(text: &str) -> Vec<HostDevice> {
    let mut devices: Vec<HostDevice> = Vec::new();
    for line in text.lines() {
        let line = line.trim_end_matches('\r');
        if let Some(device) = host_device(line) {
            devices.push(device);
        } else if line.starts_with("    Class ")
            && let Some(device) = devices.last_mut()
        {
            device.has_name =
                line.split_once(": USB device ").is_some_and(|(_, rest)| rest.contains(", "));
        }
    }
    devices
}

fn host_device(line: &str) -> Option<HostDevice> {
    let (bus, rest) = line.strip_prefix("  Bus ")?.split_once(", Addr ")?;
    let (addr, rest) = rest.split_once(", Port ")?;
    let (chain, speed) = rest.split_once(", Speed ")?;
    speed.strip_suffix(" Mb/s")?;
    Some(HostDevice {
        port: format!("{bus}-{chain}").parse().ok()?,
        devnum: DevNum(addr.parse().ok()?),
        has_name: false,
    })
}

/// Reads the line `  Device 0.1, Port 2, Speed 480 Mb/s, Product QEMU USB Keyboard, ID: ID`
/// (`hw/usb/bus.c`: `qmp_x_query_usb`).
fn parse_info_usb(text: &str, id: &DeviceId) -> GuestDeviceInfo {
    let ending = format!(", ID: {id}");
    let mut lines = text.lines().filter_map(|line| line.trim_end().strip_suffix(&ending));
    // Of two lines that end with our ID, a product name contains one.
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return GuestDeviceInfo::default();
    };
    let info = || -> Option<GuestDeviceInfo> {
        let (_, rest) = line.split_once(", Port ")?;
        let (port, rest) = rest.split_once(", Speed ")?;
        let (speed, product) = rest.split_once(" Mb/s, Product ")?;
        Some(GuestDeviceInfo {
            port: Some(sanitize(port, 16)),
            speed: speed.parse().ok(),
            product: Some(sanitize(product, 64)),
        })
    };
    info().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(port: &str, devnum: u8, has_name: bool) -> HostDevice {
        HostDevice { port: port.parse().unwrap(), devnum: DevNum(devnum), has_name }
    }

    /// As QEMU 7.2 and 10.0 printed them.
    #[test]
    fn info_usbhost_is_parsed() {
        let text = "  Bus 2, Addr 2, Port 2, Speed 5000 Mb/s\r\n    Class 00: USB device 46f4:0001, QEMU USB HARDDRIVE\r\n  \
            Bus 1, Addr 5, Port 1.4.2, Speed 12 Mb/s\r\n    Class 00: USB device 0627:0001, QEMU USB Keyboard\r\n  \
            Bus 1, Addr 3, Port 1.3, Speed 12 Mb/s\r\n    Class 00: USB device 0627:0001\r\n  \
            Bus 10, Addr 2, Port 1, Speed 5000+ Mb/s\r\n    Class 00: USB device 1d6b:0104, \r\n";
        assert_eq!(
            parse_info_usbhost(text),
            [
                device("2-2", 2, true),
                device("1-1.4.2", 5, true),
                device("1-1.3", 3, false),
                device("10-1", 2, true)
            ]
        );
    }

    #[test]
    fn text_without_devices_is_an_empty_list() {
        for text in [
            "",
            "USB host devices not supported\n",
            "Command \"info usbhost\" is not available.\r\n",
            "  Auto filters:\r\n    Bus 1, Addr *, Port 1.2, ID *:*\r\n",
        ] {
            assert_eq!(parse_info_usbhost(text), []);
        }
    }

    #[test]
    fn info_usb_is_parsed_by_the_id_at_the_line_end() {
        let id: DeviceId = "hotplugger-1-3.1-16".parse().unwrap();
        let text = "  Device 0.1, Port 1, Speed 12 Mb/s, Product QEMU USB Tablet, ID: hotplugger-1-3.1-1\r\n  \
            Device 0.2, Port 2, Speed 480 Mb/s, Product Foo, ID: x, Port 9, ID: hotplugger-1-3.1-16\r\n";
        let info = parse_info_usb(text, &id);
        assert_eq!(info.port.as_deref(), Some("2"));
        assert_eq!(info.speed.unwrap().to_string(), "480 Mb/s");
        assert_eq!(info.product.as_deref(), Some("Foo, ID: x, Port 9"));
        assert_eq!(parse_info_usb("USB support not enabled", &id), GuestDeviceInfo::default());
        assert_eq!(parse_info_usb(&text.repeat(2), &id), GuestDeviceInfo::default(), "forged");
    }

    proptest! {
        #[test]
        fn parsers_survive_any_text(text in "( {2}Bus |, Addr |, Port |, Speed | Mb/s|[0-9.]|\\PC|\n){0,40}") {
            parse_info_usbhost(&text);
            parse_info_usb(&text, &"hotplugger-1-1-1".parse().unwrap());
        }
    }
}
