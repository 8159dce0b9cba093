//! The configuration: which ports belong to which VM.
//!
//! This file has the values, [`port`] the names of ports, [`access`] how QEMU gets a device. [`parse`]
//! makes them from YAML
//! text, [`edit`] adds ports to that text, and [`file`](mod@file) finds, checks, reads and replaces
//! it. `event::prefilter` searches the raw text first.

use std::fmt;
use std::time::Duration;

use self::access::Access;
use self::port::{PortMatch, PortName};
use crate::location::{PortLocation, UsbLocation};
use crate::monitor::Monitor;
use crate::text::sanitize;
use crate::usb_device::UsbDevice;

pub mod access;
pub mod edit;
pub mod file;
pub mod parse;
pub mod port;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The VMs, in the order of the file.
    pub virtual_machines: Vec<VirtualMachine>,
    /// What goes to none of them.
    pub exclude: Vec<Exclusion>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualMachine {
    pub name: String,
    pub monitor: Monitor,
    /// How long a device must be quiet before it is attached: 0 to 120 s.
    pub delay: Duration,
    /// The most one exchange with QEMU may take, lock and connect included: 0.1 to 60 s.
    pub timeout: Duration,
    /// The guest's USB buses to use, in this order (`xhci0.0`); empty for QEMU's choice.
    pub hubs: Vec<String>,
    /// The devices that do not go to this VM, in addition to those that go to none.
    pub exclude: Vec<Exclusion>,
    /// Whether the host's drivers are kept off a device while it settles.
    pub unbind_host_drivers: bool,
    pub access: Access,
    /// Whether the host's drivers get its devices back when it does not run.
    pub return_to_host: bool,
    pub ports: Vec<PortName>,
    /// Whether the peer ports of its ports are its too, where no other name has
    /// them.
    pub peer_ports: bool,
}

impl VirtualMachine {
    pub const DEFAULT_DELAY: Duration = Duration::from_secs(1);
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
    /// The most that `delay` and `timeout` may add up to, so that both fit into the call of an event.
    pub const MAX_DELAY_AND_TIMEOUT: Duration = Duration::from_secs(150);
}

impl Config {
    /// The entry that keeps a device from this VM; of both lists the VM's own
    /// comes first.
    pub fn exclusion<'a>(
        &'a self,
        vm: &'a VirtualMachine,
        location: &UsbLocation,
        device: &UsbDevice,
        interfaces: &[u8],
    ) -> Option<&'a Exclusion> {
        let mut entries = vm.exclude.iter().chain(&self.exclude);
        entries.find(|entry| entry.is_of(location, device, interfaces))
    }

    /// The first entry that keeps a class of devices from this VM.
    pub fn class_exclusion<'a>(&'a self, vm: &'a VirtualMachine) -> Option<&'a Exclusion> {
        let mut entries = vm.exclude.iter().chain(&self.exclude);
        entries.find(|entry| matches!(entry, Exclusion::Class(_)))
    }

    /// The VMs that a device at this location may go to, the first that runs before
    /// the others.
    ///
    /// Of all ports at or above it the longest wins, and of equally long ones those of its own half
    /// of the connector. A VM that lists one of these owns it. A name of that half alone comes before
    /// one of both halves, and of equal ones the first in the file.
    pub fn owners(&self, location: &UsbLocation) -> Vec<&VirtualMachine> {
        let claims = self.virtual_machines.iter().filter_map(|vm| Some((vm.claim(location)?, vm)));
        let mut claims: Vec<_> = claims.collect();
        // Stable: equal ones stay in the order of the file.
        claims.sort_by(|(one, _), (other, _)| other.cmp(one));
        let best = claims.first().map(|(claim, _)| (claim.length, claim.own));
        let shared = |claim: &MatchRank| Some((claim.length, claim.own)) == best;
        claims.into_iter().filter(|(claim, _)| shared(claim)).map(|(_, vm)| vm).collect()
    }

    /// The names of [`Config::owners`].
    pub fn owner_names(&self, location: &UsbLocation) -> Vec<String> {
        self.owners(location).into_iter().map(|vm| vm.name.clone()).collect()
    }

    pub fn is_configured(&self, location: &UsbLocation) -> bool {
        self.virtual_machines.iter().any(|vm| vm.claim(location).is_some())
    }

    /// The VM of that name.
    pub fn named(&self, name: &str) -> Result<&VirtualMachine, NoSuchVm> {
        self.virtual_machines.iter().find(|vm| vm.name == name).ok_or_else(|| NoSuchVm {
            name: name.to_owned(),
            known: self.virtual_machines.iter().map(|vm| vm.name.clone()).collect(),
        })
    }

    /// The VM that lists this very location, in whatever form.
    pub fn lists(&self, location: &PortLocation) -> Option<&VirtualMachine> {
        self.virtual_machines
            .iter()
            .find(|vm| vm.ports.iter().any(|port| port.names_exactly(location)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchVm {
    pub name: String,
    pub known: Vec<String>,
}

impl fmt::Display for NoSuchVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no virtual machine `{}`: the config has ", self.name)?;
        f.write_str(&if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") })
    }
}

impl std::error::Error for NoSuchVm {}

/// How good a VM's claim to a device is; the greater is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MatchRank {
    length: usize,
    /// Whether it is to the location itself, not to a peer port.
    own: bool,
    one_half: bool,
}

impl VirtualMachine {
    fn claim(&self, location: &UsbLocation) -> Option<MatchRank> {
        let peers = location.peers.iter().filter(|_| self.peer_ports);
        let all =
            std::iter::once((true, &location.own)).chain(peers.map(|location| (false, location)));
        let claims = all.flat_map(|(own, location)| {
            let fits = self.ports.iter().filter_map(|port| port.match_location(location));
            fits.map(move |PortMatch { length, one_half }| MatchRank { length, own, one_half })
        });
        claims.max()
    }
}

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
    pub fn is_of(&self, location: &UsbLocation, device: &UsbDevice, interfaces: &[u8]) -> bool {
        match self {
            Self::Model { vendor_id, product_id } => {
                (device.vendor_id, device.product_id) == (*vendor_id, *product_id)
            }
            Self::Class(class) => device.class == *class || interfaces.contains(class),
            Self::Serial(serial) => device.serial.as_ref() == Some(serial),
            Self::Port(port) => {
                let mut all = std::iter::once(&location.own).chain(&location.peers);
                all.any(|location| port.match_location(location).is_some())
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
mod tests;

#[cfg(test)]
mod exclude_tests {
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
        let location =
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
            assert_eq!(entry.is_of(&location, &device, &[0x0e, 0x08]), meant, "{entry}");
        }
        let nameless = UsbDevice { serial: None, ..device };
        assert!(!Exclusion::Serial(String::new()).is_of(&location, &nameless, &[]));
    }
}
