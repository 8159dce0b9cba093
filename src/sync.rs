//! What a virtual machine should have, and what it has: one brought in line with the other.
//!
//! Safe at any time: the guest is asked, not the memory of it, and each device is attached the way
//! an event attaches it, under the same locks.

use std::time::Duration;

use crate::config::{Config, VirtualMachine};
use crate::device_id::DeviceId;
use crate::event::plan::choose;
use crate::guest::bus::{GuestDevice, buses};
use crate::guest::object;
use crate::host::settle::Settle;
use crate::host::sysfs::UsbDevice;
use crate::host::topology::{HubPort, Topology};
use crate::host::{ExchangeError, Host};
use crate::location::UsbLocation;
use crate::outcome::{EventContext, Outcome, Report};
use crate::port::{DevNum, Port};
use crate::state::record::Record;
use crate::transfer::attach::{Attach, Trigger};
use crate::transfer::candidate::Assignment;
use crate::transfer::{Given, give_to_host, new_record, recall_device};

/// One virtual machine that is brought in line.
pub struct Sync<'a> {
    /// The world in which it happens.
    pub world: &'a dyn Host,
    /// The config.
    pub config: &'a Config,
    /// The virtual machine.
    pub vm: &'a VirtualMachine,
    /// Reads what is plugged in where, now.
    pub look: &'a dyn Fn() -> Topology,
}

/// What a guest had.
struct Had {
    /// Objects with a device in them, or, in a paused guest, all: it opens them when it goes on.
    good: Vec<DeviceId>,
    /// What was on the host after the guest was asked.
    topology: Topology,
}

/// A device that is this virtual machine's.
struct Owned<'t> {
    port: &'t HubPort,
    device: &'t UsbDevice,
    places: UsbLocation,
    /// What is remembered of it.
    record: Option<Record>,
}

impl Sync<'_> {
    /// Deletes what stands for devices that are gone, and attaches those that are missing; `told`
    /// hears of each. What is as it should be is left alone. Returns how many devices of ours the
    /// guest has been found with already.
    ///
    /// # Errors
    ///
    /// The guest could not be asked; then nothing was done. `timeout` is for that.
    pub fn run(
        &self,
        timeout: Duration,
        told: &mut dyn FnMut(Report),
    ) -> Result<usize, ExchangeError> {
        let had = self.tidy(timeout, told)?;
        let mut good = 0;
        for own in self.owned(&had.topology) {
            if own.record.as_ref().is_some_and(|record| record.detached_manual) {
                continue;
            }
            let id = DeviceId { port: own.port.port.clone(), devnum: own.device.devnum };
            if had.good.contains(&id) {
                good += 1;
            } else {
                told(self.attach(own));
            }
        }
        Ok(good)
    }

    /// Gives back to the host's drivers what the virtual machine, which does not run, has left
    /// without one.
    pub fn reclaim(&self, told: &mut dyn FnMut(Report)) {
        let topology = (self.look)();
        for own in self.owned(&topology) {
            let end = match give_to_host(self.world, &own.port.devpath) {
                Given { probed: Err(error), .. } => {
                    Outcome::Failed(format!("the host's drivers do not have it: {error}"))
                }
                Given { before, now, .. } if now > before => Outcome::ReturnedToHost,
                Given { .. } => continue,
            };
            told(Report::new(Some(self.context(&own)), end));
        }
    }

    /// Asks the guest what it has and deletes what is stale.
    fn tidy(&self, timeout: Duration, told: &mut dyn FnMut(Report)) -> Result<Had, ExchangeError> {
        let mut had = Had { good: Vec::new(), topology: Topology::default() };
        self.world.exchange(&self.vm.socket, timeout, &mut |qmp| {
            let objects = object::list(qmp)?;
            let open: Vec<DeviceId> = if objects.is_empty() {
                Vec::new()
            } else if object::is_running(qmp)? {
                let devices = buses(qmp)?.into_iter().flat_map(|bus| bus.devices);
                let open = |one: GuestDevice| one.id.filter(|_| one.attached)?.parse().ok();
                devices.filter_map(open).collect()
            } else {
                objects.clone()
            };
            // Only now: a device that came after the question is no stale object's.
            had.topology = (self.look)();
            let (present, stale): (Vec<_>, Vec<_>) =
                objects.into_iter().partition(|id| is_present(&had.topology, &id.port, id.devnum));
            had.good = present.into_iter().filter(|id| open.contains(id)).collect();
            for id in stale {
                if object::delete(qmp, &id)? {
                    let port = id.port.clone();
                    let context = EventContext {
                        port,
                        devpath: String::new(),
                        device: None,
                        vm: Some(self.vm.name.clone()),
                        id: Some(id.clone()),
                    };
                    told(Report::new(Some(context), Outcome::Detached(vec![id])));
                }
            }
            Ok(())
        })?;
        Ok(had)
    }

    /// What is plugged in and this virtual machine's now, each looked up when its turn comes.
    fn owned<'t>(&'t self, topology: &'t Topology) -> impl Iterator<Item = Owned<'t>> {
        topology.devices().filter_map(|(port, device)| {
            let places = topology.places(&port.devpath);
            if !self.config.is_configured(&places) {
                return None;
            }
            let record = recall_device(self.world, &port.port, &port.devpath, device.devnum);
            let owner = choose(self.config, &places, record.as_ref(), &|vm| self.runs(vm))?;
            (owner.name == self.vm.name).then_some(Owned { port, device, places, record })
        })
    }

    fn runs(&self, vm: &VirtualMachine) -> bool {
        // This one has answered, or is known not to run.
        vm.name == self.vm.name || self.world.runs(&vm.socket)
    }

    fn attach(&self, own: Owned<'_>) -> Report {
        let context = self.context(&own);
        let Owned { port, device, places, record } = own;
        let (seen, devnum) = (self.world.seen(), device.devnum);
        let record = record
            .unwrap_or_else(|| new_record(self.world, &port.port, &port.devpath, devnum, seen));
        // The event of one that has just been plugged is under way as well: whoever is second finds
        // it attached.
        let settle = Settle::new(&port.devpath, self.vm.delay, record.plugged, seen.at);
        let attach = Attach {
            world: self.world,
            owner: Assignment { config: self.config, vm: self.vm, places: &places },
            port: &port.port,
            devnum: Some(devnum),
            new_record: &|_, _| record.clone(),
            wish: if settle.due() > seen.at {
                Trigger::Udev { settle: true, interface: None }
            } else {
                Trigger::Sync
            },
        };
        attach.run(context, Some(record.clone()))
    }

    fn context(&self, own: &Owned<'_>) -> EventContext {
        let Owned { port, device, .. } = own;
        let context = EventContext::new(&port.port, &port.devpath, Some(device.devnum));
        EventContext { device: Some(device.label()), vm: Some(self.vm.name.clone()), ..context }
    }
}

/// Forgets what is remembered of devices that are gone.
pub fn forget_the_gone(world: &dyn Host, records: &[Record], topology: &Topology) {
    for record in records {
        if !is_present(topology, &record.port, record.devnum) {
            // The next device may have come meanwhile.
            let _ = world.remember(&record.port, &mut |stored| {
                stored.take_if(|stored| stored.devnum == record.devnum);
            });
        }
    }
}

fn is_present(topology: &Topology, port: &Port, devnum: DevNum) -> bool {
    topology.devices().any(|(there, device)| there.port == *port && device.devnum == devnum)
}
