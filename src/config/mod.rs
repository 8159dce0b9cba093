//! The configuration: which ports belong to which VM.
//!
//! This file has the values, [`port`] the names of ports, [`exclude`](mod@exclude)
//! which devices stay with the host, [`access`] how QEMU gets a device. [`parse`] makes them from YAML
//! text, [`edit`] adds ports to that text, and [`file`](mod@file) finds, checks, reads and replaces
//! it. `event::prefilter` searches the raw text first.

pub mod access;
pub mod edit;
pub mod exclude;
pub mod file;
pub mod parse;
pub mod port;

use std::fmt;
use std::time::Duration;

use self::access::Access;
use self::exclude::Exclusion;
use self::port::{PortMatch, PortName};
use crate::location::{PortLocation, UsbLocation};
use crate::monitor::Monitor;
use crate::usb_device::UsbDevice;

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
    /// Whether the other halves of its ports' connectors are its too, where no other name has
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
    /// The entry that keeps a device from this VM; of both lists the machine's own
    /// comes first.
    pub fn exclusion<'a>(
        &'a self,
        vm: &'a VirtualMachine,
        places: &UsbLocation,
        device: &UsbDevice,
        interfaces: &[u8],
    ) -> Option<&'a Exclusion> {
        let mut entries = vm.exclude.iter().chain(&self.exclude);
        entries.find(|entry| entry.is_of(places, device, interfaces))
    }

    /// The first entry that keeps a class of devices from this VM.
    pub fn class_exclusion<'a>(&'a self, vm: &'a VirtualMachine) -> Option<&'a Exclusion> {
        let mut entries = vm.exclude.iter().chain(&self.exclude);
        entries.find(|entry| matches!(entry, Exclusion::Class(_)))
    }

    /// The VMs that a device in these places may go to, the first that runs before
    /// the others.
    ///
    /// Of all ports at or above it the longest wins, and of equally long ones those of its own half
    /// of the connector. A VM that lists one of these owns it. A name of that half alone comes before
    /// one of both halves, and of equal ones the first in the file.
    pub fn owners(&self, places: &UsbLocation) -> Vec<&VirtualMachine> {
        let claims = self.virtual_machines.iter().filter_map(|vm| Some((vm.claim(places)?, vm)));
        let mut claims: Vec<_> = claims.collect();
        // Stable: equal ones stay in the order of the file.
        claims.sort_by(|(one, _), (other, _)| other.cmp(one));
        let best = claims.first().map(|(claim, _)| (claim.length, claim.own));
        let shared = |claim: &MatchRank| Some((claim.length, claim.own)) == best;
        claims.into_iter().filter(|(claim, _)| shared(claim)).map(|(_, vm)| vm).collect()
    }

    /// The names of [`Config::owners`].
    pub fn owner_names(&self, places: &UsbLocation) -> Vec<String> {
        self.owners(places).into_iter().map(|vm| vm.name.clone()).collect()
    }

    pub fn is_configured(&self, places: &UsbLocation) -> bool {
        self.virtual_machines.iter().any(|vm| vm.claim(places).is_some())
    }

    /// The VM of that name.
    pub fn named(&self, name: &str) -> Result<&VirtualMachine, NoSuchMachine> {
        self.virtual_machines.iter().find(|vm| vm.name == name).ok_or_else(|| NoSuchMachine {
            name: name.to_owned(),
            known: self.virtual_machines.iter().map(|vm| vm.name.clone()).collect(),
        })
    }

    /// The VM that lists this very place, in whatever form.
    pub fn lists(&self, place: &PortLocation) -> Option<&VirtualMachine> {
        self.virtual_machines
            .iter()
            .find(|vm| vm.ports.iter().any(|port| port.names_exactly(place)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchMachine {
    pub name: String,
    pub known: Vec<String>,
}

impl fmt::Display for NoSuchMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no virtual machine `{}`: the config has ", self.name)?;
        f.write_str(&if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") })
    }
}

impl std::error::Error for NoSuchMachine {}

/// How good a VM's claim to a device is; the greater is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MatchRank {
    length: usize,
    /// Whether it is to the place itself, not to the other half.
    own: bool,
    one_half: bool,
}

impl VirtualMachine {
    fn claim(&self, places: &UsbLocation) -> Option<MatchRank> {
        let peers = places.peers.iter().filter(|_| self.peer_ports);
        let all = std::iter::once((true, &places.own)).chain(peers.map(|place| (false, place)));
        let claims = all.flat_map(|(own, place)| {
            let fits = self.ports.iter().filter_map(|port| port.match_location(place));
            fits.map(move |PortMatch { length, one_half }| MatchRank { length, own, one_half })
        });
        claims.max()
    }
}

#[cfg(test)]
mod tests;
