//! Attaching: `device_add`, and the proof that the guest has the device.
//!
//! QEMU gets at a device in one of two ways. It opens the node itself, and is told bus, port and
//! number together: it then opens that device in that port and never the next one that comes
//! (`hw/usb/host-libusb.c`: `usb_host_auto_check` compares all that is given). In this form
//! `device_add` succeeds whatever becomes of it, so afterwards the object's `attached` is asked;
//! what the monitor says of USB is asked only where it is not, to tell why. Or it is handed a
//! descriptor, which can be of no other device; then `device_add` opens it, or says that it did
//! not.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::hmp::GuestDeviceInfo;
use super::ports::{GuestPort, GuestPortHistory, LastPort};
use crate::config::access::AccessMode;
use crate::deadline::Deadline;
use crate::device_id::DeviceId;
use crate::guest::bus::{self, GuestBus};
use crate::guest::error::{mend, without_a_seat};
use crate::guest::fdset::FdSet;
use crate::guest::hmp::{self, HostDevice};
use crate::guest::objects;
use crate::guest::ports::{PortCandidate, seats, usual};
use crate::qmp::handover::Handover;
use crate::qmp::{Error, Qmp, UsbHostProblem};
use crate::speed::Speed;

pub use super::error::{AttachError, BusError, BusErrorKind};

/// A device to be attached.
pub struct AttachRequest<'a> {
    /// Its id, which says port and number.
    pub id: DeviceId,
    /// Its speed on the host.
    pub speed: Option<Speed>,
    /// The guest's buses to use, in order; empty for whichever there are.
    pub hubs: &'a [String],
    /// What is remembered of the guest's ports.
    pub memory: &'a GuestPortHistory,
    /// Whether it has a product name, which QEMU shows only of devices it can open.
    pub named: bool,
    /// Its node, for messages.
    pub node: PathBuf,
    /// How QEMU gets the device.
    pub access: AccessMode,
    /// Whether it is thought to be attached already.
    pub expected_attached: bool,
    /// The device on the host.
    pub source: &'a dyn UsbSource,
}

/// The device on the host, as far as attaching it needs the host.
pub trait UsbSource: Handover {
    /// Checks that the very same device is still in its port and may be attached.
    fn recheck(&self) -> Result<(), Unavailable>;

    /// Whether QEMU may be made to list the host's devices (`info usbhost`).
    ///
    /// With a 20 Gb/s device on the host QEMU reads beyond a table then (`hw/usb/host-libusb.c`:
    /// `speed_name` has no entry for libusb's `LIBUSB_SPEED_SUPER_PLUS_X2`).
    fn may_be_listed(&self) -> bool;
}

/// Why a device cannot be attached any more.
#[derive(Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// It was unplugged, or another device is in its port.
    Unplugged,
    /// The policy rejects it now, for this reason.
    Rejected(String),
}

/// How an attach went well.
#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    /// The guest has the device.
    Now(GuestLocation),
    /// The guest had it already.
    Before,
    /// The guest is paused; QEMU opens the device, in this port, when it goes on.
    PendingResume(Option<GuestPort>),
}

/// Where the device sits in the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct GuestLocation {
    /// The bus, if one was asked for.
    pub bus: Option<String>,
    /// Port, speed and product there.
    pub place: GuestDeviceInfo,
    /// Whether the guest got it slower than it is, for want of a bus that is fast enough.
    pub slow: bool,
    /// Whether QEMU was handed its descriptor.
    pub handed: bool,
}

impl Attached {
    /// The guest's port that a device of that speed has got, if that is known.
    pub fn usual(&self, speed: Option<Speed>) -> Option<LastPort> {
        match self {
            Self::Now(GuestLocation { bus, place, slow, .. }) => {
                // What is behind a hub of QEMU's has no port that could be asked for again.
                let port = place.port.as_ref()?.parse().ok()?;
                let place = GuestPort { bus: bus.clone()?, port };
                Some(LastPort { place, speed: speed.filter(|_| !slow) })
            }
            Self::PendingResume(port) => Some(LastPort { place: port.clone()?, speed: None }),
            Self::Before => None,
        }
    }
}

/// How long QEMU may take to learn of a device that udevd has told it of.
const UNTIL_SEEN: Duration = Duration::from_secs(2);

/// The same where it can be handed the device as well, which takes less time than to wait.
const UNTIL_HANDED: Duration = Duration::from_millis(300);

