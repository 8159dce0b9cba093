//! `ports`: the host's USB ports as a tree, with their devices and their VMs.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{CommandStatus, Context, DeviceJson};
use crate::config::Config;
use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::host::topology::{Connector, Hub, HubPort, Plugged, Topology, read_topology};
use crate::output::{Line, Output, Style};
use crate::port::{DevNum, Port};
use crate::speed::Speed;
use crate::state::dir;
use crate::state::record::Record;
use crate::usb_device::UsbDevice;

#[derive(Debug, Args)]
pub struct Ports {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// The output; docs/json.md has the form.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    controllers: Vec<ListedController<'a>>,
    /// Ports of the config that this host does not have now.
    missing: Vec<Missing<'a>>,
}

#[derive(Debug, Serialize)]
struct ListedController<'a> {
    devpath: &'a DevPath,
    name: Option<String>,
    buses: Vec<ListedHub<'a>>,
}

#[derive(Debug, Serialize)]
struct ListedHub<'a> {
    devpath: &'a DevPath,
    name: PortName,
    speed: Option<String>,
    ports: Vec<ListedPort<'a>>,
}

#[derive(Debug, Serialize)]
struct ListedPort<'a> {
    port: &'a Port,
    devpath: &'a DevPath,
    /// The name for the config.
    name: PortName,
    #[serde(flatten)]
    connector: &'a Connector,
    /// The VMs that own the port. The first that runs gets a device that is plugged in.
    vms: Vec<String>,
    device: Option<ListedDevice>,
    hub: Option<ListedHub<'a>>,
}

#[derive(Debug, Serialize)]
struct ListedDevice {
    #[serde(flatten)]
    device: DeviceJson,
    devnum: DevNum,
    /// The VM that has it, according to the record.
    attached: Option<String>,
    #[serde(skip)]
    label: String,
}

#[derive(Debug, Serialize)]
struct Missing<'a> {
    devpath: Option<&'a PortName>,
    name: &'a PortName,
    vm: &'a str,
}

impl Ports {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let lister = Lister {
            config: &context.config()?,
            records: &dir::read_all_unlocked(context.root),
            topology: &read_topology(context.root),
        };
        let listing = lister.listing();
        if self.json {
            output.json(&listing)?;
        } else {
            output.table(&rows(&listing))?;
            if dir::is_unreadable(context.root) {
                let note = "What is attached only root can see: sudo hotplugger ports";
                output.line(&Line::from((Style::Faint, note)))?;
            }
        }
        Ok(CommandStatus::Ok)
    }
}

struct Lister<'a> {
    config: &'a Config,
    records: &'a [Record],
    topology: &'a Topology,
}

