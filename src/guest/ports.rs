//! Which port of the guest a device is to have. Pure.
//!
//! The port is named in `device_add`: left to choose, QEMU puts a hub of its own, of 12 Mb/s, on
//! the last free port of a bus, and from then on devices behind it even where a port of the bus is
//! free again (`hw/usb/bus.c`: `usb_claim_port`).

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::bus::GuestBus;
use crate::speed::Speed;

/// A port of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestPort {
    /// The bus: `xhci0.0`.
    pub bus: String,
    /// The port's number there.
    pub port: usize,
}

/// A place to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortCandidate {
    /// The bus; none for QEMU's choice.
    pub bus: Option<String>,
    /// The port; none for QEMU's choice.
    pub port: Option<usize>,
    /// The speed that a device can have there, if that is known.
    pub at: Option<Speed>,
}

/// The port of the guest that a port of the host had last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastPort {
    /// The guest's port.
    pub place: GuestPort,
    /// The speed of the device that was in it, if that was as fast there as it is on the host.
    pub speed: Option<Speed>,
}

/// What is remembered of a guest's ports, for one port of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestPortHistory {
    /// The port that its devices had last.
    pub own: Option<LastPort>,
    /// The ports that those of other ports had.
    pub others: Vec<GuestPort>,
}

impl PortCandidate {
    /// Its port, if it names one.
    pub fn guest_port(&self) -> Option<GuestPort> {
        Some(GuestPort { bus: self.bus.clone()?, port: self.port? })
    }
}

/// The place that is the first of the [`seats`] if nothing has changed in the guest, which need not
/// be asked for that: where a device of the same speed was last.
pub fn usual(
    hubs: &[String],
    speed: Option<Speed>,
    memory: &GuestPortHistory,
) -> Option<PortCandidate> {
    let LastPort { place, speed: last } = memory.own.as_ref()?;
    let fits = last.is_some() && *last == speed && rank(&place.bus, hubs).is_some();
    let GuestPort { bus, port } = place.clone();
    fits.then_some(PortCandidate { bus: Some(bus), port: Some(port), at: speed })
}

/// The free places for a device of that speed, the best first.
///
/// * Where it is as fast as it is on the host comes before where it would be slower; a port that
///   takes only what is faster is no place.
/// * Then `hubs` decide, in their order. Without them: the port that takes nothing faster than the
///   device needs, so that USB 3 ports are left to USB 3 devices; one that no other port of the
///   host had, so that its device finds it free when it comes again; the bus with most ports free,
///   so that none comes to its last port, where QEMU's hub would come in with the next device that
///   somebody else adds (libvirt counts on the ports of its own controller, too).
/// * The port that the host's port had last comes first, if it is as fast as the best: a guest's
///   drivers and settings belong to its port.
///
/// A bus whose ports are not known is left to QEMU, after all others; so is the choice of the bus
/// where not one is known.
pub fn seats(
    buses: &[GuestBus],
    hubs: &[String],
    speed: Option<Speed>,
    memory: &GuestPortHistory,
) -> Vec<PortCandidate> {
    // Of a device that does not say what it is, the commonest is believed.
    let speed = speed.unwrap_or(Speed::HIGH).min(Speed::SUPER);
    let mut ranked = Vec::new();
    for (number, bus) in buses.iter().enumerate() {
        let Some(rank) = rank(&bus.name, hubs) else { continue };
        let free = bus.free(speed).len();
        for (port, takes) in bus.vacant().filter(|(_, takes)| takes.from <= speed) {
            let at = takes.to.min(speed);
            let place = GuestPort { bus: bus.name.clone(), port };
            let kept = memory.others.contains(&place);
            let key = (Reverse(at), rank, takes.to, kept, Reverse(free), number, port);
            ranked.push((key, at, place));
        }
    }
    ranked.sort_by_key(|(key, ..)| *key);
    let best = ranked.first().map(|(_, at, _)| *at);
    let last = memory.own.as_ref().map(|own| &own.place);
    let own = ranked.iter().position(|(_, at, place)| Some(*at) == best && Some(place) == last);
    if let Some(own) = own {
        ranked[..=own].rotate_right(1);
    }
    let named = ranked.into_iter().map(|(_, at, place)| PortCandidate {
        bus: Some(place.bus),
        port: Some(place.port),
        at: Some(at),
    });
    named.chain(unknown(buses, hubs)).collect()
}

/// A bus' place in `hubs`; none if it is not to be used.
fn rank(bus: &str, hubs: &[String]) -> Option<usize> {
    if hubs.is_empty() { Some(0) } else { hubs.iter().position(|hub| hub == bus) }
}

