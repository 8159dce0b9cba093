//! A host that reads this machine and changes nothing, for `simulate` and `udev --dry-run`.
//!
//! Waits end at once, records are kept in memory, and a fake QEMU accepts every device. Each step
//! that the real host would take is kept for display.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::Host;
use super::disks::{self, DiskUse};
use super::drivers::{self, Interface};
use super::settle::{Settle, Settled};
use super::sysfs;
use crate::clock::Monotonic;
use crate::config::{Config, Target};
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::guest::fake::{Bus, FakeQemu, HostDevice};
use crate::guest::ports::{GuestPortHistory, LastPort};
use crate::monitor::Monitor;
use crate::port::{BusNum, DevNum, Port};
use crate::qmp::{Error, OpenDevice, Qmp};
use crate::root::Root;
use crate::speed::Speed;
use crate::state::dir::{self, StateDir, may_have_record};
use crate::state::guest_ports;
use crate::state::kept;
use crate::state::lock::Lock;
use crate::state::record::{Record, UeventMark};
use crate::state::socket_file::SocketFile;
use crate::usb_device::{DiskClaims, UsbDevice};

/// A step that the real host would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    Decide { decision: String },
    Unbind { interface: String, driver: String },
    Probe { interface: String },
    Settle { seconds: String },
    Connect { socket: PathBuf },
    Qmp(QmpCommand),
    SaveRecord { port: String },
    DeleteRecord { port: String },
}

/// A QMP command without its ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QmpCommand {
    pub execute: &'static str,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
}

#[derive(Debug)]
pub struct DryRun<'a> {
    root: &'a Root,
    /// Whether VMs count as running although their sockets are missing.
    assume_running: bool,
    /// The guest buses that the config names, by socket.
    hubs: BTreeMap<Monitor, Vec<String>>,
    state: RefCell<Simulation>,
}

#[derive(Debug)]
struct Simulation {
    now: Monotonic,
    /// Devices that are assumed to be plugged in, and those that were read.
    devices: BTreeMap<DevPath, UsbDevice>,
    /// A device that was unplugged. The guest that is asked first had it.
    unplugged: Option<DeviceId>,
    records: BTreeMap<String, Option<Record>>,
    /// Interfaces without their host driver, which was unbound.
    unbound: BTreeSet<String>,
    guests: BTreeMap<Monitor, FakeQemu>,
    guest_ports: Vec<(String, Port, LastPort)>,
    steps: Vec<Step>,
}

impl<'a> DryRun<'a> {
    pub fn new(root: &'a Root, config: &Config, assume_running: bool) -> Self {
        let hubs = config.virtual_machines.iter().map(|vm| (vm.monitor.clone(), vm.hubs.clone()));
        let state = Simulation {
            now: Monotonic::now(),
            devices: BTreeMap::new(),
            unplugged: None,
            records: BTreeMap::new(),
            unbound: BTreeSet::new(),
            guests: BTreeMap::new(),
            guest_ports: Vec::new(),
            steps: Vec::new(),
        };
        Self { root, assume_running, hubs: hubs.collect(), state: RefCell::new(state) }
    }

    /// Assumes that the device is plugged in.
    pub fn with_device(&self, devpath: &DevPath, device: UsbDevice) {
        self.state.borrow_mut().devices.insert(devpath.clone(), device);
    }

    /// Assumes that the device was unplugged, and that the guest that is asked first had it.
    pub fn without_device(&self, devpath: &DevPath, id: Option<DeviceId>) {
        let mut state = self.state.borrow_mut();
        state.devices.remove(devpath);
        state.unplugged = id;
    }

    pub fn take_steps(&self) -> Vec<Step> {
        mem::take(&mut self.state.borrow_mut().steps)
    }

    fn step(&self, step: Step) {
        self.state.borrow_mut().steps.push(step);
    }

    fn unbind(&self, interface: Interface) {
        self.state.borrow_mut().unbound.insert(interface.name.clone());
        let driver = interface.driver.unwrap_or_default();
        self.step(Step::Unbind { interface: interface.name, driver });
    }

