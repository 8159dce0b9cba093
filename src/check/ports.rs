//! The configured ports against the ports the host has.

mod absent;

use std::fmt;
use std::path::Path;

use self::absent::{behind_hub, no_such_port, on_other_bus};
use super::finding::Finding;
use crate::config::port::PortName;
use crate::config::{Config, VirtualMachine};
use crate::devpath::{DevPath, is_root_hub};
use crate::host::topology::{Controller, Hub, Topology};

/// Judges all ports of all machines.
pub fn judge(config: &Config, path: &Path, topology: &Topology) -> Vec<Finding> {
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
        if entry.devpaths.is_empty() {
            findings.push(ports.nowhere(entry));
        }
        for devpath in &entry.devpaths {
            findings.push(ports.there(entry, devpath));
            findings.extend(ports.half(entry, devpath));
            findings.extend(ports.below(entry, devpath));
        }
    }
    findings
}

/// An entry of a machine's `ports:`.
struct Entry<'a> {
    vm: &'a VirtualMachine,
    name: &'a PortName,
    /// The DEVPATHs that it means on this host today, be there such a port or not.
    devpaths: Vec<DevPath>,
}

struct Ports<'a> {
    config: &'a Config,
    path: &'a Path,
    topology: &'a Topology,
    entries: &'a [Entry<'a>],
}

impl Ports<'_> {
    /// Whether the host has the port.
    fn there(&self, entry: &Entry<'_>, port: &DevPath) -> Finding {
        let ok = || {
            let what = format!("a port of this host, for `{}`", entry.vm.name);
            Finding::ok("port-there", entry.name, what)
        };
        if self.topology.port(port).is_some() || self.root_hub(port).is_some() {
            return ok();
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

    fn root_hub(&self, devpath: &DevPath) -> Option<&Hub> {
        let hubs = self.topology.controllers.iter().flat_map(|controller| &controller.root_hubs);
        hubs.into_iter().find(|hub| hub.devpath == *devpath)
    }

    /// A name without a bus number that means no port of this host.
    fn nowhere(&self, entry: &Entry<'_>) -> Finding {
        let PortName::Stable { controller, generation, .. } = entry.name else {
            return self.no_controller(entry.name);
        };
        let known = self.topology.controllers.iter();
        let known = known.filter(|known| known.name.as_ref() == Some(controller)).count();
        match generation {
            Some(generation) if known > 0 => Finding::fault(
                "port-missing",
                entry.name,
                format!("{controller} has no root hub for USB {} now", generation.number()),
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
        Finding::fault("port-no-controller", port, what).advice(format!(
            "`hotplugger ports` shows the host's ports, `hotplugger identify` the one that a \
             device is plugged into; write that one to {}",
            self.path.display()
        ))
    }

    /// Whether an entry before means the same port.
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
        let finding = Finding::fault(
            "port-bus-moved",
            port,
            format!(
                "its controller {} has no {} now, but {}: bus numbers can change from boot to boot",
                controller.devpath.sysname(),
                bus.sysname(),
                has.join(" and ")
            ),
        );
        match self.candidates(controller, port, bus).as_slice() {
            [] => finding.advice("`hotplugger identify` tells the port's name, which stays"),
            [one] => finding.ports(self.path, &vm.name, Some(port), Some(&self.name(one))),
            // Either stands for both.
            [one, other] if vm.peer_ports && self.is_pair(one, other) => {
                finding.ports(self.path, &vm.name, Some(port), Some(&self.name(one)))
            }
            several => {
                let several: Vec<String> =
                    several.iter().map(|devpath| self.name(devpath).to_string()).collect();
                finding.advice(format!(
                    "it is probably {}; `hotplugger identify` tells",
                    several.join(" or ")
                ))
            }
        }
    }

    /// What a port on a bus that is gone may be called today: the same chain on the controller's
    /// buses. Buses keep their order, so that with as many configured as there are, it is the one
    /// of the same rank.
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

    /// The name that no change of bus numbers touches.
    fn name(&self, devpath: &DevPath) -> PortName {
        PortName::recommended(&self.topology.place(devpath))
    }

    /// Whether the other half of the connector goes the same way.
    fn half(&self, entry: &Entry<'_>, port: &DevPath) -> Option<Finding> {
        let vm = entry.vm;
        let connector = &self.topology.port(port)?.connector;
        let peer = connector.peer.as_ref()?;
        let guessed = if connector.peer_guessed {
            " (the firmware says nothing: the pair is guessed by equal numbers)"
        } else {
            ""
        };
        let owners = self.config.owners(&self.topology.places(peer));
        match owners.first() {
            // Only with `peer_ports: false`.
            None => {
                let faster =
                    self.topology.place(peer).generation > self.topology.place(port).generation;
                let what = if faster {
                    "this is the USB 2 half of a connector; USB 3 devices come in its other half"
                } else {
                    "this is the USB 3 half of a connector; other devices come in its USB 2 half"
                };
                Some(
                    Finding::note(
                        "port-half",
                        entry.name,
                        format!("{what}, which belongs to no virtual machine{guessed}"),
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
                    "port-halves-apart",
                    entry.name,
                    format!(
                        "it goes to `{}`, and the other half of the same connector, {}, to \
                         `{}`{guessed}",
                        vm.name,
                        self.name(peer),
                        owner.name
                    ),
                )
                .advice("give both halves to the same virtual machine"),
            ),
            Some(_) => None,
        }
    }

    /// Whether another configured port contains this one.
    fn below(&self, entry: &Entry<'_>, port: &DevPath) -> Vec<Finding> {
        let above = self.all().filter(|(_, above)| *above != port && port.is_at_or_below(above));
        let finding = |(other, _): (&Entry<'_>, &DevPath)| {
            let (own, above) = (entry.vm, other.name);
            if other.vm.name == own.name {
                return Finding::note(
                    "port-redundant",
                    entry.name,
                    format!("{above}, which `{}` has too, brings all below it", own.name),
                )
                .ports(self.path, &own.name, Some(entry.name), None::<&DevPath>);
            }
            Finding::warning(
                "port-nested",
                entry.name,
                format!(
                    "it is below {above}: what is in it goes to `{}`, all else there to `{}`",
                    own.name, other.vm.name
                ),
            )
            .advice("if that is not meant, leave one of the two out")
        };
        above.map(finding).collect()
    }
}

#[cfg(test)]
mod tests;
