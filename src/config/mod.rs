//! The configuration: which ports belong to which VM.
//!
//! This file has the values, [`port`] the names of ports, [`access`] how QEMU gets a device. [`parse`]
//! makes them from YAML text, [`edit`] adds ports to that text, and [`file`](mod@file) finds, checks,
//! reads and replaces it. [`prefilter`] searches the raw text first.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use self::access::Access;
use self::port::{PortMatch, PortName};
use self::section::BrokenSection;
use self::usb_host::UsbHostProperties;
use crate::location::{PortLocation, UsbLocation};
use crate::monitor::Monitor;
use crate::text::sanitize;
use crate::usb_device::UsbDevice;

pub mod access;
pub mod edit;
pub mod file;
pub mod parse;
pub mod port;
pub mod prefilter;
pub mod section;
pub mod usb_host;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// In the order of the file.
    pub virtual_machines: Vec<VirtualMachine>,
    /// Devices that go to none of them.
    pub exclude: Vec<DeviceMatcher>,
    /// The VMs whose sections have mistakes.
    pub broken: Vec<BrokenSection>,
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
    /// Whether the host's drivers are kept off a device while it settles.
    pub unbind_host_drivers: bool,
    pub access: Access,
    /// Whether the host's drivers get its devices back when it does not run.
    pub return_to_host: bool,
    pub rules: DeviceRules,
    pub ports: Vec<PortName>,
    /// Further rules for the devices in some of the ports.
    pub port_rules: Vec<(PortName, DeviceRules)>,
    /// Whether the peer ports of its ports are its too, where no other name has them.
    pub peer_ports: bool,
    /// Texts that are accepted, but better written otherwise.
    pub spellings: Vec<Spelling>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelling {
    pub written: String,
    pub meant: String,
}

/// Which devices go to a VM, and how its QEMU gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRules {
    /// These do not, in addition to those that go to no VM.
    pub exclude: Vec<DeviceMatcher>,
    /// If it is not empty, all others do not.
    pub only: Vec<DeviceMatcher>,
    /// Properties of the usb-host device of QEMU, of those in [`usb_host`].
    pub usb_host: UsbHostProperties,
}

/// A guest to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The VM's name.
    pub vm: &'a str,
    pub monitor: &'a Monitor,
    pub access: &'a Access,
    /// The limit of the whole session, including the wait for the socket's lock.
    pub timeout: Duration,
}

impl Config {
    /// Why a device whose interfaces have these classes is kept from this VM, if it is. Of `exclude:`
    /// the entries of the port come first, then those of the VM. `only:` of the port replaces that
    /// of the VM.
    pub fn refusal(
        &self,
        vm: &VirtualMachine,
        location: &UsbLocation,
        device: &UsbDevice,
        interfaces: &[u8],
    ) -> Option<String> {
        let mut excluded = self.exclude(vm, location);
        if let Some(entry) = excluded.find(|entry| entry.is_of(location, device, interfaces)) {
            return Some(format!("the config excludes `{entry}`"));
        }
        let only = vm.only(location);
        if only.is_empty() || is_listed(only, location, device, interfaces) {
            return None;
        }
        let only: Vec<String> = only.iter().map(|entry| format!("`{entry}`")).collect();
        Some(format!("the config lets only {} through", only.join(", ")))
    }

    /// The first entry that decides by class about devices at this location.
    pub fn class_matcher<'a>(
        &'a self,
        vm: &'a VirtualMachine,
        location: &UsbLocation,
    ) -> Option<&'a DeviceMatcher> {
        let mut entries = self.exclude(vm, location).chain(vm.only(location));
        entries.find(|entry| matches!(entry, DeviceMatcher::Class(_)))
    }

    fn exclude<'a>(
        &'a self,
        vm: &'a VirtualMachine,
        location: &UsbLocation,
    ) -> impl Iterator<Item = &'a DeviceMatcher> {
        let of_port = vm.rules_at(location).map(|rules| &rules.exclude);
        of_port.into_iter().flatten().chain(&vm.rules.exclude).chain(&self.exclude)
    }

    /// The VMs that a device at this location may go to. The first that runs gets it.
    ///
    /// Of all ports at or above it the longest wins, and of equally long ones those of its own half
    /// of the connector. A VM that lists one of these owns it. A name of that half alone comes before
    /// one of both halves, and of equal ones the first in the file.
    ///
    /// None where a section that cannot be parsed may list the port: its VM may come first.
    pub fn owners(&self, location: &UsbLocation) -> Vec<&VirtualMachine> {
        if self.broken_at(location).is_some() {
            return Vec::new();
        }
        let all = self.virtual_machines.iter();
        let mut matches: Vec<_> =
            all.filter_map(|vm| Some((vm.port_at(location)?.0, vm))).collect();
        // Stable: equal ones stay in the order of the file.
        matches.sort_by(|(one, _), (other, _)| other.cmp(one));
        let best = matches.first().map(|(fit, _)| (fit.length, fit.is_own));
        matches.retain(|(fit, _)| Some((fit.length, fit.is_own)) == best);
        matches.into_iter().map(|(_, vm)| vm).collect()
    }

    pub fn owner_names(&self, location: &UsbLocation) -> Vec<String> {
        self.owners(location).into_iter().map(|vm| vm.name.clone()).collect()
    }

    pub fn is_configured(&self, location: &UsbLocation) -> bool {
        self.virtual_machines.iter().any(|vm| vm.port_at(location).is_some())
    }

    /// The section with a mistake that may list the port of a device at this location.
    pub fn broken_at(&self, location: &UsbLocation) -> Option<&BrokenSection> {
        self.broken.iter().find(|section| section.may_list(location))
    }

    pub fn named(&self, name: &str) -> Result<&VirtualMachine> {
        if let Some(vm) = self.virtual_machines.iter().find(|vm| vm.name == name) {
            return Ok(vm);
        }
        if let Some(broken) = self.broken.iter().find(|section| section.vm == name) {
            bail!("{broken}");
        }
        bail!(self.no_such_vm(name))
    }

    /// The guest at that monitor, with the defaults if the config no longer has its VM.
    pub fn target<'a>(&'a self, vm: &'a str, monitor: &'a Monitor) -> Target<'a> {
        let configured = self.virtual_machines.iter().find(|vm| vm.monitor == *monitor);
        let (access, timeout) = configured
            .map_or((&Access::DEFAULT, VirtualMachine::DEFAULT_TIMEOUT), |vm| {
                (&vm.access, vm.timeout)
            });
        Target { vm, monitor, access, timeout }
    }

    fn no_such_vm(&self, name: &str) -> String {
        let known: Vec<&str> = self.virtual_machines.iter().map(|vm| vm.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("no virtual machine `{name}`: the config has {known}")
    }

    /// The config, if all of it could be parsed.
    pub fn whole(self) -> Result<Self> {
        match self.broken.first() {
            Some(broken) => bail!("{broken}"),
            None => Ok(self),
        }
    }

    /// The VM that lists this very location, in whatever form.
    pub fn lists(&self, location: &PortLocation) -> Option<&VirtualMachine> {
        self.virtual_machines
            .iter()
            .find(|vm| vm.ports.iter().any(|port| port.names_exactly(location)))
    }
}

