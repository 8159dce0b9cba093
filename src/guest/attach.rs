//! Attaching: `device_add`, and the proof that the guest has the device.
//!
//! QEMU gets at a device in one of two ways. It opens the node itself, and is told bus, port and
//! number together: it then opens that device in that port and never the next one that comes
//! (`hw/usb/host-libusb.c`: `usb_host_auto_check` compares all that is given). In this form
//! `device_add` succeeds whatever becomes of it, so afterwards the object's `attached` is asked;
//! what the monitor says of USB is asked only where it is not, to tell why. Or it is handed a
//! descriptor, which can be of no other device; then `device_add` opens it, or says that it did
//! not.

mod attempt;

use std::path::PathBuf;
use std::time::Duration;

use self::attempt::{Attempt, Source, Tried, was_taken_away};
use super::bus::{self, GuestBus};
use super::fdset::FdSet;
use super::object;
use crate::device_id::DeviceId;
use crate::qmp::Qmp;
use crate::qmp::handover::Handover;
use crate::speed::Speed;

pub use super::refusal::{AttachError, Refusal, Why};
use super::refusal::{mend, without_a_seat};
use super::seat::{GuestPort, Memory, Seat, seats};
use super::view::Place;

/// A device to be attached.
pub struct Wanted<'a> {
    /// Its id, which says port and number.
    pub id: DeviceId,
    /// Its speed on the host.
    pub speed: Option<Speed>,
    /// The guest's buses to use, in order; empty for whichever there are.
    pub hubs: &'a [String],
    /// What is remembered of the guest's ports.
    pub memory: &'a Memory,
    /// Whether it has a product name, which QEMU shows only of devices it can open.
    pub named: bool,
    /// Its node, for messages.
    pub node: PathBuf,
    /// Whether QEMU is to open that node itself, if it can.
    pub by_node: bool,
    /// The device's descriptor, if QEMU may be handed one.
    pub handover: Option<&'a dyn Handover>,
    /// Whether the very same device is still in its port and may be attached.
    pub still_there: &'a dyn Fn() -> bool,
}

/// How an attach went well.
#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    /// The guest has the device.
    Now(Seated),
    /// The guest had it already.
    Before,
    /// The guest is paused; QEMU opens the device, in this port, when it goes on.
    WhenRunning(Option<GuestPort>),
}

/// Where the device sits in the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Seated {
    /// The bus, if one was asked for.
    pub bus: Option<String>,
    /// Port, speed and product there.
    pub place: Place,
    /// Whether the guest got it slower than it is, for want of a bus that is fast enough.
    pub slow: bool,
    /// Whether QEMU was handed its descriptor.
    pub handed: bool,
}

impl Attached {
    /// The guest's port that the device has got, if that is known.
    pub fn guest_port(&self) -> Option<GuestPort> {
        match self {
            Self::Now(Seated { bus, place, .. }) => {
                // What is behind a hub of QEMU's has no port that could be asked for again.
                Some(GuestPort { bus: bus.clone()?, port: place.port.as_ref()?.parse().ok()? })
            }
            Self::WhenRunning(port) => port.clone(),
            Self::Before => None,
        }
    }
}

/// How long QEMU may take to learn of a device that udevd has told it of.
const UNTIL_SEEN: Duration = Duration::from_secs(2);

/// The same where it can be handed the device as well, which takes less time than to wait.
const UNTIL_HANDED: Duration = Duration::from_millis(300);

