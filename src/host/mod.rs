//! The host, as the code that handles events and commands sees it.
//!
//! [`real`] is this machine. [`dry_run`] reads this machine and changes nothing. The code that
//! decides and acts is the same for both.

pub mod companions;
pub mod disks;
pub mod drivers;
pub mod dry_run;
pub mod netlink;
pub mod real;
pub mod session;
pub mod settle;
pub mod sysfs;
pub mod topology;
pub mod usbfs;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use self::disks::DiskUse;
use self::drivers::Interface;
use self::settle::{Settle, Settled};
use self::topology::Topology;
use self::usbfs::Program;
use crate::clock::Monotonic;
use crate::config::{Target, VirtualMachine};
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::guest::ports::{GuestPortHistory, LastPort};
use crate::location::UsbLocation;
use crate::monitor::Monitor;
use crate::port::{BusNum, DevNum, Port};
use crate::qmp::{Error, Qmp};
use crate::root::Root;
use crate::state::dir;
use crate::state::kept;
use crate::state::lock::Lock;
use crate::state::record::{Attachment, Record, UeventMark, VERSION};
use crate::state::socket_file::SocketFile;
use crate::usb_device::{DiskClaims, UsbDevice};

/// What hotplugger reads and changes outside its own process.
pub trait Host {
    fn root(&self) -> &Root;

    /// Problems of the host itself that a report should mention, such as an unusable state directory.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads the USB device at `devpath`; `None` if there is none.
    fn usb_device(&self, devpath: &DevPath) -> io::Result<Option<UsbDevice>>;

    fn open_node(&self, devpath: &DevPath, device: &UsbDevice) -> io::Result<OwnedFd> {
        sysfs::open_node(self.root(), devpath, device)
    }

    /// The location of a device, which may be unplugged already.
    fn location(&self, devpath: &DevPath) -> UsbLocation {
        topology::usb_location(self.root(), devpath)
    }

    fn topology(&self) -> Topology {
        topology::read_topology(self.root())
    }

    /// When the kernel added the device; `None` if it is not known.
    fn plugged_at(&self, busnum: BusNum, devnum: DevNum) -> Option<Monotonic>;

    fn now(&self) -> Monotonic;

    /// The number of the newest uevent, and the time.
    fn uevent_mark(&self) -> UeventMark;

    fn boot_id(&self) -> &str;

    /// The identity of the file at the socket's path; `None` means that the VM does not run.
    fn socket_file(&self, monitor: &Monitor) -> Option<SocketFile>;

    /// Whether a process listens at the socket. This costs QEMU a connection,
    /// [`socket_file`](Self::socket_file) costs it nothing.
    fn is_running(&self, monitor: &Monitor) -> bool;

    /// Whether the kernel has created all interfaces of the device. Waits for them for a moment.
    fn has_interfaces(&self, devpath: &DevPath) -> bool;

    /// The interfaces of the device's active configuration.
    fn interfaces(&self, devpath: &DevPath) -> Vec<Interface>;

    fn interface_classes(&self, devpath: &DevPath) -> Vec<u8> {
        drivers::interface_classes(self.root(), devpath)
    }

    fn claim_disks(&self, devpath: &DevPath) -> Result<DiskClaims, DiskUse>;

    fn is_authorized(&self, devpath: &DevPath, interface: &Interface) -> bool {
        drivers::is_authorized(self.root(), devpath, interface)
    }

    fn programs_with(&self, device: &UsbDevice) -> Vec<Program> {
        usbfs::programs_with(self.root(), &sysfs::node(device.busnum, device.devnum))
    }

    /// Takes the device from the programs that have claimed its interfaces.
    fn unbind_programs(&self, devpath: &DevPath) -> io::Result<()>;

    /// Unbinds the host's drivers from the device's interfaces. Returns how many were unbound.
    fn unbind_drivers(&self, devpath: &DevPath) -> io::Result<usize>;

    fn probe_drivers(&self, devpath: &DevPath) -> io::Result<()>;

    /// The time that is left of the call of an event; `None` if there is no limit.
    fn time_left(&self) -> Option<Duration> {
        None
    }

