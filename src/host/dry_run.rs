//! A world that is only rehearsed in: it looks at this machine and changes nothing.
//!
//! Time passes at once, memory is the rehearsal's own, and in QEMU's place answers a guest in which
//! nothing is wrong. Each step is kept to be shown.

mod step;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::step::{Sent, Step};
use super::{ExchangeError, Host};
use crate::clock::Monotonic;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::event::plan::Plan;
use crate::guest::attach::AttachError;
use crate::guest::fake::{Bus, FakeQemu, HostDevice};
use crate::guest::ports::{GuestPortHistory, LastPort};
use crate::host::disks::{self, Disks};
use crate::host::drivers::{self, Interface};
use crate::host::node;
use crate::host::settle::{Settle, Settled};
use crate::host::sysfs::{self, UsbDevice};
use crate::host::users;
use crate::port::{BusNum, DevNum, Port};
use crate::qmp::Qmp;
use crate::root::Root;
use crate::speed::Speed;
use crate::state::dir::{self, StateDir};
use crate::state::guest_ports;
use crate::state::lock::Lock;
use crate::state::record::{Record, UeventMark};
use crate::state::socket_file::SocketFile;

/// The rehearsal.
#[derive(Debug)]
pub struct DryRun<'a> {
    root: &'a Root,
    /// Whether virtual machines are supposed to run whose socket is not there.
    assume_running: bool,
    /// Devices that are supposed to be plugged, as a recording tells of them.
    plugged: RefCell<BTreeMap<DevPath, UsbDevice>>,
    pulled: RefCell<Option<DeviceId>>,
    records: RefCell<BTreeMap<String, Option<Record>>>,
    /// Interfaces from which the host's drivers were unbound.
    unbound: RefCell<BTreeSet<String>>,
    guests: RefCell<BTreeMap<PathBuf, FakeQemu>>,
    /// The buses that the config wants guests to have, by socket.
    hubs: RefCell<BTreeMap<PathBuf, Vec<String>>>,
    seats: RefCell<Vec<(String, Port, LastPort)>>,
    steps: RefCell<Vec<Step>>,
    now: RefCell<Monotonic>,
}

impl<'a> DryRun<'a> {
    /// A rehearsal on this machine.
    pub fn new(root: &'a Root, assume_running: bool) -> Self {
        Self {
            root,
            assume_running,
            plugged: RefCell::default(),
            pulled: RefCell::default(),
            records: RefCell::default(),
            unbound: RefCell::default(),
            guests: RefCell::default(),
            hubs: RefCell::default(),
            seats: RefCell::default(),
            steps: RefCell::default(),
            now: RefCell::new(Monotonic::now()),
        }
    }

    /// Supposes that this device is plugged from now on.
    pub fn with_device(&self, devpath: &DevPath, device: UsbDevice) {
        self.plugged.borrow_mut().insert(devpath.clone(), device);
    }

    /// Supposes that the device is pulled now, and that the guest which is asked first had it.
    pub fn without_device(&self, devpath: &DevPath, id: Option<DeviceId>) {
        self.plugged.borrow_mut().remove(devpath);
        *self.pulled.borrow_mut() = id;
    }

    /// The steps since this was asked last.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.take()
    }

    fn step(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }

    /// The host's device as the guest's QEMU sees it.
    fn host_devices(&self) -> Vec<HostDevice> {
        let plugged = self.plugged.borrow();
        plugged
            .iter()
            .filter_map(|(devpath, device)| {
                Some(HostDevice {
                    id: DeviceId { port: devpath.port()?, devnum: device.devnum },
                    speed: device.speed.map_or("480".to_owned(), Speed::number),
                    product: device.product.clone().unwrap_or_default(),
                })
            })
            .collect()
    }

    fn record(&self, port: &Port) -> Option<Record> {
        let known = self.records.borrow().get(&port.to_string()).cloned();
        // What the live program remembers counts, where we may read it.
        known.unwrap_or_else(|| dir::peek(self.root, port))
    }
}

