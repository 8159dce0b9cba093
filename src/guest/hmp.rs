//! What QEMU's monitor says of USB: `info usbhost`, the host's devices as it sees them, and
//! `info usb`, the guest's devices.
//!
//! Both are text for people, with product names in it that the devices chose, line ends included:
//! what is read here is believed only where it agrees with sysfs.

use serde_json::{Value, json};

use crate::device_id::DeviceId;
use crate::port::{DevNum, Port};
use crate::qmp::{Error, Qmp, UsbHostProblem};
use crate::speed::Speed;
use crate::text::sanitize;

/// A device of the host as QEMU sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// The port.
    pub port: Port,
    /// The device's number.
    pub devnum: DevNum,
    /// Whether QEMU could read its name, for which it must open the device.
    pub named: bool,
}

/// Where in the guest a device of ours is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDeviceInfo {
    /// The guest's port, such as `2`, or `4.1` behind a hub of QEMU's.
    pub port: Option<String>,
    /// The speed the guest was told.
    pub speed: Option<Speed>,
    /// The name the guest was told.
    pub product: Option<String>,
}

/// Makes a modular QEMU load usb-host. This has no other effect.
///
/// # Errors
///
/// [`Error::NoUsbHost`] if it cannot.
pub fn load_usb_host(qmp: &mut dyn Qmp) -> Result<(), Error> {
    match qmp.execute("device-list-properties", json!({ "typename": "usb-host" })) {
        Ok(_) => Ok(()),
        Err(Error::Command { .. }) => Err(Error::NoUsbHost(UsbHostProblem::Missing)),
        Err(error) => Err(error),
    }
}

/// The host's devices as QEMU sees them; `None` if QEMU does not answer monitor commands.
///
/// `info usbhost` belongs to the module of usb-host.
pub fn host_devices(qmp: &mut dyn Qmp) -> Result<Option<Vec<HostDevice>>, Error> {
    load_usb_host(qmp)?;
    Ok(monitor(qmp, "info usbhost")?.map(|text| parse_info_usbhost(&text)))
}

/// Where in the guest the object is, as far as QEMU says.
pub fn place(qmp: &mut dyn Qmp, id: &DeviceId) -> Result<GuestDeviceInfo, Error> {
    let text = monitor(qmp, "info usb")?;
    Ok(text.map(|text| parse_info_usb(&text, id)).unwrap_or_default())
}

/// Runs a monitor command. `None` if QEMU refuses it: the monitor only adds detail, and a QEMU may
/// be built or confined without it. Only fixed commands: nothing is ever inserted into the text.
pub(super) fn monitor(qmp: &mut dyn Qmp, command: &'static str) -> Result<Option<String>, Error> {
    match qmp.execute("human-monitor-command", json!({ "command-line": command })) {
        Ok(Value::String(text)) => Ok(Some(text)),
        Ok(_) => Err(Error::Protocol(format!("{command} is not answered with text"))),
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
            device.named =
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
        named: false,
    })
}

/// Reads the line `  Device 0.1, Port 2, Speed 480 Mb/s, Product QEMU USB Keyboard, ID: ID`
/// (`hw/usb/bus.c`: `qmp_x_query_usb`).
fn parse_info_usb(text: &str, id: &DeviceId) -> GuestDeviceInfo {
    let ending = format!(", ID: {id}");
    let mut lines = text.lines().filter_map(|line| line.trim_end().strip_suffix(&ending));
    // Two lines that end with our id: one of them is a product name's doing.
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return GuestDeviceInfo::default();
    };
    let place = || -> Option<GuestDeviceInfo> {
        let (_, rest) = line.split_once(", Port ")?;
        let (port, rest) = rest.split_once(", Speed ")?;
        let (speed, product) = rest.split_once(" Mb/s, Product ")?;
        Some(GuestDeviceInfo {
            port: Some(sanitize(port, 16)),
            speed: speed.parse().ok(),
            product: Some(sanitize(product, 64)),
        })
    };
    place().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(port: &str, devnum: u8, named: bool) -> HostDevice {
        HostDevice { port: port.parse().unwrap(), devnum: DevNum(devnum), named }
    }

    /// As QEMU 7.2 and 10.0 printed them.
    #[test]
    fn info_usbhost_is_read() {
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
    fn answers_without_devices_are_empty() {
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
    fn info_usb_is_read_by_the_id_at_the_end() {
        let id: DeviceId = "hotplugger-1-3.1-16".parse().unwrap();
        let text = "  Device 0.1, Port 1, Speed 12 Mb/s, Product QEMU USB Tablet, ID: hotplugger-1-3.1-1\r\n  \
            Device 0.2, Port 2, Speed 480 Mb/s, Product Foo, ID: x, Port 9, ID: hotplugger-1-3.1-16\r\n";
        let place = parse_info_usb(text, &id);
        assert_eq!(place.port.as_deref(), Some("2"));
        assert_eq!(place.speed.unwrap().to_string(), "480 Mb/s");
        assert_eq!(place.product.as_deref(), Some("Foo, ID: x, Port 9"));
        assert_eq!(parse_info_usb("USB support not enabled", &id), GuestDeviceInfo::default());
        assert_eq!(parse_info_usb(&text.repeat(2), &id), GuestDeviceInfo::default(), "forged");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "( {2}Bus |, Addr |, Port |, Speed | Mb/s|[0-9.]|\\PC|\n){0,40}") {
            parse_info_usbhost(&text);
            parse_info_usb(&text, &"hotplugger-1-1-1".parse().unwrap());
        }
    }
}