/// The places of which nothing is known.
fn unknown(buses: &[GuestBus], hubs: &[String]) -> Vec<PortCandidate> {
    let seat = |bus| PortCandidate { bus, port: None, at: None };
    let known = |name: &String| buses.iter().any(|bus| bus.name == *name && !bus.ports.is_empty());
    let names = buses.iter().map(|bus| &bus.name);
    match (buses, hubs) {
        ([], []) => vec![seat(None)],
        (_, []) => names.filter(|name| !known(name)).cloned().map(Some).map(seat).collect(),
        (_, hubs) => hubs.iter().filter(|name| !known(name)).cloned().map(Some).map(seat).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bus::{GuestDevice, SpeedRange};
    use proptest::prelude::*;

    const SPEEDS: [Speed; 4] = [Speed::LOW, Speed::FULL, Speed::HIGH, Speed::SUPER];
    const UHCI: (Speed, Speed) = (Speed::LOW, Speed::FULL);
    const EHCI: (Speed, Speed) = (Speed::HIGH, Speed::HIGH);
    const USB2: (Speed, Speed) = (Speed::LOW, Speed::HIGH);
    const USB3: (Speed, Speed) = (Speed::LOW, Speed::SUPER);
    const ONLY3: (Speed, Speed) = (Speed::SUPER, Speed::SUPER);

    fn bus(name: &str, ports: &[(Speed, Speed)], taken: &[usize]) -> GuestBus {
        let occupant =
            |port: &usize| GuestDevice { port: port.to_string(), ..GuestDevice::default() };
        GuestBus {
            name: name.to_owned(),
            controller: "some-controller".to_owned(),
            id: None,
            ports: ports.iter().map(|&(from, to)| SpeedRange { from, to }).collect(),
            devices: taken.iter().map(occupant).collect(),
        }
    }

    fn place(bus: &str, port: usize) -> GuestPort {
        GuestPort { bus: bus.to_owned(), port }
    }

    /// The places as `bus port`.
    fn order(
        buses: &[GuestBus],
        hubs: &[&str],
        speed: Speed,
        memory: &GuestPortHistory,
    ) -> Vec<String> {
        let hubs: Vec<String> = hubs.iter().map(|hub| (*hub).to_owned()).collect();
        let seats = seats(buses, &hubs, Some(speed), memory);
        let text = |seat: &PortCandidate| {
            let port = seat.port.map_or("?".to_owned(), |port| port.to_string());
            format!("{} {port}", seat.bus.as_deref().unwrap_or("?"))
        };
        seats.iter().map(text).collect()
    }

    fn fresh() -> GuestPortHistory {
        GuestPortHistory::default()
    }

    #[test]
    fn each_speed_goes_where_it_fits_most_closely() {
        let all = [bus("u", &[UHCI; 2], &[]), bus("e", &[EHCI; 6], &[]), bus("x", &[USB3; 4], &[])];
        let first = |speed| order(&all, &[], speed, &fresh())[0].clone();
        assert_eq!(SPEEDS.map(first), ["u 1", "u 1", "e 1", "x 1"]);
        // A fast device may do with less; a slow one cannot go where all is faster.
        assert_eq!(order(&all[..1], &[], Speed::HIGH, &fresh()), ["u 1", "u 2"]);
        assert!(order(&all[1..2], &[], Speed::FULL, &fresh()).is_empty());
    }

    #[test]
    fn usb_3_ports_are_left_to_usb_3_devices() {
        let x = [bus("x", &[USB3, USB2, ONLY3], &[])];
        assert_eq!(order(&x, &[], Speed::HIGH, &fresh()), ["x 2", "x 1"]);
        assert_eq!(order(&x, &[], Speed::SUPER, &fresh()), ["x 1", "x 3", "x 2"]);
    }

    #[test]
    fn hubs_decide_and_else_the_emptiest_bus() {
        let two = [bus("a", &[USB3; 3], &[1]), bus("b", &[USB3; 3], &[])];
        assert_eq!(order(&two, &[], Speed::FULL, &fresh())[0], "b 1");
        assert_eq!(order(&two, &["a", "b"], Speed::FULL, &fresh())[..2], ["a 2", "a 3"]);
        assert_eq!(order(&two, &["b"], Speed::FULL, &fresh()), ["b 1", "b 2", "b 3"]);
        // Speed comes before their order.
        let mixed = [bus("u", &[UHCI; 1], &[]), bus("x", &[USB3; 1], &[])];
        assert_eq!(order(&mixed, &["u", "x"], Speed::HIGH, &fresh()), ["x 1", "u 1"]);
    }

    #[test]
    fn the_port_it_had_comes_first_and_those_of_others_last() {
        let x = [bus("x", &[USB3; 4], &[3])];
        let memory = |own: Option<usize>, others: &[usize]| GuestPortHistory {
            own: own.map(|port| LastPort { place: place("x", port), speed: None }),
            others: others.iter().map(|port| place("x", *port)).collect(),
        };
        assert_eq!(order(&x, &[], Speed::FULL, &memory(Some(4), &[1])), ["x 4", "x 2", "x 1"]);
        assert_eq!(order(&x, &[], Speed::FULL, &memory(Some(3), &[])), ["x 1", "x 2", "x 4"]);
        let mixed = [bus("x", &[USB3, USB2], &[])];
        assert_eq!(
            order(&mixed, &[], Speed::SUPER, &memory(Some(2), &[])),
            ["x 1", "x 2"],
            "slower"
        );
    }

    #[test]
    fn what_is_not_known_is_left_to_qemu() {
        assert_eq!(order(&[], &[], Speed::FULL, &fresh()), ["? ?"]);
        assert_eq!(order(&[], &["a", "b"], Speed::FULL, &fresh()), ["a ?", "b ?"]);
        let some = [bus("odd", &[], &[]), bus("x", &[USB3], &[])];
        assert_eq!(order(&some, &[], Speed::FULL, &fresh()), ["x 1", "odd ?"]);
        assert_eq!(order(&some, &["gone", "x"], Speed::FULL, &fresh()), ["x 1", "gone ?"]);
        assert!(order(&[bus("x", &[USB3], &[1])], &[], Speed::FULL, &fresh()).is_empty());
    }

    fn any_bus(name: &'static str) -> impl Strategy<Value = GuestBus> {
        let kinds = prop::sample::select(vec![UHCI, EHCI, USB2, USB3, ONLY3]);
        (prop::collection::vec(kinds, 0..6), prop::collection::vec(1..7_usize, 0..6))
            .prop_map(move |(ports, taken)| bus(name, &ports, &taken))
    }

    proptest! {
        #[test]
        fn no_place_is_taken_or_too_fast_and_no_better_one_comes_later(
            buses in (any_bus("a"), any_bus("b"), any_bus("c")).prop_map(|(a, b, c)| vec![a, b, c]),
            hubs in prop::sample::subsequence(vec!["c".to_owned(), "a".to_owned()], 0..=2),
            speed in prop::sample::select(SPEEDS.to_vec()),
            own in prop::option::of((prop::sample::select(vec!["a", "b", "c"]), 1..7_usize)),
            others in prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), 1..7_usize), 0..5),
        ) {
            let memory = GuestPortHistory {
                own: own.map(|(bus, port)| LastPort { place: place(bus, port), speed: Some(speed) }),
                others: others.iter().map(|(bus, port)| place(bus, *port)).collect(),
            };
            let seats = seats(&buses, &hubs, Some(speed), &memory);
            let named: Vec<GuestPort> = seats.iter().filter_map(PortCandidate::guest_port).collect();
            let of = |name: &str| buses.iter().find(|bus| bus.name == name).unwrap();
            let mut seen = std::collections::HashSet::new();
            for seat in &named {
                prop_assert!(seen.insert(seat.clone()), "twice");
                prop_assert!(hubs.is_empty() || hubs.contains(&seat.bus));
                let bus = of(&seat.bus);
                prop_assert!(!bus.devices.iter().any(|there| there.port == seat.port.to_string()));
                prop_assert!(bus.ports[seat.port - 1].from <= speed);
            }
            // All that fit at their own speed are there, and before all others.
            let fit: usize = buses
                .iter()
                .filter(|bus| hubs.is_empty() || hubs.contains(&bus.name))
                .map(|bus| bus.free(speed).len())
                .sum();
            let own_speed = |seat: &GuestPort| of(&seat.bus).ports[seat.port - 1].to >= speed;
            prop_assert!(named.len() >= fit);
            prop_assert!(named[..fit].iter().all(own_speed));
            prop_assert!(!named[fit..].iter().any(own_speed));
            // The remembered one is first wherever that costs no speed.
            if let Some(own) = memory.own.as_ref().filter(|own| named[..fit].contains(&own.place)) {
                prop_assert_eq!(&named[0], &own.place);
                // And if it may be used at all, it is known to be without a look at the buses.
                let usual = usual(&hubs, Some(speed), &memory).unwrap();
                prop_assert_eq!(usual.guest_port(), Some(own.place.clone()));
            }
            // Otherwise the order of the hubs holds.
            let rest = &named[usize::from(fit > 0).min(fit)..fit];
            let ranks: Vec<_> = rest.iter().map(|seat| rank(&seat.bus, &hubs)).collect();
            prop_assert!(ranks.is_sorted());
        }
    }
}