    /// A QEMU that has the buses of the config, and the devices that are recorded as attached.
    fn fake_qemu(&self, monitor: &Monitor) -> FakeQemu {
        let mut qemu = FakeQemu::new(&[], Vec::new());
        if let Some(hubs) = self.hubs.get(monitor).filter(|hubs| !hubs.is_empty()) {
            qemu.buses = hubs.iter().map(|hub| (hub.clone(), Bus::Good)).collect();
        }
        let attached =
            dir::read_all_unlocked(self.root).into_iter().filter_map(|record| record.attached);
        for attached in attached.filter(|attached| attached.monitor == *monitor) {
            qemu.add_object(&attached.id.to_string());
        }
        qemu
    }
}

impl Host for DryRun<'_> {
    fn root(&self) -> &Root {
        self.root
    }

    fn usb_device(&self, devpath: &DevPath) -> io::Result<Option<UsbDevice>> {
        if let Some(device) = self.state.borrow().devices.get(devpath) {
            return Ok(Some(device.clone()));
        }
        let device = sysfs::usb_device(self.root, devpath)?;
        if let Some(device) = &device {
            self.with_device(devpath, device.clone());
        }
        Ok(device)
    }

    /// As if the device were plugged in now.
    fn plugged_at(&self, _: BusNum, _: DevNum) -> Option<Monotonic> {
        None
    }

    fn now(&self) -> Monotonic {
        self.state.borrow().now
    }

    fn uevent_mark(&self) -> UeventMark {
        UeventMark { at: self.now(), seqnum: None }
    }

    fn boot_id(&self) -> &'static str {
        ""
    }

    fn socket_file(&self, monitor: &Monitor) -> Option<SocketFile> {
        let file = SocketFile::at(self.root, &monitor.file());
        file.or_else(|| self.assume_running.then(SocketFile::default))
    }

    /// Does not connect.
    fn is_running(&self, monitor: &Monitor) -> bool {
        self.socket_file(monitor).is_some()
    }

    fn has_interfaces(&self, devpath: &DevPath) -> bool {
        let is_assumed = sysfs::usb_device(self.root, devpath).is_ok_and(|found| found.is_none());
        is_assumed || drivers::has_interfaces(self.root, devpath)
    }

    fn interfaces(&self, devpath: &DevPath) -> Vec<Interface> {
        let state = self.state.borrow();
        let mut interfaces = drivers::interfaces(self.root, devpath);
        for interface in interfaces.iter_mut().filter(|one| state.unbound.contains(&one.name)) {
            interface.driver = None;
        }
        interfaces
    }

    fn claim_disks(&self, devpath: &DevPath) -> Result<DiskClaims, DiskUse> {
        disks::claim(self.root, devpath, false)
    }

    fn unbind_programs(&self, devpath: &DevPath) -> io::Result<()> {
        let interfaces = self.interfaces(devpath);
        for interface in interfaces.into_iter().filter(Interface::is_claimed) {
            self.unbind(interface);
        }
        Ok(())
    }

    fn unbind_drivers(&self, devpath: &DevPath) -> io::Result<usize> {
        let interfaces = self.interfaces(devpath);
        let bound: Vec<_> = interfaces.into_iter().filter(Interface::has_kernel_driver).collect();
        let count = bound.len();
        for interface in bound {
            self.unbind(interface);
        }
        Ok(count)
    }

    fn probe_drivers(&self, devpath: &DevPath) -> io::Result<()> {
        let interfaces = self.interfaces(devpath);
        for interface in interfaces.into_iter().filter(|one| one.driver.is_none()) {
            self.state.borrow_mut().unbound.remove(&interface.name);
            self.step(Step::Probe { interface: interface.name });
        }
        Ok(())
    }

    fn settle(&self, settle: Settle<'_>, _: &mut dyn FnMut()) -> io::Result<Settled> {
        let wait = settle.ready_at().since(self.now());
        self.step(Step::Settle { seconds: format!("{:.3}", wait.as_secs_f64()) });
        let mut state = self.state.borrow_mut();
        state.now = state.now.after(wait);
        Ok(Settled::Quiet)
    }

    fn may_have_record(&self, device: &DevPath) -> bool {
        let port = device.port().map(|port| port.to_string()).unwrap_or_default();
        match self.state.borrow().records.get(&port) {
            Some(record) => record.is_some(),
            None => may_have_record(self.root, device),
        }
    }

    /// The dry run's own record, else the real one where this user may read it.
    fn record(&self, port: &Port) -> Option<Record> {
        let known = self.state.borrow().records.get(&port.to_string()).cloned();
        known.unwrap_or_else(|| dir::read_unlocked(self.root, port))
    }

    fn update_record(
        &self,
        port: &Port,
        change: &dyn Fn(Option<Record>) -> Option<Record>,
    ) -> anyhow::Result<()> {
        let before = self.record(port);
        let after = change(before.clone());
        if after != before {
            let port = port.to_string();
            self.step(match after {
                Some(_) => Step::SaveRecord { port: port.clone() },
                None => Step::DeleteRecord { port: port.clone() },
            });
            self.state.borrow_mut().records.insert(port, after);
        }
        Ok(())
    }

    fn kept_ports(&self) -> Vec<DevPath> {
        kept::read_unlocked(self.root)
    }

    fn save_kept_ports(&self, _: &[DevPath], _: &[DevPath]) -> anyhow::Result<()> {
        Ok(())
    }

    fn lock_port(&self, _: &Port) -> anyhow::Result<Option<Lock>> {
        Ok(None)
    }

    fn guest_port_history(&self, vm: &str, port: &Port) -> GuestPortHistory {
        let mut history = StateDir::open_read_only(self.root)
            .map(|state| guest_ports::history(&state, vm, port))
            .unwrap_or_default();
        for (_, other, last) in self.state.borrow().guest_ports.iter().filter(|(of, ..)| of == vm) {
            if other == port {
                history.last = Some(last.clone());
            } else {
                history.reserved.push(last.port.clone());
            }
        }
        history
    }

    /// Not a step of its own: it goes with the record.
    fn save_guest_port(&self, vm: &str, port: &Port, last: &LastPort) -> anyhow::Result<()> {
        self.state.borrow_mut().guest_ports.push((vm.to_owned(), port.clone(), last.clone()));
        Ok(())
    }

    fn connect(&self, target: &Target<'_>) -> Result<Box<dyn Qmp + '_>, Error> {
        let monitor = target.monitor;
        self.step(Step::Connect { socket: monitor.file().into_owned() });
        let mut state = self.state.borrow_mut();
        let devices = state.host_devices();
        let unplugged = state.unplugged.take();
        let qemu = state.guests.entry(monitor.clone()).or_insert_with(|| self.fake_qemu(monitor));
        qemu.host = devices;
        if let Some(id) = unplugged {
            qemu.add_object(&id.to_string());
        }
        Ok(Box::new(DryRunSession { state: &self.state, monitor: monitor.clone() }))
    }
}

