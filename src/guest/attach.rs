//! Attaching: `device_add`, and the proof that QEMU has the device open.
//!
//! QEMU gets a device in one of two ways:
//!
//! * It opens the node itself. `device_add` names bus, port and device number together, so QEMU opens
//!   this device in this port and never the next one (`hw/usb/host-libusb.c`:
//!   `usb_host_auto_check` compares everything that is given). `device_add` then always succeeds, so
//!   the object's `attached` is queried afterwards.
//! * It receives a file descriptor. Then `device_add` opens the device or fails.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::bus::{self, GuestBus, suggest_controller};
use super::hmp::{self, GuestDeviceInfo, HostDevice};
use super::objects::{self, FdSet};
use super::ports::{GuestPort, GuestPortHistory, LastPort, PortCandidate, last_port, rank_ports};
use crate::clock::Deadline;
use crate::config::access::AccessMode;
use crate::config::usb_host::UsbHostProperties;
use crate::device_id::DeviceId;
use crate::qmp::{Error, Qmp, UsbHostProblem};
use crate::speed::Speed;
use crate::usb_device::DiskClaims;

pub trait UsbSource {
    /// Checks that the same device is still in its port and may go to the guest. While the result
    /// lives, nothing on the host can begin to use its disks.
    fn recheck(&self) -> Result<DiskClaims, Unavailable>;

    /// Checks only that the same device is still in its port: for a device whose disks are claimed.
    fn check_present(&self) -> Result<(), Unavailable>;

    fn open_node(&self) -> io::Result<OwnedFd>;

    /// Whether QEMU may list the host's devices (`info usbhost`).
    ///
    /// With a 20 Gb/s device on the host QEMU reads past a table then (`hw/usb/host-libusb.c`:
    /// `speed_name` has no entry for libusb's `LIBUSB_SPEED_SUPER_PLUS_X2`).
    fn may_be_listed(&self) -> bool;
}

/// Whether a process has claimed an interface of the device through usbfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    Free,
    /// That QEMU has, which may be the one of this session.
    ByQemu(String),
}

pub struct AttachRequest<'a> {
    pub id: DeviceId,
    /// On the host.
    pub speed: Option<Speed>,
    /// The guest's buses to use, in order. Empty: any bus.
    pub hubs: &'a [String],
    pub history: &'a GuestPortHistory,
    /// QEMU shows a product name only of a device that it can open.
    pub has_product_name: bool,
    /// For messages.
    pub node: PathBuf,
    pub access: AccessMode,
    pub properties: UsbHostProperties,
    /// Whether a record says that the device is attached.
    pub expected_attached: bool,
    pub claim: Claim,
    /// Whether the host's drivers serve its disks. A paused guest does not get it then: the host
    /// could mount a disk before QEMU takes it.
    pub host_drives_storage: bool,
    pub device: &'a dyn UsbSource,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    Now(GuestLocation),
    Before,
    /// The guest is paused. QEMU opens the device in this port when the guest resumes.
    PendingResume(Option<GuestPort>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct GuestLocation {
    /// `None` if QEMU chose the bus.
    pub bus: Option<String>,
    pub device: GuestDeviceInfo,
    pub below_native_speed: bool,
    pub via_fd: bool,
}

impl Attached {
    /// The guest port to remember for a device of that speed.
    pub fn last_port(&self, speed: Option<Speed>) -> Option<LastPort> {
        match self {
            Self::Now(GuestLocation { bus, device, below_native_speed, .. }) => {
                // A port behind QEMU's own hub cannot be requested again.
                let port = device.port.as_ref()?.parse().ok()?;
                let port = GuestPort { bus: bus.clone()?, port };
                Some(LastPort { port, speed: speed.filter(|_| !below_native_speed) })
            }
            Self::PendingResume(port) => Some(LastPort { port: port.clone()?, speed: None }),
            Self::Before => None,
        }
    }
}

/// How long QEMU may take to list a device after udevd has announced it.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// The same if the file descriptor can be passed instead, which is faster than to wait.
const NODE_TIMEOUT_BEFORE_FD: Duration = Duration::from_millis(300);
const NODE_POLL: Duration = Duration::from_millis(100);

/// Attaches the device and proves that QEMU has it open.
///
/// The port of the last device of this speed is tried first, without any query. Then the stale
/// objects in the device's port are deleted, and the other guest ports are tried in the order of
/// [`rank_ports`].
///
/// After a failure no object stays that could open the device later, and no file descriptor. The
/// exception is [`AttachError::Unconfirmed`]: QEMU may have the device, or open it later.
pub fn attach(qmp: &mut dyn Qmp, request: &AttachRequest<'_>) -> Result<Attached, AttachError> {
    let mut attempt = PortAttempt {
        request,
        via_fd: request.access == AccessMode::Fd,
        fd_set: None,
        node_error: None,
        unconfirmed: false,
    };
    let last = last_port(request.hubs, request.speed, request.history);
    let is_free = request.claim == Claim::Free && !request.expected_attached;
    let at_last_port = match last.filter(|_| is_free) {
        None => None,
        Some(port) => match attempt.try_ports(qmp, &[port], &[]) {
            // Another port may be free, or faster.
            Err(AttachError::NoUsablePort { .. }) => None,
            Ok(Attached::Now(location)) if location.below_native_speed => {
                attempt.delete(qmp).err().map(|error| Err(error.into()))
            }
            result => Some(result),
        },
    };
    let is_attached = objects::clean_port(qmp, &request.id, at_last_port.is_some());
    let result = match (at_last_port, is_attached) {
        // An error of the cleanup does not count: the port's next event cleans up again.
        (Some(result), _) => result,
        (None, Err(error)) => Err(error.into()),
        (None, Ok(true)) => Ok(Attached::Before),
        (None, Ok(false)) => attempt.try_all_ports(qmp),
    };
    let result = attempt.remove_fd(qmp, result);
    result.map_err(|error| attempt.complete(error))
}

struct PortAttempt<'a> {
    request: &'a AttachRequest<'a>,
    via_fd: bool,
    fd_set: Option<FdSet>,
    /// Why QEMU did not open the node, where the file descriptor is passed instead.
    node_error: Option<AttachError>,
    /// Whether QEMU may have an object or a file descriptor of the device, by its
    /// replies.
    unconfirmed: bool,
}

