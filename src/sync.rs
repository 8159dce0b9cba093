//! Brings a guest in line with the devices that are plugged in: stale objects are deleted, missing
//! devices are attached.
//!
//! Safe at any time. The guest is queried, not its records, and each device is attached the way an
//! event attaches it, under the same locks.

use std::time::Duration;

use crate::attach::{self, AttachJob, Trigger};
use crate::config::{Config, Target, VirtualMachine};
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::event::plan::candidates;
use crate::guest::{load_usb_host, objects};
use crate::host::settle::Settle;
use crate::host::topology::{HubPort, Topology};
use crate::host::{Host, ReturnResult};
use crate::location::UsbLocation;
use crate::outcome::{EventContext, Outcome, Report, SkipReason};
use crate::policy::Assignment;
use crate::port::Port;
use crate::qmp::{Error, Qmp};
use crate::state::record::Record;
use crate::unconfirmed;
use crate::usb_device::UsbDevice;

#[derive(Clone, Copy)]
pub struct SyncJob<'a> {
    pub host: &'a dyn Host,
    pub config: &'a Config,
    pub vm: &'a VirtualMachine,
}

/// The objects of a guest after the stale ones were deleted.
struct GuestState {
    /// Objects that have their device. In a paused guest all of them: QEMU opens the devices when
    /// it resumes.
    good: Vec<DeviceId>,
    /// Objects of unplugged devices, which were deleted.
    stale: Vec<DeviceId>,
    /// Why a stale object was not deleted, or usb-host cannot be loaded.
    error: Option<Error>,
    /// Read after the guest was queried.
    topology: Topology,
}

struct AssignedDevice<'t> {
    port: &'t HubPort,
    device: &'t UsbDevice,
    location: UsbLocation,
    record: Option<Record>,
}

