//! The program's world, in memory: at each of its moments the host may change, or the program be
//! killed.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::panic_any;
use std::path::Path;
use std::time::Duration;

use hotplugger::clock::Monotonic;
use hotplugger::config::Target;
use hotplugger::devpath::DevPath;
use hotplugger::guest::fake::FakeQemu;
use hotplugger::guest::ports::{GuestPortHistory, LastPort};
use hotplugger::host::Host;
use hotplugger::host::disks::DiskUse;
use hotplugger::host::drivers::Interface;
use hotplugger::host::settle::{Settle, Settled};
use hotplugger::host::topology::Topology;
use hotplugger::host::usbfs::Program;
use hotplugger::location::{PortLocation, UsbLocation};
use hotplugger::monitor::Monitor;
use hotplugger::port::{BusNum, DevNum, Port};
use hotplugger::qmp::{Error, OpenDevice, Qmp, Step};
use hotplugger::root::Root;
use hotplugger::state::lock::Lock;
use hotplugger::state::record::{Record, UeventMark};
use hotplugger::state::socket_file::SocketFile;
use hotplugger::usb_device::{DiskClaims, UsbDevice};
use serde_json::Value;

use crate::state::{Act, Guest, PORT, PortState, SOCKETS};

/// What happens at a moment of the program's run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interrupt {
    Kill,
    Act(Act),
    /// The guest's QEMU does not reply until the call is over.
    Stuck(Stuck),
}

/// When a stuck QEMU executes the command that it got last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    AtOnce,
    WhenItResumes,
}

/// The payload of the panic that stands for SIGKILL.
pub(crate) struct Killed;

pub(crate) struct ModelHost {
    host: RefCell<PortState>,
    interrupt: Option<(usize, Interrupt)>,
    moments: Cell<usize>,
    /// The guest whose QEMU is stuck.
    stuck: Cell<Option<usize>>,
    /// The command that it executes when it resumes.
    pending: RefCell<Option<(&'static str, Value)>>,
}

impl ModelHost {
    pub(crate) fn new(host: PortState, interrupt: Option<(usize, Interrupt)>) -> Self {
        Self {
            host: RefCell::new(host),
            interrupt,
            moments: Cell::new(0),
            stuck: Cell::new(None),
            pending: RefCell::new(None),
        }
    }

    /// The host, and how many moments there were.
    pub(crate) fn end(self) -> (PortState, usize) {
        let mut host = self.host.into_inner();
        let guest = self.stuck.get().and_then(|number| host.guests[number].as_mut());
        if let (Some(guest), Some((command, arguments))) = (guest, self.pending.into_inner()) {
            let _ = guest.qemu.execute(command, arguments);
        }
        (host, self.moments.get())
    }

    pub(crate) fn is_up(&self, monitor: &Monitor) -> bool {
        let host = self.host.borrow();
        number(monitor).is_some_and(|number| host.guests[number].is_some())
    }

    /// A moment at which something may happen.
    fn moment(&self) {
        let _ = self.moment_of_command();
    }

    /// The same, while a command is sent. Returns whether QEMU is stuck from now on.
    fn moment_of_command(&self) -> Option<Stuck> {
        let moment = self.moments.replace(self.moments.get() + 1);
        match self.interrupt.filter(|(at, _)| *at == moment)?.1 {
            Interrupt::Kill => panic_any(Killed),
            Interrupt::Act(act) => {
                self.host.borrow_mut().act(act);
                None
            }
            Interrupt::Stuck(stuck) => Some(stuck),
        }
    }
}

fn no_reply(step: Step) -> Error {
    Error::Timeout { step, budget: Duration::from_secs(5) }
}

/// The process ID of a guest's QEMU.
fn pid(number: usize) -> u32 {
    u32::try_from(number).unwrap() + 1
}

fn number(monitor: &Monitor) -> Option<usize> {
    SOCKETS.iter().position(|known| Path::new(known) == monitor.file())
}

impl Host for ModelHost {
    fn root(&self) -> &Root {
        unreachable!("the model has no files")
    }

    fn usb_device(&self, _: &DevPath) -> io::Result<Option<UsbDevice>> {
        self.moment();
        Ok(self.host.borrow().usb_device())
    }

    /// Nobody is there to have it.
    fn open_node(&self, _: &DevPath, _: &UsbDevice) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn location(&self, devpath: &DevPath) -> UsbLocation {
        UsbLocation::of(PortLocation::of(devpath.clone()))
    }

    fn topology(&self) -> Topology {
        self.moment();
        self.host.borrow().topology()
    }

    fn has_interfaces(&self, _: &DevPath) -> bool {
        true
    }

    fn plugged_at(&self, _: BusNum, _: DevNum) -> Option<Monotonic> {
        None
    }

    /// Time stands still: whoever must wait does, and no order of events depends on it.
    fn now(&self) -> Monotonic {
        Monotonic(1_000_000)
    }

    fn uevent_mark(&self) -> UeventMark {
        UeventMark { at: self.now(), seqnum: Some(1) }
    }

    fn boot_id(&self) -> &'static str {
        "boot"
    }

    fn socket_file(&self, monitor: &Monitor) -> Option<SocketFile> {
        let host = self.host.borrow();
        let guest = host.guests[number(monitor)?].as_ref()?;
        Some(SocketFile { inode: guest.start, made: 0 })
    }

    fn is_running(&self, monitor: &Monitor) -> bool {
        self.moment();
        self.is_up(monitor)
    }