impl VirtualMachine {
    pub const DEFAULT_DELAY: Duration = Duration::from_secs(1);
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
    /// The most that `delay` and `timeout` may add up to, so that both fit into the call of an event.
    pub const MAX_DELAY_AND_TIMEOUT: Duration = Duration::from_secs(150);

    pub fn target(&self) -> Target<'_> {
        let Self { name, monitor, access, timeout, .. } = self;
        Target { vm: name, monitor, access, timeout: *timeout }
    }

    pub fn usb_host(&self, location: &UsbLocation) -> UsbHostProperties {
        let mut properties = self.rules.usb_host.clone();
        properties
            .extend(self.rules_at(location).into_iter().flat_map(|rules| rules.usb_host.clone()));
        properties
    }

    fn only(&self, location: &UsbLocation) -> &[DeviceMatcher] {
        let of_port = self.rules_at(location).map(|rules| &rules.only[..]);
        of_port.filter(|only| !only.is_empty()).unwrap_or(&self.rules.only)
    }

    /// The rules of the port that the location is in.
    fn rules_at(&self, location: &UsbLocation) -> Option<&DeviceRules> {
        if self.port_rules.is_empty() {
            return None;
        }
        let (_, port) = self.port_at(location)?;
        self.port_rules.iter().find(|(name, _)| name == port).map(|(_, rules)| rules)
    }

    /// The best of the ports that contain the location.
    fn port_at(&self, location: &UsbLocation) -> Option<(PortMatch, &PortName)> {
        let own = std::iter::once((true, &location.own));
        let peers = location.peers.iter().filter(|_| self.peer_ports).map(|peer| (false, peer));
        let matches = own.chain(peers).flat_map(|(is_own, location)| {
            let ports = self.ports.iter();
            ports.filter_map(move |port| Some((port.match_half(location, is_own)?, port)))
        });
        matches.max_by_key(|(fit, _)| *fit)
    }
}

/// Whether `only:` lists the device. Each of its interfaces must be of a class that is listed: one
/// that is not could be the very one that the list is to keep out.
fn is_listed(
    only: &[DeviceMatcher],
    location: &UsbLocation,
    device: &UsbDevice,
    interfaces: &[u8],
) -> bool {
    let is_class = |entry: &DeviceMatcher| matches!(entry, DeviceMatcher::Class(_));
    let is_class_listed = |class: &u8| only.contains(&DeviceMatcher::Class(*class));
    let mut others = only.iter().filter(|entry| !is_class(entry));
    others.any(|entry| entry.is_of(location, device, interfaces))
        || (!interfaces.is_empty() && interfaces.iter().all(is_class_listed))
}

/// One entry of `exclude:` or `only:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceMatcher {
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

impl DeviceMatcher {
    /// Whether it matches a device at this location whose interfaces have these classes.
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

impl fmt::Display for DeviceMatcher {
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
pub(crate) mod tests;

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
        let model = |vendor_id, product_id| DeviceMatcher::Model { vendor_id, product_id };
        let port = |path: &str| DeviceMatcher::Port(path.parse().unwrap());
        for (entry, meant) in [
            (model(0x0627, 1), true),
            (model(0x0627, 2), false),
            (model(1, 0x0627), false),
            (DeviceMatcher::Class(0xef), true),
            (DeviceMatcher::Class(0x08), true),
            (DeviceMatcher::Class(0x03), false),
            (DeviceMatcher::Serial("A1".to_owned()), true),
            (DeviceMatcher::Serial("A".to_owned()), false),
            (port("/devices/x/usb1/1-1/1-1.4"), true),
            (port("/devices/x/usb1/1-1"), true),
            (port("/devices/x/usb1/1-1/1-1.40"), false),
            (port("/devices/x/usb1/1-1/1-1.4/1-1.4.1"), false),
        ] {
            assert_eq!(entry.is_of(&location, &device, &[0x0e, 0x08]), meant, "{entry}");
        }
        let nameless = UsbDevice { serial: None, ..device };
        assert!(!DeviceMatcher::Serial(String::new()).is_of(&location, &nameless, &[]));
    }
}