/// How QEMU lists the device among those of the host. `Hidden`: it does not show its list.
#[derive(Clone, Copy)]
enum HostListing {
    Found { has_name: bool },
    Hidden,
}

impl PortAttempt<'_> {
    /// Tries all ports of the guest that may take the device. Our object is not in the guest.
    fn try_all_ports(&mut self, qmp: &mut dyn Qmp) -> Result<Attached, AttachError> {
        let request = self.request;
        if let Claim::ByQemu(qemu) = &request.claim {
            // Our own object would be in the guest.
            return Err(Unavailable::InOtherQemu(qemu.clone()).into());
        }
        let buses = bus::buses(qmp, request.hubs)?;
        let ports = rank_ports(&buses, request.hubs, request.speed, request.history);
        self.try_ports(qmp, &ports, &buses)
    }

    fn remove_fd(
        &mut self,
        qmp: &mut dyn Qmp,
        result: Result<Attached, AttachError>,
    ) -> Result<Attached, AttachError> {
        let Some(set) = self.fd_set.take() else { return result };
        match (result, set.remove(qmp)) {
            (Err(error), Err(Error::Command { .. }) | Ok(())) => Err(error),
            (Err(error), Err(_)) => {
                self.unconfirmed = true;
                Err(error)
            }
            // The device is attached. The port's next session removes the file descriptor.
            (Ok(attached), _) => Ok(attached),
        }
    }

    /// Tries the ports in their order, until one takes the device at its native speed. If there is
    /// none, the fastest one is used. `buses` are the guest's buses, for the error.
    fn try_ports(
        &mut self,
        qmp: &mut dyn Qmp,
        ports: &[PortCandidate],
        buses: &[GuestBus],
    ) -> Result<Attached, AttachError> {
        let request = self.request;
        let _claims = request.device.recheck()?;
        let mut errors: Vec<BusError> = Vec::new();
        let mut fastest: Option<(&PortCandidate, Option<Speed>)> = None;
        for (number, port) in ports.iter().enumerate() {
            let is_same_bus = |error: &BusError| error.bus == port.bus;
            let is_useless = |error| is_same_bus(error) && error.kind != BusErrorKind::Full;
            if errors.iter().any(is_useless) || !may_be_faster(port, fastest) {
                continue;
            }
            let location = match self.try_port(qmp, port) {
                Ok(Attached::Now(location)) if location.below_native_speed => location,
                Err(AttachError::NoUsablePort { errors: new, .. }) => {
                    errors.retain(|error| !is_same_bus(error));
                    errors.extend(new);
                    continue;
                }
                result => return result,
            };
            let speed = location.device.speed;
            let is_fastest = fastest.is_none_or(|(_, fastest)| speed > fastest);
            let this = Some((port, speed));
            if is_fastest && !ports[number + 1..].iter().any(|later| may_be_faster(later, this)) {
                return Ok(Attached::Now(location));
            }
            self.delete(qmp)?;
            if is_fastest {
                fastest = this;
            }
        }
        if let Some((port, _)) = fastest {
            match self.try_port(qmp, port) {
                Err(AttachError::NoUsablePort { errors: new, .. }) => errors.extend(new),
                result => return result,
            }
        }
        let speed = request.speed.unwrap_or(Speed::HIGH).min(Speed::SUPER);
        for bus in buses {
            if !ports.iter().any(|port| port.bus.as_ref() == Some(&bus.name)) {
                let kind = no_port_reason(bus, speed);
                errors.push(BusError { bus: Some(bus.name.clone()), kind });
            }
        }
        let is_shortage = errors.iter().any(|error| error.kind.is_port_shortage());
        let suggest = || suggest_controller(qmp, buses, request.hubs);
        let suggestion = is_shortage.then(suggest).unwrap_or_default();
        Err(AttachError::NoUsablePort { errors, suggestion })
    }

    /// Tries one guest port. [`AttachError::NoUsablePort`]: the bus does not take the device, no object
    /// is left, and another bus may take it.
    fn try_port(
        &mut self,
        qmp: &mut dyn Qmp,
        port: &PortCandidate,
    ) -> Result<Attached, AttachError> {
        let request = self.request;
        if let Some(attached) = self.add_object(qmp, port)? {
            return Ok(attached);
        }
        let failure = if self.via_fd {
            // QEMU had the device open and lost it.
            self.not_opened(port)
        } else if !objects::is_running(qmp)? {
            if request.host_drives_storage {
                self.delete(qmp)?;
                return Err(AttachError::StorageWhilePaused);
            }
            return Ok(Attached::PendingResume(port.guest_port()));
        } else {
            match self.wait_until_listed(qmp) {
                Ok(None) => return Ok(Attached::Now(self.location(qmp, port)?)),
                Ok(Some(listing)) => {
                    // For a new object QEMU searches for the device at once.
                    self.delete(qmp)?;
                    if let Some(attached) = self.add_object(qmp, port)? {
                        return Ok(attached);
                    }
                    self.not_opened_although_listed(listing, port)
                }
                Err(error) => error,
            }
        };
        let deleted = self.delete(qmp);
        let is_of_bus = matches!(failure, AttachError::NoUsablePort { .. });
        // Without a product name QEMU does not show whether it may open the device.
        let needs_access = failure.is_access_error() || is_of_bus && !request.has_product_name;
        if needs_access && !self.via_fd && request.access == AccessMode::Auto {
            (self.via_fd, self.node_error) = (true, Some(failure));
            return self.try_port(qmp, port);
        }
        match deleted {
            Err(error) if is_of_bus || error.is_without_reply() => Err(error.into()),
            _ => Err(failure),
        }
    }

    /// Makes the object in the guest port. `None`: the object has not opened the device.
    fn add_object(
        &mut self,
        qmp: &mut dyn Qmp,
        port: &PortCandidate,
    ) -> Result<Option<Attached>, AttachError> {
        let id = &self.request.id;
        if self.via_fd && self.fd_set.is_none() {
            self.fd_set = Some(self.pass_fd(qmp)?);
        }
        self.unconfirmed = true;
        while let Err(error) = qmp.execute("device_add", self.arguments(port)) {
            if !error.desc().is_some_and(|desc| desc.starts_with("Duplicate ")) {
                self.unconfirmed = error.is_without_reply();
                return Err(self.rejection(error, port));
            }
            // Another hotplugger was faster, or no record says that the device is attached.
            if objects::is_attached(qmp, id)? {
                return Ok(Some(Attached::Before));
            }
            // QEMU before 6.2 frees an ID only some time after its object was deleted, and also after
            // it rejected a `device_add`: a duplicate without an object.
            if !objects::delete(qmp, id)? {
                qmp.pause(objects::DELETE_POLL)?;
            }
        }
        let is_attached = objects::is_attached(qmp, id)?;
        is_attached.then(|| self.location(qmp, port).map(Attached::Now)).transpose()
    }

    fn delete(&mut self, qmp: &mut dyn Qmp) -> Result<(), Error> {
        self.unconfirmed = true;
        objects::delete(qmp, &self.request.id)?;
        self.unconfirmed = false;
        Ok(())
    }

    fn pass_fd(&mut self, qmp: &mut dyn Qmp) -> Result<FdSet, AttachError> {
        let AttachRequest { id, device, .. } = self.request;
        FdSet::add(qmp, id, &|| device.open_node()).map_err(|error| {
            self.unconfirmed |= error.is_without_reply();
            let desc = error.desc().unwrap_or_default();
            if desc.starts_with("No file descriptor supplied") {
                // A security module of the kernel removed it from the message.
                return AttachError::FdBlocked;
            }
            device.check_present().err().map_or(error.into(), AttachError::Unavailable)
        })
    }

    fn arguments(&self, port: &PortCandidate) -> Value {
        let id = &self.request.id;
        let DeviceId { port: host, devnum } = id;
        let (bus, hostport) = (host.bus(), host.hostport());
        let mut arguments = match &self.fd_set {
            Some(set) => json!({ "driver": "usb-host", "id": id, "hostdevice": set.path() }),
            None => json!({
                "driver": "usb-host", "id": id, "hostbus": bus, "hostport": hostport, "hostaddr": devnum
            }),
        };
        for (name, value) in &self.request.properties {
            arguments[*name] = value.clone();
        }
        if let Some(bus) = &port.bus {
            arguments["bus"] = json!(bus);
        }
        if let Some(port) = port.port {
            // QEMU expects text, because a port behind a hub is `4.1`.
            arguments["port"] = json!(port.to_string());
        }
        arguments
    }

    /// Reads why QEMU rejected `device_add`.
    ///
    /// QMP has no error classes for it. These are the words of QEMU 5 to 11 (`hw/usb/bus.c`:
    /// `usb_claim_port`; `softmmu/qdev-monitor.c`: `qdev_device_add_from_qdict`;
    /// `hw/usb/host-libusb.c`: `usb_host_realize`; `qom/object.c`).
    fn rejection(&self, error: Error, port: &PortCandidate) -> AttachError {
        let desc = error.desc().unwrap_or_default();
        if desc.contains("no free ports") || desc.contains("(in use?)") {
            AttachError::of_bus(port, BusErrorKind::Full)
        } else if desc.starts_with("Bus '") && desc.ends_with("not found") {
            AttachError::of_bus(port, BusErrorKind::NoSuchBus)
        } else if desc.starts_with("No 'usb-bus' bus found") {
            AttachError::of_bus(port, BusErrorKind::NoController)
        } else if desc.contains("is not a valid device model name") {
            Error::NoUsbHost(UsbHostProblem::Missing).into()
        } else if self.via_fd && desc.starts_with("failed to open host usb device") {
            self.not_opened(port)
        } else if self.via_fd && desc.contains("hostdevice' not found") {
            AttachError::FdUnsupported
        } else {
            error.into()
        }
    }

    /// Why QEMU did not open a device that it may open.
    fn not_opened(&self, port: &PortCandidate) -> AttachError {
        let AttachRequest { speed, device, .. } = self.request;
        if let Err(unavailable) = device.check_present() {
            return unavailable.into();
        }
        let kind = match (port.speed, *speed) {
            (Some(max), Some(speed)) if max < speed.min(Speed::SUPER) => BusErrorKind::TooSlow(max),
            _ => BusErrorKind::NotOpened(*speed),
        };
        AttachError::of_bus(port, kind)
    }

    /// Why QEMU did not open the node of a device that it lists.
    fn not_opened_although_listed(
        &self,
        listing: HostListing,
        port: &PortCandidate,
    ) -> AttachError {
        let node = self.request.node.clone();
        match listing {
            HostListing::Found { has_name: false } if self.request.has_product_name => {
                AttachError::NoPermission { node }
            }
            HostListing::Found { .. } => self.not_opened(port),
            HostListing::Hidden => AttachError::NotOpened { node },
        }
    }

    /// Waits until QEMU lists the device. `None`: QEMU opened it in the meantime.
    fn wait_until_listed(&self, qmp: &mut dyn Qmp) -> Result<Option<HostListing>, AttachError> {
        let AttachRequest { id, access, node, device, .. } = self.request;
        let timeout = match access {
            AccessMode::Auto => NODE_TIMEOUT_BEFORE_FD,
            AccessMode::Node | AccessMode::Fd => NODE_TIMEOUT,
        };
        let deadline = Deadline::after(timeout);
        let mut is_hidden = false;
        let polls = 0..timeout.as_millis() / NODE_POLL.as_millis();
        for _ in polls.take_while(|_| deadline.remaining().is_some()) {
            device.check_present()?;
            let devices = if device.may_be_listed() { hmp::host_devices(qmp)? } else { None };
            if objects::is_attached(qmp, id)? {
                return Ok(None);
            }
            is_hidden = devices.is_none();
            let is_it = |found: &HostDevice| found.port == id.port && found.devnum == id.devnum;
            if let Some(found) = devices.into_iter().flatten().find(is_it) {
                return Ok(Some(HostListing::Found { has_name: found.has_name }));
            }
            qmp.pause(NODE_POLL)?;
        }
        if is_hidden {
            return Ok(Some(HostListing::Hidden));
        }
        Err(AttachError::NotSeen { node: node.clone() })
    }

    fn location(
        &self,
        qmp: &mut dyn Qmp,
        port: &PortCandidate,
    ) -> Result<GuestLocation, AttachError> {
        let mut device = hmp::guest_device(qmp, &self.request.id)?;
        device.port = device.port.or_else(|| port.port.map(|port| port.to_string()));
        let below_native_speed = match (device.speed, self.request.speed) {
            (Some(in_guest), Some(on_host)) => in_guest < on_host.min(Speed::SUPER),
            _ => false,
        };
        Ok(GuestLocation { bus: port.bus.clone(), device, below_native_speed, via_fd: self.via_fd })
    }

    /// Adds to the error why QEMU did not open the node, or that QEMU may have the device.
    fn complete(self, error: AttachError) -> AttachError {
        match (error, self.node_error) {
            (AttachError::Qmp(error), _) if self.unconfirmed && error.is_without_reply() => {
                AttachError::Unconfirmed(error)
            }
            (AttachError::Unavailable(why), _) => why.into(),
            (error, Some(node)) => AttachError::Both { node: node.into(), fd: error.into() },
            (error, None) => error,
        }
    }
}

