//! The host's USB ports as a tree: controllers, their root hubs, ports, and what is plugged.
//!
//! These are the values; [`read`] makes them from sysfs. [`location`] reads where one device is.

pub mod location;
pub mod read;

use crate::devpath::DevPath;
use crate::location::ControllerName;
use crate::port::Port;
use crate::speed::Speed;
use crate::usb_device::UsbDevice;

/// All USB controllers of the host, in the order of their DEVPATHs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The controllers.
    pub controllers: Vec<Controller>,
}

/// A host controller and its root hubs: of an xHCI one for USB 2 and one for USB 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Its DEVPATH.
    pub devpath: DevPath,
    /// Its name, which bus numbers do not change.
    pub name: Option<ControllerName>,
    /// Its root hubs, by bus number.
    pub root_hubs: Vec<Hub>,
}

/// A hub or root hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its DEVPATH.
    pub devpath: DevPath,
    /// The fastest speed of its ports.
    pub speed: Option<Speed>,
    /// Its ports, by number.
    pub ports: Vec<HubPort>,
}

/// A port of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubPort {
    /// Its name, which a device in it has too.
    pub port: Port,
    /// The DEVPATH that a device in it has: what the config wants.
    pub devpath: DevPath,
    /// What the kernel and the firmware say of its socket.
    pub connector: Connector,
    /// What is plugged into it.
    pub plugged: Option<Plugged>,
}

/// The physical side of a port (`drivers/usb/core/port.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connector {
    /// The DEVPATH of the other half of the same socket: a USB 3 connector is a USB 2 port and a
    /// USB 3 port.
    pub peer: Option<DevPath>,
    /// Whether the kernel only guessed the pair by equal numbers, the firmware having said nothing.
    pub peer_guessed: bool,
    /// `hotplug`, `hardwired`, `not used`; none if unknown.
    pub connect_type: Option<String>,
    /// Where it is on the case, in words (`back, upper left`), if the firmware says.
    pub position: Option<String>,
}

/// What is in a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugged {
    /// A device.
    Device(UsbDevice),
    /// A hub, with ports of its own.
    Hub(UsbDevice, Hub),
}

impl Plugged {
    /// The device, be it a hub or not.
    pub fn device(&self) -> &UsbDevice {
        match self {
            Self::Device(device) | Self::Hub(device, _) => device,
        }
    }
}

impl HubPort {
    /// The ports of the hub in it, each before those of the hub in it in turn.
    pub fn behind(&self) -> Vec<&Self> {
        let mut ports = Vec::new();
        if let Some(Plugged::Hub(_, hub)) = &self.plugged {
            hub.collect_ports(&mut ports);
        }
        ports
    }

    /// What is plugged into it, be it a hub or not.
    pub fn device(&self) -> Option<&UsbDevice> {
        self.plugged.as_ref().map(Plugged::device)
    }
}

impl Topology {
    /// All ports, each before those of the hub in it.
    pub fn ports(&self) -> Vec<&HubPort> {
        let mut ports = Vec::new();
        for hub in self.controllers.iter().flat_map(|controller| &controller.root_hubs) {
            hub.collect_ports(&mut ports);
        }
        ports
    }

    /// What is plugged in and no hub, and the port it is in.
    pub fn devices(&self) -> impl Iterator<Item = (&HubPort, &UsbDevice)> {
        self.ports().into_iter().filter_map(|port| match &port.plugged {
            Some(Plugged::Device(device)) => Some((port, device)),
            _ => None,
        })
    }

    /// The port with this DEVPATH.
    pub fn port(&self, devpath: &DevPath) -> Option<&HubPort> {
        self.ports().into_iter().find(|port| port.devpath == *devpath)
    }
}

impl Hub {
    fn collect_ports<'a>(&'a self, ports: &mut Vec<&'a HubPort>) {
        for port in &self.ports {
            ports.push(port);
            if let Some(Plugged::Hub(_, hub)) = &port.plugged {
                hub.collect_ports(ports);
            }
        }
    }
}
