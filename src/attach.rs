//! Attaches a device to a VM: policy, unbind, settle, policy again, attach, record.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config::VirtualMachine;
use crate::config::access::AccessMode;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::driver_guard::DriverGuard;
use crate::guest::attach::{AttachError, AttachRequest, Attached, Claim, Unavailable, UsbSource};
use crate::guest::{self, objects};
use crate::host::drivers::Interface;
use crate::host::settle::{Settle, Settled};
use crate::host::sysfs;
use crate::host::{Host, UdevProperties};
use crate::outcome::{EventContext, Outcome, Report, SkipReason, Times};
use crate::policy::{self, Assignment};
use crate::port::{DevNum, Port};
use crate::qmp::{Error, UsbHostProblem};
use crate::speed::Speed;
use crate::state::lock::Lock;
use crate::state::record::{Attachment, Record};
use crate::unconfirmed;
use crate::usb_device::{DiskClaims, UsbDevice};

/// A device that is to be attached to a VM.
pub struct AttachJob<'a> {
    pub host: &'a dyn Host,
    pub assignment: Assignment<'a>,
    pub port: &'a Port,
    /// The number that the device must have; `None` for the device that is in the port.
    pub devnum: Option<DevNum>,
    pub trigger: Trigger,
    /// The record of the port.
    pub record: Option<Record>,
    /// What udev knows of the device, for its record.
    pub udev: UdevProperties,
}

/// What caused the attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A uevent.
    Udev {
        /// Whether to wait until the device has settled. A device that is recorded as attached need
        /// not settle again.
        settle: bool,
        /// The SEQNUM of this event, if it is an interface's `add`: a newer one takes over.
        interface: Option<u64>,
    },
    /// `sync`, for a device that has been plugged in for longer than its delay.
    Sync,
    /// A person, who holds the port's lock. The record does not matter.
    Manual,
}

/// Attaches the device and reports what came of it.
///
/// A device that stays with the host is returned to the host's drivers.
pub fn attach(job: &AttachJob<'_>) -> Report {
    let mut context = EventContext::new(job.port, job.devpath(), job.devnum);
    context.vm = Some(job.vm().name.clone());
    let device = match job.host.usb_device(job.devpath()) {
        Ok(Some(device)) if job.devnum.is_none_or(|devnum| devnum == device.devnum) => device,
        Ok(_) => return Report::new(Some(context), job.unplugged()),
        Err(error) => {
            let why = format!("not attached: {error}");
            return Report::new(Some(context), Outcome::Failed(why));
        }
    };
    let mut attempt = Attempt::new(job, &device);
    let mut drivers = DriverGuard::new(job.host, job.assignment, device.devnum);
    let outcome = attempt.attach(&mut drivers).unwrap_or_else(|ended_early| ended_early);
    let was_attached = job.record.as_ref().is_some_and(|record| record.has_attached(device.devnum));
    let stays_with_host = match outcome {
        Outcome::Rejected(_) | Outcome::NotRunning(_) | Outcome::Failed(_) => !was_attached,
        // `detach` was faster, and this process may have unbound the drivers again since then.
        Outcome::Skipped(SkipReason::DetachedManually) => true,
        _ => false,
    };
    let mut warnings = if stays_with_host { drivers.return_to_host() } else { drivers.keep() };
    if stays_with_host {
        attempt.record_returned();
    }
    let Attempt { id, vm, warnings: others, .. } = attempt;
    warnings.extend(others);
    context.vm = Some(vm.name.clone());
    context.id = Some(id);
    context.device = Some(device.label());
    Report { warnings, ..Report::new(Some(context), outcome) }
}

impl<'a> AttachJob<'a> {
    fn devpath(&self) -> &'a DevPath {
        self.assignment.devpath()
    }

    fn vm(&self) -> &'a VirtualMachine {
        self.assignment.vm
    }

    /// The device is gone. If another event attached it first, its `remove` event reports the end.
    fn unplugged(&self) -> Outcome {
        match self.host.load_record(self.port, self.devpath()) {
            Some(Record { attached: Some(_), .. }) => Outcome::Skipped(SkipReason::AlreadyRecorded),
            _ => Outcome::UnpluggedEarly,
        }
    }
}

