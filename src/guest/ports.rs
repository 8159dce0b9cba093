//! Which guest port a device gets.
//!
//! `device_add` names the port. If QEMU chose it, QEMU would add a hub of its own, of 12 Mb/s, to the
//! last free port of a bus. Later devices would go behind that hub even if another port of the bus
//! is free again (`hw/usb/bus.c`: `usb_claim_port`).

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::bus::{GuestBus, SpeedRange};
use crate::speed::Speed;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestPort {
    /// The bus, such as `xhci0.0`.
    pub bus: String,
    pub port: usize,
}

/// A guest port to try. `None`: QEMU chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortCandidate {
    pub bus: Option<String>,
    pub port: Option<usize>,
    /// The speed that the device can have there, if it is known.
    pub speed: Option<Speed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastPort {
    pub port: GuestPort,
    /// The speed of the device that was there, if it had its native speed there.
    pub speed: Option<Speed>,
}

/// The guest ports that host ports had, as one host port sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestPortHistory {
    pub last: Option<LastPort>,
    /// The guest ports of other host ports.
    pub reserved: Vec<GuestPort>,
}

impl PortCandidate {
    pub fn guest_port(&self) -> Option<GuestPort> {
        Some(GuestPort { bus: self.bus.clone()?, port: self.port? })
    }
}

/// Returns the port that [`rank_ports`] would rank first if nothing has changed in the guest: the
/// last port, if a device of the same speed was there. It needs no query.
pub fn last_port(
    hubs: &[String],
    speed: Option<Speed>,
    history: &GuestPortHistory,
) -> Option<PortCandidate> {
    let LastPort { port: GuestPort { bus, port }, speed: last } = history.last.as_ref()?;
    let fits = last.is_some() && *last == speed && rank(bus, hubs).is_some();
    fits.then(|| PortCandidate { bus: Some(bus.clone()), port: Some(*port), speed })
}

/// Returns the free ports for a device of that speed, the best first.
///
/// 1. Ports at which the device has its native speed precede slower ones. A port that takes only
///    faster devices is left out.
/// 2. `hubs` decide in their order.
/// 3. A port that takes nothing faster than the device precedes others, so that USB 3 ports stay
///    free for USB 3 devices.
/// 4. A port that no other host port had precedes others, so that its device finds it free.
/// 5. The bus with most free ports comes first. On the last free port QEMU would add its hub with
///    the next device of another client, such as libvirt.
///
/// The last port of the host port moves to the front if it is as fast as the best one, because a
/// guest's drivers and settings belong to its port.
///
/// Ports of which only the possible numbers are known come last. If no bus is known, QEMU chooses the
/// bus and the port.
pub fn rank_ports(
    buses: &[GuestBus],
    hubs: &[String],
    speed: Option<Speed>,
    history: &GuestPortHistory,
) -> Vec<PortCandidate> {
    // A device of unknown speed counts as the most common kind.
    let speed = speed.unwrap_or(Speed::HIGH).min(Speed::SUPER);
    let mut ranked = Vec::new();
    for (number, bus) in buses.iter().enumerate() {
        let Some(rank) = rank(&bus.name, hubs) else { continue };
        let free = bus.free_ports_for(speed).len();
        let is_slow_enough = |range: SpeedRange| range.min <= speed;
        for (port, range) in bus.free_ports().filter(|(_, range)| range.is_none_or(is_slow_enough))
        {
            let port_max = range.map(|range| range.max);
            let max = port_max.map(|max| max.min(speed));
            let port = GuestPort { bus: bus.name.clone(), port };
            let is_reserved = history.reserved.contains(&port);
            let key = (Reverse(max), rank, port_max, is_reserved, Reverse(free), number, port.port);
            ranked.push((key, max, port));
        }
    }
    ranked.sort_by_key(|(key, ..)| *key);
    let best = ranked.first().map(|(_, max, _)| *max);
    let last = history.last.as_ref().map(|last| &last.port);
    let last = ranked.iter().position(|(_, max, port)| Some(*max) == best && Some(port) == last);
    if let Some(last) = last {
        ranked[..=last].rotate_right(1);
    }
    let known = ranked.into_iter().map(|(_, max, port)| PortCandidate {
        bus: Some(port.bus),
        port: Some(port.port),
        speed: max,
    });
    known.chain(qemus_choice(buses, hubs)).collect()
}

