//! The configured ports against the ports of the host.

use std::fmt;
use std::path::Path;

use super::finding::Finding;
use crate::config::port::PortName;
use crate::config::{Config, VirtualMachine};
use crate::devpath::{DevPath, is_root_hub};
use crate::host::topology::{Controller, Hub, HubPort, Plugged, Topology};
use crate::location::Generation;
use crate::usb_device::UsbDevice;

pub fn check(config: &Config, path: &Path, topology: &Topology) -> Vec<Finding> {
    let mut entries = Vec::new();
    for vm in &config.virtual_machines {
        for name in &vm.ports {
            entries.push(Entry { vm, name, devpaths: topology.devpaths(name) });
        }
    }
    let ports = Ports { config, path, topology, entries: &entries };
    let mut findings = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        findings.extend(ports.twice(index, entry));
        findings.extend(ports.better_name(entry));
        if entry.devpaths.is_empty() {
            findings.push(ports.nowhere(entry));
        }
        for devpath in &entry.devpaths {
            findings.push(ports.there(entry, devpath));
            findings.extend(ports.hardwired(entry, devpath));
            findings.extend(ports.companions(entry, devpath));
            findings.extend(ports.peer(entry, devpath));
            findings.extend(ports.below(entry, devpath));
        }
    }
    findings
}

/// An entry in the `ports:` of a VM.
struct Entry<'a> {
    vm: &'a VirtualMachine,
    name: &'a PortName,
    /// The DEVPATHs that it means on this host today, whether such a port exists or not.
    devpaths: Vec<DevPath>,
}

struct Ports<'a> {
    config: &'a Config,
    path: &'a Path,
    topology: &'a Topology,
    entries: &'a [Entry<'a>],
}