/// How long another VM that lists the port may take to say whether it has the device.
const CO_OWNER_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether another VM that lists the port has the device.
enum CoOwner {
    HasDevice,
    /// It says so, and the kernel does not.
    NotConfirmed,
    HasNot,
}

/// One attempt to attach the device that is in the port.
struct Attempt<'a> {
    job: &'a AttachJob<'a>,
    device: &'a UsbDevice,
    id: DeviceId,
    /// The VM that the report is about.
    vm: &'a VirtualMachine,
    warnings: Vec<String>,
}

impl<'a> Attempt<'a> {
    fn new(job: &'a AttachJob<'a>, device: &'a UsbDevice) -> Self {
        let id = DeviceId { port: job.port.clone(), devnum: device.devnum };
        Self { job, device, id, vm: job.vm(), warnings: Vec::new() }
    }

    /// The steps. An outcome that ends them early is the error.
    fn attach(&mut self, drivers: &mut DriverGuard<'_>) -> Result<Outcome, Outcome> {
        let host = self.job.host;
        self.settle_unconfirmed()?;
        let interfaces = host.interfaces(self.job.devpath());
        let claims = policy::check(host, self.job.assignment, self.device, &interfaces)
            .map_err(Outcome::Rejected)?;
        self.check_authorized(&interfaces).map_err(Outcome::Rejected)?;
        self.check_vm_runs()?;
        let is_attached = matches!(self.job.trigger, Trigger::Udev { settle: false, .. });
        if is_attached {
            drop(claims);
        } else {
            if self.vm.unbind_host_drivers && interfaces.iter().any(Interface::has_kernel_driver) {
                self.record_unbound();
            }
            drivers.unbind(claims);
        }
        let record = self.begin_record();
        let started = host.now();
        self.settle(&record, drivers)?;
        let settled = host.now();

        let lock = self.lock_port()?;
        let known = host.load_record(self.job.port, self.job.devpath());
        if let Some(reason) = known.as_ref().and_then(|known| self.superseded(known)) {
            return Err(Outcome::Skipped(reason));
        }
        if let Some(vm) = self.attached_to_other_vm(known.as_ref()) {
            self.vm = vm;
            self.record_attached(&record);
            return Err(Outcome::AlreadyAttached);
        }
        let expected_attached = known.is_some_and(|known| known.has_attached(self.id.devnum));
        let attached = self
            .attach_in_guest(expected_attached)
            .inspect_err(|outcome| self.record_unconfirmed(&record, outcome))?;
        let now = host.now();
        let times = Times {
            since_plug: now.since(record.plugged_at),
            settling: settled.since(started),
            session: now.since(settled),
        };
        self.record_guest_port(&attached);
        self.record_attached(&record);
        drop(lock);
        Ok(match attached {
            Attached::Now(location) => {
                let times = matches!(self.job.trigger, Trigger::Udev { .. }).then_some(times);
                Outcome::Attached { location, times }
            }
            Attached::Before => Outcome::AlreadyAttached,
            Attached::PendingResume(_) => Outcome::PendingResume,
        })
    }

    /// Finds out whether the guest has the device, if an earlier session left that unknown.
    fn settle_unconfirmed(&mut self) -> Result<(), Outcome> {
        let is_of_device = |record: &Record| record.devnum == self.id.devnum;
        let known = self.job.record.as_ref().filter(|record| is_of_device(record));
        if known.is_none_or(|record| record.unconfirmed.is_none()) {
            return Ok(());
        }
        let (host, config) = (self.job.host, self.job.assignment.config);
        let _lock = self.lock_port()?;
        let Some(record) = host.load_record(self.job.port, self.job.devpath()) else {
            return Ok(());
        };
        if let Some(unconfirmed) = record.unconfirmed.as_ref().filter(|_| is_of_device(&record)) {
            unconfirmed::settle(host, config, &record, unconfirmed)
                .map_err(Outcome::Unconfirmed)?;
            self.warnings.push(unconfirmed::note(unconfirmed));
        }
        Ok(())
    }

