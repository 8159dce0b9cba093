//! Attaches a device to a VM: policy, unbind, settle, policy again, attach, record.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::config::access::AccessMode;
use crate::config::{Target, VirtualMachine};
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::driver_guard::DriverGuard;
use crate::guest::attach::{AttachError, AttachRequest, Attached, Claim, Unavailable, UsbSource};
use crate::guest::{self, objects};
use crate::host::Host;
use crate::host::drivers::Interface;
use crate::host::settle::{Settle, Settled};
use crate::host::sysfs;
use crate::outcome::{EventContext, Outcome, Report, SkipReason, Times};
use crate::policy::{self, Assignment};
use crate::port::{DevNum, Port};
use crate::qmp::{Error, UsbHostProblem};
use crate::speed::Speed;
use crate::state::lock::Lock;
use crate::state::record::{Attachment, Record};
use crate::unconfirmed;
use crate::usb_device::{DiskClaims, UsbDevice};

pub struct AttachJob<'a> {
    pub host: &'a dyn Host,
    pub assignment: Assignment<'a>,
    pub port: &'a Port,
    /// The number that the device must have; `None` for the device that is in the port.
    pub devnum: Option<DevNum>,
    pub trigger: Trigger,
    /// The record of the port, which may be of an earlier device.
    pub record: Option<Record>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    Udev {
        /// Whether the record says that the VM has the device, or may have it. Such a device is not
        /// unbound and need not settle again.
        has_device: bool,
        /// The SEQNUM of this event, if it is an interface's `add`: a newer one takes over.
        interface: Option<u64>,
        /// When udev first saw the device, if the event says it.
        initialized_at: Option<Monotonic>,
    },
    /// `sync`, for a device that has been plugged in for longer than its delay.
    Sync,
    /// A person, who holds the port's lock. The record does not matter.
    Manual,
}

/// A device that stays with the host is returned to the host's drivers.
pub fn attach(job: &AttachJob<'_>) -> Report {
    let context = EventContext::new(job.port, job.devpath(), job.devnum).with_vm(&job.vm().name);
    let device = match job.host.usb_device(job.devpath()) {
        Ok(Some(device)) if job.devnum.is_none_or(|devnum| devnum == device.devnum) => device,
        Ok(_) => return Report::new(Some(context), job.unplugged()),
        Err(error) => {
            let why = format!("not attached: {error}");
            return Report::new(Some(context), Outcome::Failed(why));
        }
    };
    let mut attempt = HostAttempt::new(job, &device);
    let was_attached = attempt.record.attached.is_some();
    let mut drivers = DriverGuard::new(job.host, job.assignment, device.devnum);
    let (vm, outcome) =
        attempt.attach(&mut drivers).unwrap_or_else(|ended_early| (job.vm(), ended_early));
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
    warnings.extend(attempt.warnings);
    let context = EventContext::new(job.port, job.devpath(), Some(device.devnum))
        .with_vm(&vm.name)
        .with_device(device.label());
    Report { warnings, ..Report::new(Some(context), outcome) }
}

impl<'a> AttachJob<'a> {
    fn devpath(&self) -> &'a DevPath {
        self.assignment.devpath()
    }

    fn vm(&self) -> &'a VirtualMachine {
        self.assignment.vm
    }

    /// The record of the port, if it is of this device.
    fn record_of(&self, device: &UsbDevice) -> Option<&Record> {
        self.record.as_ref().filter(|record| record.devnum == device.devnum)
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
struct HostAttempt<'a> {
    job: &'a AttachJob<'a>,
    device: &'a UsbDevice,
    id: DeviceId,
    /// The record of the device, or a new one that is not saved yet.
    record: Record,
    warnings: Vec<String>,
}

impl<'a> HostAttempt<'a> {
    fn new(job: &'a AttachJob<'a>, device: &'a UsbDevice) -> Self {
        let id = DeviceId { port: job.port.clone(), devnum: device.devnum };
        let record = job.record_of(device).cloned().unwrap_or_else(|| {
            let initialized_at = match job.trigger {
                Trigger::Udev { initialized_at, .. } => initialized_at,
                Trigger::Sync | Trigger::Manual => None,
            };
            job.host.new_record(job.port, job.devpath(), device.devnum, initialized_at)
        });
        Self { job, device, id, record, warnings: Vec::new() }
    }

