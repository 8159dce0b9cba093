//! The ports that were found, each connector once, and the lines for the config. Pure.

use super::report::{Place, Report};
use crate::config::Config;
use crate::config::edit::NewPort;
use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::location::UsbLocation;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    connectors: Vec<Connector>,
}

/// A connector: one port, or two halves.
#[derive(Debug)]
struct Connector {
    ports: Vec<FoundPort>,
}

/// A port that was found.
#[derive(Clone, Debug)]
pub(super) struct FoundPort {
    pub(super) places: UsbLocation,
    pub(super) new: NewPort,
}

impl FoundPort {
    fn new(place: &Place, comment: &str) -> Self {
        let mut new = NewPort { name: place.name.clone(), comment: String::new() };
        new.comment = commented(&new.name, place, comment);
        Self { places: place.places.clone(), new }
    }

    /// The DEVPATH.
    pub(super) fn devpath(&self) -> &DevPath {
        &self.places.own.devpath
    }
}

/// The comment, and the DEVPATH where the name does not tell it.
fn commented(name: &PortName, place: &Place, comment: &str) -> String {
    if name.is_devpath() { comment.to_owned() } else { format!("{comment}; {}", place.devpath) }
}

impl Found {
    /// Adds the port and its other half, if this is a connector that was not seen yet. What is
    /// behind a hub whose port was found belongs to that port.
    pub(super) fn add(&mut self, report: &Report) {
        let devpath = &report.place.devpath;
        let peer = report.peer.as_ref().map(|peer| &peer.place.devpath);
        let known = self.connectors.iter_mut().find(|known| {
            known.ports.iter().any(|port| {
                devpath.is_at_or_below(port.devpath())
                    || peer.is_some_and(|peer| peer == port.devpath())
            })
        });
        if let Some(known) = known {
            // A device in the second half, too: say so.
            let half = known.ports.iter_mut().skip(1).find(|port| port.devpath() == devpath);
            if let (Some(half), Some(_)) = (half, &report.device) {
                half.new.comment = commented(&half.new.name, &report.place, &comment(report));
            }
            return;
        }
        let mut ports = vec![FoundPort::new(&report.place, &comment(report))];
        if let Some(peer) = &report.peer {
            let version = peer.place.usb.map(|usb| format!("USB {usb}: ")).unwrap_or_default();
            let guess = if peer.guessed { ", a guess" } else { "" };
            let comment = format!("{version}the other half of {}{guess}", report.place.sysname());
            ports.push(FoundPort::new(&peer.place, &comment));
        }
        self.connectors.push(Connector { ports });
    }

    /// How many connectors were found.
    pub(super) fn count(&self) -> usize {
        self.connectors.len()
    }

    /// All their ports.
    pub(super) fn ports(&self) -> impl Iterator<Item = &FoundPort> {
        self.connectors.iter().flat_map(|connector| &connector.ports)
    }

    /// The YAML to paste; a port that is listed already is a comment in it.
    pub(super) fn yaml(&self, config: &Config) -> Vec<String> {
        let entry = |port: &FoundPort| match config.lists(&port.places.own) {
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
    let version = report.place.usb.map(|usb| format!("USB {usb}: ")).unwrap_or_default();
    let device = report.device.as_ref().map_or("a device".to_owned(), super::report::Device::label);
    let position = report.position.as_ref().map(|place| format!("; {place}")).unwrap_or_default();
    format!("{version}{device}{position}")
}
