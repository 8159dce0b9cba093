//! This machine: sysfs, the clock, the state directory, QEMU.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;

use super::Host;
use super::disks::{self, DiskUse};
use super::drivers::{self, Interface};
use super::session::Session;
use super::settle::{self, Settle, Settled};
use super::sysfs;
use crate::clock::{Deadline, Monotonic};
use crate::config::Target;
use crate::devpath::DevPath;
use crate::guest::ports::{GuestPortHistory, LastPort};
use crate::monitor::Monitor;
use crate::port::{BusNum, DevNum, Port};
use crate::qmp::{Error, Qmp, Step};
use crate::root::Root;
use crate::state::dir::{StateDir, may_have_record};
use crate::state::guest_ports;
use crate::state::kept;
use crate::state::lock::{Lock, LockError};
use crate::state::record::{Record, UeventMark};
use crate::state::socket_file::SocketFile;
use crate::usb_device::{DiskClaims, UsbDevice};

/// How long to wait for other processes that use the state directory. They hold its lock as long as
/// it takes to write a file.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for another hotplugger process that handles the port. Each of its sessions
/// has its own, shorter limit.
const PORT_TIMEOUT: Duration = Duration::from_secs(60);

/// When the call of an event stops waiting, whatever it waits for. udevd kills it after 180 s
/// (udev.conf(5): `event_timeout`). The rest is for returning the device to the host's drivers.
const CALL_TIMEOUT: Duration = Duration::from_secs(160);

#[derive(Debug)]
pub struct RealHost<'a> {
    root: &'a Root,
    /// Opened when it is first needed. Without a state directory nothing is recorded, and QEMU's own
    /// queue of clients replaces the locks.
    state: OnceLock<Result<StateDir, String>>,
    /// The end of the whole call; `None` for the command of a person.
    end: Option<Deadline>,
}

impl<'a> RealHost<'a> {
    /// For the call of an event, which udevd limits.
    pub fn for_event(root: &'a Root) -> Self {
        Self { root, state: OnceLock::new(), end: Some(Deadline::after(CALL_TIMEOUT)) }
    }

    /// For manual commands, which must not act without the records.
    ///
    /// # Errors
    ///
    /// This user may not attach devices, or there is no usable state directory.
    pub fn open_with_state(root: &'a Root) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() && !root.is_moved() {
            anyhow::bail!("only root may attach and detach devices: run it with sudo");
        }
        Ok(Self { root, state: OnceLock::from(Ok(StateDir::open(root)?)), end: None })
    }

    fn state(&self) -> Option<&StateDir> {
        let open = || StateDir::open(self.root).map_err(|error| format!("{error:#}"));
        self.state.get_or_init(open).as_ref().ok()
    }

    fn deadline(&self, timeout: Duration) -> Deadline {
        Deadline::after(timeout).no_later_than(self.end)
    }
}