    /// Waits until the device has settled. Calls `on_driver_bound` when a host driver may have
    /// been bound to one of its interfaces.
    fn settle(&self, settle: Settle<'_>, on_driver_bound: &mut dyn FnMut()) -> io::Result<Settled>;

    /// Whether there seems to be a record of the device's port. Cheaper than to read it.
    fn may_have_record(&self, device: &DevPath) -> bool;

    /// Reads the record of the port. A record that cannot be read counts as absent: state is
    /// disposable.
    fn record(&self, port: &Port) -> Option<Record>;

    /// Replaces the record of the port by what `change` makes of it, under the records' lock.
    fn update_record(
        &self,
        port: &Port,
        change: &dyn Fn(Option<Record>) -> Option<Record>,
    ) -> anyhow::Result<()>;

    fn records(&self) -> Vec<Record> {
        dir::read_all_unlocked(self.root())
    }

    /// The ports that a person keeps with the host.
    fn kept_ports(&self) -> Vec<DevPath>;

    /// Keeps these ports with the host, and no longer those at or below the released ones.
    fn save_kept_ports(&self, kept: &[DevPath], released: &[DevPath]) -> anyhow::Result<()>;

    /// Keeps other hotplugger processes from attaching and detaching devices of the port. `None`
    /// without a state directory.
    ///
    /// udevd runs the events of a device one after the other. Only manual commands and `sync` run
    /// beside them.
    fn lock_port(&self, port: &Port) -> anyhow::Result<Option<Lock>>;

    /// The VM's guest ports that devices of this port and of the other ports had last.
    fn guest_port_history(&self, vm: &str, port: &Port) -> GuestPortHistory;

    fn save_guest_port(&self, vm: &str, port: &Port, last: &LastPort) -> anyhow::Result<()>;

    /// Locks the socket against other hotplugger processes, connects to the QEMU behind it and
    /// verifies the peer.
    fn connect(&self, target: &Target<'_>) -> Result<Box<dyn Qmp + '_>, Error>;
}

pub struct ReturnResult {
    /// The number of interfaces that had a driver before.
    pub before: usize,
    /// The number of interfaces that have one now.
    pub after: usize,
    pub probed: io::Result<()>,
}

impl dyn Host + '_ {
    pub fn delete_record(&self, port: &Port) -> anyhow::Result<()> {
        self.update_record(port, &|_| None)
    }

    /// The record of the device at `devpath`, without what no longer holds.
    pub fn load_record(&self, port: &Port, devpath: &DevPath) -> Option<Record> {
        let mut record = self.record(port).filter(|record| record.devpath == *devpath)?;
        // A QEMU that was started again has none of the devices of the one before it.
        let is_current =
            |attached: &Attachment| self.socket_file(&attached.monitor) == attached.socket_file;
        record.attached = record.attached.filter(is_current);
        record.unconfirmed = record.unconfirmed.filter(is_current);
        if !record.is_detached(|monitor| self.socket_file(monitor)) {
            (record.detached_manual, record.detached_for) = (false, None);
        }
        Some(record)
    }

    /// Uevents from now on count as its activity.
    pub fn new_record(
        &self,
        port: &Port,
        devpath: &DevPath,
        devnum: DevNum,
        initialized_at: Option<Monotonic>,
    ) -> Record {
        let mark = self.uevent_mark();
        let plugged_at = self.plugged_at(port.bus(), devnum).unwrap_or(mark.at);
        Record {
            version: VERSION,
            boot_id: self.boot_id().to_owned(),
            port: port.clone(),
            devpath: devpath.clone(),
            devnum,
            plugged_at: initialized_at.unwrap_or(plugged_at).min(plugged_at).min(mark.at),
            seen: mark,
            newest_interface: None,
            attached: None,
            unconfirmed: None,
            unbound: false,
            detached_manual: false,
            detached_for: None,
        }
    }

    /// That the VM has the device from now on, for its record.
    pub fn attachment(&self, vm: &VirtualMachine, device: &UsbDevice, id: DeviceId) -> Attachment {
        Attachment {
            vm: vm.name.clone(),
            monitor: vm.monitor.clone(),
            socket_file: self.socket_file(&vm.monitor),
            id,
            device: device.label(),
            at: self.now(),
        }
    }

    /// Whether a person keeps the device's port, or one above it, with the host.
    pub fn is_kept(&self, device: &DevPath) -> bool {
        kept::includes(&self.kept_ports(), device)
    }

    /// Saves a record. Returns a warning if that failed: the next event then knows less.
    pub fn save_record_or_warn(&self, record: &Record) -> Option<String> {
        let saved = self.update_record(&record.port, &|_| Some(record.clone()));
        saved.err().map(|error| format!("record not saved: {error:#}"))
    }

    pub fn return_to_drivers(&self, devpath: &DevPath) -> ReturnResult {
        let with_driver = || {
            let interfaces = self.interfaces(devpath);
            interfaces.iter().filter(|interface| interface.driver.is_some()).count()
        };
        let before = with_driver();
        let probed = self.probe_drivers(devpath);
        ReturnResult { before, after: with_driver(), probed }
    }
}
