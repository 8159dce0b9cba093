//! One device that a person attaches, detaches or moves.

use crate::config::{Config, VirtualMachine};
use crate::device_id::DeviceId;
use crate::event::plan::{Target, choose};
use crate::host::Host;
use crate::host::sysfs::UsbDevice;
use crate::location::UsbLocation;
use crate::outcome::{EventContext, Outcome, Report};
use crate::port::{DevNum, Port};
use crate::state::record::{Record, UeventMark};
use crate::transfer::attach::{Attach, Trigger};
use crate::transfer::candidate::{Assignment, Candidate};
use crate::transfer::detach::Leaving;
use crate::transfer::{has_object, keep, new_record, recall_device};

/// What a person does to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Attach,
    Detach,
    Move,
}

/// A device, and where a person wants it.
pub(super) struct Passage<'a> {
    world: &'a dyn Host,
    config: &'a Config,
    places: &'a UsbLocation,
    port: &'a Port,
    /// The virtual machine that was named.
    vm: Option<&'a VirtualMachine>,
}

impl<'a> Passage<'a> {
    pub(super) fn new(
        world: &'a dyn Host,
        config: &'a Config,
        places: &'a UsbLocation,
        port: &'a Port,
        vm: Option<&'a VirtualMachine>,
    ) -> Self {
        Self { world, config, places, port, vm }
    }

    /// Does it.
    pub(super) fn take(&self, deed: Deed) -> Report {
        match deed {
            Deed::Attach => self.attach(),
            Deed::Detach => self.detach(),
            Deed::Move => self.move_on(),
        }
    }

    /// Attaches it, unless it is attached elsewhere.
    fn attach(&self) -> Report {
        self.holding(|device| {
            let holder = match self.holder(device) {
                Ok(holder) => holder,
                Err(why) => return self.failed(device, &why),
            };
            match holder {
                Some(holder) if self.vm.is_some_and(|vm| vm.name != holder.name) => {
                    let why = format!("`{}` has it; `hotplugger move` moves it", holder.name);
                    self.failed(device, &why)
                }
                Some(holder) => self.attach_to(holder, device),
                None => self.attach_to_first(device),
            }
        })
    }

    /// Detaches it from the virtual machine that has it, and leaves it with the host.
    fn detach(&self) -> Report {
        self.holding(|device| {
            let holder = match self.holder(device) {
                Ok(holder) => holder,
                Err(why) => return self.failed(device, &why),
            };
            if let Some((vm, holder)) = self.vm.zip(holder)
                && vm.name != holder.name
            {
                let why = format!("`{}` has it, not `{}`", holder.name, vm.name);
                return self.failed(device, &why);
            }
            let mut context = self.context(device);
            let mut gone = Vec::new();
            if let Some(vm) = holder {
                context.vm = Some(vm.name.clone());
                match self.leave(vm, device) {
                    Ok(ids) => gone = ids,
                    Err(why) => {
                        return Report::new(
                            Some(context),
                            Outcome::Failed(format!("not detached: {why}")),
                        );
                    }
                }
            }
            let mut outcome = Report::new(Some(context), Outcome::DetachedManually(gone));
            let mut record = self.record(device.devnum, self.world.seen());
            record.attached = None;
            record.detached_manual = true;
            outcome.notes.extend(keep(self.world, &record));
            if let Err(error) = self.world.probe_drivers(&self.places.own.devpath) {
                outcome.notes.push(format!("the host's drivers do not have it back: {error}"));
            }
            outcome
        })
    }

    /// Moves it to the virtual machine that was named, else to the next that runs.
    fn move_on(&self) -> Report {
        self.holding(|device| {
            let from = match self.holder(device) {
                Ok(Some(from)) => from,
                Ok(None) => return self.attach_to_first(device),
                Err(why) => return self.failed(device, &why),
            };
            let to = match self.vm.map_or_else(|| self.next(from), Ok) {
                Ok(to) => to,
                Err(why) => return self.failed(device, &why),
            };
            if to.name == from.name {
                let end = Outcome::AlreadyAttached;
                return Report::new(
                    Some(EventContext { vm: Some(to.name.clone()), ..self.context(device) }),
                    end,
                );
            }
            if !self.world.runs(&to.socket) {
                let why =
                    format!("not moved, `{}` does not run; `{}` keeps it", to.name, from.name);
                return self.failed(device, &why);
            }
            if let Some(why) = self.candidate(to, device).refusal(device) {
                let why = format!("not moved, it may not go to `{}`: {why}", to.name);
                return self.failed(device, &why);
            }
            if let Err(why) = self.leave(from, device) {
                let why = format!("not moved, `{}` does not let it go: {why}", from.name);
                return self.failed(device, &why);
            }
            let mut outcome = self.attach_to(to, device);
            if !outcome.is_as_wished() {
                let back = self.attach_to(from, device);
                let how =
                    if back.is_as_wished() { "has it again" } else { "does not take it back" };
                outcome.notes.push(format!("`{}` {how}", from.name));
            }
            outcome
        })
    }

