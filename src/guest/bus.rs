//! The guest's USB buses: their controllers, their ports, and the devices on them.

use serde_json::{Value, json};

use super::hmp;
use super::objects::{PERIPHERAL, children};
use crate::qmp::{Error, Qmp};
use crate::speed::Speed;
use crate::text::sanitize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestBus {
    /// Its name for `hubs:` and `device_add`, such as `xhci0.0`.
    pub name: String,
    /// The type of its controller, such as `qemu-xhci`.
    pub controller: String,
    pub id: Option<String>,
    pub ports: Vec<SpeedRange>,
    pub devices: Vec<GuestDevice>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeedRange {
    pub min: Speed,
    pub max: Speed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDevice {
    pub id: Option<String>,
    /// Its port. `4.1` is behind a hub in port 4.
    pub port: String,
    pub speed: Option<Speed>,
    pub product: String,
    /// Whether the object has a device.
    pub attached: bool,
}

impl SpeedRange {
    /// Returns whether a device of that speed has it at this port.
    pub fn takes(self, speed: Speed) -> bool {
        self.min <= speed && speed <= self.max
    }
}

impl GuestBus {
    fn new(name: &str, controller: String, id: Option<String>) -> Self {
        let name = sanitize(name, 64);
        Self { name, controller, id, ports: Vec::new(), devices: Vec::new() }
    }

    /// Returns the numbers of the free ports at which a device of that speed has it.
    pub fn free_ports_for(&self, speed: Speed) -> Vec<usize> {
        let speed = speed.min(Speed::SUPER);
        let fits = self.free_ports().filter(|(_, range)| range.takes(speed));
        fits.map(|(number, _)| number).collect()
    }

    /// Returns the numbers of the free ports with their speeds.
    pub fn free_ports(&self) -> impl Iterator<Item = (usize, SpeedRange)> {
        let is_taken = |number: usize| {
            let number = number.to_string();
            self.devices.iter().any(|device| device.port.split('.').next() == Some(&number))
        };
        (1..).zip(self.ports.iter().copied()).filter(move |(number, _)| !is_taken(*number))
    }
}

/// Queries the guest's USB buses, in the order in which they were created, and only those that
/// `hubs` name, if they name any.
///
/// HMP also shows which ports are taken. If QEMU refuses HMP, QOM shows the controllers, and all
/// their ports count as free.
///
/// It takes one command, and two more for each xHCI, because the tree lacks its numbers of ports.
pub fn buses(qmp: &mut dyn Qmp, hubs: &[String]) -> Result<Vec<GuestBus>, Error> {
    let (mut buses, companions) = match hmp::run(qmp, "info qtree")? {
        Some(text) => (parse_qtree(&text), parse_companions(&text)),
        None => buses_by_qom(qmp)?,
    };
    buses.retain(|bus| hubs.is_empty() || hubs.contains(&bus.name));
    for bus in &mut buses {
        bus.ports = ports(qmp, bus)?;
        for companion in companions.iter().filter(|companion| companion.bus == bus.name) {
            let ports = bus.ports.iter_mut().skip(companion.first).take(companion.count);
            ports.for_each(|port| port.min = Speed::LOW);
        }
    }
    Ok(buses)
}

/// A UHCI or OHCI that shares ports of an EHCI's bus, which then take slow devices too
/// (`hw/usb/hcd-ehci.c`: `ehci_register_companion`).
#[derive(Debug, PartialEq, Eq)]
struct Companion {
    bus: String,
    first: usize,
    count: usize,
}

impl Companion {
    fn new(bus: &str, controller: &str) -> Self {
        let count = if controller.contains("uhci") { 2 } else { 3 };
        Self { bus: sanitize(bus, 64), first: 0, count }
    }
}

/// The most controllers that are read. Each one costs commands.
const MAX_BUSES: usize = 128;

/// The most devices on a bus (USB 2.0 specification, 4.1.1).
const MAX_DEVICES: usize = 127;

/// Finds the USB controllers and their buses by QOM, without the devices on them.
fn buses_by_qom(qmp: &mut dyn Qmp) -> Result<(Vec<GuestBus>, Vec<Companion>), Error> {
    let (mut buses, mut companions) = (Vec::new(), Vec::new());
    for directory in [PERIPHERAL, ANONYMOUS] {
        let mut controllers = children(qmp, directory)?;
        controllers.retain(|(_, kind)| {
            ["xhci", "ehci", "uhci", "ohci"].iter().any(|part| kind.contains(part))
        });
        controllers.sort();
        controllers.truncate(MAX_BUSES);
        for (name, controller) in controllers {
            let path = format!("{directory}/{name}");
            let bus = children(qmp, &path)?.into_iter().find(|(_, kind)| kind == "usb-bus");
            if let Some((bus, _)) = bus {
                let id = (directory == PERIPHERAL).then(|| sanitize(&name, 128));
                buses.push(GuestBus::new(&bus, sanitize(&controller, 64), id));
            } else if let Value::String(bus) = property(qmp, &path, "masterbus")? {
                let first = property(qmp, &path, "firstport")?.as_u64().unwrap_or(0);
                let first = usize::try_from(first).unwrap_or(usize::MAX);
                companions.push(Companion { first, ..Companion::new(&bus, &controller) });
            }
        }
    }
    Ok((buses, companions))
}

/// Parses the lines `masterbus = "usb.0"` and `firstport = 2 (0x2)` of controllers in `info qtree`.
fn parse_companions(text: &str) -> Vec<Companion> {
    let mut companions: Vec<Companion> = Vec::new();
    let (mut controller, mut is_open) = (String::new(), false);
    for line in text.lines() {
        let line = line.trim();
        if let Some((kind, _)) = parse_device(line) {
            (controller, is_open) = (kind, false);
        } else if let Some(bus) = line.strip_prefix("masterbus = \"") {
            let bus = bus.trim_end_matches('"');
            is_open = controller.contains("hci") && !bus.is_empty() && companions.len() < MAX_BUSES;
            companions.extend(is_open.then(|| Companion::new(bus, &controller)));
        } else if let Some(first) = line.strip_prefix("firstport = ")
            && is_open
            && let Some(companion) = companions.last_mut()
        {
            let first = first.split(' ').next().unwrap_or_default();
            companion.first = first.parse().unwrap_or(0);
        }
    }
    companions
}

/// The speeds at each port of a controller (`hw/usb/hcd-*.c`).
fn ports(qmp: &mut dyn Qmp, bus: &GuestBus) -> Result<Vec<SpeedRange>, Error> {
    let (low, high) = (Speed::LOW, Speed::HIGH);
    let controller = bus.controller.as_str();
    if !controller.ends_with("xhci") {
        let is = |kind| controller.contains(kind);
        let (min, max, count) = match () {
            () if is("ehci") => (high, high, 6),
            () if is("uhci") => (low, Speed::FULL, 2),
            () if is("ohci") => (low, Speed::FULL, 3),
            () => (low, high, 0),
        };
        return Ok(vec![SpeedRange { min, max }; count]);
    }
    // Four of each is the default (`hw/usb/hcd-xhci-pci.c`), 15 the most.
    let count = |value: Value| {
        value.as_u64().map_or(4, |count| usize::try_from(count).unwrap_or(15).min(15))
    };
    let (usb2, usb3) = match controller_path(qmp, bus)? {
        Some(path) => (count(property(qmp, &path, "p2")?), count(property(qmp, &path, "p3")?)),
        None => (4, 4),
    };
    let range = |port| SpeedRange {
        min: if port <= usb2 { low } else { Speed::SUPER },
        max: if port <= usb3 { Speed::SUPER } else { high },
    };
    Ok((1..=usb2.max(usb3)).map(range).collect())
}

/// Returns the QOM path of a bus's controller, or `None` if several are like it.
fn controller_path(qmp: &mut dyn Qmp, bus: &GuestBus) -> Result<Option<String>, Error> {
    if let Some(id) = &bus.id {
        return Ok(Some(format!("{PERIPHERAL}/{id}")));
    }
    let mut alike = children(qmp, ANONYMOUS)?;
    alike.retain(|(_, kind)| *kind == bus.controller);
    Ok(match alike.as_slice() {
        [(name, _)] => Some(format!("{ANONYMOUS}/{name}")),
        _ => None,
    })
}

/// Where QEMU keeps the devices without an ID (`softmmu/qdev-monitor.c`: `qdev_set_id`).
const ANONYMOUS: &str = "/machine/peripheral-anon";

/// Returns a property's value, or null if the object has no such property.
fn property(qmp: &mut dyn Qmp, path: &str, property: &str) -> Result<Value, Error> {
    match qmp.execute("qom-get", json!({ "path": path, "property": property })) {
        Err(Error::Command { .. }) => Ok(Value::Null),
        answer => answer,
    }
}

/// Parses the USB buses in `info qtree`, which lists the newest first, and returns the oldest first
/// (`softmmu/qdev-monitor.c`: `qdev_print`, `qbus_print`; `hw/usb/bus.c`: `usb_bus_dev_print`).
///
/// A product name is at the end of its line. Only lines at the depth of a device's properties count,
/// so a name cannot pose as another line.
fn parse_qtree(text: &str) -> Vec<GuestBus> {
    let mut buses: Vec<GuestBus> = Vec::new();
    // The devices around the line, outermost first: depth, type, ID.
    let mut devices: Vec<(usize, String, Option<String>)> = Vec::new();
    let mut bus: Option<(usize, GuestBus)> = None;
    let mut is_usb = false;
    // The empty line at the end closes the last bus.
    for line in text.lines().chain([""]) {
        let line = line.trim_end_matches('\r');
        let depth = line.len() - line.trim_start_matches(' ').len();
        let line = &line[depth..];
        if bus.as_ref().is_some_and(|(bus_depth, _)| depth <= *bus_depth) {
            let has_room = buses.len() < MAX_BUSES;
            buses.extend(bus.take().filter(|_| is_usb && has_room).map(|(_, bus)| bus));
            is_usb = false;
        }
        devices.retain(|(device_depth, ..)| *device_depth < depth);
        // A device on a USB bus may have a bus of its own, such as the SCSI bus of a disk.
        if let Some(name) = line.strip_prefix("bus: ")
            && !is_usb
        {
            let (controller, id) =
                devices.last().map(|(_, kind, id)| (kind.clone(), id.clone())).unwrap_or_default();
            bus = Some((depth, GuestBus::new(name, controller, id)));
        } else if line == "type usb-bus" {
            is_usb = true;
        } else if let Some((kind, id)) = parse_device(line) {
            devices.push((depth, kind, id));
        } else if let Some((bus_depth, bus)) = &mut bus
            && is_usb
            && depth == *bus_depth + 4
            && bus.devices.len() < MAX_DEVICES
            && let Some((_, _, id)) = devices.last()
        {
            bus.devices.extend(parse_usb_device(line, id.clone()));
        }
    }
    buses.reverse();
    buses
}

/// Parses `dev: usb-host, id "hotplugger-1-1-2"`.
fn parse_device(line: &str) -> Option<(String, Option<String>)> {
    let (kind, id) = line.strip_prefix("dev: ")?.split_once(", id \"")?;
    let id = id.strip_suffix('"')?;
    Some((sanitize(kind, 64), (!id.is_empty()).then(|| sanitize(id, 128))))
}

/// Parses `addr 0.1, port 3.2, speed 12, name QEMU USB Mouse, attached`.
fn parse_usb_device(line: &str, id: Option<String>) -> Option<GuestDevice> {
    let (_, rest) = line.strip_prefix("addr ")?.split_once(", port ")?;
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