impl Host for DryRun<'_> {
    fn decided(&self, plan: &Plan<'_>) {
        self.step(Step::Decide { decision: plan.to_string() });
        if let Plan::Attach { vm, .. } = plan {
            self.hubs.borrow_mut().insert(vm.socket.clone(), vm.hubs.clone());
        }
    }

    fn usb_device(&self, devpath: &DevPath) -> io::Result<Option<UsbDevice>> {
        if let Some(device) = self.plugged.borrow().get(devpath) {
            return Ok(Some(device.clone()));
        }
        let device = sysfs::usb_device(self.root, devpath)?;
        if let Some(device) = &device {
            self.with_device(devpath, device.clone());
        }
        Ok(device)
    }

    fn open_node(&self, devpath: &DevPath, device: &UsbDevice) -> io::Result<OwnedFd> {
        node::open(self.root, devpath, device)
    }

    fn uid(&self, name: &str) -> io::Result<Option<u32>> {
        users::uid(self.root, name)
    }

    /// As if it were plugged now.
    fn plugged_at(&self, _: BusNum, _: DevNum) -> Option<Monotonic> {
        None
    }

    fn now(&self) -> Monotonic {
        *self.now.borrow()
    }

    fn seen(&self) -> UeventMark {
        UeventMark { at: self.now(), seqnum: None }
    }

    fn boot_id(&self) -> &'static str {
        ""
    }

    fn socket_file(&self, socket: &Path) -> Option<SocketFile> {
        let live = SocketFile::at(self.root, socket);
        live.or_else(|| self.assume_running.then(SocketFile::default))
    }

    /// As far as it can be told without a word to it.
    fn runs(&self, socket: &Path) -> bool {
        self.socket_file(socket).is_some()
    }

    fn has_interfaces(&self, devpath: &DevPath) -> bool {
        let supposed = sysfs::usb_device(self.root, devpath).is_ok_and(|device| device.is_none());
        supposed || drivers::has_interfaces(self.root, devpath)
    }

    fn interfaces(&self, devpath: &DevPath) -> Vec<Interface> {
        let unbound = self.unbound.borrow();
        let mut interfaces = drivers::interfaces(self.root, devpath);
        for interface in interfaces.iter_mut().filter(|one| unbound.contains(&one.name)) {
            interface.driver = None;
        }
        interfaces
    }

    fn disks(&self, devpath: &DevPath) -> Disks {
        disks::read(self.root, devpath)
    }

    fn unbind_drivers(&self, devpath: &DevPath) -> io::Result<usize> {
        let interfaces = self.interfaces(devpath);
        let mut unbound = self.unbound.borrow_mut();
        let before = unbound.len();
        for interface in interfaces.into_iter().filter(Interface::has_kernel_driver) {
            unbound.insert(interface.name.clone());
            let driver = interface.driver.unwrap_or_default();
            self.step(Step::Unbind { interface: interface.name, driver });
        }
        Ok(unbound.len() - before)
    }

    fn probe_drivers(&self, devpath: &DevPath) -> io::Result<()> {
        let interfaces = self.interfaces(devpath);
        for interface in interfaces.into_iter().filter(|one| one.driver.is_none()) {
            self.unbound.borrow_mut().remove(&interface.name);
            self.step(Step::Probe { interface: interface.name });
        }
        Ok(())
    }

    fn settle(&self, settle: Settle<'_>, _: &mut dyn FnMut()) -> io::Result<Settled> {
        let wait = settle.due().since(self.now());
        self.step(Step::Settle { seconds: format!("{:.3}", wait.as_secs_f64()) });
        *self.now.borrow_mut() = self.now().after(wait);
        Ok(Settled::Quiet)
    }

    fn remember(
        &self,
        port: &Port,
        change: &mut dyn FnMut(&mut Option<Record>),
    ) -> anyhow::Result<()> {
        let before = self.record(port);
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            let port = port.to_string();
            self.step(match after {
                Some(_) => Step::Remember { port: port.clone() },
                None => Step::Forget { port: port.clone() },
            });
            self.records.borrow_mut().insert(port, after);
        }
        Ok(())
    }

    fn hold(&self, _: &Port) -> anyhow::Result<Option<Lock>> {
        Ok(None)
    }

    fn memory(&self, vm: &str, port: &Port) -> GuestPortHistory {
        let mut memory = StateDir::look(self.root)
            .map(|state| guest_ports::memory(&state, vm, port))
            .unwrap_or_default();
        for (_, whose, seat) in self.seats.borrow().iter().filter(|(of, ..)| of == vm) {
            if whose == port {
                memory.own = Some(seat.clone());
            } else {
                memory.others.push(seat.place.clone());
            }
        }
        memory
    }

    /// Not a step of its own: it goes with the record.
    fn remember_seat(&self, vm: &str, port: &Port, seat: &LastPort) -> anyhow::Result<()> {
        self.seats.borrow_mut().push((vm.to_owned(), port.clone(), seat.clone()));
        Ok(())
    }

    fn exchange(
        &self,
        socket: &Path,
        _: Duration,
        talk: &mut dyn FnMut(&mut dyn Qmp) -> Result<(), AttachError>,
    ) -> Result<(), ExchangeError> {
        self.step(Step::Connect { socket: socket.to_path_buf() });
        let mut guests = self.guests.borrow_mut();
        let guest = guests.entry(socket.to_path_buf()).or_insert_with(|| {
            let mut guest = FakeQemu::new(&[], Vec::new());
            if let Some(hubs) = self.hubs.borrow().get(socket).filter(|hubs| !hubs.is_empty()) {
                guest.buses = hubs.iter().map(|hub| (hub.clone(), Bus::Good)).collect();
            }
            // What the live program has attached is there to be deleted.
            let attached =
                dir::peek_all(self.root).into_iter().filter_map(|record| record.attached);
            let here = attached.filter(|attached| attached.socket == socket);
            here.for_each(|attached| guest.hold(&attached.id.to_string()));
            guest
        });
        guest.host = self.host_devices();
        if let Some(id) = self.pulled.take() {
            guest.hold(&id.to_string());
        }
        let said_before = guest.said.len();
        let ended = talk(guest);
        for (execute, arguments) in &guest.said[said_before..] {
            self.step(Step::Qmp(Sent { execute, arguments: arguments.clone() }));
        }
        Ok(ended?)
    }
}
