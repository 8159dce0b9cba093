//! The attaching events: settle, check, attach, prove, record.

use std::time::Duration;

use super::{Hook, STATE_TIMEOUT, failed, keep, recall};
use crate::clock::Monotonic;
use crate::config::VirtualMachine;
use crate::deadline::Deadline;
use crate::device_id::DeviceId;
use crate::guest::attach::{AttachError, Attached, Wanted, attach};
use crate::outcome::{End, Outcome, Subject, Times};
use crate::plan::Idle;
use crate::port::DevNum;
use crate::qmp::Error;
use crate::settle::{self, Settle, Settled};
use crate::state::dir::StateDir;
use crate::state::record::{Attachment, Record};
use crate::sysfs::{self, UsbDevice};
use crate::uevent::UsbEvent;

/// An event that attaches its device.
pub(super) struct Attach<'a> {
    pub(super) hook: &'a Hook<'a>,
    pub(super) event: &'a UsbEvent,
    pub(super) vm: &'a VirtualMachine,
    pub(super) state: Option<&'a StateDir>,
    pub(super) settle: bool,
    pub(super) unless_newer: bool,
}

impl Attach<'_> {
    pub(super) fn run(&self, mut subject: Subject, record: Option<Record>) -> Outcome {
        let end = |subject: &Subject, end| Outcome::new(Some(subject.clone()), end);
        let Some(device) = self.device() else { return end(&subject, End::Left) };
        let devnum = self.event.devnum.unwrap_or(device.devnum);
        let id = DeviceId { port: self.event.port.clone(), devnum };
        subject.device = Some(device.label());
        subject.id = Some(id.clone());
        if device.devnum != devnum {
            return end(&subject, End::Left);
        }
        if let Some(why) = refusal(&device) {
            return end(&subject, End::Refused(why.to_owned()));
        }
        if !self.hook.root.path(&self.vm.socket).exists() {
            // Without a wait: meanwhile the host could not use the device.
            let socket = self.vm.socket.clone();
            let error = Error::NotRunning { socket, stale: false };
            return end(&subject, End::NotRunning(error.to_string()));
        }

        let seen = self.hook.seen();
        let mut notes = Vec::new();
        let mut record = record.filter(|record| record.devnum == devnum);
        if record.is_none() {
            record = self.state.map(|state| self.hook.new_record(self.event, devnum, state, seen));
        }
        if self.unless_newer {
            notes.extend(self.note_interface(record.as_ref()));
        }

        let started = Monotonic::now();
        if self.settle {
            let quiet_since = record.as_ref().map_or(seen.at, |record| record.quiet_since(seen));
            let settle = Settle::new(&self.event.device, self.vm.delay, quiet_since, started);
            match settle::wait(settle) {
                Ok(Settled::Quiet) => {}
                Ok(Settled::Removed) => return end(&subject, End::Left),
                Err(error) => notes.push(format!("not settled: {error}")),
            }
        }
        if self.unless_newer && self.a_newer_one_came() {
            return end(&subject, End::Idle(Idle::LeftToNewerInterface));
        }

        let settled = Monotonic::now();
        let attached = self.exchange(&id, &device);
        let now = Monotonic::now();
        let times = Times {
            since_plug: record.as_ref().map_or(Duration::ZERO, |record| now.since(record.plugged)),
            settling: settled.since(started),
            exchange: now.since(settled),
        };
        if attached.is_ok()
            && let (Some(state), Some(record)) = (self.state, record)
        {
            let attached = Attachment {
                vm: self.vm.name.clone(),
                socket: self.vm.socket.clone(),
                id,
                at: now,
            };
            notes.extend(keep(state, &Record { attached: Some(attached), ..record }));
        }
        let how = match attached {
            Ok(Attached::Now(seat)) => End::Attached { seat, times },
            Ok(Attached::Before) => End::AttachedBefore,
            Ok(Attached::WhenRunning) => End::WhenRunning,
            Err(Trouble::Attach(AttachError::Gone)) => End::Left,
            Err(Trouble::Attach(AttachError::Qmp(error @ Error::NotRunning { .. }))) => {
                End::NotRunning(error.to_string())
            }
            Err(Trouble::Attach(error)) => End::Failed(format!("not attached: {error}")),
            Err(Trouble::State(error)) => return failed(subject, &error),
        };
        Outcome { subject: Some(subject), end: how, notes }
    }

    /// The device that is in the port now.
    fn device(&self) -> Option<UsbDevice> {
        sysfs::usb_device(self.hook.root, &self.event.device)
    }

    /// Attaches the device, under the lock of its socket.
    fn exchange(&self, id: &DeviceId, device: &UsbDevice) -> Result<Attached, Trouble> {
        let (lock, mut qmp) =
            self.hook.connect(&self.vm.socket, Deadline::after(self.vm.timeout), self.state)?;
        let still_there =
            || self.device().is_some_and(|now| now.devnum == id.devnum && refusal(&now).is_none());
        let wanted = Wanted {
            id: id.clone(),
            speed: device.speed,
            hubs: &self.vm.hubs,
            named: device.product.is_some(),
            node: sysfs::node(device.busnum, DevNum(id.devnum.0)),
            still_there: &still_there,
        };
        let attached = attach(&mut qmp, &wanted)?;
        if let Some(lock) = lock {
            lock.progress();
        }
        Ok(attached)
    }

    /// Notes that this interface has come, so that an older one's event leaves the device to it.
    fn note_interface(&self, record: Option<&Record>) -> Option<String> {
        let (state, record) = (self.state?, record?);
        let records = match state.records(&Deadline::after(STATE_TIMEOUT)) {
            Ok(records) => records,
            Err(error) => return Some(format!("{error:#}")),
        };
        // Siblings run at the same time: what one of them has noted meanwhile counts.
        let mut record = records
            .get(&record.port)
            .filter(|stored| stored.devnum == record.devnum)
            .unwrap_or_else(|| record.clone());
        record.newest_interface = record.newest_interface.max(self.event.seqnum);
        records.put(&record).err().map(|error| format!("state not kept: {error:#}"))
    }

    fn a_newer_one_came(&self) -> bool {
        recall(self.state, self.event)
            .is_some_and(|record| record.newest_interface > self.event.seqnum)
    }
}

/// Why an exchange did not take place or failed.
pub(super) enum Trouble {
    /// The state folder's locks.
    State(anyhow::Error),
    /// QEMU.
    Attach(AttachError),
}

impl From<AttachError> for Trouble {
    fn from(error: AttachError) -> Self {
        Self::Attach(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Attach(error.into())
    }
}

/// Why a device may not go to a guest, whoever owns its port.
fn refusal(device: &UsbDevice) -> Option<&'static str> {
    if device.is_hub() {
        Some("it is a hub; what is plugged into it is attached, the hub never")
    } else if !device.authorized {
        Some(
            "the host has not authorized it (USBGuard, or `authorized` in sysfs); plug it again once it is",
        )
    } else {
        None
    }
}
