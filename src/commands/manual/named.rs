//! The devices in a port that was named on the command line.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::host::topology::read::devpath_of;
use crate::host::topology::{HubPort, Topology};
use crate::port::Port;
use crate::root::Root;

/// The devices that are in the port, in the other half of its connector, or behind a hub there.
///
/// # Errors
///
/// The text is no port's name, or nothing is plugged in there.
pub(super) fn devices<'a>(
    root: &Root,
    topology: &'a Topology,
    text: &str,
) -> Result<Vec<&'a HubPort>> {
    let name = name(root, topology, text)?;
    let ports = topology.devices().map(|(port, _)| port);
    let devices: Vec<&HubPort> =
        ports.filter(|port| name.has(&topology.places(&port.devpath), true)).collect();
    if !devices.is_empty() {
        return Ok(devices);
    }
    if !topology.all_places().iter().any(|place| name.is(place)) {
        bail!("{text}: this host has no such port now; `hotplugger ports` shows those it has");
    }
    bail!("{text}: nothing is plugged in there");
}

fn name(root: &Root, topology: &Topology, text: &str) -> Result<PortName> {
    if let Ok(port) = text.parse::<Port>() {
        let known = topology.ports().into_iter().find(|known| known.port == port);
        let known = known.with_context(|| {
            format!("{text}: this host has no such port now; `hotplugger ports` shows those it has")
        })?;
        return Ok(PortName::DevPath(known.devpath.clone()));
    }
    if text.starts_with("/sys/") {
        let devpath: Option<DevPath> = devpath_of(&root.path("/sys"), &root.path(Path::new(text)));
        let devpath = devpath.filter(|devpath| devpath.port().is_some());
        return devpath.map(PortName::DevPath).with_context(|| {
            format!("{text}: no USB device; `hotplugger ports` shows what is plugged in where")
        });
    }
    text.parse().map_err(|error| {
        anyhow::anyhow!(
            "`{text}` {error}; write a port as `hotplugger ports` shows it, such as 1-4 or \
             pci-0000:00:14.0/usb2:4"
        )
    })
}