impl Ports<'_> {
    fn there(&self, entry: &Entry<'_>, port: &DevPath) -> Finding {
        if self.topology.port(port).is_some() || self.root_hub(port).is_some() {
            let what = format!("a port of this host, for `{}`", entry.vm.name);
            return Finding::ok("port-there", entry.name, what);
        }
        let mut above = port.parent();
        while let Some(hub) = above {
            if let Some(of_hub) = self.topology.port(&hub) {
                return behind_hub(entry.name, of_hub);
            }
            if is_root_hub(hub.sysname()) {
                return match self.root_hub(&hub) {
                    Some(root_hub) => no_such_port(entry.name, root_hub),
                    None => self.no_such_bus(entry.vm, port, &hub),
                };
            }
            above = hub.parent();
        }
        self.no_such_bus(entry.vm, port, port)
    }

    /// A name for which there is a better one.
    fn better_name(&self, entry: &Entry<'_>) -> Option<Finding> {
        let port = entry.devpaths.first()?;
        let finding = match entry.name {
            PortName::Stable { controller, .. } if controller.is_unstable() => {
                let what = "its controller is numbered when the kernel finds it, perhaps otherwise after the next boot";
                Finding::warning("port-unstable", entry.name, what)
            }
            PortName::DevPathEnd(_) => {
                let what =
                    "this is the end of a DEVPATH, which stands for one half of its connector only";
                Finding::note("port-incomplete", entry.name, what)
            }
            PortName::Stable { .. } | PortName::DevPath(_) => return None,
        };
        Some(finding.ports(self.path, &entry.vm.name, Some(entry.name), Some(&self.name(port))))
    }

    fn hardwired(&self, entry: &Entry<'_>, port: &DevPath) -> Option<Finding> {
        let port = self.topology.port(port)?;
        if port.connector.connect_type.as_deref() != Some("hardwired") {
            return None;
        }
        let device = port.device().map_or_else(
            || "a built-in camera or Bluetooth radio, for example".to_owned(),
            UsbDevice::label,
        );
        let what =
            format!("the firmware says that it is hardwired to {device}, and not a connector");
        Some(Finding::warning("port-hardwired", entry.name, what).advice(
            "if the VM is not to have it, remove the port; `hotplugger identify` shows the port of a \
             connector",
        ))
    }

    /// The port of an EHCI or of a companion, whose counterpart is not known.
    fn companions(&self, entry: &Entry<'_>, port: &DevPath) -> Option<Finding> {
        let controllers = &self.topology.port(port)?.connector.companions;
        if !entry.vm.peer_ports || controllers.is_empty() {
            return None;
        }
        let names: Vec<&str> = controllers.iter().map(DevPath::sysname).collect();
        let what = format!(
            "{} devices in its connector appear in a port of {}, and it is not known which",
            other_speed(self.topology.port_location(port).generation),
            names.join(" or ")
        );
        Some(Finding::note("port-companion", entry.name, what).advice(
            "`hotplugger identify` shows the port when you plug in such a device; list it too",
        ))
    }

    fn root_hub(&self, devpath: &DevPath) -> Option<&Hub> {
        let hubs = self.topology.controllers.iter().flat_map(|controller| &controller.root_hubs);
        hubs.into_iter().find(|hub| hub.devpath == *devpath)
    }

    /// A name without a bus number that matches no port of this host.
    fn nowhere(&self, entry: &Entry<'_>) -> Finding {
        let PortName::Stable { controller, generation, .. } = entry.name else {
            let what = "no port of this host has a DEVPATH that ends so";
            return Finding::error("port-missing", entry.name, what)
                .advice("`hotplugger ports` shows the host's ports with their names");
        };
        let known = self.topology.controllers.iter();
        let known = known.filter(|known| known.is_named(controller)).count();
        match generation {
            Some(generation) if known > 0 => Finding::error(
                "port-missing",
                entry.name,
                format!("{controller} has no root hub for USB {}", generation.number()),
            )
            .advice("`hotplugger ports` shows the host's ports with their names"),
            _ => self.no_controller(entry.name),
        }
    }

    fn no_controller(&self, port: &impl fmt::Display) -> Finding {
        let what = if self.topology.controllers.is_empty() {
            "this host has no USB controller"
        } else {
            "this host has no such USB controller"
        };
        Finding::error("port-no-controller", port, what).advice(format!(
            "`hotplugger ports` lists the ports of the host, `hotplugger identify` shows the one that \
             you plug a device into; write that port to {}",
            self.path.display()
        ))
    }

    /// Whether an earlier entry means the same port.
    fn twice(&self, index: usize, entry: &Entry<'_>) -> Option<Finding> {
        let same =
            |first: &&Entry<'_>| !first.devpaths.is_empty() && first.devpaths == entry.devpaths;
        let first = self.entries[..index].iter().find(same)?;
        let finding = Finding::warning(
            "port-twice",
            entry.name,
            format!("it is the same port as {}, which `{}` has", first.name, first.vm.name),
        );
        Some(finding.ports(self.path, &entry.vm.name, Some(entry.name), None::<&DevPath>))
    }

    fn no_such_bus(&self, vm: &VirtualMachine, port: &DevPath, bus: &DevPath) -> Finding {
        let controller = bus.parent().and_then(|of_bus| {
            self.topology.controllers.iter().find(|known| known.devpath == of_bus)
        });
        let Some(controller) = controller else { return self.no_controller(port) };
        let has: Vec<&str> = controller.root_hubs.iter().map(|hub| hub.devpath.sysname()).collect();
        let finding = Finding::error(
            "port-bus-moved",
            port,
            format!(
                "its controller {} has no {}, but {}: bus numbers can change from boot to boot",
                controller.devpath.sysname(),
                bus.sysname(),
                has.join(" and ")
            ),
        );
        match self.candidates(controller, port, bus).as_slice() {
            [] => finding
                .advice("`hotplugger identify` shows the name of the port, which does not change"),
            [one] => finding.ports(self.path, &vm.name, Some(port), Some(&self.name(one))),
            // Either stands for both.
            [one, other] if vm.peer_ports && self.is_pair(one, other) => {
                finding.ports(self.path, &vm.name, Some(port), Some(&self.name(one)))
            }
            several => {
                let several: Vec<String> =
                    several.iter().map(|devpath| self.name(devpath).to_string()).collect();
                finding.advice(format!(
                    "it is probably {}; `hotplugger identify` shows which",
                    several.join(" or ")
                ))
            }
        }
    }

    /// The possible DEVPATHs of a port whose bus no longer exists: the same chain on the controller's
    /// buses. Buses keep their order, so if as many buses are configured as exist, it is the bus of
    /// the same rank.
    fn candidates(&self, controller: &Controller, port: &DevPath, bus: &DevPath) -> Vec<DevPath> {
        let mut candidates: Vec<(usize, DevPath)> = Vec::new();
        for (rank, hub) in controller.root_hubs.iter().enumerate() {
            let Some((first, moved)) = on_other_bus(port, bus, &hub.devpath) else { continue };
            let there = first.is_none_or(|first| self.topology.port(&first).is_some());
            if there && !self.all().any(|(_, configured)| *configured == moved) {
                candidates.push((rank, moved));
            }
        }
        let mut buses: Vec<(u32, &str)> = self
            .all()
            .filter_map(|(_, port)| {
                let bus = port.usb_components().next()?;
                let above = port.as_str().split_once(&format!("/{bus}"))?.0;
                (above == controller.devpath.as_str()).then_some(())?;
                Some((bus.strip_prefix("usb")?.parse().ok()?, bus))
            })
            .collect();
        buses.sort_unstable();
        buses.dedup();
        if buses.len() == controller.root_hubs.len()
            && let Some(rank) = buses.iter().position(|(_, name)| *name == bus.sysname())
            && let Some((_, moved)) = candidates.iter().find(|(of_hub, _)| *of_hub == rank)
        {
            return vec![moved.clone()];
        }
        candidates.into_iter().map(|(_, moved)| moved).collect()
    }

    fn all(&self) -> impl Iterator<Item = (&Entry<'_>, &DevPath)> {
        self.entries.iter().flat_map(|entry| entry.devpaths.iter().map(move |path| (entry, path)))
    }

    fn is_pair(&self, one: &DevPath, other: &DevPath) -> bool {
        self.topology.port(one).is_some_and(|port| port.connector.peer.as_ref() == Some(other))
    }

    /// The name without a bus number.
    fn name(&self, devpath: &DevPath) -> PortName {
        PortName::recommended(&self.topology.port_location(devpath))
    }

    fn peer(&self, entry: &Entry<'_>, port: &DevPath) -> Option<Finding> {
        let vm = entry.vm;
        let connector = &self.topology.port(port)?.connector;
        let peer = connector.peer.as_ref()?;
        let guessed = if connector.peer_guessed {
            " (the firmware does not report it: the pair is guessed from the numbers of ports)"
        } else {
            ""
        };
        let owners = self.config.owners(&self.topology.usb_location(peer));
        match owners.first() {
            // Only with `peer_ports: false`.
            None => {
                let generation = self.topology.port_location(peer).generation;
                let own = self.topology.port_location(port).generation;
                let what = match (own, generation) {
                    (Some(own), Some(peer)) if own < peer => format!(
                        "this is the USB {} port of a connector; USB {} devices use its peer port",
                        own.number(),
                        peer.number()
                    ),
                    _ => "slower devices in its connector use its peer port".to_owned(),
                };
                Some(
                    Finding::note(
                        "port-without-peer",
                        entry.name,
                        format!("{what}, which is not assigned to a VM{guessed}"),
                    )
                    .ports(
                        self.path,
                        &vm.name,
                        None::<&DevPath>,
                        Some(&self.name(peer)),
                    ),
                )
            }
            Some(owner) if owners.iter().all(|owner| owner.name != vm.name) && port < peer => Some(
                Finding::warning(
                    "port-peer-apart",
                    entry.name,
                    format!(
                        "it goes to `{}`, but its peer port {} of the same connector to \
                         `{}`{guessed}",
                        vm.name,
                        self.name(peer),
                        owner.name
                    ),
                )
                .advice("assign both ports to the same VM"),
            ),
            Some(_) => None,
        }
    }

    fn below(&self, entry: &Entry<'_>, port: &DevPath) -> Vec<Finding> {
        let above = self.all().filter(|(_, above)| *above != port && port.is_at_or_below(above));
        let finding = |(other, _): (&Entry<'_>, &DevPath)| {
            let (own, above) = (entry.vm, other.name);
            if other.vm.name == own.name {
                return Finding::note(
                    "port-redundant",
                    entry.name,
                    format!("{above}, which `{}` lists too, includes it", own.name),
                )
                .ports(self.path, &own.name, Some(entry.name), None::<&DevPath>);
            }
            Finding::warning(
                "port-nested",
                entry.name,
                format!(
                    "it is downstream of {above}: its devices go to `{}`, all others there to `{}`",
                    own.name, other.vm.name
                ),
            )
            .advice("if this is not intended, remove one of the two")
        };
        above.map(finding).collect()
    }
}