impl Host for RealHost<'_> {
    fn root(&self) -> &Root {
        self.root
    }

    fn warnings(&self) -> Vec<String> {
        match self.state.get() {
            None => Vec::new(),
            Some(Err(error)) => vec![format!("no state is kept: {error}")],
            Some(Ok(state)) => {
                let fallback = state.fallback.iter();
                fallback.map(|why| format!("state is kept in /run/hotplugger: {why}")).collect()
            }
        }
    }

    fn usb_device(&self, devpath: &DevPath) -> io::Result<Option<UsbDevice>> {
        sysfs::usb_device(self.root, devpath)
    }

    fn plugged_at(&self, busnum: BusNum, devnum: DevNum) -> Option<Monotonic> {
        sysfs::plugged_at(self.root, busnum, devnum)
    }

    fn now(&self) -> Monotonic {
        Monotonic::now()
    }

    fn uevent_mark(&self) -> UeventMark {
        // The number is read first, so that an event between the two counts as a new one.
        let seqnum = sysfs::uevent_seqnum(self.root);
        UeventMark { at: Monotonic::now(), seqnum }
    }

    fn boot_id(&self) -> &str {
        self.state().map_or("", StateDir::boot_id)
    }

    fn socket_file(&self, monitor: &Monitor) -> Option<SocketFile> {
        SocketFile::at(self.root, &monitor.file())
    }

    fn is_running(&self, monitor: &Monitor) -> bool {
        super::session::is_running(self.root, monitor)
    }

    fn has_interfaces(&self, devpath: &DevPath) -> bool {
        drivers::has_interfaces(self.root, devpath)
    }

    fn interfaces(&self, devpath: &DevPath) -> Vec<Interface> {
        drivers::interfaces(self.root, devpath)
    }

    fn claim_disks(&self, devpath: &DevPath) -> Result<DiskClaims, DiskUse> {
        disks::claim(self.root, devpath, true)
    }

    fn unbind_programs(&self, devpath: &DevPath) -> io::Result<()> {
        drivers::unbind_programs(self.root, devpath)
    }

    fn unbind_drivers(&self, devpath: &DevPath) -> io::Result<usize> {
        drivers::unbind_drivers(self.root, devpath).map(|unbound| unbound.len())
    }

    fn probe_drivers(&self, devpath: &DevPath) -> io::Result<()> {
        drivers::probe(self.root, devpath)
    }

    fn time_left(&self) -> Option<Duration> {
        self.end.map(|end| end.remaining().unwrap_or_default())
    }

    fn settle(&self, settle: Settle<'_>, on_driver_bound: &mut dyn FnMut()) -> io::Result<Settled> {
        settle::wait(settle, on_driver_bound)
    }

    fn may_have_record(&self, device: &DevPath) -> bool {
        may_have_record(self.root, device)
    }

    fn record(&self, port: &Port) -> Option<Record> {
        self.state()?.records(&self.deadline(STATE_TIMEOUT)).ok()?.get(port)
    }

    fn update_record(
        &self,
        port: &Port,
        change: &dyn Fn(Option<Record>) -> Option<Record>,
    ) -> anyhow::Result<()> {
        let Some(state) = self.state() else { return Ok(()) };
        let records = state.records(&self.deadline(STATE_TIMEOUT))?;
        let before = records.get(port);
        match change(before.clone()) {
            Some(record) if before.as_ref() == Some(&record) => Ok(()),
            Some(record) => records.save(&record),
            None => records.delete(port),
        }
    }

    fn kept_ports(&self) -> Vec<DevPath> {
        self.state().map(kept::read).unwrap_or_default()
    }

    fn save_kept_ports(&self, kept: &[DevPath], released: &[DevPath]) -> anyhow::Result<()> {
        let Some(state) = self.state() else { return Ok(()) };
        kept::save(&state.records(&self.deadline(STATE_TIMEOUT))?, kept, released)
    }

    fn lock_port(&self, port: &Port) -> anyhow::Result<Option<Lock>> {
        let Some(state) = self.state() else { return Ok(None) };
        let lock = Lock::acquire(state.port_lock(port)?, &self.deadline(PORT_TIMEOUT));
        Ok(Some(lock.with_context(|| format!("port {port}"))?))
    }

    fn guest_port_history(&self, vm: &str, port: &Port) -> GuestPortHistory {
        self.state().map(|state| guest_ports::history(state, vm, port)).unwrap_or_default()
    }

    fn save_guest_port(&self, vm: &str, port: &Port, last: &LastPort) -> anyhow::Result<()> {
        let Some(state) = self.state() else { return Ok(()) };
        guest_ports::save(&state.records(&self.deadline(STATE_TIMEOUT))?, vm, port, last)
    }

    fn connect(&self, target: &Target<'_>) -> Result<Box<dyn Qmp + '_>, Error> {
        let Target { monitor, access, timeout, .. } = *target;
        let mut deadline = self.deadline(timeout);
        let mut lock = None;
        if let Some(state) = self.state() {
            let file = state.qmp_lock(&monitor.file()).map_err(Error::Lock)?;
            match Lock::acquire_in_queue(file, deadline, self.end) {
                Ok((held, extended)) => (lock, deadline) = (Some(held), extended),
                Err(LockError::Busy(budget)) => {
                    return Err(Error::Timeout { step: Step::Lock, budget });
                }
                Err(LockError::Io(error)) => return Err(Error::Lock(error.into())),
            }
        }
        Ok(Box::new(Session::connect(self.root, monitor, access, deadline, lock)?))
    }
}