impl SyncJob<'_> {
    /// Deletes stale objects and attaches missing devices. Calls `report` for each as it happens.
    /// Returns how many devices the guest had already.
    ///
    /// `timeout` limits the session that queries the guest.
    ///
    /// # Errors
    ///
    /// The guest could not be queried, or a stale object not deleted, or its QEMU has no usb-host.
    /// Nothing was attached.
    pub fn run(&self, timeout: Duration, report: &mut dyn FnMut(Report)) -> Result<usize, Error> {
        let guest = self.delete_stale_objects(timeout)?;
        for id in guest.stale {
            report(Report::of_stale_object(&self.vm.name, id));
        }
        if let Some(error) = guest.error {
            return Err(error);
        }
        let (mut good, mut handled) = (0, Vec::new());
        for assigned in self.assigned_devices(&guest.topology) {
            let is_manual = assigned.record.as_ref().is_some_and(|record| record.detached_manual);
            if is_manual || self.host.is_kept(&assigned.port.devpath) {
                continue;
            }
            let port = assigned.port.port.clone();
            handled.push(port.clone());
            let is_unconfirmed =
                assigned.record.as_ref().is_some_and(|record| record.unconfirmed.is_some());
            if !is_unconfirmed
                && guest.good.contains(&DeviceId { port, devnum: assigned.device.devnum })
            {
                good += 1;
            } else {
                report(self.attach(assigned));
            }
        }
        self.resolve_others(&handled, report);
        Ok(good)
    }

    /// Finds out which other devices the VM has, where earlier sessions left that unknown.
    fn resolve_others(&self, handled: &[Port], report: &mut dyn FnMut(Report)) {
        for record in self.host.records() {
            let Some(unconfirmed) = &record.unconfirmed else { continue };
            if unconfirmed.monitor != self.vm.monitor || handled.contains(&record.port) {
                continue;
            }
            let context = EventContext::new(&record.port, &record.devpath, Some(record.devnum))
                .with_vm(&self.vm.name)
                .with_device(unconfirmed.device.clone());
            let lock = self.host.lock_port(&record.port).map_err(|error| format!("{error:#}"));
            let resolved = lock.and_then(|_lock| {
                unconfirmed::resolve(self.host, self.config, &record, unconfirmed)
            });
            let outcome = match resolved {
                Ok(true) => Outcome::AlreadyAttached,
                Ok(false) => self.return_device(&record.port, &record.devpath),
                Err(why) => Outcome::Unconfirmed(why),
            };
            let warnings = vec![unconfirmed::note(unconfirmed)];
            report(Report { warnings, ..Report::new(Some(context), outcome) });
        }
    }

    /// Returns to the host's drivers the devices that a hotplugger which was killed has left without a
    /// driver, while the VM does not run. If the config says so, all devices that the VM has left are
    /// returned.
    pub fn return_to_host(&self, report: &mut dyn FnMut(Report)) {
        self.resolve_others(&[], report);
        let topology = self.host.topology();
        for assigned in self.assigned_devices(&topology) {
            let was_left = assigned.record.as_ref().is_some_and(|record| record.unbound);
            if !(was_left || self.vm.return_to_host) {
                continue;
            }
            let port = &assigned.port;
            let outcome = self.return_device(&port.port, &port.devpath);
            if !matches!(outcome, Outcome::Skipped(_)) {
                report(Report::new(Some(self.context(&assigned)), outcome));
            }
        }
    }

    /// Returns a device that no guest has to the host's drivers.
    fn return_device(&self, port: &Port, devpath: &DevPath) -> Outcome {
        let result = self.host.return_to_drivers(devpath);
        let recorded = self.host.update_record(port, &|record| {
            record.map(|record| Record { unconfirmed: None, unbound: false, ..record })
        });
        match result {
            ReturnResult { probed: Err(error), .. } => {
                Outcome::Failed(format!("not returned to the host's drivers: {error}"))
            }
            _ if recorded.is_err() => Outcome::Failed("record not saved".to_owned()),
            ReturnResult { before, after, .. } if after > before => Outcome::ReturnedToHost,
            ReturnResult { .. } => Outcome::Skipped(SkipReason::AlreadyReturned),
        }
    }

    fn delete_stale_objects(&self, timeout: Duration) -> Result<GuestState, Error> {
        let mut session = self.host.connect(&Target { timeout, ..self.vm.target() })?;
        let qmp = session.as_mut();
        let objects = objects::list(qmp)?;
        let good = objects_with_device(qmp, &objects)?;
        // Read only now: the object of a device that was plugged in after the query is not stale.
        let topology = self.host.topology();
        let is_stale = |id: &DeviceId| topology.device(id).is_none();
        let good = good.into_iter().filter(|id| !is_stale(id)).collect();
        let (stale, error) = objects::delete_each(qmp, &objects, is_stale);
        let mut guest = GuestState { good, stale, error, topology };
        // QEMU loads the module of usb-host when its VM starts. After an upgrade of the QEMU package
        // it could not load it any more.
        if let (None, Err(error)) = (&guest.error, load_usb_host(qmp)) {
            guest.error = Some(error);
        }
        Ok(guest)
    }

    /// The devices that go to this VM now. Each is read when its turn comes.
    fn assigned_devices<'t>(
        &'t self,
        topology: &'t Topology,
    ) -> impl Iterator<Item = AssignedDevice<'t>> {
        topology.devices().filter_map(|(port, device)| {
            let location = topology.usb_location(&port.devpath);
            let record = self.host.load_record(&port.port, &port.devpath);
            let record = record.filter(|record| record.devnum == device.devnum);
            let candidates = candidates(self.config, &location, record.as_ref());
            let own = candidates.iter().position(|one| one.vm.name == self.vm.name)?;
            // This VM has answered, or is known not to run.
            let is_assigned =
                !candidates[..own].iter().any(|one| self.host.is_running(&one.vm.monitor));
            is_assigned.then_some(AssignedDevice { port, device, location, record })
        })
    }

    fn attach(&self, assigned: AssignedDevice<'_>) -> Report {
        let AssignedDevice { port, device, location, record } = assigned;
        let (host, now, devnum) = (self.host, self.host.now(), device.devnum);
        let new = || host.new_record(&port.port, &port.devpath, devnum, None);
        let record = record.unwrap_or_else(new);
        // The event of a device that has just been plugged in is handled at the same time. The
        // second of the two finds it attached.
        let settle = Settle::new(&port.devpath, self.vm.delay, record.plugged_at, now);
        attach::attach(&AttachJob {
            host,
            assignment: Assignment { config: self.config, vm: self.vm, location: &location },
            port: &port.port,
            devnum: Some(devnum),
            trigger: if settle.ready_at() > now {
                Trigger::Udev { has_device: false, interface: None, initialized_at: None }
            } else {
                Trigger::Sync
            },
            record: Some(record),
        })
    }

    fn context(&self, assigned: &AssignedDevice<'_>) -> EventContext {
        let AssignedDevice { port, device, .. } = assigned;
        EventContext::new(&port.port, &port.devpath, Some(device.devnum))
            .with_vm(&self.vm.name)
            .with_device(device.label())
    }
}

/// The objects that have their device: in a paused guest all of them.
fn objects_with_device(qmp: &mut dyn Qmp, objects: &[DeviceId]) -> Result<Vec<DeviceId>, Error> {
    if objects.is_empty() || !objects::is_running(qmp)? {
        return Ok(objects.to_vec());
    }
    objects::attached(qmp, objects)
}

/// Deletes the records of unplugged devices.
pub fn delete_stale_records(host: &dyn Host) {
    let topology = host.topology();
    for record in host.records() {
        let id = DeviceId { port: record.port.clone(), devnum: record.devnum };
        if topology.device(&id).is_none() {
            // A device that was plugged in since then keeps its record. A record that cannot be
            // deleted does no harm.
            let _ = host.update_record(&record.port, &|stored| {
                stored.filter(|stored| stored.devnum != record.devnum)
            });
        }
    }
}
