//! The guest's USB buses: their controllers, their ports, and what is in them.

use serde::Deserialize;
use serde_json::json;

use super::hmp::monitor;
use super::objects::PERIPHERAL;
use crate::qmp::{Error, Qmp};
use crate::speed::Speed;
use crate::text::sanitize;

/// A USB bus of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestBus {
    /// Its name, as `hubs:` and `device_add` want it: `xhci0.0`.
    pub name: String,
    /// The type of its controller: `qemu-xhci`.
    pub controller: String,
    /// The id of its controller, if it was given one.
    pub id: Option<String>,
    /// What its ports take.
    pub ports: Vec<SpeedRange>,
    /// What is in them.
    pub devices: Vec<GuestDevice>,
}

/// The speeds that a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeedRange {
    /// The slowest.
    pub from: Speed,
    /// The fastest.
    pub to: Speed,
}

/// A device on a bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDevice {
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its port; `4.1` is behind a hub in port 4.
    pub port: String,
    /// The speed the guest was told.
    pub speed: Option<Speed>,
    /// The name the guest was told.
    pub product: String,
    /// Whether there is a device in it at all.
    pub attached: bool,
}

impl SpeedRange {
    /// Whether a device of that speed is as fast there as it is.
    pub fn takes(self, speed: Speed) -> bool {
        self.from <= speed && speed <= self.to
    }
}

impl GuestBus {
    /// The numbers of the free ports that take a device of that speed.
    pub fn free(&self, speed: Speed) -> Vec<usize> {
        let speed = speed.min(Speed::SUPER);
        self.vacant().filter(|(_, takes)| takes.takes(speed)).map(|(number, _)| number).collect()
    }

    /// The numbers of the free ports, and what each takes.
    pub fn vacant(&self) -> impl Iterator<Item = (usize, SpeedRange)> {
        let taken = |number: usize| {
            let number = number.to_string();
            self.devices.iter().any(|occupant| occupant.port.split('.').next() == Some(&number))
        };
        (1..).zip(self.ports.iter().copied()).filter(move |(number, _)| !taken(*number))
    }
}

/// Reads the guest's USB buses, in the order in which they were created.
///
/// `info qtree` also shows what is plugged into them. Where QEMU refuses monitor commands, the buses
/// of controllers that have an ID are read from QOM, without their devices.
pub fn buses(qmp: &mut dyn Qmp) -> Result<Vec<GuestBus>, Error> {
    buses_of(qmp, &[])
}

/// The same, but only the buses that `hubs` names, if it names any.
///
/// This takes one command, and two more for each xHCI among them, because `info qtree` does not
/// show its numbers of ports (`hw/usb/hcd-xhci-pci.c` has them as aliases).
pub fn buses_of(qmp: &mut dyn Qmp, hubs: &[String]) -> Result<Vec<GuestBus>, Error> {
    let text = monitor(qmp, "info qtree")?;
    let mut buses = match &text {
        Some(text) => parse_qtree(text),
        None => buses_in_qom(qmp)?,
    };
    // QEMU lists the newest first.
    buses.reverse();
    buses.retain(|bus| hubs.is_empty() || hubs.contains(&bus.name));
    fill(qmp, text.as_deref().unwrap_or_default(), buses)
}

/// A property or child of a QOM object.
#[derive(Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

