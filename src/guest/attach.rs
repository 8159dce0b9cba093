//! Attaching: `device_add`, and the proof that QEMU has the device open.
//!
//! QEMU gets a device in one of two ways:
//!
//! * It opens the node itself. `device_add` names bus, port and device number together, so QEMU opens
//!   this device in this port and never the next one (`hw/usb/host-libusb.c`:
//!   `usb_host_auto_check` compares everything that is given). `device_add` then always succeeds, so
//!   the object's `attached` is queried afterwards.
//! * It receives a file descriptor. Then `device_add` opens the device or fails.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::bus::{self, GuestBus, suggest_controller};
use super::error::no_port_reason;
pub use super::error::{AttachError, BusError, BusErrorKind, Unavailable};
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

/// The device on the host.
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
    /// Further properties of the usb-host device.
    pub properties: UsbHostProperties,
    /// Whether a record says that the device is attached.
    pub expected_attached: bool,
    pub claim: Claim,
    /// Whether the host's drivers serve its disks. A paused guest does not get it then: the host
    /// could mount a disk before QEMU takes it.
    pub host_drives_storage: bool,
    pub device: &'a dyn UsbSource,
}

/// The result of an attach.
#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    Now(GuestLocation),
    Before,
    /// The guest is paused. QEMU opens the device in this port when the guest resumes.
    PendingResume(Option<GuestPort>),
}

/// Where the device is in the guest.
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
    let mut attempt = Attempt {
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

struct Attempt<'a> {
    request: &'a AttachRequest<'a>,
    via_fd: bool,
    fd_set: Option<FdSet>,
    /// Why QEMU did not open the node, where the file descriptor is passed instead.
    node_error: Option<AttachError>,
    /// Whether QEMU may have an object or a file descriptor of the device, as far as its replies
    /// tell.
    unconfirmed: bool,
}

/// How QEMU lists the device among those of the host. `Hidden`: it does not show its list.
enum HostListing {
    Found { has_name: bool },
    Hidden,
}

impl Attempt<'_> {
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

    /// Removes the file descriptor from QEMU's set.
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
            let location = match self.try_port(qmp, port)? {
                Ok(Attached::Now(location)) if location.below_native_speed => location,
                Ok(attached) => return Ok(attached),
                Err(kind) => {
                    errors.retain(|error| !is_same_bus(error));
                    errors.push(BusError { bus: port.bus.clone(), kind });
                    continue;
                }
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
            match self.try_port(qmp, port)? {
                Ok(attached) => return Ok(attached),
                Err(kind) => errors.push(BusError { bus: port.bus.clone(), kind }),
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

    /// Tries one guest port. `Err` within `Ok`: the bus does not take the device, no object is left,
    /// and another bus may take it.
    fn try_port(
        &mut self,
        qmp: &mut dyn Qmp,
        port: &PortCandidate,
    ) -> Result<Result<Attached, BusErrorKind>, AttachError> {
        let request = self.request;
        let id = &request.id;
        // How QEMU lists the device, if it did not open the node at once.
        let mut listing = None;
        loop {
            if self.via_fd && self.fd_set.is_none() {
                self.fd_set = Some(self.pass_fd(qmp)?);
            }
            self.unconfirmed = true;
            match qmp.execute("device_add", self.arguments(port)) {
                Ok(_) => {}
                Err(error) if error.desc().is_some_and(|desc| desc.starts_with("Duplicate ")) => {
                    // Another hotplugger was faster, or no record says that the device is attached.
                    if objects::is_attached(qmp, id)? {
                        return Ok(Ok(Attached::Before));
                    }
                    // QEMU before 6.2 frees an ID only some time after its object was deleted, and
                    // also after it rejected a `device_add`: a duplicate without an object.
                    if !objects::delete(qmp, id)? {
                        qmp.pause(objects::DELETE_POLL)?;
                    }
                    continue;
                }
                Err(error) => {
                    self.unconfirmed = error.is_without_reply();
                    return self.bus_error(error, port).map(Err);
                }
            }
            if objects::is_attached(qmp, id)? {
                return Ok(Ok(Attached::Now(self.location(qmp, port)?)));
            }
            let node = || request.node.clone();
            let failure = if let Some(listing) = &listing {
                match listing {
                    HostListing::Found { has_name: false } if request.has_product_name => {
                        Err(AttachError::NoPermission { node: node() })
                    }
                    HostListing::Found { .. } => self.not_opened(port),
                    HostListing::Hidden => Err(AttachError::NotOpened { node: node() }),
                }
            } else if self.via_fd {
                // QEMU had the device open and lost it.
                self.not_opened(port)
            } else if !objects::is_running(qmp)? {
                if request.host_drives_storage {
                    self.delete(qmp)?;
                    return Err(AttachError::StorageWhilePaused);
                }
                return Ok(Ok(Attached::PendingResume(port.guest_port())));
            } else {
                match self.wait_until_listed(qmp) {
                    Ok(None) => return Ok(Ok(Attached::Now(self.location(qmp, port)?))),
                    Ok(found) => {
                        // For a new object QEMU searches for the device at once.
                        self.delete(qmp)?;
                        listing = found;
                        continue;
                    }
                    Err(error) => Err(error),
                }
            };
            let deleted = self.delete(qmp);
            let needs_access = match &failure {
                Err(error) => error.is_access_error(),
                // Without a product name QEMU does not show whether it may open the device.
                Ok(_) => !request.has_product_name,
            };
            if !needs_access || self.via_fd || request.access != AccessMode::Auto {
                let kind = failure?;
                deleted?;
                return Ok(Err(kind));
            }
            let of_bus = |kind| AttachError::of_bus(port, kind);
            self.node_error = Some(failure.map_or_else(|error| error, of_bus));
            (self.via_fd, listing) = (true, None);
        }
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
    fn bus_error(&self, error: Error, port: &PortCandidate) -> Result<BusErrorKind, AttachError> {
        let desc = error.desc().unwrap_or_default();
        if desc.contains("no free ports") || desc.contains("(in use?)") {
            Ok(BusErrorKind::Full)
        } else if desc.starts_with("Bus '") && desc.ends_with("not found") {
            Ok(BusErrorKind::NoSuchBus)
        } else if desc.starts_with("No 'usb-bus' bus found") {
            Ok(BusErrorKind::NoController)
        } else if desc.contains("is not a valid device model name") {
            Err(Error::NoUsbHost(UsbHostProblem::Missing).into())
        } else if self.via_fd && desc.starts_with("failed to open host usb device") {
            self.not_opened(port)
        } else if self.via_fd && desc.contains("hostdevice' not found") {
            Err(AttachError::FdUnsupported)
        } else {
            Err(error.into())
        }
    }

    /// Why QEMU did not open a device that it may open.
    fn not_opened(&self, port: &PortCandidate) -> Result<BusErrorKind, AttachError> {
        let AttachRequest { speed, device, .. } = self.request;
        device.check_present()?;
        Ok(match (port.speed, *speed) {
            (Some(max), Some(speed)) if max < speed.min(Speed::SUPER) => BusErrorKind::TooSlow(max),
            _ => BusErrorKind::NotOpened(*speed),
        })
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

#[cfg(test)]
mod tests;