impl Simulation {
    fn host_devices(&self) -> Vec<HostDevice> {
        let devices = self.devices.iter();
        devices
            .filter_map(|(devpath, device)| {
                Some(HostDevice {
                    id: DeviceId { port: devpath.port()?, devnum: device.devnum },
                    speed: device.speed.map_or("480".to_owned(), Speed::number),
                    product: device.product.clone().unwrap_or_default(),
                })
            })
            .collect()
    }
}

/// A session with a fake QEMU. Its commands are steps.
struct DryRunSession<'a> {
    state: &'a RefCell<Simulation>,
    monitor: Monitor,
}

impl DryRunSession<'_> {
    fn run(
        &self,
        command: impl FnOnce(&mut FakeQemu) -> Result<Value, Error>,
    ) -> Result<Value, Error> {
        let Simulation { guests, steps, .. } = &mut *self.state.borrow_mut();
        let Some(qemu) = guests.get_mut(&self.monitor) else {
            return Err(Error::NotRunning { monitor: self.monitor.clone(), stale: false });
        };
        let sent = qemu.commands.len();
        let result = command(qemu);
        steps.extend(qemu.commands[sent..].iter().map(|(execute, arguments)| {
            Step::Qmp(QmpCommand { execute, arguments: arguments.clone() })
        }));
        result
    }
}

impl Qmp for DryRunSession<'_> {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        self.run(|qemu| qemu.execute(command, arguments))
    }

    fn execute_with_fd(
        &mut self,
        command: &'static str,
        arguments: Value,
        open: &OpenDevice<'_>,
    ) -> Result<Value, Error> {
        self.run(|qemu| qemu.execute_with_fd(command, arguments, open))
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        self.run(|qemu| qemu.pause(time).map(|()| Value::Null)).map(drop)
    }
}
