//! The report about a port: the facts, as lines for people and as an object for programs. Pure.
//!
//! docs/json.md is the promise of the object's shape.

use serde::Serialize;

use super::watch::{Event, PortEvent};
use crate::config::Config;
use crate::config::edit::NewPort;
use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::host::topology::HubPort;
use crate::location::{Generation, UsbLocation};
use crate::output::{Line, Style};
use crate::port::Port;
use crate::speed::Speed;
use crate::usb_device::UsbDevice;

#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) event: Event,
    #[serde(flatten)]
    pub(super) facts: PortFacts,
    /// The port of the hub that this port is on.
    pub(super) hub: Option<DevPath>,
    pub(super) device: Option<Device>,
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
    /// Its name without a bus number: what `ports:` should have.
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
    /// Whether the kernel only guessed that they are a pair.
    pub(super) guessed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Behind {
    #[serde(flatten)]
    pub(super) facts: PortFacts,
    pub(super) device: Option<Device>,
}

/// A device, be it a hub or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Device {
    pub(super) product: Option<String>,
    pub(super) vendor_id: String,
    pub(super) product_id: String,
    pub(super) speed: Option<String>,
    pub(super) is_hub: bool,
    #[serde(skip)]
    label: String,
}

pub(super) struct Reporter<'a> {
    pub(super) config: &'a Config,
    pub(super) location_of: &'a dyn Fn(&DevPath) -> UsbLocation,
}

impl Reporter<'_> {
    pub(super) fn report(&self, event: &PortEvent) -> Report {
        let HubPort { devpath, connector, .. } = &event.port;
        Report {
            event: event.event,
            facts: self.port_facts(devpath),
            hub: devpath.parent().filter(|hub| hub.port().is_some()),
            device: event.port.device().map(Device::new),
            peer: connector
                .peer
                .as_ref()
                .map(|peer| Peer { facts: self.port_facts(peer), guessed: connector.peer_guessed }),
            connect_type: connector.connect_type.clone(),
            type_c: connector.type_c.clone(),
            position: connector.position.clone(),
            companions: connector.companions.clone(),
            behind: event.behind.iter().map(|port| self.behind(port)).collect(),
        }
    }

    fn behind(&self, port: &HubPort) -> Behind {
        Behind { facts: self.port_facts(&port.devpath), device: port.device().map(Device::new) }
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

impl Device {
    fn new(device: &UsbDevice) -> Self {
        Self {
            product: device.product.clone(),
            vendor_id: format!("{:04x}", device.vendor_id),
            product_id: format!("{:04x}", device.product_id),
            speed: device.speed.map(Speed::number),
            is_hub: device.is_hub(),
            label: device.label(),
        }
    }

    /// `QEMU USB Tablet (0627:0001)`, with `hub` where it is one.
    pub(super) fn label(&self) -> String {
        if self.is_hub { format!("hub {}", self.label) } else { self.label.clone() }
    }

    fn with_speed(&self) -> String {
        let speed = self.speed.as_ref().map(|speed| format!(", {speed} Mb/s")).unwrap_or_default();
        self.label() + &speed
    }
}

impl PortFacts {
    /// The kernel's short name of the port, `3-1.4`.
    pub(super) fn sysname(&self) -> &str {
        self.devpath.sysname()
    }
}

impl Report {
    pub(super) fn lines(&self) -> Vec<Line> {
        let (tone, word) = match self.event {
            Event::Plug => (Style::Good, "plugged"),
            Event::Pull => (Style::Warning, "pulled"),
            Event::Plugged => (Style::Good, "in port"),
        };
        let device = self.device.as_ref().map_or("unknown device".to_owned(), Device::with_speed);
        let head =
            Line::default().with(tone, word).plain(" ").with(Style::Strong, self.facts.sysname());
        let mut lines = vec![head.plain(format!("  {device}"))];
        let peer = Line::from("  ").with(Style::Strong, self.facts.name.to_string());
        lines.push(self.facts.describe(peer));
        lines.push(match &self.peer {
            None if !self.companions.is_empty() => Line::default().with(
                Style::Warning,
                format!(
                    "  devices of another speed appear in a port of {}: plug one in to see which",
                    self.companions.iter().map(DevPath::sysname).collect::<Vec<_>>().join(" or ")
                ),
            ),
            None => Line::default().with(Style::Faint, "  peer port: none known"),
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
            let device = behind.device.as_ref().map_or(String::new(), Device::with_speed);
            Line::from(format!("  behind it, {}: {device}", behind.facts.sysname()))
        }));
        lines
    }
}

impl PortFacts {
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

#[derive(Debug, Default)]
pub(super) struct Found {
    connectors: Vec<Connector>,
}

#[derive(Debug)]
struct Connector {
    ports: Vec<FoundPort>,
}

#[derive(Clone, Debug)]
pub(super) struct FoundPort {
    pub(super) location: UsbLocation,
    pub(super) new: NewPort,
}

impl FoundPort {
    fn new(facts: &PortFacts, comment: &str) -> Self {
        let mut new = NewPort { name: facts.name.clone(), comment: String::new() };
        new.comment = commented(&new.name, facts, comment);
        Self { location: facts.location.clone(), new }
    }

    pub(super) fn devpath(&self) -> &DevPath {
        &self.location.own.devpath
    }
}

/// The comment, and the DEVPATH where the name does not contain it.
fn commented(name: &PortName, facts: &PortFacts, comment: &str) -> String {
    if name.is_devpath() { comment.to_owned() } else { format!("{comment}; {}", facts.devpath) }
}

impl Found {
    /// Adds the port and its peer port, if this is a connector that was not seen yet. What is
    /// behind a hub belongs to the hub's port, if that was found.
    pub(super) fn add(&mut self, report: &Report) {
        let devpath = &report.facts.devpath;
        let peer = report.peer.as_ref().map(|peer| &peer.facts.devpath);
        let known = self.connectors.iter_mut().find(|known| {
            known.ports.iter().any(|port| {
                devpath.is_at_or_below(port.devpath())
                    || peer.is_some_and(|peer| peer == port.devpath())
            })
        });
        if let Some(known) = known {
            // There was a device in the peer port, too.
            let peer = known.ports.iter_mut().skip(1).find(|port| port.devpath() == devpath);
            if let (Some(peer), Some(_)) = (peer, &report.device) {
                peer.new.comment = commented(&peer.new.name, &report.facts, &comment(report));
            }
            return;
        }
        let mut ports = vec![FoundPort::new(&report.facts, &comment(report))];
        if let Some(peer) = &report.peer {
            let version = peer.facts.usb.map(|usb| format!("USB {usb}: ")).unwrap_or_default();
            let guess = if peer.guessed { ", a guess" } else { "" };
            let comment = format!("{version}the peer port of {}{guess}", report.facts.sysname());
            ports.push(FoundPort::new(&peer.facts, &comment));
        }
        self.connectors.push(Connector { ports });
    }

    pub(super) fn count(&self) -> usize {
        self.connectors.len()
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = &FoundPort> {
        self.connectors.iter().flat_map(|connector| &connector.ports)
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

/// What is written behind the port: `USB 2: QEMU USB Keyboard (0627:0001); back, upper`.
fn comment(report: &Report) -> String {
    let version = report.facts.usb.map(|usb| format!("USB {usb}: ")).unwrap_or_default();
    let device = report.device.as_ref().map_or("a device".to_owned(), super::report::Device::label);
    let position =
        report.position.as_ref().map(|position| format!("; {position}")).unwrap_or_default();
    format!("{version}{device}{position}")
}

#[cfg(test)]
mod tests;