    /// The steps. Returns the VM that has the device now and how it got it. An outcome that ends the
    /// steps early is the error.
    fn attach(
        &mut self,
        drivers: &mut DriverGuard<'_>,
    ) -> Result<(&'a VirtualMachine, Outcome), Outcome> {
        let (host, vm, trigger) = (self.job.host, self.job.vm(), self.job.trigger);
        self.resolve_unconfirmed()?;
        let interfaces = host.interfaces(self.job.devpath());
        let claims = policy::check(host, self.job.assignment, self.device, &interfaces)
            .map_err(Outcome::Rejected)?;
        self.check_authorized(&interfaces).map_err(Outcome::Rejected)?;
        self.check_vm_runs()?;
        if matches!(trigger, Trigger::Udev { has_device: true, .. }) {
            drop(claims);
        } else {
            if vm.unbind_host_drivers && interfaces.iter().any(Interface::has_kernel_driver) {
                self.record_unbound();
            }
            drivers.unbind(claims);
        }
        if self.job.record_of(self.device).is_none() {
            // The uevents of the unbinding are not taken for activity of the device.
            self.record.seen = host.uevent_mark();
        }
        if let Trigger::Udev { interface: Some(seqnum), .. } = trigger {
            self.record_interface(seqnum);
        }
        let started = host.now();
        if let Trigger::Udev { has_device: false, .. } = trigger {
            self.settle(drivers)?;
        }
        let settled = host.now();

        let _lock = self.lock_port()?;
        let known = host.load_record(self.job.port, self.job.devpath());
        if let Some(reason) = known.as_ref().and_then(|known| self.superseded(known)) {
            return Err(Outcome::Skipped(reason));
        }
        if let Some(other) = self.attached_to_other_vm(known.as_ref()) {
            self.record_attached(other);
            return Ok((other, Outcome::AlreadyAttached));
        }
        let expected_attached = known.is_some_and(|known| known.has_attached(self.id.devnum));
        let attached = self
            .attach_in_guest(expected_attached)
            .inspect_err(|outcome| self.record_unconfirmed(outcome))?;
        let now = host.now();
        let times = Times {
            since_plug: now.since(self.record.plugged_at),
            settling: settled.since(started),
            session: now.since(settled),
        };
        self.record_guest_port(&attached);
        self.record_attached(vm);
        let outcome = match attached {
            Attached::Now(location) => {
                let times = matches!(trigger, Trigger::Udev { .. }).then_some(times);
                Outcome::Attached { location, times }
            }
            Attached::Before => Outcome::AlreadyAttached,
            Attached::PendingResume(_) => Outcome::PendingResume,
        };
        Ok((vm, outcome))
    }

