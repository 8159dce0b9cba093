//! From seat to seat, until one takes the device as fast as it is.

use super::attempt::{Attempt, Source, Tried, was_taken_away};
use super::{AttachError, AttachRequest, Attached, BusError, BusErrorKind};
use crate::guest::bus::{self, GuestBus};
use crate::guest::error::{mend, without_a_seat};
use crate::guest::fdset::FdSet;
use crate::guest::object;
use crate::guest::ports::{PortCandidate, seats, usual};
use crate::qmp::{Error, Qmp};
use crate::speed::Speed;

/// The seats, to be tried one after the other.
pub(super) struct Walk<'a> {
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
    pub(super) fn new(request: &'a AttachRequest<'a>) -> Self {
        let usual = usual(request.hubs, request.speed, request.memory);
        let usual = usual.filter(|_| !request.expected_attached);
        Self { request, usual, room: None, tidy: false }
    }

    /// Whether it begins with a seat of which QEMU is asked nothing.
    pub(super) fn is_usual(&self) -> bool {
        self.usual.is_some()
    }

    /// Whether only the wanted device may have an object in its port.
    pub(super) fn is_tidy(&self) -> bool {
        self.tidy
    }

    /// Deletes what stands for other devices in the port, and an object of this one's that does not
    /// have it. Returns whether one has it.
    pub(super) fn tidy(&mut self, qmp: &mut dyn Qmp) -> Result<bool, Error> {
        let id = &self.request.id;
        if !self.delete_others(qmp)? {
            return Ok(false);
        }
        let has_it = object::is_attached(qmp, id)?;
        if !has_it {
            object::delete(qmp, id)?;
        }
        Ok(has_it)
    }

    /// Deletes what stands for other devices in the port. Returns whether this one has an object.
    pub(super) fn delete_others(&mut self, qmp: &mut dyn Qmp) -> Result<bool, Error> {
        let request = &self.request.id;
        let listed = object::list(qmp)?;
        for id in listed.iter().filter(|id| id.port == request.port && *id != request) {
            object::delete(qmp, id)?;
        }
        self.tidy = true;
        Ok(listed.contains(request))
    }

    /// Hands QEMU the device and has it taken from there.
    pub(super) fn with_descriptor(&mut self, qmp: &mut dyn Qmp) -> Result<Attached, AttachError> {
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

    pub(super) fn run(
        &mut self,
        qmp: &mut dyn Qmp,
        source: Source<'_>,
    ) -> Result<Attached, AttachError> {
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
            object::delete(qmp, &request.id)?;
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
                object::delete(qmp, &self.request.id)?;
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