fn qom_list(qmp: &mut dyn Qmp, path: &str) -> Result<Vec<Property>, Error> {
    match qmp.execute("qom-list", json!({ "path": path })) {
        Ok(list) => Ok(Vec::<Property>::deserialize(list).unwrap_or_default()),
        Err(Error::Command { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The buses of the controllers that have an ID, newest first. Their devices are not known, so a taken
/// port shows when `device_add` is refused.
fn buses_in_qom(qmp: &mut dyn Qmp) -> Result<Vec<GuestBus>, Error> {
    let mut buses = Vec::new();
    for Property { name: id, kind } in qom_list(qmp, PERIPHERAL)? {
        let controller = kind.strip_prefix("child<").and_then(|kind| kind.strip_suffix('>'));
        let Some(controller) = controller.filter(|kind| kind.contains("hci")) else { continue };
        for bus in qom_list(qmp, &format!("{PERIPHERAL}/{id}"))? {
            if bus.kind == "child<usb-bus>" && buses.len() < MAX_BUSES {
                buses.push(GuestBus {
                    name: sanitize(&bus.name, 64),
                    controller: sanitize(controller, 64),
                    id: Some(sanitize(&id, 128)),
                    ports: Vec::new(),
                    devices: Vec::new(),
                });
            }
        }
    }
    // QOM lists children in no useful order; IDs are numbered mostly.
    buses.sort_by(|one, other| other.name.cmp(&one.name));
    Ok(buses)
}

fn fill(qmp: &mut dyn Qmp, text: &str, mut buses: Vec<GuestBus>) -> Result<Vec<GuestBus>, Error> {
    let companions = parse_companions(text);
    for bus in &mut buses {
        bus.ports = ports(qmp, bus)?;
        for companion in companions.iter().filter(|companion| companion.bus == bus.name) {
            let its = bus.ports.iter_mut().skip(companion.first).take(companion.count);
            its.for_each(|port| port.from = Speed::LOW);
        }
    }
    Ok(buses)
}

/// A UHCI or OHCI without a bus of its own: it has ports of an EHCI's bus in common with it, which
/// then take slow devices too (`hw/usb/hcd-ehci.c`: `ehci_register_companion`).
#[derive(Debug, PartialEq, Eq)]
struct Companion {
    bus: String,
    first: usize,
    count: usize,
}

/// No guest has more controllers; each of them costs questions and comparisons.
const MAX_BUSES: usize = 128;

/// The most devices on a bus (USB 2.0 specification, 4.1.1).
const MAX_DEVICES: usize = 127;

/// Reads the companions out of `info qtree`: the lines `masterbus = "usb.0"` and
/// `firstport = 2 (0x2)` below a controller's.
fn parse_companions(text: &str) -> Vec<Companion> {
    let mut companions: Vec<Companion> = Vec::new();
    let (mut kind, mut is_open) = (String::new(), false);
    for line in text.lines() {
        let word = line.trim();
        if let Some((device, _)) = device(word) {
            (kind, is_open) = (device, false);
        } else if let Some(bus) = word.strip_prefix("masterbus = \"") {
            let count = if kind.contains("uhci") { 2 } else { 3 };
            let bus = sanitize(bus.trim_end_matches('"'), 64);
            is_open = kind.contains("hci") && !bus.is_empty() && companions.len() < MAX_BUSES;
            companions.extend(is_open.then_some(Companion { bus, first: 0, count }));
        } else if let Some(first) = word.strip_prefix("firstport = ")
            && is_open
            && let Some(companion) = companions.last_mut()
        {
            let first = first.split(' ').next().unwrap_or_default();
            companion.first = first.parse().unwrap_or(0);
        }
    }
    companions
}

/// What each port of a controller takes, by its type (`hw/usb/hcd-*.c`).
fn ports(qmp: &mut dyn Qmp, bus: &GuestBus) -> Result<Vec<SpeedRange>, Error> {
    let (low, full, high) = (Speed::LOW, Speed::FULL, Speed::HIGH);
    let controller = bus.controller.as_str();
    if controller.ends_with("xhci") {
        let (usb2, usb3) = match path(qmp, bus)? {
            Some(path) => (number(qmp, &path, "p2")?, number(qmp, &path, "p3")?),
            None => (None, None),
        };
        // Four of each is the default (`hw/usb/hcd-xhci-pci.c`).
        let (usb2, usb3) = (usb2.unwrap_or(4), usb3.unwrap_or(4));
        let takes = (1..=usb2.max(usb3)).map(|port| SpeedRange {
            from: if port <= usb2 { low } else { Speed::SUPER },
            to: if port <= usb3 { Speed::SUPER } else { high },
        });
        Ok(takes.collect())
    } else if controller.contains("ehci") {
        Ok(vec![SpeedRange { from: high, to: high }; 6])
    } else if controller.contains("uhci") {
        Ok(vec![SpeedRange { from: low, to: full }; 2])
    } else if controller.contains("ohci") {
        Ok(vec![SpeedRange { from: low, to: full }; 3])
    } else {
        Ok(Vec::new())
    }
}

/// The QOM path of a bus' controller; none if it cannot be told from others.
fn path(qmp: &mut dyn Qmp, bus: &GuestBus) -> Result<Option<String>, Error> {
    if let Some(id) = &bus.id {
        return Ok(Some(format!("{PERIPHERAL}/{id}")));
    }
    let anonymous = "/machine/peripheral-anon";
    let kind = format!("child<{}>", bus.controller);
    let mut like_it = qom_list(qmp, anonymous)?.into_iter().filter(|child| child.kind == kind);
    match (like_it.next(), like_it.next()) {
        (Some(child), None) => Ok(Some(format!("{anonymous}/{}", child.name))),
        _ => Ok(None),
    }
}

fn number(qmp: &mut dyn Qmp, path: &str, property: &str) -> Result<Option<usize>, Error> {
    match qmp.execute("qom-get", json!({ "path": path, "property": property })) {
        Ok(value) => Ok(value.as_u64().and_then(|ports| usize::try_from(ports.min(15)).ok())),
        Err(Error::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the USB buses out of `info qtree` (`softmmu/qdev-monitor.c`: `qdev_print`, `qbus_print`;
/// `hw/usb/bus.c`: `usb_bus_dev_print`). A product's name is the last thing in its line, and only
/// lines at a device's own depth are taken for it. Of more buses and devices than a guest can have
/// the rest is left out.
fn parse_qtree(text: &str) -> Vec<GuestBus> {
    let mut buses: Vec<GuestBus> = Vec::new();
    // The devices around the line, outermost first: depth, type, id.
    let mut devices: Vec<(usize, String, Option<String>)> = Vec::new();
    let mut bus: Option<(usize, GuestBus)> = None;
    let mut in_usb = false;
    for line in text.lines() {
        let line = line.trim_end_matches('\r');
        let depth = line.len() - line.trim_start_matches(' ').len();
        let word = &line[depth..];
        if bus.as_ref().is_some_and(|(of_bus, _)| depth <= *of_bus) {
            let room = buses.len() < MAX_BUSES;
            buses.extend(bus.take().filter(|_| in_usb && room).map(|(_, bus)| bus));
        }
        devices.retain(|(of_device, _, _)| *of_device < depth);
        if let Some(name) = word.strip_prefix("bus: ") {
            let (controller, id) =
                devices.last().map(|(_, kind, id)| (kind.clone(), id.clone())).unwrap_or_default();
            let name = sanitize(name, 64);
            let (ports, devices) = (Vec::new(), Vec::new());
            bus = Some((depth, GuestBus { name, controller, id, ports, devices }));
            in_usb = false;
        } else if word == "type usb-bus" {
            in_usb = true;
        } else if let Some((kind, id)) = device(word) {
            devices.push((depth, kind, id));
        } else if let Some((of_bus, bus)) = &mut bus
            && in_usb
            && depth == *of_bus + 4
            && bus.devices.len() < MAX_DEVICES
            && let Some((_, _, id)) = devices.last()
        {
            bus.devices.extend(occupant(word, id.clone()));
        }
    }
    let room = buses.len() < MAX_BUSES;
    buses.extend(bus.filter(|_| in_usb && room).map(|(_, bus)| bus));
    buses
}

/// Reads `dev: usb-host, id "hotplugger-1-1-2"`.
fn device(word: &str) -> Option<(String, Option<String>)> {
    let (kind, id) = word.strip_prefix("dev: ")?.split_once(", id \"")?;
    let id = id.strip_suffix('"')?;
    Some((sanitize(kind, 64), (!id.is_empty()).then(|| sanitize(id, 128))))
}

/// Reads `addr 0.1, port 3.2, speed 12, name QEMU USB Mouse, attached`.
fn occupant(word: &str, id: Option<String>) -> Option<GuestDevice> {
    let (_, rest) = word.strip_prefix("addr ")?.split_once(", port ")?;
    let (port, rest) = rest.split_once(", speed ")?;
    let (speed, name) = rest.split_once(", name ")?;
    let (name, attached) =
        name.strip_suffix(", attached").map_or((name, false), |name| (name, true));
    Some(GuestDevice {
        id,
        port: sanitize(port, 16),
        speed: speed.parse().ok(),
        product: sanitize(name, 64),
        attached,
    })
}

#[cfg(test)]
mod tests;