/// Returns whether the device may be faster in this port than it was in that one.
fn may_be_faster(port: &PortCandidate, than: Option<(&PortCandidate, Option<Speed>)>) -> bool {
    than.is_none_or(|(slow, speed)| {
        port.bus != slow.bus && port.speed.is_none_or(|max| speed.is_none_or(|speed| max > speed))
    })
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Qmp(#[from] Error),
    /// The session ended before QEMU replied to a command after which it may have the device, or
    /// may open it later.
    #[error("{0}")]
    Unconfirmed(#[source] Error),
    /// Nothing of the device stayed in the guest.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(
        "the guest is paused, and the host's driver serves the disk until the guest takes it; resume the \
         guest and run `hotplugger sync`"
    )]
    StorageWhilePaused,
    #[error(
        "QEMU does not list the device; check that QEMU's /dev has {} (namespace, container) and that \
         udev runs where QEMU runs",
        node.display()
    )]
    NotSeen { node: PathBuf },
    /// QEMU does not show which devices of the host it lists.
    #[error(
        "QEMU did not open {}; check that QEMU's user may access that node and that QEMU's /dev has it \
         (namespace, container)",
        node.display()
    )]
    NotOpened { node: PathBuf },
    #[error("QEMU may not open {}; give QEMU's user access to that node", node.display())]
    NoPermission { node: PathBuf },
    #[error(
        "this QEMU accepts no file descriptor of a USB device, QEMU 5.1 and later do; give QEMU's user \
         access to the node and write `access: node`"
    )]
    FdUnsupported,
    #[error(
        "the file descriptor did not reach QEMU: a security module (AppArmor, SELinux) removed it; run \
         `hotplugger check` for the fix"
    )]
    FdBlocked,
    /// QEMU opened neither the node nor the file descriptor.
    #[error("{node}; {fd}")]
    Both { node: Box<AttachError>, fd: Box<AttachError> },
    #[error("{}", describe(errors, suggestion))]
    NoUsablePort {
        errors: Vec<BusError>,
        /// Empty if more ports do not help.
        suggestion: String,
    },
}