/// Attaches the device in the first of its [guest ports](super::ports) that takes it at its own
/// speed, else in the one where it is fastest, and proves it.
///
/// Objects of ours that stand for other devices in the port are deleted: first, but for a device
/// that goes to its usual seat, which has it sooner so. When it fails, no object stays behind that
/// could open the device later, and no descriptor.
pub fn attach(qmp: &mut dyn Qmp, request: &AttachRequest<'_>) -> Result<Attached, AttachError> {
    let mut walk = Walk::new(request);
    if !walk.is_usual() && walk.tidy(qmp)? {
        return Ok(Attached::Before);
    }
    request.source.recheck()?;
    let walked = take(qmp, request, &mut walk);
    if !walk.is_tidy() {
        // What became of the device does not change with it; the port's next event tidies as well.
        let _ = walk.delete_others(qmp);
    }
    walked
}

/// By the ways that are open to it, one after the other.
fn take(
    qmp: &mut dyn Qmp,
    request: &AttachRequest<'_>,
    walk: &mut Walk<'_>,
) -> Result<Attached, AttachError> {
    match request.access {
        AccessMode::Node => walk.run(qmp, Source::Node(UNTIL_SEEN)),
        AccessMode::Fd => walk.with_descriptor(qmp),
        AccessMode::Auto => match walk.run(qmp, Source::Node(UNTIL_HANDED)) {
            Err(first) if first.is_for_want_of_access(request.named) => {
                walk.with_descriptor(qmp).map_err(|then| first.and_then(then))
            }
            walked => walked,
        },
    }
}

/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// From where QEMU takes the device.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// From its node, which it opens itself, as soon as it has heard of the device: for at most so
    /// long.
    Node(Duration),
    /// From a set with its descriptor.
    Set(&'a FdSet),
}

/// An attempt.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    request: &'a AttachRequest<'a>,
    source: Source<'a>,
    seat: &'a PortCandidate,
}

/// How it went.
enum Tried {
    /// QEMU has the device open.
    Open,
    /// QEMU had it open already.
    Before,
    /// QEMU will open it when the guest goes on.
    PendingResume,
    /// No object is left.
    Refused(BusErrorKind),
}

/// What became of `device_add`.
enum Added {
    /// There is an object.
    Now,
    /// There was one already.
    Before,
    /// The bus does not take it, which is all that is wrong.
    Refused(BusErrorKind),
}

