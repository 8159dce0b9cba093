//! Attaching: settle, check, attach, prove, record.

mod memory;

use std::cell::RefCell;

use super::candidate::{Assignment, Candidate};
use super::handover::DeviceHandover;
use super::recall;
use crate::config::VirtualMachine;
use crate::config::access::AccessMode;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::guest::attach::{AttachError, AttachRequest, Attached, attach};
use crate::guest::object;
use crate::host::settle::{Settle, Settled};
use crate::host::sysfs::{self, UsbDevice};
use crate::host::{ExchangeError, Host};
use crate::outcome::{EventContext, Outcome, Report, SkipReason, Times};
use crate::port::{DevNum, Port};
use crate::qmp::Error;
use crate::qmp::handover::Handover;
use crate::state::record::{Record, UeventMark};

/// A device that is to go to a virtual machine.
pub struct Attach<'a> {
    /// The world in which it happens.
    pub world: &'a dyn Host,
    /// Whose it is to be, and where it is.
    pub owner: Assignment<'a>,
    /// The same place, as its port.
    pub port: &'a Port,
    /// The number the device must have; none for whichever is there.
    pub devnum: Option<DevNum>,
    /// Makes the record of a device that has none.
    pub new_record: &'a dyn Fn(DevNum, UeventMark) -> Record,
    /// Who wants it.
    pub wish: Trigger,
}

/// Who wants a device attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The config, at an event.
    Udev {
        /// Once it has settled; one that is thought to be attached already needs no time.
        settle: bool,
        /// With the event of that number, of one of the device's interfaces: unless a newer one
        /// comes meanwhile, which then attaches.
        interface: Option<u64>,
    },
    /// The config, of a device that has been there for longer than its delay.
    Sync,
    /// A person, for whom the port is held: now, whatever is remembered.
    Manual,
}