/// The position of a bus in `hubs`, or `None` if the bus must not be used.
fn rank(bus: &str, hubs: &[String]) -> Option<usize> {
    if hubs.is_empty() { Some(0) } else { hubs.iter().position(|hub| hub == bus) }
}

fn qemus_choice(buses: &[GuestBus], hubs: &[String]) -> Vec<PortCandidate> {
    let candidate = |bus| PortCandidate { bus, port: None, speed: None };
    if buses.is_empty() && hubs.is_empty() {
        return vec![candidate(None)];
    }
    // QEMU replies that such a bus is missing.
    let missing = hubs.iter().filter(|hub| !buses.iter().any(|bus| bus.name == **hub));
    missing.map(|hub| candidate(Some(hub.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bus::GuestDevice;
    use proptest::prelude::*;

    const SPEEDS: [Speed; 4] = [Speed::LOW, Speed::FULL, Speed::HIGH, Speed::SUPER];
    const UHCI: (Speed, Speed) = (Speed::LOW, Speed::FULL);
    const EHCI: (Speed, Speed) = (Speed::HIGH, Speed::HIGH);
    const USB2: (Speed, Speed) = (Speed::LOW, Speed::HIGH);
    const USB3: (Speed, Speed) = (Speed::LOW, Speed::SUPER);
    const ONLY3: (Speed, Speed) = (Speed::SUPER, Speed::SUPER);

    fn bus(name: &str, ports: &[(Speed, Speed)], taken: &[usize]) -> GuestBus {
        let device =
            |port: &usize| GuestDevice { port: port.to_string(), ..GuestDevice::default() };
        GuestBus {
            name: name.to_owned(),
            controller: "some-controller".to_owned(),
            id: None,
            ports: ports.iter().map(|&(min, max)| SpeedRange { min, max }).collect(),
            devices: taken.iter().map(device).collect(),
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
        history: &GuestPortHistory,
    ) -> Vec<String> {
        let hubs: Vec<String> = hubs.iter().map(|hub| (*hub).to_owned()).collect();
        let ports = rank_ports(buses, &hubs, Some(speed), history);
        let text = |candidate: &PortCandidate| {
            let port = candidate.port.map_or("?".to_owned(), |port| port.to_string());
            format!("{} {port}", candidate.bus.as_deref().unwrap_or("?"))
        };
        ports.iter().map(text).collect()
    }

    fn fresh() -> GuestPortHistory {
        GuestPortHistory::default()
    }

    #[test]
    fn device_gets_the_port_that_fits_its_speed_most_closely() {
        let all = [bus("u", &[UHCI; 2], &[]), bus("e", &[EHCI; 6], &[]), bus("x", &[USB3; 4], &[])];
        let first = |speed| order(&all, &[], speed, &fresh())[0].clone();
        assert_eq!(SPEEDS.map(first), ["u 1", "u 1", "e 1", "x 1"]);
        // A fast device may do with less; a slow one cannot go where all is faster.
        assert_eq!(order(&all[..1], &[], Speed::HIGH, &fresh()), ["u 1", "u 2"]);
        assert!(order(&all[1..2], &[], Speed::FULL, &fresh()).is_empty());
    }

    #[test]
    fn usb_3_ports_are_kept_for_usb_3_devices() {
        let x = [bus("x", &[USB3, USB2, ONLY3], &[])];
        assert_eq!(order(&x, &[], Speed::HIGH, &fresh()), ["x 2", "x 1"]);
        assert_eq!(order(&x, &[], Speed::SUPER, &fresh()), ["x 1", "x 3", "x 2"]);
    }

    #[test]
    fn hubs_decide_before_the_emptiest_bus() {
        let two = [bus("a", &[USB3; 3], &[1]), bus("b", &[USB3; 3], &[])];
        assert_eq!(order(&two, &[], Speed::FULL, &fresh())[0], "b 1");
        assert_eq!(order(&two, &["a", "b"], Speed::FULL, &fresh())[..2], ["a 2", "a 3"]);
        assert_eq!(order(&two, &["b"], Speed::FULL, &fresh()), ["b 1", "b 2", "b 3"]);
        // Speed comes before their order.
        let mixed = [bus("u", &[UHCI; 1], &[]), bus("x", &[USB3; 1], &[])];
        assert_eq!(order(&mixed, &["u", "x"], Speed::HIGH, &fresh()), ["x 1", "u 1"]);
    }

    #[test]
    fn last_port_ranks_first_and_reserved_ports_last() {
        let x = [bus("x", &[USB3; 4], &[3])];
        let history = |last: Option<usize>, reserved: &[usize]| GuestPortHistory {
            last: last.map(|port| LastPort { port: place("x", port), speed: None }),
            reserved: reserved.iter().map(|port| place("x", *port)).collect(),
        };
        assert_eq!(order(&x, &[], Speed::FULL, &history(Some(4), &[1])), ["x 4", "x 2", "x 1"]);
        assert_eq!(order(&x, &[], Speed::FULL, &history(Some(3), &[])), ["x 1", "x 2", "x 4"]);
        let mixed = [bus("x", &[USB3, USB2], &[])];
        assert_eq!(
            order(&mixed, &[], Speed::SUPER, &history(Some(2), &[])),
            ["x 1", "x 2"],
            "slower"
        );
    }

    #[test]
    fn each_port_is_tried_where_ports_are_unknown() {
        assert_eq!(order(&[], &[], Speed::FULL, &fresh()), ["? ?"]);
        assert_eq!(order(&[], &["a", "b"], Speed::FULL, &fresh()), ["a ?", "b ?"]);
        let some = [bus("odd", &[], &[2]), bus("x", &[USB3], &[])];
        let odd = [1].into_iter().chain(3..=15).map(|port| format!("odd {port}"));
        let all: Vec<String> = std::iter::once("x 1".to_owned()).chain(odd).collect();
        assert_eq!(order(&some, &[], Speed::FULL, &fresh()), all);
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
        fn ranked_ports_are_free_and_never_too_fast_and_the_best_come_first(
            buses in (any_bus("a"), any_bus("b"), any_bus("c")).prop_map(|(a, b, c)| vec![a, b, c]),
            hubs in prop::sample::subsequence(vec!["c".to_owned(), "a".to_owned()], 0..=2),
            speed in prop::sample::select(SPEEDS.to_vec()),
            last in prop::option::of((prop::sample::select(vec!["a", "b", "c"]), 1..7_usize)),
            reserved in prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), 1..7_usize), 0..5),
        ) {
            let history = GuestPortHistory {
                last: last.map(|(bus, port)| LastPort { port: place(bus, port), speed: Some(speed) }),
                reserved: reserved.iter().map(|(bus, port)| place(bus, *port)).collect(),
            };
            let ports = rank_ports(&buses, &hubs, Some(speed), &history);
            let known = ports.iter().take_while(|candidate| candidate.speed.is_some());
            let named: Vec<GuestPort> = known.filter_map(PortCandidate::guest_port).collect();
            prop_assert!(ports[named.len()..].iter().all(|candidate| candidate.speed.is_none()));
            let of = |name: &str| buses.iter().find(|bus| bus.name == name).unwrap();
            let mut seen = std::collections::HashSet::new();
            for candidate in &named {
                prop_assert!(seen.insert(candidate.clone()), "twice");
                prop_assert!(hubs.is_empty() || hubs.contains(&candidate.bus));
                let bus = of(&candidate.bus);
                prop_assert!(!bus.devices.iter().any(|there| there.port == candidate.port.to_string()));
                prop_assert!(bus.ports[candidate.port - 1].min <= speed);
            }
            // All that fit at their last speed are there, and before all reserved.
            let fit: usize = buses
                .iter()
                .filter(|bus| hubs.is_empty() || hubs.contains(&bus.name))
                .map(|bus| bus.free_ports_for(speed).len())
                .sum();
            let own_speed = |candidate: &GuestPort| of(&candidate.bus).ports[candidate.port - 1].max >= speed;
            prop_assert!(named.len() >= fit);
            prop_assert!(named[..fit].iter().all(own_speed));
            prop_assert!(!named[fit..].iter().any(own_speed));
            // The last port is first wherever that costs no speed.
            if let Some(last) = history.last.as_ref().filter(|last| named[..fit].contains(&last.port)) {
                prop_assert_eq!(&named[0], &last.port);
                // It is then also known without a query.
                let last_port = last_port(&hubs, Some(speed), &history).unwrap();
                prop_assert_eq!(last_port.guest_port(), Some(last.port.clone()));
            }
            // The other ports are in the order of the hubs.
            let rest = &named[usize::from(fit > 0).min(fit)..fit];
            let ranks: Vec<_> = rest.iter().map(|candidate| rank(&candidate.bus, &hubs)).collect();
            prop_assert!(ranks.is_sorted());
        }
    }
}