impl Attempt<'_> {
    fn run(self, qmp: &mut dyn Qmp) -> Result<Tried, AttachError> {
        let id = &self.request.id;
        let mut added = self.add(qmp)?;
        if matches!(added, Added::Before) {
            if objects::is_attached(qmp, id)? {
                return Ok(Tried::Before);
            }
            // It may be for another place, and not let go of yet.
            objects::delete(qmp, id)?;
            added = self.add(qmp)?;
        }
        if let Added::Refused(why) = added {
            return Ok(Tried::Refused(why));
        }
        if objects::is_attached(qmp, id)? {
            return Ok(Tried::Open);
        }
        let Source::Node(until_seen) = self.source else {
            // It had it, and has lost it already.
            objects::delete(qmp, id)?;
            return Ok(Tried::Refused(self.not_opened()?));
        };
        if !objects::is_running(qmp)? {
            return Ok(Tried::PendingResume);
        }
        match self.explain(qmp, until_seen) {
            Ok(None) => Ok(Tried::Open),
            Ok(Some(why)) => {
                objects::delete(qmp, id)?;
                Ok(Tried::Refused(why))
            }
            Err(error) => {
                // An exchange that is over cannot be tidied up in; the port's next event does.
                let _ = objects::delete(qmp, id);
                Err(error)
            }
        }
    }

    /// Where the open device is.
    fn seated(self, qmp: &mut dyn Qmp) -> Result<GuestLocation, AttachError> {
        let mut place = hmp::place(qmp, &self.request.id)?;
        place.port = place.port.or_else(|| self.seat.port.map(|port| port.to_string()));
        let slow = match (place.speed, self.request.speed) {
            (Some(in_guest), Some(on_host)) => in_guest < on_host.min(Speed::SUPER),
            _ => false,
        };
        let handed = matches!(self.source, Source::Set(_));
        Ok(GuestLocation { bus: self.seat.bus.clone(), place, slow, handed })
    }

    /// Finds out why the object has no device. `None` if it has it in the end.
    fn explain(
        self,
        qmp: &mut dyn Qmp,
        until_seen: Duration,
    ) -> Result<Option<BusErrorKind>, AttachError> {
        let request = self.request;
        let end = Deadline::after(until_seen);
        let polls = until_seen.as_millis() / PAUSE.as_millis();
        for _ in (0..polls).take_while(|_| end.remaining().is_some()) {
            request.source.recheck()?;
            let listed =
                if request.source.may_be_listed() { hmp::host_devices(qmp)? } else { None };
            let seen = listed.map(|devices| devices.into_iter().find(|one| self.is_same(one)));
            if objects::is_attached(qmp, &request.id)? {
                return Ok(None);
            }
            // QEMU may have learned of the device only now, and scans every two seconds. A
            // new object makes it scan at once. If it does not list its devices, that is all there is.
            let seen = match seen {
                Some(Some(seen)) => Some(seen),
                Some(None) => {
                    qmp.pause(PAUSE)?;
                    continue;
                }
                None => {
                    qmp.pause(PAUSE * 5)?;
                    None
                }
            };
            objects::delete(qmp, &request.id)?;
            if let Added::Refused(why) = self.add(qmp)? {
                return Ok(Some(why));
            }
            if objects::is_attached(qmp, &request.id)? {
                return Ok(None);
            }
            match seen {
                Some(seen) if request.named && !seen.named => {
                    return Ok(Some(BusErrorKind::NoPermission(request.node.clone())));
                }
                Some(_) => return self.not_opened().map(Some),
                None => {}
            }
        }
        Err(AttachError::NotSeen { node: request.node.clone() })
    }

    fn is_same(self, device: &HostDevice) -> bool {
        let DeviceId { port, devnum } = &self.request.id;
        device.port == *port && device.devnum == *devnum
    }

    /// Why QEMU did not open what it may open.
    fn not_opened(self) -> Result<BusErrorKind, AttachError> {
        let AttachRequest { speed, source, .. } = self.request;
        source.recheck()?;
        let is_slower = |at: &Speed| speed.is_some_and(|speed| *at < speed.min(Speed::SUPER));
        Ok(match self.seat.at.filter(is_slower) {
            Some(at) => BusErrorKind::TooSlow(at),
            None => BusErrorKind::NotOpened(*speed),
        })
    }

    /// Adds the object. QEMU before 6.2 keeps an ID taken for a moment after its object was deleted,
    /// and after a refused `device_add` (`softmmu/qdev-monitor.c`: `qemu_opts_del` runs when the
    /// device is finalized): the ID is a duplicate, but there is no object.
    fn add(self, qmp: &mut dyn Qmp) -> Result<Added, AttachError> {
        loop {
            match self.device_add(qmp)? {
                Added::Before if !objects::list(qmp)?.contains(&self.request.id) => {
                    qmp.pause(Duration::from_millis(20))?;
                }
                added => return Ok(added),
            }
        }
    }

    /// Sends `device_add`.
    fn device_add(self, qmp: &mut dyn Qmp) -> Result<Added, AttachError> {
        let Err(error) = qmp.execute("device_add", self.arguments()) else {
            return Ok(Added::Now);
        };
        // QMP has no classes for these; the words are those of QEMU 5 to 10 (`hw/usb/bus.c`:
        // `usb_claim_port`; `softmmu/qdev-monitor.c`: `qdev_device_add_from_qdict`;
        // `hw/usb/host-libusb.c`: `usb_host_realize`; `qom/object.c`).
        let said = error.refusal().unwrap_or_default();
        let by_set = matches!(self.source, Source::Set(_));
        if said.contains("no free ports") || said.contains("(in use?)") {
            Ok(Added::Refused(BusErrorKind::Full))
        } else if said.starts_with("Bus '") && said.ends_with("not found") {
            Ok(Added::Refused(BusErrorKind::NoSuchBus))
        } else if said.starts_with("No 'usb-bus' bus found") {
            Err(AttachError::NoController)
        } else if said.contains("is not a valid device model name") {
            Err(Error::NoUsbHost(UsbHostProblem::Missing).into())
        } else if said.starts_with("Duplicate ") {
            // Another hotplugger was faster, nothing is remembered of it, or QEMU 5 has not yet let
            // the id go.
            Ok(Added::Before)
        } else if by_set && said.starts_with("failed to open host usb device") {
            self.not_opened().map(Added::Refused)
        } else if by_set && said.contains("hostdevice' not found") {
            Err(AttachError::TakesNoDescriptor)
        } else {
            Err(error.into())
        }
    }

    fn arguments(self) -> Value {
        let AttachRequest { id, .. } = self.request;
        let mut arguments = json!({ "driver": "usb-host", "id": id });
        match self.source {
            Source::Node(_) => {
                let DeviceId { port, devnum } = id;
                arguments["hostbus"] = json!(port.bus());
                arguments["hostport"] = json!(port.hostport());
                arguments["hostaddr"] = json!(devnum);
            }
            Source::Set(set) => arguments["hostdevice"] = json!(set.path()),
        }
        if let Some(bus) = &self.seat.bus {
            arguments["bus"] = json!(bus);
        }
        if let Some(port) = self.seat.port {
            // Text, as QEMU wants it: a port behind a hub is `4.1`.
            arguments["port"] = json!(port.to_string());
        }
        arguments
    }
}