    /// Does it while no other hotplugger does anything about the port.
    fn holding(&self, act: impl FnOnce(&UsbDevice) -> Report) -> Report {
        let device = self.world.usb_device(&self.places.own.devpath);
        let failed = |why: String| {
            let context = EventContext::new(self.port, &self.places.own.devpath, None);
            Report::new(Some(context), Outcome::Failed(why))
        };
        let _held = match self.world.hold(self.port) {
            Ok(lock) => lock,
            Err(error) => return failed(format!("{error:#}")),
        };
        match device {
            Ok(Some(device)) => act(&device),
            Ok(None) => failed("it was pulled".to_owned()),
            Err(error) => failed(error.to_string()),
        }
    }

    /// The virtual machine that has it, be it remembered or not.
    fn holder(&self, device: &UsbDevice) -> Result<Option<&'a VirtualMachine>, String> {
        let known = self.recall(device.devnum);
        let known = known.and_then(|record| record.attached).map(|attached| attached.socket);
        let is_known = |vm: &VirtualMachine| known.as_ref() == Some(&vm.socket);
        let id = DeviceId { port: self.port.clone(), devnum: device.devnum };
        let mut vms: Vec<&VirtualMachine> = self.config.virtual_machines.iter().collect();
        vms.sort_by_key(|vm| !is_known(vm));
        for vm in vms.into_iter().filter(|vm| self.world.runs(&vm.socket)) {
            match has_object(self.world, vm, &id) {
                Ok(true) => return Ok(Some(vm)),
                Err(error) if is_known(vm) => {
                    return Err(format!("`{}` has it and cannot be asked: {error}", vm.name));
                }
                Ok(false) | Err(_) => {}
            }
        }
        Ok(None)
    }

    fn attach_to_first(&self, device: &UsbDevice) -> Report {
        match self.vm.or_else(|| self.first()) {
            Some(vm) => self.attach_to(vm, device),
            None => self.failed(device, "no virtual machine lists this port; name one with --vm"),
        }
    }

    /// The first that lists the port and runs, else the first.
    fn first(&self) -> Option<&'a VirtualMachine> {
        choose(self.config, self.places, None, &|vm| self.world.runs(&vm.socket))
    }

    /// The next after `from` that lists the port and runs.
    fn next(&self, from: &VirtualMachine) -> Result<&'a VirtualMachine, String> {
        let owners = self.config.owners(self.places);
        let at = owners.iter().position(|vm| vm.name == from.name).map_or(0, |at| at + 1);
        let after = owners[at..].iter().chain(&owners[..at]);
        let next = after.filter(|vm| vm.name != from.name).find(|vm| self.world.runs(&vm.socket));
        next.copied().ok_or_else(|| {
            format!(
                "not moved, `{}` has it and no other virtual machine that lists the port runs; \
                 name one with --vm",
                from.name
            )
        })
    }

    fn attach_to(&self, vm: &VirtualMachine, device: &UsbDevice) -> Report {
        let record = self.record(device.devnum, self.world.seen());
        let attach = Attach {
            world: self.world,
            owner: Assignment { config: self.config, vm, places: self.places },
            port: self.port,
            devnum: Some(device.devnum),
            new_record: &|_, _| record.clone(),
            wish: Trigger::Manual,
        };
        let mut context = self.context(device);
        context.vm = Some(vm.name.clone());
        let mut outcome = attach.run(context, Some(record.clone()));
        if outcome.is_as_wished() {
            return outcome;
        }
        // It is the config's to decide again.
        let record = Record { detached_manual: false, attached: None, ..record };
        outcome.notes.extend(keep(self.world, &record));
        outcome
    }

    fn leave(&self, vm: &VirtualMachine, device: &UsbDevice) -> Result<Vec<DeviceId>, String> {
        let devpath = &self.places.own.devpath;
        let devnum = Some(device.devnum);
        let leaving = Leaving { world: self.world, port: self.port, devpath, devnum };
        let target = Target { vm: &vm.name, socket: &vm.socket, timeout: vm.timeout };
        leaving.leave(&target).map_err(|error| error.to_string())
    }

    fn candidate(&self, vm: &'a VirtualMachine, device: &UsbDevice) -> Candidate<'a> {
        let owner = Assignment { config: self.config, vm, places: self.places };
        Candidate::new(self.world, owner, device.devnum)
    }

    fn recall(&self, devnum: DevNum) -> Option<Record> {
        recall_device(self.world, self.port, &self.places.own.devpath, devnum)
    }

    /// What is remembered of it, or a new record.
    fn record(&self, devnum: DevNum, seen: UeventMark) -> Record {
        let devpath = &self.places.own.devpath;
        let new = || new_record(self.world, self.port, devpath, devnum, seen);
        self.recall(devnum).unwrap_or_else(new)
    }

    fn context(&self, device: &UsbDevice) -> EventContext {
        let devpath = &self.places.own.devpath;
        let context = EventContext::new(self.port, devpath, Some(device.devnum));
        EventContext { device: Some(device.label()), ..context }
    }

    fn failed(&self, device: &UsbDevice, why: &str) -> Report {
        Report::new(Some(self.context(device)), Outcome::Failed(why.to_owned()))
    }
}
