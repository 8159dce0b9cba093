//! What the udev call reads and changes outside itself, as one seam.
//!
//! [`live`] is this machine, [`rehearsal`] one in which nothing is touched; the code that decides
//! and acts is the same.

pub mod disks;
pub mod drivers;
pub mod dry_run;
pub mod netlink;
pub mod node;
pub mod real;
pub mod settle;
pub mod sysfs;
pub mod topology;
pub mod users;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::devpath::DevPath;
use crate::event::plan::Plan;
use crate::guest::attach::AttachError;
use crate::guest::ports::{GuestPortHistory, LastPort};
use crate::host::disks::Disks;
use crate::host::drivers::Interface;
use crate::host::settle::{Settle, Settled};
use crate::host::sysfs::UsbDevice;
use crate::port::{BusNum, DevNum, Port};
use crate::qmp::{Error, Qmp};
use crate::state::lock::Lock;
use crate::state::record::{Record, UeventMark};
use crate::state::socket_file::SocketFile;

/// The world around one udev call.
pub trait Host {
    /// Takes note of what was decided.
    fn decided(&self, _: &Plan<'_>) {}

    /// The USB device that is at `devpath` now.
    ///
    /// # Errors
    ///
    /// It cannot be told whether there is one.
    fn usb_device(&self, devpath: &DevPath) -> io::Result<Option<UsbDevice>>;

    /// Opens the node of that device, so that it is no other's.
    ///
    /// # Errors
    ///
    /// It is not there, or is not to be opened.
    fn open_node(&self, devpath: &DevPath, device: &UsbDevice) -> io::Result<OwnedFd>;

    /// The number of the host's user of that name; none if there is none.
    ///
    /// # Errors
    ///
    /// The users cannot be read.
    fn uid(&self, name: &str) -> io::Result<Option<u32>>;

    /// When the kernel added that device, if it can be told.
    fn plugged_at(&self, busnum: BusNum, devnum: DevNum) -> Option<Monotonic>;

    /// This moment.
    fn now(&self) -> Monotonic;

    /// What has been heard of the kernel by now.
    fn seen(&self) -> UeventMark;

    /// The id of this boot.
    fn boot_id(&self) -> &str;

    /// The file at the socket's path; a virtual machine without it does not run.
    fn socket_file(&self, socket: &Path) -> Option<SocketFile>;

    /// Whether somebody listens there. A look at the file costs QEMU nothing, this a connection.
    fn runs(&self, socket: &Path) -> bool;

    /// Whether the kernel has made all the device's interfaces; it may need a moment for them.
    fn has_interfaces(&self, devpath: &DevPath) -> bool;

    /// The interfaces of the device's active configuration.
    fn interfaces(&self, devpath: &DevPath) -> Vec<Interface>;

    /// The host's block devices and what it uses, if the device has a disk.
    fn disks(&self, devpath: &DevPath) -> Disks;

    /// Takes the device's interfaces from the host's drivers; returns how many.
    ///
    /// # Errors
    ///
    /// A driver keeps its interface.
    fn unbind_drivers(&self, devpath: &DevPath) -> io::Result<usize>;

    /// Lets the host's drivers have the interfaces that have none.
    ///
    /// # Errors
    ///
    /// The kernel was not to be asked.
    fn probe_drivers(&self, devpath: &DevPath) -> io::Result<()>;

    /// Waits until the device has settled. `driver_came` is called when a driver of the host's may
    /// have come to one of its interfaces.
    fn settle(&self, settle: Settle<'_>, driver_came: &mut dyn FnMut()) -> io::Result<Settled>;

    /// Lets `change` read and change what is remembered of the port, while nobody else does. None
    /// is nothing remembered.
    ///
    /// # Errors
    ///
    /// The change could not be stored; then the next event knows less, and no harm is done.
    fn remember(
        &self,
        port: &Port,
        change: &mut dyn FnMut(&mut Option<Record>),
    ) -> anyhow::Result<()>;

    /// Keeps other hotpluggers from attaching and detaching what is in the port, until it is
    /// dropped; none where nobody could tell them. udevd lets a device's events run one after the
    /// other, so that only what people start has to wait for one, or one for it.
    ///
    /// # Errors
    ///
    /// One of them did not let go of it.
    fn hold(&self, port: &Port) -> anyhow::Result<Option<Lock>>;

    /// What is remembered of the VM's ports, for that port of the host.
    fn memory(&self, vm: &str, port: &Port) -> GuestPortHistory;

    /// Remembers that port of the VM for that port of the host.
    ///
    /// # Errors
    ///
    /// It could not be stored; then the next device there may get another port.
    fn remember_seat(&self, vm: &str, port: &Port, seat: &LastPort) -> anyhow::Result<()>;

    /// Lets `talk` have an exchange with the QEMU behind the socket, while no other hotplugger has
    /// one. `timeout` is for all of it, the wait for the others included.
    fn exchange(
        &self,
        socket: &Path,
        timeout: Duration,
        talk: &mut dyn FnMut(&mut dyn Qmp) -> Result<(), AttachError>,
    ) -> Result<(), ExchangeError>;
}

/// Why an exchange did not take place, or failed.
#[derive(Debug)]
pub enum ExchangeError {
    /// The state folder's locks.
    State(anyhow::Error),
    /// QEMU, or what was to be done there.
    Guest(AttachError),
}

impl From<AttachError> for ExchangeError {
    fn from(error: AttachError) -> Self {
        Self::Guest(error)
    }
}

impl From<Error> for ExchangeError {
    fn from(error: Error) -> Self {
        Self::Guest(error.into())
    }
}

impl ExchangeError {
    /// Why the virtual machine does not run, if that is all.
    pub fn not_running(&self) -> Option<&Error> {
        match self {
            Self::Guest(AttachError::Qmp(error @ Error::NotRunning { .. })) => Some(error),
            _ => None,
        }
    }
}

impl std::fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::State(error) => write!(f, "{error:#}"),
            Self::Guest(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ExchangeError {}
