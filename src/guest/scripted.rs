//! A guest for unit tests: it answers the commands of this module as QEMU 7.2 and 10.0 did, and can
//! be told to misbehave in the ways that QEMU does when the host's device or its own rights fail.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Qmp;
use crate::qmp::Error;

/// A guest whose one host device is in port 1-3 with number 16.
pub(crate) struct Scripted {
    objects: BTreeMap<String, bool>,
    buses: BTreeMap<String, Bus>,
    default: Bus,
    speed: &'static str,
    /// The arguments of each `device_add` that succeeded.
    pub(crate) added: Vec<Value>,
    /// After how many looks QEMU sees the host's device.
    pub(crate) sees_after: u32,
    /// Whether QEMU may open it.
    pub(crate) may_open: bool,
    /// Whether the guest runs.
    pub(crate) running: bool,
}

/// How a bus of the guest behaves.
#[derive(Clone, Copy)]
pub(crate) enum Bus {
    Full,
    /// Gives the device that speed.
    Speed(&'static str),
    /// Takes the object, and QEMU does not open the device.
    Refuses,
}

impl Scripted {
    pub(crate) fn new(objects: &[&str]) -> Self {
        Self {
            objects: objects.iter().map(|id| ((*id).to_owned(), true)).collect(),
            buses: BTreeMap::new(),
            default: Bus::Speed("5000"),
            speed: "5000",
            added: Vec::new(),
            sees_after: 0,
            may_open: true,
            running: true,
        }
    }

    /// A guest whose only bus is slow.
    pub(crate) fn slow() -> Self {
        Self { default: Bus::Speed("480"), ..Self::new(&[]) }
    }

    pub(crate) fn bus(&mut self, name: &str, bus: Bus) {
        self.buses.insert(name.to_owned(), bus);
    }

    pub(crate) fn objects(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    fn device_add(&mut self, arguments: Value) -> Result<Value, Error> {
        let bus = match arguments.get("bus").and_then(Value::as_str) {
            None => self.default,
            Some(name) => match self.buses.get(name) {
                None => {
                    return refuse(
                        "device_add",
                        "GenericError",
                        &format!("Bus '{name}' not found"),
                    );
                }
                Some(bus) => *bus,
            },
        };
        let opens = match bus {
            Bus::Full => {
                return refuse(
                    "device_add",
                    "GenericError",
                    "tried to attach usb device USB Host Device to a bus with no free ports",
                );
            }
            Bus::Refuses => false,
            Bus::Speed(speed) => {
                self.speed = speed;
                self.sees_after == 0 && self.may_open && self.running
            }
        };
        let id = arguments["id"].as_str().unwrap().to_owned();
        self.objects.insert(id, opens);
        self.added.push(arguments);
        Ok(json!({}))
    }

    fn monitor(&mut self, line: &str) -> String {
        if line == "info usb" {
            let lines = self.objects.keys().map(|id| {
                format!(
                    "  Device 0.1, Port 1, Speed {} Mb/s, Product Stick, ID: {id}\r\n",
                    self.speed
                )
            });
            return lines.collect();
        }
        if self.sees_after > 0 {
            self.sees_after -= 1;
            return String::new();
        }
        let name = if self.may_open { ", Stick" } else { "" };
        format!(
            "  Bus 1, Addr 16, Port 3, Speed 5000 Mb/s\r\n    Class 00: USB device 46f4:0001{name}\r\n"
        )
    }
}

impl Qmp for Scripted {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        match command {
            "qom-list" => Ok(self
                .objects
                .keys()
                .map(|id| json!({"name": id, "type": "child<usb-host>"}))
                .collect()),
            "qom-get" => match arguments["path"]
                .as_str()
                .unwrap()
                .rsplit_once('/')
                .and_then(|(_, id)| self.objects.get(id))
            {
                Some(attached) => Ok(json!(attached)),
                None => refuse(command, "DeviceNotFound", "Device not found"),
            },
            "device_add" => self.device_add(arguments),
            "device_del" => match self.objects.remove(arguments["id"].as_str().unwrap()) {
                Some(_) => Ok(json!({})),
                None => refuse(command, "DeviceNotFound", "Device not found"),
            },
            "query-status" => Ok(json!({"running": self.running})),
            "device-list-properties" => Ok(json!([])),
            "human-monitor-command" => {
                Ok(json!(self.monitor(arguments["command-line"].as_str().unwrap())))
            }
            other => refuse(command, "CommandNotFound", other),
        }
    }

    fn pause(&mut self, _: Duration) -> Result<(), Error> {
        Ok(())
    }
}

fn refuse(command: &'static str, class: &str, desc: &str) -> Result<Value, Error> {
    Err(Error::Command { command, class: class.to_owned(), desc: desc.to_owned() })
}