/// Attaches the device in the first of its [`seats`] that takes it at its own speed, else in the
/// one where it is fastest, and proves it.
///
/// Objects of ours that stand for other devices in the port are deleted first. When it fails,
/// no object stays behind that could open the device later, and no descriptor.
pub fn attach(qmp: &mut dyn Qmp, wanted: &Wanted<'_>) -> Result<Attached, AttachError> {
    for id in object::list(qmp)?.into_iter().filter(|id| id.port == wanted.id.port) {
        if id == wanted.id && object::is_attached(qmp, &id)? {
            return Ok(Attached::Before);
        }
        object::delete(qmp, &id)?;
    }
    if !(wanted.still_there)() {
        return Err(AttachError::Gone);
    }
    let buses = bus::buses_of(qmp, wanted.hubs)?;
    let seats = seats(&buses, wanted.hubs, wanted.speed, wanted.memory);
    let walk = Walk { wanted, buses: &buses, seats: &seats };
    let Some(handover) = wanted.handover else {
        return walk.run(qmp, Source::Node(UNTIL_SEEN));
    };
    if !wanted.by_node {
        return walk.with_descriptor(qmp, handover);
    }
    match walk.run(qmp, Source::Node(UNTIL_HANDED)) {
        Err(first) if first.is_for_want_of_access(wanted.named) => {
            walk.with_descriptor(qmp, handover).map_err(|then| first.and_then(then))
        }
        walked => walked,
    }
}

/// The seats, to be tried one after the other.
struct Walk<'a> {
    wanted: &'a Wanted<'a>,
    buses: &'a [GuestBus],
    seats: &'a [Seat],
}

impl Walk<'_> {
    /// Hands QEMU the device and has it taken from there.
    fn with_descriptor(
        &self,
        qmp: &mut dyn Qmp,
        handover: &dyn Handover,
    ) -> Result<Attached, AttachError> {
        let set = match FdSet::add(qmp, &self.wanted.id, handover) {
            Ok(set) => set,
            Err(error) if was_taken_away(&error) => return Err(AttachError::TakenAway),
            Err(_) if !(self.wanted.still_there)() => return Err(AttachError::Gone),
            Err(error) => return Err(error.into()),
        };
        let walked = self.run(qmp, Source::Set(&set));
        // An exchange that is over cannot be tidied up in; the next one that hands over does.
        let _ = set.remove(qmp);
        walked
    }

    fn run(&self, qmp: &mut dyn Qmp, source: Source<'_>) -> Result<Attached, AttachError> {
        let Self { wanted, buses, seats } = *self;
        let attempt = |seat| Attempt { wanted, source, seat };
        let mut refusals: Vec<Refusal> = Vec::new();
        let mut slow: Option<(&Seat, Option<Speed>)> = None;
        for (number, seat) in seats.iter().enumerate() {
            let of_bus = refusals.iter().find(|refusal| refusal.bus == seat.bus);
            if of_bus.is_some_and(|refusal| refusal.why != Why::Full) || !may_be_faster(seat, slow)
            {
                continue;
            }
            match attempt(seat).run(qmp)? {
                Tried::Open => {}
                Tried::Armed => return Ok(Attached::WhenRunning(seat.guest_port())),
                Tried::Refused(why) => {
                    let everywhere = matches!(why, Why::NoPermission(_));
                    refusals.retain(|refusal| refusal.bus != seat.bus);
                    refusals.push(Refusal { bus: seat.bus.clone(), why });
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
            object::delete(qmp, &wanted.id)?;
            if best {
                slow = now;
            }
        }
        if let Some((seat, _)) = slow {
            match attempt(seat).run(qmp)? {
                Tried::Open => return Ok(Attached::Now(attempt(seat).seated(qmp)?)),
                // The guest was paused in between.
                Tried::Armed => return Ok(Attached::WhenRunning(seat.guest_port())),
                Tried::Refused(why) => refusals.push(Refusal { bus: seat.bus.clone(), why }),
            }
        }
        let speed = wanted.speed.unwrap_or(Speed::HIGH).min(Speed::SUPER);
        for bus in buses {
            // Those with places were tried, or another one ended it.
            if !seats.iter().any(|seat| seat.bus.as_ref() == Some(&bus.name)) {
                let why = without_a_seat(bus, speed);
                refusals.push(Refusal { bus: Some(bus.name.clone()), why });
            }
        }
        Err(AttachError::NoSeat { refusals, mend: mend(buses) })
    }
}

/// Whether the device might be faster in this seat than it was in that one.
fn may_be_faster(seat: &Seat, than: Option<(&Seat, Option<Speed>)>) -> bool {
    than.is_none_or(|(slow, speed)| {
        seat.bus != slow.bus && seat.at.is_none_or(|at| speed.is_none_or(|speed| at > speed))
    })
}

#[cfg(test)]
mod tests;
