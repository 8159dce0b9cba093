//! The attaching events: settle, check, attach, prove, record.

use std::cell::RefCell;

use super::candidate::{Candidate, Owner};
use super::{Hook, not_kept, recall};
use crate::config::VirtualMachine;
use crate::device_id::DeviceId;
use crate::guest::attach::{AttachError, Attached, Wanted, attach};
use crate::guest::seat::GuestPort;
use crate::outcome::{End, Idle, Outcome, Subject, Times};
use crate::qmp::Error;
use crate::settle::{Settle, Settled};
use crate::state::record::{Attachment, Record};
use crate::sysfs::{self, UsbDevice};
use crate::uevent::UsbEvent;
use crate::world::{ExchangeError, World};

/// An event that attaches its device.
pub(super) struct Attach<'a> {
    pub(super) hook: &'a Hook<'a>,
    pub(super) event: &'a UsbEvent,
    pub(super) owner: Owner<'a>,
    pub(super) vm: &'a VirtualMachine,
    pub(super) world: &'a dyn World,
    pub(super) settle: bool,
    pub(super) unless_newer: bool,
}

impl Attach<'_> {
    pub(super) fn run(&self, mut subject: Subject, record: Option<Record>) -> Outcome {
        let end = |subject: &Subject, end| Outcome::new(Some(subject.clone()), end);
        let world = self.world;
        let device = match world.usb_device(&self.event.device) {
            Ok(Some(device)) => device,
            Ok(None) => return end(&subject, self.left()),
            Err(error) => return end(&subject, End::Failed(format!("not attached: {error}"))),
        };
        let devnum = self.event.devnum.unwrap_or(device.devnum);
        let id = DeviceId { port: self.event.port.clone(), devnum };
        subject.id = Some(id.clone());
        if device.devnum != devnum {
            return end(&subject, self.left());
        }
        subject.device = Some(device.label());
        let candidate = Candidate::new(world, self.owner, devnum);
        let in_guest = record
            .as_ref()
            .is_some_and(|record| record.devnum == devnum && record.attached.is_some());
        let mut outcome = self.attach(subject, record, &device, id, &candidate);
        let with_host =
            matches!(outcome.end, End::Refused(_) | End::NotRunning(_) | End::Failed(_));
        if with_host && !in_guest {
            outcome.notes.extend(candidate.give_back());
        }
        outcome
    }

    /// Attaches the device that is there.
    fn attach(
        &self,
        subject: Subject,
        record: Option<Record>,
        device: &UsbDevice,
        id: DeviceId,
        candidate: &Candidate<'_>,
    ) -> Outcome {
        let end = |subject: &Subject, end| Outcome::new(Some(subject.clone()), end);
        let (world, devnum) = (self.world, id.devnum);
        if let Some(why) = candidate.refusal(device) {
            return end(&subject, End::Refused(why));
        }
        if !world.has_socket(&self.vm.socket) {
            // Without a wait: meanwhile the host could not use the device.
            let socket = self.vm.socket.clone();
            let error = Error::NotRunning { socket, stale: false };
            return end(&subject, End::NotRunning(error.to_string()));
        }

        let mut notes = Vec::new();
        // One that is thought to be attached is the guest's already.
        if self.settle {
            notes.extend(candidate.keep_host_off());
        }
        let seen = world.seen();
        let record = record
            .filter(|record| record.devnum == devnum)
            .unwrap_or_else(|| self.hook.new_record(self.event, devnum, world, seen));
        if self.unless_newer {
            notes.extend(self.note_interface(&record));
        }

        let started = world.now();
        if self.settle {
            let quiet_since = record.quiet_since(seen);
            let settle = Settle::new(&self.event.device, self.vm.delay, quiet_since, started)
                .hands_off(self.vm.hands_off);
            match world.settle(settle, &mut || notes.extend(candidate.keep_host_off())) {
                Ok(Settled::Quiet) => {}
                Ok(Settled::Removed) => return end(&subject, self.left()),
                Err(error) => notes.push(format!("not settled: {error}")),
            }
        }
        if self.unless_newer && self.a_newer_one_came() {
            return end(&subject, End::Idle(Idle::LeftToNewerInterface));
        }

        let settled = world.now();
        let refused = RefCell::new(None);
        let attached = self.exchange(&id, device, candidate, &refused);
        let now = world.now();
        let times = Times {
            since_plug: now.since(record.plugged),
            settling: settled.since(started),
            exchange: now.since(settled),
        };
        if let Ok(attached) = &attached {
            notes.extend(attached.guest_port().and_then(|seat| self.note_seat(&seat)));
            notes.extend(self.note_attached(record, id, device.label()));
        }
        let how = match attached {
            Ok(Attached::Now(seat)) => End::Attached { seat, times },
            Ok(Attached::Before) => End::AttachedBefore,
            Ok(Attached::WhenRunning(_)) => End::WhenRunning,
            Err(ExchangeError::Guest(AttachError::Gone)) => match refused.take() {
                Some(why) => End::Refused(why),
                None => self.left(),
            },
            Err(error) => match error.not_running() {
                Some(error) => End::NotRunning(error.to_string()),
                None => End::Failed(format!("not attached: {error}")),
            },
        };
        Outcome { subject: Some(subject), end: how, notes }
    }

    /// Has the device attached by QEMU; if it may not be any more, `refused` says why.
    fn exchange(
        &self,
        id: &DeviceId,
        device: &UsbDevice,
        candidate: &Candidate<'_>,
        refused: &RefCell<Option<String>>,
    ) -> Result<Attached, ExchangeError> {
        let still_there = || {
            // What cannot be told now was there a moment ago.
            let now = self.world.usb_device(&self.event.device);
            let Ok(now) = now else { return true };
            let Some(now) = now.filter(|now| now.devnum == id.devnum) else { return false };
            let refusal = candidate.refusal(&now);
            let may_go = refusal.is_none();
            refused.replace(refusal);
            may_go
        };
        let memory = self.world.memory(&self.vm.name, &id.port);
        let wanted = Wanted {
            id: id.clone(),
            speed: device.speed,
            hubs: &self.vm.hubs,
            memory: &memory,
            named: device.product.is_some(),
            node: sysfs::node(device.busnum, device.devnum),
            still_there: &still_there,
        };
        let mut attached = Err(AttachError::Gone);
        self.world.exchange(&self.vm.socket, self.vm.timeout, &mut |qmp| {
            attached = Ok(attach(qmp, &wanted)?);
            Ok(())
        })?;
        Ok(attached?)
    }

    /// Notes that this interface has come, so that an older one's event leaves the device to it.
    fn note_interface(&self, record: &Record) -> Option<String> {
        not_kept(self.world.remember(&record.port, &mut |stored| {
            // Siblings run at the same time: what one of them has noted meanwhile counts.
            let known = stored.take().filter(|stored| stored.devnum == record.devnum);
            let mut known = known.unwrap_or_else(|| record.clone());
            known.newest_interface = known.newest_interface.max(self.event.seqnum);
            *stored = Some(known);
        }))
    }

    /// Notes which port of the guest it has, for the next device in its port.
    fn note_seat(&self, seat: &GuestPort) -> Option<String> {
        not_kept(self.world.remember_seat(&self.vm.name, &self.event.port, seat))
    }

    /// Notes where the device is; what siblings have noted meanwhile stays.
    fn note_attached(&self, record: Record, id: DeviceId, device: String) -> Option<String> {
        let (vm, socket) = (self.vm.name.clone(), self.vm.socket.clone());
        let attached = Attachment { vm, socket, id, device, at: self.world.now() };
        let port = record.port.clone();
        let mut record = Some(record);
        not_kept(self.world.remember(&port, &mut |stored| {
            let known = stored.take().filter(|stored| stored.devnum == attached.id.devnum);
            *stored = known.or_else(|| record.take()).map(|mut known| {
                let before = known.attached.take().filter(|before| before.is_same(&attached));
                known.attached = Some(before.unwrap_or_else(|| attached.clone()));
                known
            });
        }))
    }

    /// The device is no longer there: pulled too early, or attached by another of its events
    /// before it was pulled, which `remove` has the word on.
    fn left(&self) -> End {
        let attached = recall(self.world, self.event).and_then(|record| record.attached);
        if attached.is_some() { End::Idle(Idle::Known) } else { End::Left }
    }

    fn a_newer_one_came(&self) -> bool {
        recall(self.world, self.event)
            .is_some_and(|record| record.newest_interface > self.event.seqnum)
    }
}
