//! The guest's USB buses: their controllers, their ports, and the devices on them.

use serde_json::{Value, json};

use super::hmp;
use super::objects::{ANONYMOUS, PERIPHERAL, children, property};
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
    /// Empty if they are not known.
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
    fn new(name: &str, controller: &Controller) -> Self {
        Self {
            name: sanitize(name, 64),
            controller: controller.kind.clone(),
            id: controller.id.clone(),
            ports: controller.ports(),
            devices: Vec::new(),
        }
    }

    /// Returns the numbers of the free ports at which a device of that speed has it.
    pub fn free_ports_for(&self, speed: Speed) -> Vec<usize> {
        let speed = speed.min(Speed::SUPER);
        let takes = |range: SpeedRange| range.takes(speed);
        let fits = self.free_ports().filter(|(_, range)| range.is_some_and(takes));
        fits.map(|(number, _)| number).collect()
    }

    /// Returns the numbers of the free ports with their speeds. If the ports are not known, these are
    /// all numbers that a port may have.
    pub fn free_ports(&self) -> impl Iterator<Item = (usize, Option<SpeedRange>)> {
        let is_taken = |number: usize| {
            let number = number.to_string();
            self.devices.iter().any(|device| device.port.split('.').next() == Some(&number))
        };
        let count = if self.ports.is_empty() { MAX_PORTS } else { self.ports.len() };
        let free = (1..=count).filter(move |number| !is_taken(*number));
        free.map(|number| (number, self.ports.get(number - 1).copied()))
    }
}

/// Queries the guest's USB buses, in the order in which they were created, and only those that
/// `hubs` name, if they name any.
///
/// HMP also shows which ports are taken. If QEMU refuses HMP, QOM shows the controllers, and all
/// their ports count as free.
///
/// It takes one command, and two more for each xHCI, because the tree lacks its numbers of ports. An
/// xHCI without an ID takes one more, or two if it is part of the machine.
pub fn buses(qmp: &mut dyn Qmp, hubs: &[String]) -> Result<Vec<GuestBus>, Error> {
    let (all, companions) = match hmp::run(qmp, "info qtree")? {
        Some(text) => parse_qtree(&text),
        None => buses_by_qom(qmp)?,
    };
    let is_wanted = |bus: &&GuestBus| hubs.is_empty() || hubs.contains(&bus.name);
    let mut buses: Vec<GuestBus> = all.iter().filter(is_wanted).cloned().collect();
    for bus in &mut buses {
        if bus.controller.ends_with("xhci") {
            bus.ports = xhci_ports(qmp, bus, &all)?;
        }
        for companion in companions.iter().filter(|companion| companion.master_bus == bus.name) {
            let shared = bus.ports.iter_mut().skip(companion.first_port);
            shared.take(companion.ports().len()).for_each(|port| port.min = Speed::LOW);
        }
    }
    Ok(buses)
}

/// Returns the QEMU arguments that give a guest with these buses more ports: the largest xHCI in
/// place of a smaller one, else another one.
pub fn suggest_controller(qmp: &mut dyn Qmp, buses: &[GuestBus], hubs: &[String]) -> String {
    let count = |bus: &GuestBus, speed| bus.ports.iter().filter(|port| port.takes(speed)).count();
    let small = buses.iter().find(|bus| {
        let (usb2, usb3) = (count(bus, Speed::HIGH), count(bus, Speed::SUPER));
        bus.controller.ends_with("xhci") && bus.id.is_some() && usb2.min(usb3) < MAX_PORTS
    });
    if let Some(GuestBus { controller, id: Some(id), .. }) = small {
        return format!("-device {controller},id={id},p2=15,p3=15 in place of its {id}");
    }
    let taken = children(qmp, PERIPHERAL).unwrap_or_default();
    let mut ids = (0..).map(|number| format!("xhci{number}"));
    let id = ids.find(|id| !taken.iter().any(|(name, _)| name == id)).unwrap_or_default();
    let has_no_pci = qmp.execute("query-pci", Value::Null).is_ok_and(|reply| reply == json!([]));
    let machine = match has_no_pci.then(|| property(qmp, "/machine", "type")) {
        None => "",
        // Its own xHCI has 8 ports, a fixed number (`hw/i386/microvm.c`: `microvm_devices_init`).
        Some(Ok(kind)) if kind == "microvm-machine" => "-machine microvm,pcie=on ",
        Some(_) => "a machine type that has PCI and ",
    };
    let bus = format!("{id}.0");
    let is_used = hubs.is_empty() || hubs.contains(&bus);
    let also = if is_used { String::new() } else { format!(" and add {bus} to `hubs:`") };
    format!("{machine}-device qemu-xhci,id={id},p2=15,p3=15{also}")
}