/// Why the device on the host can no longer go to the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("it was unplugged")]
    Unplugged,
    #[error("{0}")]
    Rejected(String),
    /// A QEMU has it, but we have no object for it.
    #[error(
        "{0} uses it already; remove the device from that VM's arguments or definition, or detach it \
         there"
    )]
    InOtherQemu(String),
}

#[derive(Debug, PartialEq, Eq)]
pub struct BusError {
    /// `None` if QEMU chose the bus.
    pub bus: Option<String>,
    pub kind: BusErrorKind,
}

#[derive(Debug, PartialEq, Eq)]
pub enum BusErrorKind {
    Full,
    NoController,
    NoSuchBus,
    /// It takes only faster devices.
    TooFast(Speed),
    /// It takes this speed at most, at which the device does not work.
    TooSlow(Speed),
    /// QEMU lists the device and did not open it: the bus does not take its speed, or the kernel
    /// returned an error.
    NotOpened(Option<Speed>),
}

impl BusErrorKind {
    fn is_port_shortage(&self) -> bool {
        matches!(self, Self::Full | Self::NoController | Self::TooFast(_) | Self::TooSlow(_))
    }
}

/// Why a bus has no port for a device of that speed.
fn no_port_reason(bus: &GuestBus, speed: Speed) -> BusErrorKind {
    if bus.ports.is_empty() || bus.ports.iter().any(|port| port.min <= speed) {
        BusErrorKind::Full
    } else {
        BusErrorKind::TooFast(speed)
    }
}

