//! The report about a port, as lines for people and as a JSON object (docs/json.md). Pure.

use serde::Serialize;

use super::watch::{Event, PortEvent};
use crate::commands::DeviceJson;
use crate::config::Config;
use crate::config::edit::NewPort;
use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::host::topology::HubPort;
use crate::location::{Generation, UsbLocation};
use crate::output::{Line, Style};
use crate::port::Port;
use crate::usb_device::UsbDevice;

#[derive(Clone, Debug, Serialize)]
pub(super) struct PortReport {
    pub(super) event: Event,
    #[serde(flatten)]
    pub(super) facts: PortFacts,
    /// The port of the hub that this port is on.
    pub(super) hub: Option<DevPath>,
    pub(super) device: Option<PluggedDevice>,
    pub(super) peer: Option<Peer>,
    pub(super) connect_type: Option<String>,
    pub(super) type_c: Option<String>,
    pub(super) position: Option<String>,
    /// The controllers where devices of another speed appear, if it is not known in which port.
    pub(super) companions: Vec<DevPath>,
    pub(super) behind: Vec<Behind>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PortFacts {
    pub(super) devpath: DevPath,
    /// The name for `ports:`.
    pub(super) name: PortName,
    #[serde(skip)]
    pub(super) location: UsbLocation,
    pub(super) port: Option<Port>,
    /// The USB version of its root hub: 1, 2 or 3.
    pub(super) usb: Option<u8>,
    /// The VMs that own the port.
    pub(super) vms: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Peer {
    #[serde(flatten)]
    pub(super) facts: PortFacts,
    /// Whether it is only guessed that they are a pair.
    pub(super) guessed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Behind {
    #[serde(flatten)]
    pub(super) facts: PortFacts,
    pub(super) device: Option<PluggedDevice>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PluggedDevice {
    #[serde(flatten)]
    device: DeviceJson,
    is_hub: bool,
    #[serde(skip)]
    label: String,
}

pub(super) struct Reporter<'a> {
    pub(super) config: &'a Config,
    pub(super) location_of: &'a dyn Fn(&DevPath) -> UsbLocation,
}

impl Reporter<'_> {
    pub(super) fn report(&self, event: &PortEvent) -> PortReport {
        let HubPort { devpath, connector, .. } = &event.port;
        let behind = |port: &HubPort| Behind {
            facts: self.port_facts(&port.devpath),
            device: port.device().map(PluggedDevice::new),
        };
        PortReport {
            event: event.event,
            facts: self.port_facts(devpath),
            hub: devpath.parent().filter(|hub| hub.port().is_some()),
            device: event.port.device().map(PluggedDevice::new),
            peer: connector
                .peer
                .as_ref()
                .map(|peer| Peer { facts: self.port_facts(peer), guessed: connector.peer_guessed }),
            connect_type: connector.connect_type.clone(),
            type_c: connector.type_c.clone(),
            position: connector.position.clone(),
            companions: connector.companions.clone(),
            behind: event.behind.iter().map(behind).collect(),
        }
    }

    fn port_facts(&self, devpath: &DevPath) -> PortFacts {
        let location = (self.location_of)(devpath);
        PortFacts {
            devpath: devpath.clone(),
            port: devpath.port(),
            name: PortName::recommended(&location.own),
            usb: location.own.generation.map(Generation::number),
            vms: self.config.owner_names(&location),
            location,
        }
    }
}

impl PluggedDevice {
    fn new(device: &UsbDevice) -> Self {
        let (is_hub, label) = (device.is_hub(), device.label());
        let label = if is_hub { format!("hub {label}") } else { label };
        Self { device: device.into(), is_hub, label }
    }

    fn with_speed(&self) -> String {
        let speed = self.device.speed.as_ref();
        let speed = speed.map(|speed| format!(", {speed} Mb/s")).unwrap_or_default();
        format!("{}{speed}", self.label)
    }
}

impl PortReport {
    pub(super) fn lines(&self) -> Vec<Line> {
        let (style, word) = match self.event {
            Event::Plug => (Style::Good, "plugged"),
            Event::Pull => (Style::Warning, "pulled"),
            Event::Plugged => (Style::Good, "in port"),
        };
        let device = self.device.as_ref();
        let device = device.map_or("unknown device".to_owned(), PluggedDevice::with_speed);
        let head = Line::from((style, word)).plain(" ");
        let head = head.with(Style::Strong, self.facts.devpath.sysname());
        let name = Line::from("  ").with(Style::Strong, self.facts.name.to_string());
        let mut lines = vec![head.plain(format!("  {device}")), self.facts.describe(name)];
        lines.push(match &self.peer {
            None if !self.companions.is_empty() => Line::from((
                Style::Warning,
                format!(
                    "  devices of another speed appear in a port of {}: plug one in to see which",
                    self.companions.iter().map(DevPath::sysname).collect::<Vec<_>>().join(" or ")
                ),
            )),
            None => Line::from((Style::Faint, "  peer port: none known")),
            Some(peer) => {
                let line = Line::from("  ").plain(peer.facts.name.to_string());
                let line = peer.facts.describe(line).plain(", the peer port");
                let guess = if peer.guessed { " (a guess, by the numbers of ports)" } else { "" };
                line.with(Style::Warning, guess)
            }
        });
        let type_c = self.type_c.as_ref().map(|name| format!("Type-C {name}"));
        let facts = self.position.iter().chain(&self.connect_type).chain(&type_c);
        let facts: Vec<&str> = facts.map(String::as_str).collect();
        if !facts.is_empty() {
            lines.push(Line::from(format!("  connector: {}", facts.join("; "))));
        }
        if let Some(hub) = &self.hub {
            let name = hub.sysname();
            lines.push(Line::from(format!("  on the hub in port {name}")));
        }
        lines.extend(self.behind.iter().map(|behind| {
            let device = behind.device.as_ref().map(PluggedDevice::with_speed);
            let device = device.unwrap_or_default();
            Line::from(format!("  behind it, {}: {device}", behind.facts.devpath.sysname()))
        }));
        lines
    }
}

impl PortFacts {
    /// The comment, and the DEVPATH where the name does not contain it.
    fn comment(&self, comment: &str) -> String {
        if self.name.is_devpath() {
            comment.to_owned()
        } else {
            format!("{comment}; {}", self.devpath)
        }
    }

    fn describe(&self, line: Line) -> Line {
        let line = match self.usb {
            Some(usb) => line.with(Style::Faint, format!("  USB {usb}")),
            None => line,
        };
        let line = match &self.name {
            PortName::Stable { .. } => line.with(Style::Faint, format!("  {}", self.devpath)),
            PortName::DevPath(_) | PortName::DevPathEnd(_) => line,
        };
        match &self.vms[..] {
            [] => line,
            [vm] => line.plain(", ").with(Style::Warning, format!("{vm} has it already")),
            vms => {
                let has = format!("{} have it already", vms.join(" and "));
                line.plain(", ").with(Style::Warning, has)
            }
        }
    }
}

/// The connectors that were found: of each the port, and then its peer port.
#[derive(Debug, Default)]
pub(super) struct Found(Vec<Vec<FoundPort>>);

#[derive(Clone, Debug)]
pub(super) struct FoundPort {
    pub(super) location: UsbLocation,
    pub(super) new: NewPort,
}

impl FoundPort {
    fn new(facts: &PortFacts, comment: &str) -> Self {
        let new = NewPort { name: facts.name.clone(), comment: facts.comment(comment) };
        Self { location: facts.location.clone(), new }
    }

    pub(super) fn devpath(&self) -> &DevPath {
        &self.location.own.devpath
    }
}

impl Found {
    /// Adds the port and its peer port, if this is a connector that was not seen yet. What is
    /// behind a hub belongs to the hub's port, if that was found.
    pub(super) fn add(&mut self, report: &PortReport) {
        let devpath = &report.facts.devpath;
        let peer = report.peer.as_ref().map(|peer| &peer.facts.devpath);
        let is_known = |port: &FoundPort| {
            devpath.is_at_or_below(port.devpath()) || peer == Some(port.devpath())
        };
        if let Some(known) = self.0.iter_mut().find(|ports| ports.iter().any(is_known)) {
            // There was a device in the peer port, too.
            let peer = known.iter_mut().skip(1).find(|port| port.devpath() == devpath);
            if let (Some(peer), Some(_)) = (peer, &report.device) {
                peer.new.comment = report.facts.comment(&comment(report));
            }
            return;
        }
        let mut ports = vec![FoundPort::new(&report.facts, &comment(report))];
        if let Some(peer) = &report.peer {
            let version = peer.facts.usb.map(|usb| format!("USB {usb}: ")).unwrap_or_default();
            let guess = if peer.guessed { ", a guess" } else { "" };
            let comment = format!("{version}the peer port of {}{guess}", devpath.sysname());
            ports.push(FoundPort::new(&peer.facts, &comment));
        }
        self.0.push(ports);
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = &FoundPort> {
        self.0.iter().flatten()
    }

    pub(super) fn yaml(&self, config: &Config) -> Vec<String> {
        let entry = |port: &FoundPort| match config.lists(&port.location.own) {
            None => format!("      - {}", port.new.entry()),
            Some(vm) => {
                format!("      # - {} (`{}` has it already)", port.new.entry(), vm.name)
            }
        };
        let mut lines = vec!["    ports:".to_owned()];
        lines.extend(self.ports().map(entry));
        lines
    }
}

/// The comment behind the port: `USB 2: QEMU USB Keyboard (0627:0001); back, upper`.
fn comment(report: &PortReport) -> String {
    let version = report.facts.usb.map(|usb| format!("USB {usb}: ")).unwrap_or_default();
    let device = report.device.as_ref().map_or("a device", |device| &device.label);
    let position = report.position.as_ref();
    let position = position.map(|position| format!("; {position}")).unwrap_or_default();
    format!("{version}{device}{position}")
}

#[cfg(test)]
mod tests;