/// A USB controller. In `info qtree` any device counts as one until its buses are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Controller {
    kind: String,
    id: Option<String>,
    num_ports: Option<usize>,
    /// The bus of an EHCI whose ports a UHCI or OHCI shares. The ports then take slow devices too
    /// (`hw/usb/hcd-ehci.c`: `ehci_register_companion`).
    master_bus: String,
    first_port: usize,
}

impl Controller {
    fn new(kind: &str, id: Option<&str>) -> Self {
        let (kind, id) = (sanitize(kind, 64), id.map(|id| sanitize(id, 128)));
        Self { kind, id, ..Self::default() }
    }

    /// The speeds at each port of a controller that is no xHCI (`hw/usb/hcd-*.c`). A machine's own
    /// EHCI may have fewer ports.
    fn ports(&self) -> Vec<SpeedRange> {
        let (low, high) = (Speed::LOW, Speed::HIGH);
        let is = |kind| self.kind.contains(kind);
        let (min, max, count) = match () {
            () if is("ehci") => (high, high, 6),
            () if is("uhci") => (low, Speed::FULL, 2),
            () if is("ohci") => (low, Speed::FULL, self.num_ports.unwrap_or(3).min(MAX_PORTS)),
            () => (low, high, 0),
        };
        vec![SpeedRange { min, max }; count]
    }
}

/// The most ports of a controller (`hw/usb/hcd-xhci.h`: `XHCI_MAXPORTS_2`; `hw/usb/hcd-ohci.h`:
/// `OHCI_MAX_PORTS`).
pub const MAX_PORTS: usize = 15;

/// The most controllers that are read. Each one costs commands.
const MAX_BUSES: usize = 128;

/// The most devices on a bus (USB 2.0 specification, 4.1.1).
const MAX_DEVICES: usize = 127;

/// Finds the USB controllers and their buses by QOM, without the devices on them.
fn buses_by_qom(qmp: &mut dyn Qmp) -> Result<(Vec<GuestBus>, Vec<Controller>), Error> {
    let (mut buses, mut companions) = (Vec::new(), Vec::new());
    for directory in [UNATTACHED, PERIPHERAL, ANONYMOUS] {
        let mut controllers = children(qmp, directory)?;
        controllers.retain(|(_, kind)| {
            ["xhci", "ehci", "uhci", "ohci"].iter().any(|part| kind.contains(part))
        });
        controllers.sort();
        controllers.truncate(MAX_BUSES);
        for (name, kind) in controllers {
            let path = format!("{directory}/{name}");
            let id = (directory == PERIPHERAL).then_some(name.as_str());
            let mut controller = Controller::new(&kind, id);
            if kind.contains("ohci") {
                controller.num_ports = number_property(qmp, &path, "num-ports")?;
            }
            let bus = children(qmp, &path)?.into_iter().find(|(_, kind)| kind == "usb-bus");
            if let Some((bus, _)) = bus {
                buses.push(GuestBus::new(&bus, &controller));
            } else if let Value::String(bus) = property(qmp, &path, "masterbus")? {
                controller.master_bus = sanitize(&bus, 64);
                controller.first_port = number_property(qmp, &path, "firstport")?.unwrap_or(0);
                companions.push(controller);
            }
        }
    }
    Ok((buses, companions))
}

/// The speeds at each port of an xHCI, or none if QEMU does not show them. `all`: the guest's buses.
fn xhci_ports(
    qmp: &mut dyn Qmp,
    bus: &GuestBus,
    all: &[GuestBus],
) -> Result<Vec<SpeedRange>, Error> {
    let Some(path) = controller_path(qmp, bus, all)? else { return Ok(Vec::new()) };
    let usb2 = number_property(qmp, &path, "p2")?.unwrap_or(0).min(MAX_PORTS);
    let usb3 = number_property(qmp, &path, "p3")?.unwrap_or(0).min(MAX_PORTS);
    let range = |port| SpeedRange {
        min: if port <= usb2 { Speed::LOW } else { Speed::SUPER },
        max: if port <= usb3 { Speed::SUPER } else { Speed::HIGH },
    };
    Ok((1..=usb2.max(usb3)).map(range).collect())
}

