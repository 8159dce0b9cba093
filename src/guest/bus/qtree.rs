//! `info qtree`, read. Pure.

use super::{GuestBus, GuestDevice, MAX_BUSES, MAX_DEVICES};
use crate::text::sanitize;

/// Reads the USB buses out of `info qtree` (`softmmu/qdev-monitor.c`: `qdev_print`, `qbus_print`;
/// `hw/usb/bus.c`: `usb_bus_dev_print`). A product's name is the last thing in its line, and only
/// lines at a device's own depth are taken for it. Of more buses and devices than a guest can have
/// the rest is left out.
pub(super) fn parse_qtree(text: &str) -> Vec<GuestBus> {
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
pub(super) fn device(word: &str) -> Option<(String, Option<String>)> {
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
