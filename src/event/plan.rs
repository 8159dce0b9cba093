//! Decides what to do about a uevent. Pure: no I/O.

use std::fmt;

use crate::config::access::AccessMode;
use crate::config::{Config, Target, VirtualMachine};
use crate::location::UsbLocation;
use crate::outcome::SkipReason;
use crate::state::record::Record;
use crate::uevent::{EventKind, UsbEvent};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan<'a> {
    Skip(SkipReason),
    /// Save a record of the device; a later event attaches it.
    Record(Vec<Candidate<'a>>),
    /// Attach the device at once if the first candidate that runs takes devices on `add`. Otherwise
    /// save a record of it.
    AttachOnAdd(Vec<Candidate<'a>>),
    /// Attach the device to the first candidate that runs.
    Attach {
        candidates: Vec<Candidate<'a>>,
        /// Whether a newer interface of the device takes over (the original's rules, which have
        /// no `bind`).
        unless_newer: bool,
    },
    /// Delete the device's objects in these guests, and its record.
    Detach(Vec<Target<'a>>),
}

/// A VM that a device may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub vm: &'a VirtualMachine,
    /// Whether the record says that this VM has the device, or may have it.
    pub has_device: bool,
}

/// `is_kept`: a person keeps the port with the host.
pub fn plan<'a>(
    event: &UsbEvent,
    location: &UsbLocation,
    config: &'a Config,
    record: Option<&'a Record>,
    is_kept: bool,
) -> Plan<'a> {
    // The record may be that of an earlier device in the port.
    let record_of_device =
        record.filter(|record| event.devnum.is_none_or(|devnum| devnum == record.devnum));
    if event.kind == EventKind::DeviceRemove {
        // `udevadm trigger --action=remove` only finds devices that are plugged in.
        if event.synthetic {
            return Plan::Skip(SkipReason::StillPluggedIn);
        }
        // A device in a kept port was not attached, unless a record says so.
        if is_kept && record.is_none() {
            return Plan::Skip(SkipReason::Kept);
        }
        let targets = targets(config, location, record);
        return if targets.is_empty() && record_of_device.is_none() {
            Plan::Skip(SkipReason::NotConfigured)
        } else {
            Plan::Detach(targets)
        };
    }
    let is_plug = event.kind == EventKind::DeviceAdd && !event.synthetic;
    let record = record_of_device.filter(|_| !is_plug);
    let candidates = candidates(config, location, record);
    if candidates.is_empty() {
        return Plan::Skip(SkipReason::NotConfigured);
    }
    if record.is_some_and(|record| record.unconfirmed.is_some()) {
        // Resolved before anything else.
        return Plan::Attach { candidates, unless_newer: false };
    }
    if record.is_some_and(|record| record.detached_manual) {
        return Plan::Skip(SkipReason::DetachedManually);
    }
    if is_kept {
        return Plan::Skip(SkipReason::Kept);
    }
    match event.kind {
        EventKind::DeviceAdd if record.is_some() => Plan::Skip(SkipReason::AlreadyRecorded),
        EventKind::DeviceAdd if is_plug && candidates.iter().any(Candidate::attaches_on_add) => {
            Plan::AttachOnAdd(candidates)
        }
        EventKind::DeviceAdd => Plan::Record(candidates),
        kind => Plan::Attach { candidates, unless_newer: kind == EventKind::InterfaceAdd },
    }
}

/// The VMs that a device may go to, in the order in which they are tried: the one that has it, then
/// those that list its port, in the order of the config.
///
/// A VM that was given the device manually need not list the port.
pub fn candidates<'a>(
    config: &'a Config,
    location: &UsbLocation,
    record: Option<&Record>,
) -> Vec<Candidate<'a>> {
    let owners = config.owners(location);
    if owners.is_empty() {
        return Vec::new();
    }
    let attached = record.and_then(Record::holder);
    let has_device = |vm: &VirtualMachine| {
        attached.is_some_and(|attached| attached.vm == vm.name && attached.monitor == vm.monitor)
    };
    let current = config.virtual_machines.iter().find(|vm| has_device(vm));
    let others = owners.into_iter().filter(|vm| !has_device(vm));
    current
        .into_iter()
        .map(|vm| Candidate { vm, has_device: true })
        .chain(others.map(|vm| Candidate { vm, has_device: false }))
        .collect()
}

impl Candidate<'_> {
    /// Whether the VM gets a device on its `add` event already: it takes devices by file descriptor,
    /// of which QEMU need not have learned from udevd, and without a delay.
    pub fn attaches_on_add(&self) -> bool {
        self.vm.access.mode == AccessMode::Fd && self.vm.delay.is_zero()
    }
}

/// The guests that may have the device: the recorded one, whatever the config says now; else the VMs
/// that list its port. Without any record it may be in every other VM too.
fn targets<'a>(
    config: &'a Config,
    location: &UsbLocation,
    record: Option<&'a Record>,
) -> Vec<Target<'a>> {
    if let Some(attachment) = record.and_then(Record::holder) {
        return vec![config.target(&attachment.vm, &attachment.monitor)];
    }
    let mut vms = config.owners(location);
    if !vms.is_empty() && record.is_none() {
        let others = config.virtual_machines.iter();
        let others: Vec<_> =
            others.filter(|vm| vms.iter().all(|owner| owner.name != vm.name)).collect();
        vms.extend(others);
    }
    vms.into_iter().map(VirtualMachine::target).collect()
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip(reason) => reason.fmt(f),
            Self::Record(candidates) => {
                f.write_str("record it for ")?;
                list(f, candidates, |f, candidate| f.write_str(&candidate.vm.name))
            }
            Self::AttachOnAdd(candidates) => {
                f.write_str("record it for ")?;
                list(f, candidates, |f, candidate| {
                    let at_once = candidate.attaches_on_add();
                    let at_once = if at_once { " (attached at once)" } else { "" };
                    write!(f, "{}{at_once}", candidate.vm.name)
                })
            }
            Self::Attach { candidates, unless_newer } => {
                f.write_str("attach it to ")?;
                list(f, candidates, |f, candidate| {
                    f.write_str(&candidate.vm.name)?;
                    if candidate.has_device {
                        return Ok(());
                    }
                    write!(f, " after {} s of quiet", candidate.vm.delay.as_secs_f64())
                })?;
                f.write_str(if *unless_newer { ", unless a newer interface appears" } else { "" })
            }
            Self::Detach(targets) if targets.is_empty() => f.write_str("delete the record"),
            Self::Detach(targets) => {
                f.write_str("detach it from ")?;
                list(f, targets, |f, target| f.write_str(target.vm))
            }
        }
    }
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    write: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        f.write_str(if index > 0 { ", else " } else { "" })?;
        write(f, item)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
