//! What is to be done about an event. Pure: it decides everything and touches nothing.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::config::access::AccessMode;
use crate::config::{Config, VirtualMachine};
use crate::event::uevent::{EventKind, UsbEvent};
use crate::location::UsbLocation;
use crate::outcome::SkipReason;
use crate::state::record::Record;

/// What is to be done about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan<'a> {
    /// Nothing, and why.
    Nothing(SkipReason),
    /// Remember the device and return: it is attached by a later event.
    Record(&'a VirtualMachine),
    /// Attach the device at once, before the host's drivers get going; if that does not work,
    /// remember it, for a later event to try again and to tell.
    AttachEarly(&'a VirtualMachine),
    /// Attach the device.
    Attach {
        /// To that virtual machine.
        vm: &'a VirtualMachine,
        /// Once it has settled; one that is thought to be attached already needs no time.
        settle: bool,
        /// If this event is of one of its interfaces: unless a newer one comes meanwhile, which
        /// then attaches.
        unless_newer: bool,
    },
    /// Delete what stands for the device in those guests, and forget it.
    Detach(Vec<Target<'a>>),
}

/// A guest in which a device may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The virtual machine's name.
    pub vm: &'a str,
    /// Its QMP socket.
    pub socket: &'a Path,
    /// The most the exchange may take.
    pub timeout: Duration,
}

/// Decides about an event, with where its device is and what is remembered of its port. Which of
/// several virtual machines gets a device depends on which of them `runs`; nobody else is asked.
pub fn plan<'a>(
    event: &UsbEvent,
    places: &UsbLocation,
    config: &'a Config,
    record: Option<&'a Record>,
    runs: &dyn Fn(&VirtualMachine) -> bool,
) -> Plan<'a> {
    // What is remembered of an earlier device in the port does not hold for this one.
    let record_of_device =
        record.filter(|record| event.devnum.is_none_or(|devnum| devnum == record.devnum));
    if event.kind == EventKind::DeviceRemove {
        let targets = targets(config, places, record);
        return if targets.is_empty() && record_of_device.is_none() {
            Plan::Nothing(SkipReason::NotConfigured)
        } else {
            Plan::Detach(targets)
        };
    }
    let new = event.kind == EventKind::DeviceAdd && !event.synthetic;
    let known = record_of_device.filter(|_| !new);
    let Some(vm) = choose(config, places, known, runs) else {
        return Plan::Nothing(SkipReason::NotConfigured);
    };
    if known.is_some_and(|record| record.detached_manual) {
        return Plan::Nothing(SkipReason::DetachedByHand);
    }
    match event.kind {
        EventKind::DeviceAdd if known.is_some() => Plan::Nothing(SkipReason::Known),
        // QEMU need not have heard of a device that it is handed.
        EventKind::DeviceAdd if new && vm.access.way == AccessMode::Fd && vm.delay.is_zero() => {
            Plan::AttachEarly(vm)
        }
        EventKind::DeviceAdd => Plan::Record(vm),
        _ => Plan::Attach {
            vm,
            settle: !is_in(known, vm),
            unless_newer: event.kind == EventKind::InterfaceAdd,
        },
    }
}

/// The virtual machine that a device goes to: the one it is in, else the first that runs, else the
/// first.
pub fn choose<'a>(
    config: &'a Config,
    places: &UsbLocation,
    record: Option<&Record>,
    runs: &dyn Fn(&VirtualMachine) -> bool,
) -> Option<&'a VirtualMachine> {
    let mut vms = config.owners(places);
    if vms.is_empty() {
        return None;
    }
    // By hand it may have gone to one that does not list the port.
    let in_it = |vm: &VirtualMachine| is_in(record, vm);
    if let Some(vm) = config.virtual_machines.iter().find(|vm| in_it(vm)) {
        vms.retain(|vm| !in_it(vm));
        vms.insert(0, vm);
    }
    match vms[..] {
        [only] => Some(only),
        _ => vms.iter().find(|vm| runs(vm)).or(vms.first()).copied(),
    }
}

/// Whether that virtual machine is thought to have the device.
fn is_in(record: Option<&Record>, vm: &VirtualMachine) -> bool {
    let attached = record.and_then(|record| record.attached.as_ref());
    attached.is_some_and(|attached| attached.vm == vm.name && attached.socket == vm.socket)
}

/// Where the device of a port may be: where it was attached, be the config as it may; else in one
/// of its owners; and if nothing at all is remembered, in any of the others, whose it may have been.
fn targets<'a>(
    config: &'a Config,
    places: &UsbLocation,
    record: Option<&'a Record>,
) -> Vec<Target<'a>> {
    if let Some(attachment) = record.and_then(|record| record.attached.as_ref()) {
        let configured = config.virtual_machines.iter().find(|vm| vm.socket == attachment.socket);
        return vec![Target {
            vm: &attachment.vm,
            socket: &attachment.socket,
            timeout: configured.map_or(VirtualMachine::DEFAULT_TIMEOUT, |vm| vm.timeout),
        }];
    }
    let mut vms = config.owners(places);
    if !vms.is_empty() && record.is_none() {
        let others = config.virtual_machines.iter();
        let others: Vec<_> =
            others.filter(|vm| vms.iter().all(|owner| owner.name != vm.name)).collect();
        vms.extend(others);
    }
    let target =
        |vm: &'a VirtualMachine| Target { vm: &vm.name, socket: &vm.socket, timeout: vm.timeout };
    vms.into_iter().map(target).collect()
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing(idle) => idle.fmt(f),
            Self::Record(vm) => write!(f, "remember it for {}", vm.name),
            Self::AttachEarly(vm) => write!(f, "attach it to {} at once", vm.name),
            Self::Attach { vm, settle, unless_newer } => {
                write!(f, "attach it to {}", vm.name)?;
                if *settle {
                    write!(f, " after {} s of quiet", vm.delay.as_secs_f64())?;
                }
                if *unless_newer {
                    f.write_str(", unless a newer interface comes")?;
                }
                Ok(())
            }
            Self::Detach(targets) if targets.is_empty() => f.write_str("forget it"),
            Self::Detach(targets) => {
                f.write_str("detach it from ")?;
                for (index, target) in targets.iter().enumerate() {
                    write!(f, "{}{}", if index > 0 { ", else " } else { "" }, target.vm)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