/// Returns the QOM path of a bus's controller, or `None` if it is not known.
///
/// Controllers without an ID are numbered as they are made, and so are their buses
/// (`hw/core/bus.c`: `qbus_init_internal`). Those of the machine are made first.
fn controller_path(
    qmp: &mut dyn Qmp,
    bus: &GuestBus,
    all: &[GuestBus],
) -> Result<Option<String>, Error> {
    if let Some(id) = &bus.id {
        return Ok(Some(format!("{PERIPHERAL}/{id}")));
    }
    let is_alike = |other: &&GuestBus| other.id.is_none() && other.controller == bus.controller;
    let alike = || all.iter().filter(is_alike);
    let mut paths = Vec::new();
    for directory in [ANONYMOUS, UNATTACHED] {
        if paths.len() < alike().count() {
            let mut found = children(qmp, directory)?;
            found.retain(|(_, kind)| *kind == bus.controller);
            found.sort_by_key(|(name, _)| number(name));
            paths.splice(0..0, found.into_iter().map(|(name, _)| format!("{directory}/{name}")));
        }
    }
    let older = alike().filter(|other| number(&other.name) < number(&bus.name)).count();
    Ok((paths.len() == alike().count()).then(|| paths.swap_remove(older)))
}

/// Returns the number in `device[12]` or `usb-bus.1`.
fn number(name: &str) -> Option<usize> {
    name.trim_end_matches(']').rsplit(['[', '.']).next()?.parse().ok()
}

/// Where QEMU keeps the machine's own devices (`hw/core/qdev.c`: `device_set_realized`).
const UNATTACHED: &str = "/machine/unattached";

fn number_property(qmp: &mut dyn Qmp, path: &str, name: &str) -> Result<Option<usize>, Error> {
    Ok(property(qmp, path, name)?.as_u64().and_then(|number| number.try_into().ok()))
}

/// Parses the USB buses in `info qtree`, which lists the newest first, and returns the oldest first
/// (`softmmu/qdev-monitor.c`: `qdev_print`, `qbus_print`; `hw/usb/bus.c`: `usb_bus_dev_print`).
///
/// A product name is at the end of its line. Only lines at the depth of a device's properties count,
/// so a name cannot pose as another line.
fn parse_qtree(text: &str) -> (Vec<GuestBus>, Vec<Controller>) {
    let (mut buses, mut companions) = (Vec::new(), Vec::new());
    // The devices around the line, outermost first, with their depths.
    let mut devices: Vec<(usize, Controller)> = Vec::new();
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
        }
        devices.retain(|(device_depth, _)| *device_depth < depth);
        if let Some(controller) = parse_device(line) {
            devices.push((depth, controller));
            continue;
        }
        let Some((device_depth, device)) = devices.last_mut() else { continue };
        if let Some((bus_depth, bus)) = &mut bus
            && is_usb
        {
            // A device on it may have a bus of its own, such as the SCSI bus of a disk.
            if depth == *bus_depth + 4 && bus.devices.len() < MAX_DEVICES {
                bus.devices.extend(parse_usb_device(line, device.id.clone()));
            }
        } else if let Some(name) = line.strip_prefix("bus: ") {
            bus = Some((depth, GuestBus::new(name, device)));
            is_usb = false;
        } else if line == "type usb-bus" {
            is_usb = true;
        } else if let Some((name, value)) = line.split_once(" = ")
            && depth == *device_depth + 2
        {
            let number = || value.split(' ').next()?.parse().ok();
            match name {
                "num-ports" => device.num_ports = number(),
                "masterbus" => device.master_bus = sanitize(value.trim_matches('"'), 64),
                // It follows the other two.
                "firstport" if !device.master_bus.is_empty() && companions.len() < MAX_BUSES => {
                    device.first_port = number().unwrap_or(0);
                    companions.push(device.clone());
                }
                _ => {}
            }
        }
    }
    buses.reverse();
    (buses, companions)
}

/// Parses `dev: usb-host, id "hotplugger-1-1-2"`.
fn parse_device(line: &str) -> Option<Controller> {
    let (kind, id) = line.strip_prefix("dev: ")?.split_once(", id \"")?;
    let id = id.strip_suffix('"')?;
    Some(Controller::new(kind, (!id.is_empty()).then_some(id)))
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