#[cfg(test)]
mod tests;

fn other_speed(own: Option<Generation>) -> &'static str {
    if own == Some(Generation::Usb1) { "480 Mb/s" } else { "slower" }
}

/// The port belongs to a hub that is not plugged in, or that has fewer ports.
fn behind_hub(port: &PortName, above: &HubPort) -> Finding {
    let what = match &above.plugged {
        Some(Plugged::Hub(device, hub)) => {
            format!("the {} in {} has only {} ports", device.label(), above.port, hub.ports.len())
        }
        Some(Plugged::Device(device)) => {
            format!("it is a port of a hub, but {} contains {}", above.port, device.label())
        }
        None => format!("it is a port of a hub that is not plugged into {}", above.port),
    };
    Finding::note("port-hub-away", port, what)
}

/// The root hub has fewer ports.
fn no_such_port(port: &PortName, root_hub: &Hub) -> Finding {
    let last = root_hub.ports.iter().map(|port| port.port.number()).max().unwrap_or_default();
    Finding::error(
        "port-missing",
        port,
        format!("{} has no such port, it has 1 to {last}", root_hub.devpath.sysname()),
    )
    .advice("`hotplugger identify` shows the name of the port that you plug a device into")
}

/// The port with `bus` replaced, and the root hub's port it is at or below, if it is in one.
fn on_other_bus(
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
