//! What stays with the host although it is in a configured port: the entries of `exclude:`. Pure.

use std::fmt;

use super::port::PortName;
use crate::location::UsbLocation;
use crate::text::sanitize;
use crate::usb_device::UsbDevice;

/// One entry of `exclude:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// A model: `0627:0001`.
    Model {
        vendor_id: u16,
        product_id: u16,
    },
    /// A class, of the device or of any of its interfaces: `class: 08`.
    Class(u8),
    /// One single device: `serial: XYZ`.
    Serial(String),
    Port(PortName),
}

/// The class codes that have a name in the config (<https://www.usb.org/defined-class-codes>).
pub(super) const CLASS_NAMES: [(&str, u8); 8] = [
    ("audio", 0x01),
    ("hid", 0x03),
    ("image", 0x06),
    ("printer", 0x07),
    ("storage", 0x08),
    ("smartcard", 0x0b),
    ("video", 0x0e),
    ("wireless", 0xe0),
];

impl Exclusion {
    /// Whether it excludes a device at this location whose active configuration has interfaces of these
    /// classes.
    pub fn is_of(&self, places: &UsbLocation, device: &UsbDevice, interfaces: &[u8]) -> bool {
        match self {
            Self::Model { vendor_id, product_id } => {
                (device.vendor_id, device.product_id) == (*vendor_id, *product_id)
            }
            Self::Class(class) => device.class == *class || interfaces.contains(class),
            Self::Serial(serial) => device.serial.as_ref() == Some(serial),
            Self::Port(port) => {
                let mut all = std::iter::once(&places.own).chain(&places.peers);
                all.any(|place| port.match_location(place).is_some())
            }
        }
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model { vendor_id, product_id } => write!(f, "{vendor_id:04x}:{product_id:04x}"),
            Self::Class(class) => write!(f, "class: {class:02x}"),
            Self::Serial(serial) => write!(f, "serial: {}", sanitize(serial, 64)),
            Self::Port(port) => port.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::PortLocation;
    use crate::port::{BusNum, DevNum};

    #[test]
    fn each_entry_means_its_devices_and_no_others() {
        let device = UsbDevice {
            busnum: BusNum(1),
            devnum: DevNum(5),
            class: 0xef,
            authorized: true,
            vendor_id: 0x0627,
            product_id: 1,
            speed: None,
            product: None,
            serial: Some("A1".to_owned()),
        };
        let places =
            UsbLocation::of(PortLocation::of("/devices/x/usb1/1-1/1-1.4".parse().unwrap()));
        let model = |vendor_id, product_id| Exclusion::Model { vendor_id, product_id };
        let port = |path: &str| Exclusion::Port(path.parse().unwrap());
        for (entry, meant) in [
            (model(0x0627, 1), true),
            (model(0x0627, 2), false),
            (model(1, 0x0627), false),
            (Exclusion::Class(0xef), true),
            (Exclusion::Class(0x08), true),
            (Exclusion::Class(0x03), false),
            (Exclusion::Serial("A1".to_owned()), true),
            (Exclusion::Serial("A".to_owned()), false),
            (port("/devices/x/usb1/1-1/1-1.4"), true),
            (port("/devices/x/usb1/1-1"), true),
            (port("/devices/x/usb1/1-1/1-1.40"), false),
            (port("/devices/x/usb1/1-1/1-1.4/1-1.4.1"), false),
        ] {
            assert_eq!(entry.is_of(&places, &device, &[0x0e, 0x08]), meant, "{entry}");
        }
        let nameless = UsbDevice { serial: None, ..device };
        assert!(!Exclusion::Serial(String::new()).is_of(&places, &nameless, &[]));
    }
}