    /// Locks the port. A person's command holds the lock already.
    fn lock_port(&self) -> Result<Option<Lock>, Outcome> {
        if self.job.trigger == Trigger::Manual {
            return Ok(None);
        }
        let lock = self.job.host.lock_port(self.job.port);
        lock.map_err(|error| Outcome::Failed(format!("not attached: {error:#}")))
    }

    /// The kernel binds no driver to an unauthorized interface, and lets no program claim it.
    fn check_authorized(&self, interfaces: &[Interface]) -> Result<(), String> {
        let (host, devpath) = (self.job.host, self.job.devpath());
        let mut without_driver = interfaces.iter().filter(|interface| interface.driver.is_none());
        match without_driver.find(|interface| !host.is_authorized(devpath, interface)) {
            None => Ok(()),
            Some(Interface { name, .. }) => Err(format!(
                "the host has not authorized its interface {name}; run `echo 1 > \
                 /sys/bus/usb/devices/{name}/authorized` and `hotplugger sync`"
            )),
        }
    }

    /// A VM without a socket file does not run. The device is not kept from the host for it.
    fn check_vm_runs(&self) -> Result<(), Outcome> {
        let monitor = &self.vm.monitor;
        if self.job.host.socket_file(monitor).is_some() {
            return Ok(());
        }
        let error = Error::NotRunning { monitor: monitor.clone(), stale: false };
        Err(Outcome::NotRunning(error.to_string()))
    }

    /// The record of the device, or a new one. Its mark is set after the unbinding, so that the
    /// uevents of the unbinding are not taken for activity of the device.
    fn begin_record(&mut self) -> Record {
        let AttachJob { host, port, record, udev, trigger, .. } = self.job;
        let mark = host.uevent_mark();
        let known = record.clone().filter(|record| record.devnum == self.id.devnum);
        let record = known.unwrap_or_else(|| {
            host.new_record(port, self.job.devpath(), self.id.devnum, mark, udev.clone())
        });
        if let Trigger::Udev { interface: Some(seqnum), .. } = trigger {
            self.record_interface(&record, *seqnum);
        }
        record
    }

    /// Waits until the device has been quiet for the VM's delay.
    fn settle(&mut self, record: &Record, drivers: &mut DriverGuard<'_>) -> Result<(), Outcome> {
        if !matches!(self.job.trigger, Trigger::Udev { settle: true, .. }) {
            return Ok(());
        }
        let host = self.job.host;
        let quiet_since = record.quiet_since(host.uevent_mark());
        let now = host.now();
        let mut settle = Settle::new(self.job.devpath(), self.vm.delay, quiet_since, now)
            .unbind_host_drivers(self.vm.unbind_host_drivers);
        if let Some(left) = host.time_left() {
            // Then the session with QEMU still has its whole time.
            settle = settle.no_later_than(now.after(left.saturating_sub(self.vm.timeout)));
        }
        match host.settle(settle, &mut || drivers.unbind_if_allowed()) {
            Ok(Settled::Quiet) => Ok(()),
            Ok(Settled::Removed) => Err(self.job.unplugged()),
            Err(error) => {
                self.warnings.push(format!("not settled: {error}"));
                Ok(())
            }
        }
    }