impl Attach<'_> {
    /// Attaches it. `record` is what is remembered of the port.
    pub fn run(&self, mut context: EventContext, record: Option<Record>) -> Report {
        let end = |context: &EventContext, end| Report::new(Some(context.clone()), end);
        let world = self.world;
        let device = match world.usb_device(self.devpath()) {
            Ok(Some(device)) => device,
            Ok(None) => return end(&context, self.left()),
            Err(error) => return end(&context, Outcome::Failed(format!("not attached: {error}"))),
        };
        let devnum = self.devnum.unwrap_or(device.devnum);
        let id = DeviceId { port: self.port.clone(), devnum };
        context.id = Some(id.clone());
        if device.devnum != devnum {
            return end(&context, self.left());
        }
        context.device = Some(device.label());
        let candidate = Candidate::new(world, self.owner, devnum);
        let in_guest = record.as_ref().is_some_and(|record| record.has_attached(devnum));
        let mut outcome = self.attach(context, record, &device, id, &candidate);
        let with_host = matches!(
            outcome.end,
            Outcome::Rejected(_) | Outcome::NotRunning(_) | Outcome::Failed(_)
        );
        if with_host && !in_guest {
            outcome.notes.extend(candidate.give_back());
        }
        outcome
    }

    fn devpath(&self) -> &DevPath {
        &self.owner.places.own.devpath
    }

    fn vm(&self) -> &VirtualMachine {
        self.owner.vm
    }

    fn settles(&self) -> bool {
        matches!(self.wish, Trigger::Udev { settle: true, .. })
    }

    /// Attaches the device that is there.
    fn attach(
        &self,
        mut context: EventContext,
        record: Option<Record>,
        device: &UsbDevice,
        id: DeviceId,
        candidate: &Candidate<'_>,
    ) -> Report {
        let end = |context: &EventContext, end| Report::new(Some(context.clone()), end);
        let (world, devnum) = (self.world, id.devnum);
        if let Some(why) = candidate.refusal(device) {
            return end(&context, Outcome::Rejected(why));
        }
        if world.socket_file(&self.vm().socket).is_none() {
            // Without a wait: meanwhile the host could not use the device.
            let socket = self.vm().socket.clone();
            let error = Error::NotRunning { socket, stale: false };
            return end(&context, Outcome::NotRunning(error.to_string()));
        }

        let mut notes = Vec::new();
        // One that is thought to be attached is the guest's already.
        if !matches!(self.wish, Trigger::Udev { settle: false, .. }) {
            notes.extend(candidate.take());
        }
        let seen = world.seen();
        let record = record
            .filter(|record| record.devnum == devnum)
            .unwrap_or_else(|| (self.new_record)(devnum, seen));
        if let Trigger::Udev { interface: Some(seqnum), .. } = self.wish {
            notes.extend(self.note_interface(&record, seqnum));
        }

        let started = world.now();
        if self.settles() {
            let quiet_since = record.quiet_since(seen);
            let settle = Settle::new(self.devpath(), self.vm().delay, quiet_since, started)
                .unbind_host_drivers(self.vm().unbind_host_drivers);
            match world.settle(settle, &mut || notes.extend(candidate.keep_host_off())) {
                Ok(Settled::Quiet) => {}
                Ok(Settled::Removed) => return end(&context, self.left()),
                Err(error) => notes.push(format!("not settled: {error}")),
            }
        }
        let settled = world.now();
        let held = match self.wish {
            Trigger::Manual => None,
            Trigger::Udev { .. } | Trigger::Sync => match world.hold(self.port) {
                Ok(lock) => lock,
                Err(error) => {
                    return end(&context, Outcome::Failed(format!("not attached: {error:#}")));
                }
            },
        };
        let known = recall(world, self.port, self.devpath());
        if let Some(why) = known.as_ref().and_then(|known| self.overtaken(known, devnum)) {
            return end(&context, Outcome::Skipped(why));
        }
        if let Some(vm) = self.elsewhere(known.as_ref(), &id) {
            notes.extend(self.note_attached(vm, record, id, device.label()));
            context.vm = Some(vm.name.clone());
            return Report { context: Some(context), end: Outcome::AlreadyAttached, notes };
        }
        let refused = RefCell::new(None);
        let expected_attached = known.is_some_and(|known| known.has_attached(devnum));
        let attached = self.exchange(&id, device, candidate, expected_attached, &refused);
        let now = world.now();
        let times = Times {
            since_plug: now.since(record.plugged),
            settling: settled.since(started),
            exchange: now.since(settled),
        };
        if let Ok(attached) = &attached {
            notes.extend(attached.usual(device.speed).and_then(|seat| self.note_seat(&seat)));
            notes.extend(self.note_attached(self.vm(), record, id, device.label()));
        }
        drop(held);
        let how = match attached {
            Ok(Attached::Now(seat)) => {
                let times = matches!(self.wish, Trigger::Udev { .. }).then_some(times);
                Outcome::Attached { seat, times }
            }
            Ok(Attached::Before) => Outcome::AlreadyAttached,
            Ok(Attached::PendingResume(_)) => Outcome::PendingResume,
            Err(ExchangeError::Guest(AttachError::Gone)) => match refused.take() {
                Some(why) => Outcome::Rejected(why),
                None => self.left(),
            },
            Err(error) => match error.not_running() {
                Some(error) => Outcome::NotRunning(error.to_string()),
                None => Outcome::Failed(format!("not attached: {error}")),
            },
        };
        Report { context: Some(context), end: how, notes }
    }

    /// Has the device attached by QEMU; if it may not be any more, `refused` says why.
    fn exchange(
        &self,
        id: &DeviceId,
        device: &UsbDevice,
        candidate: &Candidate<'_>,
        expected_attached: bool,
        refused: &RefCell<Option<String>>,
    ) -> Result<Attached, ExchangeError> {
        let recheck = || {
            // What cannot be told now was there a moment ago.
            let now = self.world.usb_device(self.devpath());
            let Ok(now) = now else { return true };
            let Some(now) = now.filter(|now| now.devnum == id.devnum) else { return false };
            let refusal = candidate.refusal(&now);
            let may_go = refusal.is_none();
            refused.replace(refusal);
            may_go
        };
        let memory = self.world.memory(&self.vm().name, &id.port);
        let (world, vm, devpath) = (self.world, self.vm(), self.devpath());
        let handover = DeviceHandover { world, vm, devpath, device };
        let way = self.vm().access.way;
        let wanted = AttachRequest {
            id: id.clone(),
            speed: device.speed,
            hubs: &self.vm().hubs,
            memory: &memory,
            named: device.product.is_some(),
            node: sysfs::node(device.busnum, device.devnum),
            by_node: way != AccessMode::Fd,
            handover: (way != AccessMode::Node).then_some(&handover as &dyn Handover),
            expected_attached,
            recheck: &recheck,
        };
        let mut attached = Err(AttachError::Gone);
        self.world.exchange(&self.vm().socket, self.vm().timeout, &mut |qmp| {
            attached = Ok(attach(qmp, &wanted)?);
            Ok(())
        })?;
        Ok(attached?)
    }

    /// Why the device is to be left alone, after all that may have happened while it settled and
    /// others held its port.
    fn overtaken(&self, record: &Record, devnum: DevNum) -> Option<SkipReason> {
        match self.wish {
            Trigger::Manual => None,
            Trigger::Udev { interface: Some(seqnum), .. }
                if record.newest_interface > Some(seqnum) =>
            {
                Some(SkipReason::LeftToNewerInterface)
            }
            _ if record.devnum != devnum => None,
            _ if record.detached_manual => Some(SkipReason::DetachedByHand),
            Trigger::Udev { .. } | Trigger::Sync => {
                let attached = record.attached.as_ref()?;
                let elsewhere = attached.socket != self.vm().socket;
                (elsewhere && self.world.runs(&attached.socket)).then_some(SkipReason::Elsewhere)
            }
        }
    }

    /// The other virtual machine that has the device, of those that list its port, though nothing
    /// is remembered of it: somebody deleted the state, or killed us before it was written.
    fn elsewhere(&self, known: Option<&Record>, id: &DeviceId) -> Option<&VirtualMachine> {
        if self.wish == Trigger::Manual || known.is_some_and(|record| record.attached.is_some()) {
            return None;
        }
        let mut owners = self.owner.config.owners(self.owner.places);
        owners.retain(|vm| vm.socket != self.vm().socket && self.world.runs(&vm.socket));
        owners.into_iter().find(|vm| self.has_device(vm, id))
    }

    /// Whether that machine has the device, or will have it when it goes on. An object without it in
    /// a guest that runs is deleted: its QEMU has not heard of the device, as while udevd is
    /// restarted, and could open it beside the one that gets it now.
    fn has_device(&self, vm: &VirtualMachine, id: &DeviceId) -> bool {
        let mut has = false;
        let asked = self.world.exchange(&vm.socket, vm.timeout, &mut |qmp| {
            if object::list(qmp)?.contains(id) {
                has = object::is_attached(qmp, id)? || !object::is_running(qmp)?;
                if !has {
                    object::delete(qmp, id)?;
                }
            }
            Ok(())
        });
        asked.is_ok() && has
    }

    /// The device is no longer there: pulled too early, or attached by another of its events
    /// before it was pulled, which `remove` has the word on.
    fn left(&self) -> Outcome {
        let record = recall(self.world, self.port, self.devpath());
        let attached = record.and_then(|record| record.attached);
        if attached.is_some() {
            Outcome::Skipped(SkipReason::Known)
        } else {
            Outcome::UnpluggedEarly
        }
    }
}