impl AttachError {
    fn of_bus(port: &PortCandidate, kind: BusErrorKind) -> Self {
        let errors = vec![BusError { bus: port.bus.clone(), kind }];
        Self::NoUsablePort { errors, suggestion: String::new() }
    }

    /// Returns whether a file descriptor may help: QEMU does not list the device, or may not open
    /// it.
    fn is_access_error(&self) -> bool {
        matches!(self, Self::NotSeen { .. } | Self::NotOpened { .. } | Self::NoPermission { .. })
    }
}

/// The most buses that a message names.
const MAX_REPORTED: usize = 8;

fn describe(errors: &[BusError], suggestion: &str) -> String {
    let (full, others): (Vec<&BusError>, Vec<&BusError>) =
        errors.iter().take(MAX_REPORTED).partition(|error| error.kind == BusErrorKind::Full);
    let names: Vec<&str> =
        full.iter().map(|error| error.bus.as_deref().unwrap_or("USB bus")).collect();
    let full = match names.as_slice() {
        [] => None,
        [one] => Some(format!("the guest's {one} has no free port")),
        [some @ .., last] => {
            Some(format!("the guest's {} and {last} have no free port", some.join(", ")))
        }
    };
    let mut parts: Vec<String> =
        full.into_iter().chain(others.iter().map(ToString::to_string)).collect();
    let more = errors.len().saturating_sub(MAX_REPORTED);
    parts.extend((more > 0).then(|| format!("and {more} more")));
    if !suggestion.is_empty() {
        parts.push(format!("start QEMU with {suggestion}"));
    }
    parts.join("; ")
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = self.bus.as_deref().unwrap_or("the guest's USB bus");
        match &self.kind {
            BusErrorKind::Full => write!(f, "{bus} has no free port"),
            BusErrorKind::NoController => f.write_str("the guest has no USB controller"),
            BusErrorKind::NoSuchBus => write!(
                f,
                "the guest has no bus {bus}; write a controller's id and `.0` to `hubs:`, as in xhci0.0"
            ),
            BusErrorKind::TooFast(speed) => write!(f, "{bus} takes no devices of {speed}"),
            BusErrorKind::TooSlow(max) => {
                write!(f, "{bus} takes {max} at most, and the device does not work at that speed")
            }
            BusErrorKind::NotOpened(speed) => {
                write!(f, "QEMU did not open the device on {bus}")?;
                if let Some(speed) = speed {
                    write!(f, "; does that bus take {speed}?")?;
                }
                f.write_str(" QEMU's own messages say more")
            }
        }
    }
}

#[cfg(test)]
mod tests;