impl<'a> Lister<'a> {
    fn listing(&self) -> Listing<'a> {
        let controllers = self.topology.controllers.iter().map(|controller| ListedController {
            devpath: &controller.devpath,
            name: controller.name.as_ref().map(ToString::to_string),
            buses: controller.root_hubs.iter().map(|hub| self.hub(hub)).collect(),
        });
        let existing = self.topology.port_locations();
        let vms = self.config.virtual_machines.iter();
        let configured = vms.flat_map(|vm| vm.ports.iter().map(move |name| (name, &vm.name)));
        let missing = configured
            .filter(|(name, _)| !existing.iter().any(|location| name.names_exactly(location)))
            .map(|(name, vm)| Missing { devpath: name.is_devpath().then_some(name), name, vm });
        Listing { controllers: controllers.collect(), missing: missing.collect() }
    }

    fn hub(&self, hub: &'a Hub) -> ListedHub<'a> {
        ListedHub {
            devpath: &hub.devpath,
            name: PortName::recommended(&self.topology.port_location(&hub.devpath)),
            speed: hub.speed.map(Speed::number),
            ports: hub.ports.iter().map(|port| self.port(port)).collect(),
        }
    }

    fn port(&self, port: &'a HubPort) -> ListedPort<'a> {
        let location = self.topology.usb_location(&port.devpath);
        let device = |device: &UsbDevice| {
            let is_recorded = |record: &&Record| {
                record.devpath == port.devpath
                    && record.devnum == device.devnum
                    && record.attached.is_some()
            };
            let record = self.records.iter().find(is_recorded);
            ListedDevice {
                device: device.into(),
                devnum: device.devnum,
                attached: record.and_then(|record| Some(record.attached.as_ref()?.vm.clone())),
                label: device.label(),
            }
        };
        ListedPort {
            port: &port.port,
            devpath: &port.devpath,
            name: PortName::recommended(&location.own),
            connector: &port.connector,
            vms: self.config.owner_names(&location),
            device: port.device().map(device),
            hub: match &port.plugged {
                Some(Plugged::Hub(_, hub)) => Some(self.hub(hub)),
                _ => None,
            },
        }
    }
}

fn rows(listing: &Listing<'_>) -> Vec<Vec<Line>> {
    let heads = ["PORT", "DEVICE", "SPEED", "VM", "", "CONNECTOR", "NAME"];
    let mut rows = vec![heads.iter().map(|head| Line::from((Style::Faint, *head))).collect()];
    for controller in &listing.controllers {
        for bus in &controller.buses {
            rows.push(vec![
                Line::from((Style::Strong, bus.devpath.sysname())),
                Line::from((Style::Faint, controller.devpath.as_str())),
                Line::from((Style::Faint, with_unit(bus.speed.as_deref()))),
                Line::from(""),
                Line::from(""),
                Line::from(""),
                Line::from(bus.name.to_string()),
            ]);
            hub_rows(bus, "", &mut rows);
        }
    }
    for missing in &listing.missing {
        rows.push(vec![
            Line::from((Style::Warning, "missing")),
            Line::from((Style::Warning, missing.name.to_string())),
            Line::from(""),
            Line::from(missing.vm),
        ]);
    }
    rows
}

fn hub_rows(hub: &ListedHub<'_>, indent: &str, rows: &mut Vec<Vec<Line>>) {
    for (index, port) in hub.ports.iter().enumerate() {
        let last = index + 1 == hub.ports.len();
        rows.push(port_row(port, &format!("{indent}{}", if last { "└─" } else { "├─" })));
        if let Some(hub) = &port.hub {
            hub_rows(hub, &format!("{indent}{}", if last { "  " } else { "│ " }), rows);
        }
    }
}

fn port_row(port: &ListedPort<'_>, indent: &str) -> Vec<Line> {
    let (device, speed) = match &port.device {
        None => (Line::from((Style::Faint, "-")), String::new()),
        Some(device) => {
            (Line::from(device.label.as_str()), with_unit(device.device.speed.as_deref()))
        }
    };
    let attached = port.device.as_ref().and_then(|device| device.attached.as_ref());
    let attached = match attached {
        Some(vm) if port.vms == [vm.as_str()] => Line::from((Style::Good, "attached")),
        Some(vm) => Line::from((Style::Good, format!("attached to {vm}"))),
        None if port.vms.is_empty() || port.device.is_none() || port.hub.is_some() => {
            Line::from("")
        }
        None => Line::from((Style::Warning, "on the host")),
    };
    vec![
        Line::default().with(Style::Faint, indent).plain(port.port.to_string()),
        device,
        Line::from(speed),
        Line::from(port.vms.join(", ")),
        attached,
        Line::from((Style::Faint, connector(port.connector))),
        Line::from(port.name.to_string()),
    ]
}

fn with_unit(speed: Option<&str>) -> String {
    speed.map(|speed| format!("{speed} Mb/s")).unwrap_or_default()
}

fn connector(connector: &Connector) -> String {
    let sign = if connector.peer_guessed { "?" } else { "" };
    let peer = connector.peer.as_ref().map(|peer| format!("with {}{sign}", peer.sysname()));
    let type_c = connector.type_c.as_ref().map(|name| format!("Type-C {name}"));
    let known = [peer, connector.connect_type.clone(), type_c, connector.position.clone()];
    known.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