    fn interfaces(&self, _: &DevPath) -> Vec<Interface> {
        Vec::new()
    }

    fn interface_classes(&self, _: &DevPath) -> Vec<u8> {
        Vec::new()
    }

    fn claim_disks(&self, _: &DevPath) -> Result<DiskClaims, DiskUse> {
        Ok(DiskClaims::default())
    }

    fn is_authorized(&self, _: &DevPath, _: &Interface) -> bool {
        true
    }

    /// The QEMUs that have the device open.
    fn programs_with(&self, device: &UsbDevice) -> Vec<Program> {
        let id = format!("hotplugger-{PORT}-{}", device.devnum.0);
        let host = self.host.borrow();
        let has_it = |guest: &Guest| guest.qemu.open().contains(&id.as_str());
        let guests = host.guests.iter().enumerate();
        let guests = guests.filter(|(_, guest)| guest.as_ref().is_some_and(has_it));
        let program = |number| Program { pid: pid(number), name: String::new(), is_qemu: true };
        guests.map(|(number, _)| program(number)).collect()
    }

    fn unbind_programs(&self, _: &DevPath) -> io::Result<()> {
        Ok(())
    }

    fn unbind_drivers(&self, _: &DevPath) -> io::Result<usize> {
        Ok(0)
    }

    fn probe_drivers(&self, _: &DevPath) -> io::Result<()> {
        Ok(())
    }

    fn settle(&self, _: Settle<'_>, _: &mut dyn FnMut()) -> io::Result<Settled> {
        let before = self.host.borrow().device;
        self.moment();
        let removed = self.host.borrow().device != before;
        Ok(if removed { Settled::Removed } else { Settled::Quiet })
    }

    fn may_have_record(&self, _: &DevPath) -> bool {
        self.host.borrow().record.is_some()
    }

    fn record(&self, _: &Port) -> Option<Record> {
        self.moment();
        self.host.borrow().record.clone()
    }

    fn update_record(
        &self,
        _: &Port,
        change: &dyn Fn(Option<Record>) -> Option<Record>,
    ) -> anyhow::Result<()> {
        self.moment();
        let mut host = self.host.borrow_mut();
        host.record = change(host.record.take());
        Ok(())
    }

    fn records(&self) -> Vec<Record> {
        self.host.borrow().record.clone().into_iter().collect()
    }

    fn kept_ports(&self) -> Vec<DevPath> {
        Vec::new()
    }

    fn save_kept_ports(&self, _: &[DevPath], _: &[DevPath]) -> anyhow::Result<()> {
        Ok(())
    }

    /// udev handles a device's events one by one, and `sync` is not run beside them here: that is
    /// for tests with real processes.
    fn lock_port(&self, _: &Port) -> anyhow::Result<Option<Lock>> {
        self.moment();
        Ok(None)
    }

    fn guest_port_history(&self, _: &str, _: &Port) -> GuestPortHistory {
        GuestPortHistory::default()
    }

    fn save_guest_port(&self, _: &str, _: &Port, _: &LastPort) -> anyhow::Result<()> {
        Ok(())
    }

    fn connect(&self, target: &Target<'_>) -> Result<Box<dyn Qmp + '_>, Error> {
        let monitor = target.monitor;
        self.moment();
        let not_running = || Error::NotRunning { monitor: monitor.clone(), stale: false };
        let number = number(monitor).ok_or_else(not_running)?;
        let start = self.host.borrow().guests[number].as_ref().map(|guest| guest.start);
        let start = start.ok_or_else(not_running)?;
        if self.stuck.get() == Some(number) {
            return Err(no_reply(Step::Greeting));
        }
        Ok(Box::new(Connection { host: self, number, start }))
    }
}

/// A connection to a guest, which breaks when that guest ends.
struct Connection<'a> {
    host: &'a ModelHost,
    number: usize,
    start: u64,
}

impl Connection<'_> {
    fn with<T>(&self, talk: impl FnOnce(&mut FakeQemu) -> Result<T, Error>) -> Result<T, Error> {
        let mut host = self.host.host.borrow_mut();
        let broken = || Error::Protocol("the connection is closed".to_owned());
        let guest = host.guests[self.number].as_mut();
        let guest: &mut Guest =
            guest.filter(|guest| guest.start == self.start).ok_or_else(broken)?;
        talk(&mut guest.qemu)
    }
}

impl Qmp for Connection<'_> {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        if let Some(stuck) = self.host.moment_of_command() {
            self.host.stuck.set(Some(self.number));
            match stuck {
                Stuck::AtOnce => drop(self.with(|guest| guest.execute(command, arguments))),
                Stuck::WhenItResumes => {
                    self.host.pending.replace(Some((command, arguments)));
                }
            }
            return Err(no_reply(Step::Command(command)));
        }
        if self.host.stuck.get() == Some(self.number) {
            return Err(no_reply(Step::Command(command)));
        }
        self.with(|guest| guest.execute(command, arguments))
    }

    fn execute_with_fd(
        &mut self,
        command: &'static str,
        arguments: Value,
        open: &OpenDevice<'_>,
    ) -> Result<Value, Error> {
        self.host.moment();
        self.with(|guest| guest.execute_with_fd(command, arguments, open))
    }

    fn qemu_pid(&self) -> Option<u32> {
        Some(pid(self.number))
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        self.host.moment();
        self.with(|guest| guest.pause(time))
    }
}
