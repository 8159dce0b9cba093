//! Ports that the host does not have, and what may have become of them.

use crate::check::finding::Finding;
use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::host::topology::{Hub, HubPort, Plugged};

/// The port is one of a hub that is not there, or of one with fewer ports.
pub(super) fn behind_hub(port: &PortName, above: &HubPort) -> Finding {
    let what = match &above.plugged {
        Some(Plugged::Hub(device, hub)) => {
            format!("the {} in {} has {} ports only", device.label(), above.port, hub.ports.len())
        }
        Some(Plugged::Device(device)) => {
            format!("it is a port of a hub, but in {} is {} now", above.port, device.label())
        }
        None => format!("it is a port of a hub that is not plugged into {} now", above.port),
    };
    Finding::note("port-hub-away", port, what)
}

/// The root hub has fewer ports.
pub(super) fn no_such_port(port: &PortName, root_hub: &Hub) -> Finding {
    let last = root_hub.ports.iter().map(|port| port.port.number()).max().unwrap_or_default();
    Finding::fault(
        "port-missing",
        port,
        format!("{} has no such port, it has 1 to {last}", root_hub.devpath.sysname()),
    )
    .advice("`hotplugger identify` tells the name of the port that a device is plugged into")
}

/// The port with `bus` replaced, and the root hub's port it is at or below, if it is in one.
pub(super) fn on_other_bus(
    port: &DevPath,
    bus: &DevPath,
    other: &DevPath,
) -> Option<(Option<DevPath>, DevPath)> {
    let old = format!("{}-", bus.sysname().strip_prefix("usb")?);
    let new = format!("{}-", other.sysname().strip_prefix("usb")?);
    let mut first = None;
    let mut moved = other.to_string();
    for name in port.usb_components().skip(1) {
        moved = format!("{moved}/{new}{}", name.strip_prefix(&old)?);
        if first.is_none() {
            first = Some(moved.parse().ok()?);
        }
    }
    Some((first, moved.parse().ok()?))
}