/// Whether the error is that this QEMU has nothing to do with the descriptor it was sent: a
/// security module of the kernel's took it away on the way.
fn was_taken_away(error: &Error) -> bool {
    error.refusal().is_some_and(|said| said.starts_with("No file descriptor supplied"))
}

/// The seats, to be tried one after the other.
struct Walk<'a> {
    request: &'a AttachRequest<'a>,
    /// The one that is tried before QEMU is asked for its buses.
    usual: Option<PortCandidate>,
    /// What it said of them, once it was asked.
    room: Option<Room>,
    /// Whether only the wanted device may have an object in its port.
    tidy: bool,
}

/// What there is in the guest.
struct Room {
    buses: Vec<GuestBus>,
    seats: Vec<PortCandidate>,
}

impl<'a> Walk<'a> {
    fn new(request: &'a AttachRequest<'a>) -> Self {
        let usual = usual(request.hubs, request.speed, request.memory);
        let usual = usual.filter(|_| !request.expected_attached);
        Self { request, usual, room: None, tidy: false }
    }

    /// Whether it begins with a seat of which QEMU is asked nothing.
    fn is_usual(&self) -> bool {
        self.usual.is_some()
    }

    /// Whether only the wanted device may have an object in its port.
    fn is_tidy(&self) -> bool {
        self.tidy
    }

    /// Deletes what stands for other devices in the port, and an object of this one's that does not
    /// have it. Returns whether one has it.
    fn tidy(&mut self, qmp: &mut dyn Qmp) -> Result<bool, Error> {
        let id = &self.request.id;
        if !self.delete_others(qmp)? {
            return Ok(false);
        }
        let has_it = objects::is_attached(qmp, id)?;
        if !has_it {
            objects::delete(qmp, id)?;
        }
        Ok(has_it)
    }

    /// Deletes what stands for other devices in the port. Returns whether this one has an object.
    fn delete_others(&mut self, qmp: &mut dyn Qmp) -> Result<bool, Error> {
        let request = &self.request.id;
        let listed = objects::list(qmp)?;
        for id in listed.iter().filter(|id| id.port == request.port && *id != request) {
            objects::delete(qmp, id)?;
        }
        self.tidy = true;
        Ok(listed.contains(request))
    }

    /// Hands QEMU the device and has it taken from there.
    fn with_descriptor(&mut self, qmp: &mut dyn Qmp) -> Result<Attached, AttachError> {
        let set = match FdSet::add(qmp, &self.request.id, self.request.source) {
            Ok(set) => set,
            Err(error) if was_taken_away(&error) => return Err(AttachError::TakenAway),
            Err(error) => {
                self.request.source.recheck()?;
                return Err(error.into());
            }
        };
        let walked = self.run(qmp, Source::Set(&set));
        // An exchange that is over cannot be tidied up in; the next one that hands over does.
        let _ = set.remove(qmp);
        walked
    }

