//! What a virtual machine should have, and what it has: one brought in line with the other.
//!
//! Safe at any time: the guest is asked, not the memory of it, and each device is attached the way
//! an event attaches it, under the same locks.

use std::time::Duration;

use crate::config::{Config, VirtualMachine};
use crate::device_id::DeviceId;
use crate::guest::bus::{Occupant, buses};
use crate::guest::object;
use crate::outcome::{End, Outcome, Subject};
use crate::place::Places;
use crate::plan::choose;
use crate::settle::Settle;
use crate::state::record::Record;
use crate::sysfs::UsbDevice;
use crate::topology::{HubPort, Plugged, Topology};
use crate::transfer::attach::{Attach, Wish};
use crate::transfer::{new_record, recall};
use crate::world::{ExchangeError, World};

/// One virtual machine that is brought in line.
pub struct Sync<'a> {
    /// The world in which it happens.
    pub world: &'a dyn World,
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
        told: &mut dyn FnMut(Outcome),
    ) -> Result<usize, ExchangeError> {
        let had = self.tidy(timeout, told)?;
        let mut good = 0;
        for (port, device) in devices(&had.topology) {
            let places = had.topology.places(&port.devpath);
            let record = self.record(port, device);
            let id = DeviceId { port: port.port.clone(), devnum: device.devnum };
            if !self.is_wanted(&places, record.as_ref()) {
                continue;
            }
            if had.good.contains(&id) {
                good += 1;
            } else {
                told(self.attach(port, device, &places, record));
            }
        }
        Ok(good)
    }

    /// Gives back to the host's drivers what the virtual machine, which does not run, has left
    /// without one.
    pub fn reclaim(&self, told: &mut dyn FnMut(Outcome)) {
        let topology = (self.look)();
        for (port, device) in devices(&topology) {
            let places = topology.places(&port.devpath);
            let record = self.record(port, device);
            let owner = choose(self.config, &places, record.as_ref(), &|vm| self.runs(vm));
            if owner.is_none_or(|owner| owner.name != self.vm.name) || device.is_hub() {
                continue;
            }
            let driven = || {
                let interfaces = self.world.interfaces(&port.devpath);
                interfaces.iter().filter(|interface| interface.driver.is_some()).count()
            };
            let before = driven();
            let probed = self.world.probe_drivers(&port.devpath);
            let end = match probed {
                Err(error) => End::Failed(format!("the host's drivers do not have it: {error}")),
                Ok(()) if driven() > before => End::Reclaimed,
                Ok(()) => continue,
            };
            told(Outcome::new(Some(self.subject(port, device)), end));
        }
    }

    /// Asks the guest what it has and deletes what is stale.
    fn tidy(&self, timeout: Duration, told: &mut dyn FnMut(Outcome)) -> Result<Had, ExchangeError> {
        let mut had = Had { good: Vec::new(), topology: Topology::default() };
        self.world.exchange(&self.vm.socket, timeout, &mut |qmp| {
            let objects = object::list(qmp)?;
            let open: Vec<DeviceId> = if objects.is_empty() {
                Vec::new()
            } else if object::is_running(qmp)? {
                let occupants = buses(qmp)?.into_iter().flat_map(|bus| bus.occupants);
                let open = |one: Occupant| one.id.filter(|_| one.attached)?.parse().ok();
                occupants.filter_map(open).collect()
            } else {
                objects.clone()
            };
            // Only now: a device that came after the question is no stale object's.
            had.topology = (self.look)();
            let (present, stale): (Vec<_>, Vec<_>) =
                objects.into_iter().partition(|id| is_present(&had.topology, id));
            had.good = present.into_iter().filter(|id| open.contains(id)).collect();
            for id in stale {
                if object::delete(qmp, &id)? {
                    let port = id.port.clone();
                    let subject = Subject {
                        port,
                        devpath: String::new(),
                        device: None,
                        vm: Some(self.vm.name.clone()),
                        id: Some(id.clone()),
                    };
                    told(Outcome::new(Some(subject), End::Detached(vec![id])));
                }
            }
            Ok(())
        })?;
        Ok(had)
    }

    /// Whether the device belongs into this guest now.
    fn is_wanted(&self, places: &Places, record: Option<&Record>) -> bool {
        let owner = choose(self.config, places, record, &|vm| self.runs(vm));
        owner.is_some_and(|owner| owner.name == self.vm.name)
            && record.is_none_or(|record| !record.detached_by_hand)
    }

    fn runs(&self, vm: &VirtualMachine) -> bool {
        // This one has answered, or is known not to run.
        vm.name == self.vm.name || self.world.runs(&vm.socket)
    }

    fn attach(
        &self,
        port: &HubPort,
        device: &UsbDevice,
        places: &Places,
        record: Option<Record>,
    ) -> Outcome {
        let (seen, devnum) = (self.world.seen(), device.devnum);
        let record = record
            .unwrap_or_else(|| new_record(self.world, &port.port, &port.devpath, devnum, seen));
        // The event of one that has just been plugged is under way as well: whoever is second finds
        // it attached.
        let settle = Settle::new(&port.devpath, self.vm.delay, record.plugged, seen.at);
        let attach = Attach {
            world: self.world,
            config: self.config,
            vm: self.vm,
            places,
            port: &port.port,
            devnum: Some(devnum),
            new_record: &|_, _| record.clone(),
            wish: if settle.due() > seen.at {
                Wish::Event { settle: true, interface: None }
            } else {
                Wish::Sync
            },
        };
        attach.run(self.subject(port, device), Some(record.clone()))
    }

    /// What is remembered of the device that is there.
    fn record(&self, port: &HubPort, device: &UsbDevice) -> Option<Record> {
        let record = recall(self.world, &port.port, &port.devpath)?;
        Some(record).filter(|record| record.devnum == device.devnum)
    }

    fn subject(&self, port: &HubPort, device: &UsbDevice) -> Subject {
        let subject = Subject::new(&port.port, &port.devpath, Some(device.devnum));
        Subject { device: Some(device.label()), vm: Some(self.vm.name.clone()), ..subject }
    }
}

/// Forgets what is remembered of devices that are gone.
pub fn forget_the_gone(world: &dyn World, records: &[Record], topology: &Topology) {
    for record in records {
        let there = devices(topology)
            .any(|(port, device)| port.port == record.port && device.devnum == record.devnum);
        if !there {
            // The next device may have come meanwhile.
            let _ = world.remember(&record.port, &mut |stored| {
                stored.take_if(|stored| stored.devnum == record.devnum);
            });
        }
    }
}

fn devices(topology: &Topology) -> impl Iterator<Item = (&HubPort, &UsbDevice)> {
    topology.ports().into_iter().filter_map(|port| match &port.plugged {
        Some(Plugged::Device(device)) => Some((port, device)),
        _ => None,
    })
}

fn is_present(topology: &Topology, id: &DeviceId) -> bool {
    devices(topology).any(|(port, device)| port.port == id.port && device.devnum == id.devnum)
}
