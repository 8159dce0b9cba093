//! `ports`: the host's USB ports as a tree, with their devices and their VMs.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{CommandStatus, Context};
use crate::config::Config;
use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::host::topology::read_topology;
use crate::host::topology::{Hub, HubPort, Plugged, Topology};
use crate::output::{Line, Output, Style};
use crate::speed::Speed;
use crate::state::dir;

#[derive(Debug, Args)]
pub struct Ports {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// The output; the form is documented in docs/json.md.
#[derive(Debug, Serialize)]
struct Listing {
    controllers: Vec<ListedController>,
    /// Ports of the config that this host does not have now.
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct ListedController {
    devpath: String,
    name: Option<String>,
    buses: Vec<ListedHub>,
}

#[derive(Debug, Serialize)]
struct ListedHub {
    devpath: String,
    /// Without a bus number.
    name: String,
    speed: Option<String>,
    ports: Vec<ListedPort>,
}

#[derive(Debug, Serialize)]
struct ListedPort {
    port: String,
    devpath: String,
    /// The name without a bus number, for the config.
    name: String,
    peer: Option<String>,
    peer_guessed: bool,
    connect_type: Option<String>,
    type_c: Option<String>,
    position: Option<String>,
    /// The VMs that own the port. The first that runs gets a device that is plugged in.
    vms: Vec<String>,
    device: Option<ListedDevice>,
    hub: Option<ListedHub>,
}

#[derive(Debug, Serialize)]
struct ListedDevice {
    product: Option<String>,
    vendor_id: String,
    product_id: String,
    speed: Option<String>,
    devnum: u8,
    /// The VM that has it, as far as is remembered.
    attached: Option<String>,
}

#[derive(Debug, Serialize)]
struct Missing {
    devpath: Option<String>,
    name: String,
    vm: String,
}

struct ListingInput {
    config: Config,
    attached: Vec<(DevPath, u8, String)>,
}

impl Ports {
    /// Prints the tree.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let input = ListingInput {
            config: context.config()?,
            attached: dir::read_all_unlocked(context.root)
                .into_iter()
                .filter_map(|record| Some((record.devpath, record.devnum.0, record.attached?.vm)))
                .collect(),
        };
        let topology = read_topology(context.root);
        let listing = input.listing(&topology);
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

impl ListingInput {
    fn listing(&self, topology: &Topology) -> Listing {
        let controllers = topology.controllers.iter().map(|controller| ListedController {
            devpath: controller.devpath.to_string(),
            name: controller.name.as_ref().map(ToString::to_string),
            buses: controller.root_hubs.iter().map(|hub| self.hub(hub, topology)).collect(),
        });
        let existing = topology.port_locations();
        let configured = self
            .config
            .virtual_machines
            .iter()
            .flat_map(|vm| vm.ports.iter().map(move |port| (port, vm.name.clone())));
        let missing = configured
            .filter(|(port, _)| !existing.iter().any(|location| port.names_exactly(location)));
        Listing {
            controllers: controllers.collect(),
            missing: missing.map(|(port, vm)| Missing::new(port, vm)).collect(),
        }
    }

    fn hub(&self, hub: &Hub, topology: &Topology) -> ListedHub {
        ListedHub {
            devpath: hub.devpath.to_string(),
            name: PortName::recommended(&topology.port_location(&hub.devpath)).to_string(),
            speed: hub.speed.map(Speed::number),
            ports: hub.ports.iter().map(|port| self.port(port, topology)).collect(),
        }
    }