    fn run(&mut self, qmp: &mut dyn Qmp, source: Source<'_>) -> Result<Attached, AttachError> {
        let request = self.request;
        let attempt = |seat| Attempt { request, source, seat };
        if let Some(attached) = self.at_the_usual(qmp, source)? {
            return Ok(attached);
        }
        if !self.tidy && self.tidy(qmp)? {
            return Ok(Attached::Before);
        }
        let Room { buses, seats } = self.room(qmp)?;
        let mut refusals: Vec<BusError> = Vec::new();
        let mut slow: Option<(&PortCandidate, Option<Speed>)> = None;
        for (number, seat) in seats.iter().enumerate() {
            let of_bus = refusals.iter().find(|refusal| refusal.bus == seat.bus);
            if of_bus.is_some_and(|refusal| refusal.why != BusErrorKind::Full)
                || !may_be_faster(seat, slow)
            {
                continue;
            }
            match attempt(seat).run(qmp)? {
                Tried::Open => {}
                Tried::Before => return Ok(Attached::Before),
                Tried::PendingResume => return Ok(Attached::PendingResume(seat.guest_port())),
                Tried::Refused(why) => {
                    let everywhere = matches!(why, BusErrorKind::NoPermission(_));
                    refusals.retain(|refusal| refusal.bus != seat.bus);
                    refusals.push(BusError { bus: seat.bus.clone(), why });
                    if everywhere {
                        break;
                    }
                    continue;
                }
            }
            let seated = attempt(seat).seated(qmp)?;
            let now = Some((seat, seated.place.speed));
            let best = slow.is_none_or(|(_, speed)| seated.place.speed > speed);
            let last = !seats[number + 1..].iter().any(|later| may_be_faster(later, now));
            if !seated.slow || (best && last) {
                return Ok(Attached::Now(seated));
            }
            objects::delete(qmp, &request.id)?;
            if best {
                slow = now;
            }
        }
        if let Some((seat, _)) = slow {
            match attempt(seat).run(qmp)? {
                Tried::Open => return Ok(Attached::Now(attempt(seat).seated(qmp)?)),
                Tried::Before => return Ok(Attached::Before),
                // The guest was paused in between.
                Tried::PendingResume => return Ok(Attached::PendingResume(seat.guest_port())),
                Tried::Refused(why) => refusals.push(BusError { bus: seat.bus.clone(), why }),
            }
        }
        let speed = request.speed.unwrap_or(Speed::HIGH).min(Speed::SUPER);
        for bus in buses {
            // Those with places were tried, or another one ended it.
            if !seats.iter().any(|seat| seat.bus.as_ref() == Some(&bus.name)) {
                let why = without_a_seat(bus, speed);
                refusals.push(BusError { bus: Some(bus.name.clone()), why });
            }
        }
        Err(AttachError::NoUsablePort { refusals, mend: mend(buses) })
    }

    /// The usual seat, without a question; none if it does not take the device as it is.
    fn at_the_usual(
        &self,
        qmp: &mut dyn Qmp,
        source: Source<'_>,
    ) -> Result<Option<Attached>, AttachError> {
        let Some(seat) = &self.usual else { return Ok(None) };
        let attempt = Attempt { request: self.request, source, seat };
        match attempt.run(qmp)? {
            Tried::Open => {
                let seated = attempt.seated(qmp)?;
                if !seated.slow {
                    return Ok(Some(Attached::Now(seated)));
                }
                objects::delete(qmp, &self.request.id)?;
                Ok(None)
            }
            Tried::Before => Ok(Some(Attached::Before)),
            Tried::PendingResume => Ok(Some(Attached::PendingResume(seat.guest_port()))),
            // In no other would it be different.
            Tried::Refused(why @ BusErrorKind::NoPermission(_)) => {
                let refusals = vec![BusError { bus: seat.bus.clone(), why }];
                Err(AttachError::NoUsablePort { refusals, mend: mend(&[]) })
            }
            Tried::Refused(_) => Ok(None),
        }
    }

    fn room(&mut self, qmp: &mut dyn Qmp) -> Result<&Room, Error> {
        let room = if let Some(room) = self.room.take() {
            room
        } else {
            let AttachRequest { hubs, speed, memory, .. } = self.request;
            let buses = bus::buses_of(qmp, hubs)?;
            let seats = seats(&buses, hubs, *speed, memory);
            Room { buses, seats }
        };
        Ok(self.room.insert(room))
    }
}

/// Whether the device might be faster in this seat than it was in that one.
fn may_be_faster(seat: &PortCandidate, than: Option<(&PortCandidate, Option<Speed>)>) -> bool {
    than.is_none_or(|(slow, speed)| {
        seat.bus != slow.bus && seat.at.is_none_or(|at| speed.is_none_or(|speed| at > speed))
    })
}

#[cfg(test)]
mod tests;