    /// Why the device is not attached after what happened while it settled and while others held
    /// the lock of its port.
    fn superseded(&self, record: &Record) -> Option<SkipReason> {
        match self.job.trigger {
            Trigger::Manual => None,
            Trigger::Udev { interface: Some(seqnum), .. }
                if record.newest_interface > Some(seqnum) =>
            {
                Some(SkipReason::LeftToNewerInterface)
            }
            _ if record.devnum != self.id.devnum => None,
            _ if record.detached_manual => Some(SkipReason::DetachedManually),
            Trigger::Udev { .. } | Trigger::Sync => {
                let attached = record.attached.as_ref()?;
                let elsewhere = attached.monitor != self.vm.monitor;
                (elsewhere && self.job.host.is_running(&attached.monitor))
                    .then_some(SkipReason::AttachedElsewhere)
            }
        }
    }

    /// Another VM of the port that has the device although no record says so: the state was deleted,
    /// or hotplugger was killed before it wrote the record.
    ///
    /// A VM that says so is believed only if its QEMU has the device's node open: the VM could keep
    /// the device from this one otherwise.
    fn attached_to_other_vm(&mut self, known: Option<&Record>) -> Option<&'a VirtualMachine> {
        let is_recorded = known.is_some_and(|record| record.attached.is_some());
        if self.job.trigger == Trigger::Manual || is_recorded {
            return None;
        }
        let Assignment { config, location, .. } = self.job.assignment;
        let mut owners = config.owners(location);
        owners.retain(|vm| vm.monitor != self.vm.monitor && self.job.host.is_running(&vm.monitor));
        for vm in owners {
            match self.has_device(vm) {
                Ok(CoOwner::HasDevice) => return Some(vm),
                Ok(CoOwner::HasNot) => {}
                Ok(CoOwner::NotConfirmed) => self.warnings.push(format!(
                    "{} says that it has the device, and its QEMU has not opened it",
                    vm.name
                )),
                Err(error) => self.warnings.push(format!("{}: {error}", vm.name)),
            }
        }
        None
    }

    /// Whether that VM has the device.
    ///
    /// An object that has no device is deleted: its QEMU could open the device later beside the QEMU
    /// that gets it now.
    fn has_device(&self, vm: &VirtualMachine) -> Result<CoOwner, Error> {
        let timeout = vm.timeout.min(CO_OWNER_TIMEOUT);
        let mut session = self.job.host.connect(&vm.monitor, &vm.access, timeout)?;
        let qmp = session.as_mut();
        if !objects::list(qmp)?.contains(&self.id) {
            return Ok(CoOwner::HasNot);
        }
        let pid = qmp.qemu_pid();
        let says_so = objects::is_attached(qmp, &self.id)?;
        let programs = self.job.host.programs_with(self.device);
        if says_so && programs.iter().any(|program| Some(program.pid) == pid) {
            return Ok(CoOwner::HasDevice);
        }
        objects::delete(qmp, &self.id)?;
        Ok(if says_so { CoOwner::NotConfirmed } else { CoOwner::HasNot })
    }

    fn attach_in_guest(&mut self, expected_attached: bool) -> Result<Attached, Outcome> {
        let (host, vm) = (self.job.host, self.vm);
        let mut session = host
            .connect(&vm.monitor, &vm.access, vm.timeout)
            .map_err(|error| self.outcome_of(error.into()))?;
        let interfaces = host.interfaces(self.job.devpath());
        let claim = if interfaces.iter().any(Interface::is_claimed) {
            self.take_from_programs()?
        } else {
            Claim::Free
        };
        let history = host.guest_port_history(&vm.name, self.job.port);
        let access = self.access()?;
        let request = AttachRequest {
            id: self.id.clone(),
            speed: self.device.speed,
            hubs: &vm.hubs,
            history: &history,
            has_product_name: self.device.product.is_some(),
            node: sysfs::node(self.device.busnum, self.device.devnum),
            properties: vm.usb_host(self.job.assignment.location),
            access,
            expected_attached,
            claim,
            host_drives_storage: interfaces.iter().any(Interface::is_driven_storage),
            device: self,
        };
        guest::attach(session.as_mut(), &request).map_err(|error| self.outcome_of(error))
    }

    /// Takes the device from the programs that have claimed an interface through usbfs. A QEMU is
    /// not such a program: the guest would lose the device without an unplug.
    fn take_from_programs(&mut self) -> Result<Claim, Outcome> {
        let host = self.job.host;
        let programs = host.programs_with(self.device);
        if let Some(qemu) = programs.iter().find(|program| program.is_qemu) {
            return Ok(Claim::ByQemu(qemu.to_string()));
        }
        let names: Vec<String> = programs.iter().map(ToString::to_string).collect();
        let names = match names.len() {
            0 => "a program that /proc does not show".to_owned(),
            _ => names.join(" and "),
        };
        let kept = |why: &str| Outcome::Failed(format!("not attached: used by {names}; {why}"));
        if !self.vm.unbind_host_drivers {
            return Err(kept("stop the program, or write `unbind_host_drivers: true`"));
        }
        let taken = host.unbind_programs(self.job.devpath());
        taken.map_err(|error| kept(&format!("stop the program: {error}")))?;
        self.warnings.push(format!("taken from {names}"));
        Ok(Claim::Free)
    }

    /// The device that is in the port now, if it is still the same one. `None` if it cannot be read
    /// now: it was there a moment ago.
    fn present(&self) -> Result<Option<UsbDevice>, Unavailable> {
        let Ok(now) = self.job.host.usb_device(self.job.devpath()) else { return Ok(None) };
        let now = now.filter(|now| now.devnum == self.id.devnum);
        now.map(Some).ok_or(Unavailable::Unplugged)
    }

    fn outcome_of(&self, error: AttachError) -> Outcome {
        match error {
            AttachError::Unavailable(Unavailable::Unplugged) => self.job.unplugged(),
            AttachError::Unavailable(Unavailable::Rejected(why)) => Outcome::Rejected(why),
            AttachError::Unconfirmed(error) => Outcome::Unconfirmed(error.to_string()),
            AttachError::Qmp(error @ Error::NotRunning { .. }) => {
                Outcome::NotRunning(error.to_string())
            }
            AttachError::Qmp(Error::NoUsbHost(UsbHostProblem::Upgraded)) => {
                Outcome::Failed(format!("not attached: {}", upgraded(&self.vm.name)))
            }
            error => Outcome::Failed(format!("not attached: {error}")),
        }
    }

    /// How QEMU gets the device.
    ///
    /// A device of 20 Gb/s goes by file descriptor: if QEMU opened it by itself, it would read past
    /// a table (see [`UsbSource::may_be_listed`]).
    fn access(&self) -> Result<AccessMode, Outcome> {
        let is_20g = self.device.speed.is_some_and(|speed| speed >= Speed::SUPER_PLUS_X2);
        match self.vm.access.mode {
            AccessMode::Auto if is_20g => Ok(AccessMode::Fd),
            AccessMode::Node if is_20g => Err(Outcome::Failed(
                "not attached: QEMU cannot open a device of 20 Gb/s itself; write `access: auto`"
                    .to_owned(),
            )),
            mode => Ok(mode),
        }
    }

    /// Records that this interface was added, so that the event of an older one leaves the
    /// device to it. Sibling events run at the same time, so the newest number is kept.
    fn record_interface(&mut self, record: &Record, seqnum: u64) {
        let stored = self.update_record(record, |record| {
            record.newest_interface = record.newest_interface.max(Some(seqnum));
        });
        self.warn_if_not_saved(stored);
    }

    /// Records that the host's drivers are unbound, so that `sync` returns the device if this
    /// process is killed.
    fn record_unbound(&mut self) {
        let is_recorded = self.job.record.as_ref().is_some_and(|record| record.unbound);
        if is_recorded {
            return;
        }
        let AttachJob { host, port, record, udev, .. } = self.job;
        let known = record.clone().filter(|record| record.devnum == self.id.devnum);
        let record = known.unwrap_or_else(|| {
            let mark = host.uevent_mark();
            host.new_record(port, self.job.devpath(), self.id.devnum, mark, udev.clone())
        });
        let stored = self.update_record(&record, |record| record.unbound = true);
        self.warn_if_not_saved(stored);
    }

    /// Records that the device was returned to the host's drivers, if it has a record.
    fn record_returned(&mut self) {
        let host = self.job.host;
        let known = host.load_record(self.job.port, self.job.devpath());
        let known = known.filter(|known| known.devnum == self.id.devnum && known.unbound);
        if let Some(known) = known {
            let stored = self.update_record(&known, |record| record.unbound = false);
            self.warn_if_not_saved(stored);
        }
    }

    /// Records that the guest may have the device, if its QEMU left that open.
    fn record_unconfirmed(&self, record: &Record, outcome: &Outcome) {
        if matches!(outcome, Outcome::Unconfirmed(_)) {
            let attachment = self.attachment();
            // Without a state directory, `sync` finds the object in the guest.
            let _ = self.update_record(record, |record| {
                record.attached = None;
                record.unconfirmed = Some(attachment.clone());
            });
        }
    }

    /// Changes the record. What sibling events have recorded is kept.
    fn update_record(&self, record: &Record, change: impl Fn(&mut Record)) -> anyhow::Result<()> {
        self.job.host.update_record(&record.port, &|stored| {
            let stored = stored.filter(|stored| stored.devnum == record.devnum);
            let mut record = stored.unwrap_or_else(|| record.clone());
            change(&mut record);
            Some(record)
        })
    }

    fn attachment(&self) -> Attachment {
        Attachment {
            vm: self.vm.name.clone(),
            monitor: self.vm.monitor.clone(),
            socket_file: self.job.host.socket_file(&self.vm.monitor),
            id: self.id.clone(),
            device: self.device.label(),
            at: self.job.host.now(),
        }
    }

    /// Records the guest port for the next device in this port.
    fn record_guest_port(&mut self, attached: &Attached) {
        if let Some(last) = attached.last_port(self.device.speed) {
            let stored = self.job.host.save_guest_port(&self.vm.name, self.job.port, &last);
            self.warn_if_not_saved(stored);
        }
    }

    /// Records where the device is attached.
    fn record_attached(&mut self, record: &Record) {
        let attached = self.attachment();
        let stored = self.update_record(record, |record| {
            let before = record.attached.take().filter(|before| before.is_same(&attached));
            record.attached = Some(before.unwrap_or_else(|| attached.clone()));
            record.unconfirmed = None;
            record.unbound = false;
            record.detached_manual = false;
            record.detached_for = None;
        });
        self.warn_if_not_saved(stored);
    }

    fn warn_if_not_saved(&mut self, stored: anyhow::Result<()>) {
        if let Err(error) = stored {
            self.warnings.push(format!("record not saved: {error:#}"));
        }
    }
}

/// The message about a VM whose QEMU cannot load usb-host any more.
pub fn upgraded(vm: &str) -> String {
    format!("the QEMU of VM {vm} was upgraded while it runs; restart the VM")
}

impl UsbSource for Attempt<'_> {
    fn recheck(&self) -> Result<DiskClaims, Unavailable> {
        let host = self.job.host;
        let Some(now) = self.present()? else { return Ok(DiskClaims::default()) };
        let interfaces = host.interfaces(self.job.devpath());
        policy::check(host, self.job.assignment, &now, &interfaces).map_err(Unavailable::Rejected)
    }

    fn check_present(&self) -> Result<(), Unavailable> {
        self.present().map(drop)
    }

    fn may_be_listed(&self) -> bool {
        let topology = self.job.host.topology();
        let mut speeds = topology.devices().filter_map(|(_, device)| device.speed);
        !speeds.any(|speed| speed >= Speed::SUPER_PLUS_X2)
    }

    fn open_node(&self) -> io::Result<OwnedFd> {
        self.job.host.open_node(self.job.devpath(), self.device)
    }
}