    fn port(&self, port: &HubPort, topology: &Topology) -> ListedPort {
        let location = topology.usb_location(&port.devpath);
        let device = port.plugged.as_ref().map(|plugged| {
            let device = plugged.device();
            let attached = self.attached.iter().find(|(devpath, devnum, _)| {
                *devpath == port.devpath && *devnum == device.devnum.0
            });
            ListedDevice {
                product: device.product.clone(),
                vendor_id: format!("{:04x}", device.vendor_id),
                product_id: format!("{:04x}", device.product_id),
                speed: device.speed.map(Speed::number),
                devnum: device.devnum.0,
                attached: attached.map(|(_, _, vm)| vm.clone()),
            }
        });
        let hub = match &port.plugged {
            Some(Plugged::Hub(_, hub)) => Some(self.hub(hub, topology)),
            _ => None,
        };
        ListedPort {
            port: port.port.to_string(),
            devpath: port.devpath.to_string(),
            name: PortName::recommended(&location.own).to_string(),
            peer: port.connector.peer.as_ref().map(ToString::to_string),
            peer_guessed: port.connector.peer_guessed,
            connect_type: port.connector.connect_type.clone(),
            type_c: port.connector.type_c.clone(),
            position: port.connector.position.clone(),
            vms: self.config.owner_names(&location),
            device,
            hub,
        }
    }
}

impl Missing {
    fn new(port: &PortName, vm: String) -> Self {
        let name = port.to_string();
        Self { devpath: port.is_devpath().then(|| name.clone()), name, vm }
    }
}

fn rows(listing: &Listing) -> Vec<Vec<Line>> {
    let heads = ["PORT", "DEVICE", "SPEED", "VM", "", "CONNECTOR", "NAME"];
    let mut rows = vec![heads.iter().map(|head| Line::from((Style::Faint, *head))).collect()];
    for controller in &listing.controllers {
        for bus in &controller.buses {
            let name = bus.devpath.rsplit('/').next().unwrap_or_default();
            let speed = bus.speed.as_ref().map(|speed| format!("{speed} Mb/s")).unwrap_or_default();
            rows.push(vec![
                Line::from((Style::Strong, name)),
                Line::from((Style::Faint, controller.devpath.as_str())),
                Line::from((Style::Faint, speed)),
                Line::from(""),
                Line::from(""),
                Line::from(""),
                Line::from(bus.name.as_str()),
            ]);
            hub_rows(bus, "", &mut rows);
        }
    }
    for missing in &listing.missing {
        rows.push(vec![
            Line::from((Style::Warning, "missing")),
            Line::from((Style::Warning, missing.name.as_str())),
            Line::from(""),
            Line::from(missing.vm.as_str()),
        ]);
    }
    rows
}

fn hub_rows(hub: &ListedHub, indent: &str, rows: &mut Vec<Vec<Line>>) {
    for (index, port) in hub.ports.iter().enumerate() {
        let last = index + 1 == hub.ports.len();
        rows.push(port_row(port, &format!("{indent}{}", if last { "└─" } else { "├─" })));
        if let Some(hub) = &port.hub {
            hub_rows(hub, &format!("{indent}{}", if last { "  " } else { "│ " }), rows);
        }
    }
}

fn port_row(port: &ListedPort, indent: &str) -> Vec<Line> {
    let name = Line::default().with(Style::Faint, indent).plain(port.port.as_str());
    let (device, speed) = match &port.device {
        None => (Line::from((Style::Faint, "-")), String::new()),
        Some(device) => {
            let product = device.product.as_deref().unwrap_or("USB device");
            let label = format!("{product} ({}:{})", device.vendor_id, device.product_id);
            let speed = device.speed.as_ref().map(|speed| format!("{speed} Mb/s"));
            (Line::from(label), speed.unwrap_or_default())
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
        name,
        device,
        Line::from(speed),
        Line::from(port.vms.join(", ")),
        attached,
        Line::from((Style::Faint, connector(port))),
        Line::from(port.name.as_str()),
    ]
}

fn connector(port: &ListedPort) -> String {
    let peer = port.peer.as_ref().and_then(|peer| peer.rsplit('/').next());
    let sign = if port.peer_guessed { "?" } else { "" };
    let peer = peer.map(|name| format!("with {name}{sign}"));
    let type_c = port.type_c.as_ref().map(|name| format!("Type-C {name}"));
    let known = [peer, port.connect_type.clone(), type_c, port.position.clone()];
    known.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