    /// Finds out whether the guest has the device, if an earlier session left that unknown.
    fn resolve_unconfirmed(&mut self) -> Result<(), Outcome> {
        if self.record.unconfirmed.is_none() {
            return Ok(());
        }
        let (host, config) = (self.job.host, self.job.assignment.config);
        let _lock = self.lock_port()?;
        let stored = host.load_record(self.job.port, self.job.devpath());
        let stored = stored.filter(|stored| stored.devnum == self.id.devnum);
        if let Some(stored) = stored
            && let Some(unconfirmed) = &stored.unconfirmed
        {
            unconfirmed::resolve(host, config, &stored, unconfirmed)
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
        let monitor = &self.job.vm().monitor;
        if self.job.host.socket_file(monitor).is_some() {
            return Ok(());
        }
        let error = Error::NotRunning { monitor: monitor.clone(), stale: false };
        Err(Outcome::NotRunning(error.to_string()))
    }

    /// Waits until the device has been quiet for the VM's delay.
    fn settle(&mut self, drivers: &mut DriverGuard<'_>) -> Result<(), Outcome> {
        let (host, vm) = (self.job.host, self.job.vm());
        let quiet_since = self.record.quiet_since(host.uevent_mark());
        let now = host.now();
        let mut settle = Settle::new(self.job.devpath(), vm.delay, quiet_since, now)
            .unbind_host_drivers(vm.unbind_host_drivers);
        if let Some(left) = host.time_left() {
            // Then the session with QEMU still has its whole time.
            settle = settle.no_later_than(now.after(left.saturating_sub(vm.timeout)));
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
                let elsewhere = attached.monitor != self.job.vm().monitor;
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
        let Assignment { config, location, vm: own } = self.job.assignment;
        let host = self.job.host;
        let mut others = config.owners(location);
        others.retain(|vm| vm.monitor != own.monitor && host.is_running(&vm.monitor));
        for vm in others {
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
        let mut session = self.job.host.connect(&Target { timeout, ..vm.target() })?;
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
        let (host, vm) = (self.job.host, self.job.vm());
        let mut session =
            host.connect(&vm.target()).map_err(|error| self.outcome_of(error.into()))?;
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
        if !self.job.vm().unbind_host_drivers {
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
                Outcome::Failed(format!("not attached: {}", upgraded(&self.job.vm().name)))
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
        match self.job.vm().access.mode {
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
    fn record_interface(&mut self, seqnum: u64) {
        self.change_record(|record| {
            record.newest_interface = record.newest_interface.max(Some(seqnum));
        });
    }

    /// Records that the host's drivers are unbound, so that `sync` returns the device if this
    /// process is killed.
    fn record_unbound(&mut self) {
        if !self.record.unbound {
            self.change_record(|record| record.unbound = true);
        }
    }

    /// Records that the device was returned to the host's drivers, if it has a record.
    fn record_returned(&mut self) {
        let known = self.job.host.load_record(self.job.port, self.job.devpath());
        if known.is_some_and(|known| known.devnum == self.id.devnum && known.unbound) {
            self.change_record(|record| record.unbound = false);
        }
    }

    /// Records that the guest may have the device, if its QEMU left that open.
    fn record_unconfirmed(&mut self, outcome: &Outcome) {
        if matches!(outcome, Outcome::Unconfirmed(_)) {
            let attachment = self.attachment(self.job.vm());
            self.change_record(|record| {
                record.attached = None;
                record.unconfirmed = Some(attachment.clone());
            });
        }
    }

    fn record_attached(&mut self, vm: &VirtualMachine) {
        let attached = self.attachment(vm);
        self.change_record(|record| {
            let before = record.attached.take().filter(|before| before.is_same(&attached));
            record.attached = Some(before.unwrap_or_else(|| attached.clone()));
            record.unconfirmed = None;
            record.unbound = false;
            record.detached_manual = false;
            record.detached_for = None;
        });
    }

    fn attachment(&self, vm: &VirtualMachine) -> Attachment {
        self.job.host.attachment(vm, self.device, self.id.clone())
    }

    /// Changes the stored record of the device. What sibling events have recorded is kept.
    fn change_record(&mut self, change: impl Fn(&mut Record)) {
        let result = self.job.host.update_record(self.job.port, &|stored| {
            let stored = stored.filter(|stored| stored.devnum == self.id.devnum);
            let mut record = stored.unwrap_or_else(|| self.record.clone());
            change(&mut record);
            Some(record)
        });
        self.warn_if_not_saved(result);
    }

    /// Records the guest port for the next device in this port.
    fn record_guest_port(&mut self, attached: &Attached) {
        if let Some(last) = attached.last_port(self.device.speed) {
            let vm = &self.job.vm().name;
            let result = self.job.host.save_guest_port(vm, self.job.port, &last);
            self.warn_if_not_saved(result);
        }
    }

    fn warn_if_not_saved(&mut self, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.warnings.push(format!("record not saved: {error:#}"));
        }
    }
}

/// The message about a VM whose QEMU cannot load usb-host any more.
pub fn upgraded(vm: &str) -> String {
    format!("the QEMU of VM {vm} was upgraded while it runs; restart the VM")
}

impl UsbSource for HostAttempt<'_> {
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
