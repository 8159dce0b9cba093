//! A guest that is not there: it answers the commands of this module as QEMU 7.2 and 10.0 do.
//!
//! A rehearsal shows with it what would be sent. Tests let it misbehave in the ways in which QEMU
//! does when the host's device or its own rights fail, which a real one does not on demand.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Qmp;
use crate::device_id::DeviceId;
use crate::qmp::Error;

/// A guest, its objects, and what QEMU knows of the host.
#[derive(Clone, Debug)]
pub struct ModelGuest {
    /// Its usb-host objects, and whether each has its device open.
    pub objects: BTreeMap<String, bool>,
    /// The devices of the host.
    pub host: Vec<HostDevice>,
    /// Its buses besides the one that QEMU chooses.
    pub buses: BTreeMap<String, Bus>,
    /// Whether a bus that is not among them behaves as QEMU's choice does, instead of not being
    /// there.
    pub any_bus: bool,
    /// The bus that QEMU chooses.
    pub default: Bus,
    /// After how many looks QEMU sees the host's devices.
    pub sees_after: u32,
    /// Whether QEMU may open them.
    pub may_open: bool,
    /// Whether the guest runs.
    pub running: bool,
    /// The commands it was sent, and their arguments.
    pub said: Vec<(&'static str, Value)>,
    speeds: BTreeMap<String, String>,
}

/// A device of the host.
#[derive(Clone, Debug)]
pub struct HostDevice {
    /// The id it would have in the guest, which says port and number.
    pub id: DeviceId,
    /// Its speed, in Mb/s.
    pub speed: String,
    /// Its name.
    pub product: String,
}

/// How a bus of the guest behaves.
#[derive(Clone, Copy, Debug)]
pub enum Bus {
    /// Takes any device at its own speed.
    Good,
    /// Has no free port.
    Full,
    /// Gives any device that speed.
    Speed(&'static str),
    /// Takes the object, and QEMU does not open the device.
    Refuses,
}

impl ModelGuest {
    /// A guest that runs and has these objects, attached, on a host with these devices.
    pub fn new(objects: &[&str], host: Vec<HostDevice>) -> Self {
        Self {
            objects: objects.iter().map(|id| ((*id).to_owned(), true)).collect(),
            host,
            buses: BTreeMap::new(),
            any_bus: false,
            default: Bus::Good,
            sees_after: 0,
            may_open: true,
            running: true,
            said: Vec::new(),
            speeds: BTreeMap::new(),
        }
    }

    /// The ids of its objects.
    pub fn ids(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    /// The arguments of each `device_add` it was sent.
    pub fn added(&self) -> Vec<&Value> {
        let added = self.said.iter().filter(|(command, _)| *command == "device_add");
        added.map(|(_, arguments)| arguments).collect()
    }

    fn device_add(&mut self, arguments: &Value) -> Result<Value, Error> {
        let refused = |desc: &str| Err(refusal("device_add", "GenericError", desc));
        let bus = match arguments["bus"].as_str() {
            None => self.default,
            Some(name) => match self.buses.get(name) {
                Some(bus) => *bus,
                None if self.any_bus => self.default,
                None => return refused(&format!("Bus '{name}' not found")),
            },
        };
        let id = text(&arguments["id"]);
        let device = self.host.iter().find(|device| device.id.to_string() == id);
        let speed = match bus {
            Bus::Full => {
                return refused(
                    "tried to attach usb device USB Host Device to a bus with no free ports",
                );
            }
            Bus::Refuses => None,
            Bus::Speed(speed) => Some(speed.to_owned()),
            Bus::Good => device.map(|device| device.speed.clone()),
        };
        let opens = speed.is_some() && self.sees_after == 0 && self.may_open && self.running;
        self.speeds.insert(id.clone(), speed.unwrap_or_default());
        self.objects.insert(id, opens && device.is_some());
        Ok(json!({}))
    }

    fn monitor(&mut self, line: &str) -> String {
        if line == "info usb" {
            return self.objects.keys().map(|id| self.info_usb(id)).collect();
        }
        if self.sees_after > 0 {
            self.sees_after -= 1;
            return String::new();
        }
        self.host.iter().map(|device| self.info_usbhost(device)).collect()
    }

    fn info_usb(&self, id: &str) -> String {
        let speed = self.speeds.get(id).map_or("1.5", String::as_str);
        let product = self.host.iter().find(|device| device.id.to_string() == id);
        let product = product.map_or("USB Host Device", |device| &device.product);
        format!("  Device 0.1, Port 1, Speed {speed} Mb/s, Product {product}, ID: {id}\r\n")
    }

    fn info_usbhost(&self, device: &HostDevice) -> String {
        let DeviceId { port, devnum } = &device.id;
        let name = if self.may_open { format!(", {}", device.product) } else { String::new() };
        format!(
            "  Bus {}, Addr {}, Port {}, Speed {} Mb/s\r\n    Class 00: USB device 0000:0000{name}\r\n",
            port.bus().0,
            devnum.0,
            port.hostport(),
            device.speed
        )
    }
}

impl Qmp for ModelGuest {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        self.said.push((command, arguments.clone()));
        let not_found = || refusal(command, "DeviceNotFound", "Device not found");
        match command {
            "qom-list" => {
                let child = |id: &String| json!({"name": id, "type": "child<usb-host>"});
                Ok(self.objects.keys().map(child).collect())
            }
            "qom-get" => {
                let path = text(&arguments["path"]);
                let id = path.rsplit('/').next().unwrap_or_default();
                self.objects.get(id).map(|open| json!(open)).ok_or_else(not_found)
            }
            "device_add" => self.device_add(&arguments),
            "device_del" => {
                let gone = self.objects.remove(&text(&arguments["id"]));
                gone.map(|_| json!({})).ok_or_else(not_found)
            }
            "query-status" => Ok(json!({"running": self.running})),
            "device-list-properties" => Ok(json!([])),
            "human-monitor-command" => Ok(json!(self.monitor(&text(&arguments["command-line"])))),
            _ => Err(refusal(command, "CommandNotFound", "no such command")),
        }
    }

    fn pause(&mut self, _: Duration) -> Result<(), Error> {
        Ok(())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn refusal(command: &'static str, class: &str, desc: &str) -> Error {
    Error::Command { command, class: class.to_owned(), desc: desc.to_owned() }
}
