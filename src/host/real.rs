//! This machine: sysfs, the clock, the state folder, QEMU.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::{ExchangeError, Host};
use crate::clock::Monotonic;
use crate::deadline::Deadline;
use crate::devpath::DevPath;
use crate::guest::attach::AttachError;
use crate::guest::ports::{GuestPortHistory, LastPort};
use crate::host::disks::{self, Disks};
use crate::host::drivers::{self, Interface};
use crate::host::node;
use crate::host::settle::{self, Settle, Settled};
use crate::host::sysfs::{self, UsbDevice};
use crate::host::users;
use crate::port::{BusNum, DevNum, Port};
use crate::qmp::connection;
use crate::qmp::{Error, Qmp, Stage};
use crate::root::Root;
use crate::state::dir::StateDir;
use crate::state::guest_ports;
use crate::state::lock::{Lock, LockError};
use crate::state::record::{Record, UeventMark};
use crate::state::socket_file::SocketFile;

/// How long a look into the state folder may wait for others, who never hold it longer than a
/// file takes to write.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for another hotplugger that is busy with the port. Each of its exchanges has
/// its own, shorter time.
const HOLD_TIMEOUT: Duration = Duration::from_secs(60);

/// This machine, below a root.
#[derive(Debug)]
pub struct RealHost<'a> {
    root: &'a Root,
    state: Option<StateDir>,
}

impl<'a> RealHost<'a> {
    /// This machine, and what is wrong with its state folder if something is. Without one nothing
    /// is remembered, and QEMU's own queue takes the place of the locks.
    pub fn open(root: &'a Root) -> (Self, Option<String>) {
        match StateDir::open(root) {
            Ok(state) => {
                let note = state.fallback.as_ref();
                let note = note.map(|why| format!("state is kept in /run/hotplugger: {why}"));
                (Self { root, state: Some(state) }, note)
            }
            Err(error) => {
                (Self { root, state: None }, Some(format!("no state is kept: {error:#}")))
            }
        }
    }
}

impl<'a> RealHost<'a> {
    /// The same for a person, who must not act behind the back of what is remembered.
    ///
    /// # Errors
    ///
    /// There is no state folder to be used.
    pub fn open_with_state(root: &'a Root) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() && !root.is_moved() {
            anyhow::bail!("only root may attach and detach devices: run it with sudo");
        }
        Ok(Self { root, state: Some(StateDir::open(root)?) })
    }
}

impl Host for RealHost<'_> {
    fn usb_device(&self, devpath: &DevPath) -> io::Result<Option<UsbDevice>> {
        sysfs::usb_device(self.root, devpath)
    }

    fn open_node(&self, devpath: &DevPath, device: &UsbDevice) -> io::Result<OwnedFd> {
        node::open(self.root, devpath, device)
    }

    fn uid(&self, name: &str) -> io::Result<Option<u32>> {
        users::uid(self.root, name)
    }

    fn plugged_at(&self, busnum: BusNum, devnum: DevNum) -> Option<Monotonic> {
        sysfs::plugged_at(self.root, busnum, devnum)
    }

    fn now(&self) -> Monotonic {
        Monotonic::now()
    }

    fn seen(&self) -> UeventMark {
        // The number first: an event between the two then counts as not yet seen.
        let seqnum = sysfs::uevent_seqnum(self.root);
        UeventMark { at: Monotonic::now(), seqnum }
    }

    fn boot_id(&self) -> &str {
        self.state.as_ref().map_or("", StateDir::boot_id)
    }

    fn socket_file(&self, socket: &Path) -> Option<SocketFile> {
        SocketFile::at(self.root, socket)
    }

    fn runs(&self, socket: &Path) -> bool {
        connection::runs(self.root, socket)
    }

    fn has_interfaces(&self, devpath: &DevPath) -> bool {
        drivers::has_interfaces(self.root, devpath)
    }

    fn interfaces(&self, devpath: &DevPath) -> Vec<Interface> {
        drivers::interfaces(self.root, devpath)
    }

    fn disks(&self, devpath: &DevPath) -> Disks {
        disks::read(self.root, devpath)
    }

    fn unbind_drivers(&self, devpath: &DevPath) -> io::Result<usize> {
        drivers::unbind(self.root, devpath).map(|unbound| unbound.len())
    }

    fn probe_drivers(&self, devpath: &DevPath) -> io::Result<()> {
        drivers::probe(self.root, devpath)
    }

    fn settle(&self, settle: Settle<'_>, driver_came: &mut dyn FnMut()) -> io::Result<Settled> {
        settle::wait(settle, driver_came)
    }

    fn remember(
        &self,
        port: &Port,
        change: &mut dyn FnMut(&mut Option<Record>),
    ) -> anyhow::Result<()> {
        let Some(state) = &self.state else {
            change(&mut None);
            return Ok(());
        };
        let records = state.records(&Deadline::after(STATE_TIMEOUT))?;
        let before = records.get(port);
        let mut after = before.clone();
        change(&mut after);
        match after {
            Some(record) if before.as_ref() != Some(&record) => records.put(&record),
            Some(_) => Ok(()),
            None => records.forget(port),
        }
    }

    fn hold(&self, port: &Port) -> anyhow::Result<Option<Lock>> {
        let Some(state) = &self.state else { return Ok(None) };
        let lock = Lock::acquire(state.port_lock(port)?, &Deadline::after(HOLD_TIMEOUT));
        Ok(Some(lock.with_context(|| format!("port {port}"))?))
    }

    fn memory(&self, vm: &str, port: &Port) -> GuestPortHistory {
        self.state.as_ref().map(|state| guest_ports::memory(state, vm, port)).unwrap_or_default()
    }

    fn remember_seat(&self, vm: &str, port: &Port, seat: &LastPort) -> anyhow::Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        guest_ports::keep(&state.records(&Deadline::after(STATE_TIMEOUT))?, vm, port, seat)
    }

    fn exchange(
        &self,
        socket: &Path,
        timeout: Duration,
        talk: &mut dyn FnMut(&mut dyn Qmp) -> Result<(), AttachError>,
    ) -> Result<(), ExchangeError> {
        let mut deadline = Deadline::after(timeout);
        let mut lock = None;
        if let Some(state) = &self.state {
            let file = state.qmp_lock(socket).map_err(ExchangeError::State)?;
            match Lock::acquire_in_queue(file, deadline) {
                Ok((held, extended)) => (lock, deadline) = (Some(held), extended),
                Err(LockError::Busy(budget)) => {
                    return Err(Error::Timeout { stage: Stage::Lock, budget }.into());
                }
                Err(LockError::Io(error)) => return Err(ExchangeError::State(error.into())),
            }
        }
        let mut qmp = connection::connect(self.root, socket, deadline)?;
        talk(&mut qmp)?;
        if let Some(lock) = lock {
            lock.progress();
        }
        Ok(())
    }
}
