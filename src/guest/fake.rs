//! A fake QEMU: it answers the commands of this module as QEMU 7.2 and 10.0 do.
//!
//! A dry run shows the commands that it got. In tests it fails as a real QEMU fails when the host's
//! device or its own permissions do.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Qmp;
use crate::device_id::DeviceId;
use crate::qmp::{Error, OpenDevice, Step};

#[derive(Clone, Debug)]
pub struct FakeQemu {
    pub host: Vec<HostDevice>,
    /// The guest's buses. QEMU chooses the first one.
    pub buses: BTreeMap<String, Bus>,
    pub hmp: Hmp,
    /// Ports that another client takes after QEMU has listed them as free.
    pub taken_by_other: Vec<(String, usize)>,
    /// After how many polls QEMU lists the host's devices.
    pub sees_after_polls: u32,
    pub may_open: bool,
    /// Whether QEMU opens a USB device from a set of file descriptors.
    pub opens_fds: bool,
    pub fds: BTreeMap<u64, usize>,
    pub running: bool,
    /// For how many polls an ID stays taken after its object was deleted or rejected, as before QEMU
    /// 6.2.
    pub ids_linger: u32,
    /// A command that ends the session without a reply.
    pub closes_at: Option<&'static str>,
    lingering: BTreeMap<String, u32>,
    pub commands: Vec<(&'static str, Value)>,
    objects: BTreeMap<String, Object>,
}

/// How much of HMP the QEMU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hmp {
    Full,
    /// `info qtree` shows no buses.
    WithoutBuses,
    Refused,
}

#[derive(Clone, Debug)]
struct Object {
    bus: String,
    port: usize,
    /// The speed in the guest, in Mb/s.
    speed: String,
    open: bool,
}

#[derive(Clone, Debug)]
pub struct HostDevice {
    pub id: DeviceId,
    /// In Mb/s.
    pub speed: String,
    pub product: String,
}

impl FakeQemu {
    /// A running guest with one good bus and these objects, which are attached.
    pub fn new(objects: &[&str], host: Vec<HostDevice>) -> Self {
        let mut qemu = Self {
            host,
            buses: BTreeMap::from([("xhci0.0".to_owned(), Bus::Good)]),
            hmp: Hmp::Full,
            taken_by_other: Vec::new(),
            sees_after_polls: 0,
            may_open: true,
            opens_fds: true,
            fds: BTreeMap::new(),
            running: true,
            ids_linger: 0,
            closes_at: None,
            lingering: BTreeMap::new(),
            commands: Vec::new(),
            objects: BTreeMap::new(),
        };
        for id in objects {
            qemu.add_object(id);
        }
        qemu
    }

    /// Adds an attached object on the bus that QEMU chooses.
    pub fn add_object(&mut self, id: &str) {
        let bus = self.buses.keys().next().cloned().unwrap_or_default();
        let port = self.first_free(&bus).unwrap_or(1);
        let object = Object { bus, port, speed: "480".to_owned(), open: true };
        self.objects.entry(id.to_owned()).or_insert(object);
    }

    pub fn ids(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    /// The IDs of the objects that have their device open.
    pub fn open(&self) -> Vec<&str> {
        let open = self.objects.iter().filter(|(_, object)| object.open);
        open.map(|(id, _)| id.as_str()).collect()
    }

    /// Changes the host's devices. QEMU closes missing ones. In a running guest it opens present
    /// ones, as QEMU's timer does (`hw/usb/host-libusb.c`: `usb_host_auto_check`).
    pub fn host_changed(&mut self, host: Vec<HostDevice>) {
        self.host = host;
        for (id, object) in &mut self.objects {
            let is_present = self.host.iter().any(|device| device.id.to_string() == *id);
            object.open = is_present && (object.open || self.running);
        }
    }

    pub fn fd_count(&self) -> usize {
        self.fds.values().sum()
    }

    fn has_fd(&self, path: &str) -> bool {
        let set = path.strip_prefix("/dev/fdset/").and_then(|set| set.parse().ok());
        set.and_then(|set: u64| self.fds.get(&set)).is_some_and(|count| *count > 0)
    }

    fn is_taken(&self, bus: &str, port: usize) -> bool {
        self.buses.get(bus) == Some(&Bus::Full)
            || self.objects.values().any(|object| object.bus == bus && object.port == port)
    }

    fn first_free(&self, bus: &str) -> Option<usize> {
        (1..=self.buses.get(bus)?.model().1).find(|port| !self.is_taken(bus, *port))
    }

    fn device_add(&mut self, arguments: &Value) -> Result<Value, Error> {
        let rejected = |desc: &str| Err(error("device_add", "GenericError", desc));
        let id = text(&arguments["id"]);
        if self.lingering.contains_key(&id) {
            return rejected(&format!("Duplicate ID '{id}' for device"));
        }
        let chosen = self.buses.keys().next().map_or("", String::as_str);
        let name = arguments["bus"].as_str().unwrap_or(chosen).to_owned();
        let Some(bus) = self.buses.get(&name).copied() else {
            return rejected(&format!("Bus '{name}' not found"));
        };
        let port = match arguments["port"].as_str().map(str::parse) {
            None => self.first_free(&name),
            Some(port) => {
                let port = port.unwrap_or(0);
                let is_taken = self.taken_by_other.contains(&(name.clone(), port));
                if is_taken || port > bus.model().1 || self.is_taken(&name, port) {
                    return rejected(&format!("usb port {port} (bus {name}) not found (in use?)"));
                }
                Some(port)
            }
        };
        let Some(port) = port else {
            return rejected(
                "tried to attach usb device USB Host Device to a bus with no free ports",
            );
        };
        let device = self.host.iter().find(|device| device.id.to_string() == id);
        let speed = device.map_or("1.5", |device| bus.speed_of(&device.speed)).to_owned();
        let by_node = self.sees_after_polls == 0 && self.may_open && self.running;
        let open = match arguments["hostdevice"].as_str() {
            None => by_node && bus != Bus::Refuses && device.is_some(),
            Some(_) if !self.opens_fds => {
                return rejected("Property 'usb-host.hostdevice' not found");
            }
            // In a paused guest too.
            Some(path) if self.has_fd(path) && bus != Bus::Refuses => device.is_some(),
            Some(path) => return rejected(&format!("failed to open host usb device {path}")),
        };
        self.objects.insert(id, Object { bus: name, port, speed, open });
        Ok(json!({}))
    }

    fn keep_id(&mut self, id: String, keep: bool) {
        if keep && self.ids_linger > 0 {
            self.lingering.entry(id).or_insert(self.ids_linger);
        }
    }

    fn qom_list(&self, path: &str) -> Value {
        let child =
            |name: &str, kind: &str| json!({"name": name, "type": format!("child<{kind}>")});
        let controllers = self.buses.iter().map(|(name, bus)| {
            (name.strip_suffix(".0").unwrap_or(name), name.as_str(), bus.model().0)
        });
        if path == "/machine/peripheral" {
            let objects = self.objects.keys().map(|id| child(id, "usb-host"));
            return objects.chain(controllers.map(|(id, _, kind)| child(id, kind))).collect();
        }
        let mut own = controllers.filter(|(id, ..)| path == format!("/machine/peripheral/{id}"));
        own.next().into_iter().map(|(_, bus, _)| child(bus, "usb-bus")).collect()
    }

    fn qom_get(&self, path: &str, property: &str) -> Option<Value> {
        let id = path.strip_prefix("/machine/peripheral/")?;
        if ["p2", "p3"].contains(&property) {
            return self.buses.get(&format!("{id}.0")).map(|bus| json!(bus.model().1));
        }
        self.objects.get(id).map(|object| json!(object.open))
    }

    fn hmp(&mut self, line: &str) -> String {
        match line {
            "info usb" => self.info_usb(),
            "info qtree" if self.hmp == Hmp::Full => self.info_qtree(),
            "info usbhost" if self.sees_after_polls == 0 => {
                self.host.iter().map(|device| self.info_usbhost(device)).collect()
            }
            _ => {
                self.sees_after_polls -= u32::from(line == "info usbhost");
                String::new()
            }
        }
    }

    /// QEMU lists the newest controller first.
    fn info_qtree(&self) -> String {
        let usb_device = |port: usize, speed: &str, product: &str, open: bool| {
            let attached = if open { ", attached" } else { "" };
            format!("        addr 0.1, port {port}, speed {speed}, name {product}{attached}")
        };
        let mut lines = vec!["bus: main-system-bus".to_owned(), "  type System".to_owned()];
        for (name, bus) in self.buses.iter().rev() {
            let id = name.strip_suffix(".0").unwrap_or_default();
            lines.push(format!("  dev: {}, id \"{id}\"", bus.model().0));
            lines.push(format!("    bus: {name}"));
            lines.push("      type usb-bus".to_owned());
            if *bus == Bus::Full {
                lines.push("      dev: usb-kbd, id \"\"".to_owned());
                lines.push(usb_device(1, "12", "QEMU USB Keyboard", true));
            }
            for (id, object) in self.objects.iter().filter(|(_, object)| object.bus == *name) {
                lines.push(format!("      dev: usb-host, id \"{id}\""));
                lines.push(usb_device(object.port, &object.speed, self.product(id), object.open));
            }
        }
        lines.join("\r\n")
    }

    fn product(&self, id: &str) -> &str {
        let device = self.host.iter().find(|device| device.id.to_string() == id);
        device.map_or("USB Host Device", |device| &device.product)
    }

    fn info_usb(&self) -> String {
        let line = |(id, Object { port, speed, .. }): (&String, &Object)| {
            let product = self.product(id);
            format!(
                "  Device 0.1, Port {port}, Speed {speed} Mb/s, Product {product}, ID: {id}\r\n"
            )
        };
        self.objects.iter().map(line).collect()
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

impl Qmp for FakeQemu {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        self.commands.push((command, arguments.clone()));
        if self.closes_at == Some(command) {
            return Err(Error::Closed(Step::Command(command)));
        }
        let not_found = || error(command, "DeviceNotFound", "Device not found");
        match command {
            "qom-list" => Ok(self.qom_list(&text(&arguments["path"]))),
            "qom-get" => self
                .qom_get(&text(&arguments["path"]), &text(&arguments["property"]))
                .ok_or_else(not_found),
            "device_add" => {
                let added = self.device_add(&arguments);
                self.keep_id(text(&arguments["id"]), added.is_err());
                added
            }
            "device_del" => {
                let id = text(&arguments["id"]);
                let deleted = self.objects.remove(&id);
                self.keep_id(id, deleted.is_some());
                deleted.map(|_| json!({})).ok_or_else(not_found)
            }
            "query-fdsets" => {
                let fds = |count: &usize| vec![json!({"fd": 12}); *count];
                let set = |(set, count)| json!({"fdset-id": set, "fds": fds(count)});
                Ok(self.fds.iter().map(set).collect())
            }
            "remove-fd" => {
                let set = arguments["fdset-id"].as_u64().unwrap_or_default();
                let fds = self.fds.get_mut(&set).ok_or_else(not_found)?;
                // A paused QEMU keeps them until it resumes.
                *fds = if self.running { 0 } else { *fds };
                Ok(json!({}))
            }
            "query-status" => Ok(json!({"running": self.running})),
            "device-list-properties" => Ok(json!([])),
            "human-monitor-command" if self.hmp != Hmp::Refused => {
                Ok(json!(self.hmp(&text(&arguments["command-line"]))))
            }
            _ => Err(error(command, "CommandNotFound", "no such command")),
        }
    }

    /// The device is not opened, because no process receives it.
    fn execute_with_fd(
        &mut self,
        command: &'static str,
        arguments: Value,
        _: &OpenDevice<'_>,
    ) -> Result<Value, Error> {
        self.commands.push((command, arguments.clone()));
        let set = arguments["fdset-id"].as_u64().unwrap_or_default();
        *self.fds.entry(set).or_default() += 1;
        Ok(json!({"fdset-id": set, "fd": 12}))
    }

    fn pause(&mut self, _: Duration) -> Result<(), Error> {
        self.lingering.retain(|_, polls| {
            *polls -= 1;
            *polls > 0
        });
        Ok(())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn error(command: &'static str, class: &str, desc: &str) -> Error {
    Error::Command { command, class: class.to_owned(), desc: desc.to_owned() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// An xHCI with 15 ports, at which any device has its native speed.
    Good,
    /// An xHCI with one port, which is taken.
    Full,
    Uhci,
    /// An EHCI that takes devices of any speed.
    Ehci,
    /// An xHCI with 15 ports. QEMU makes the object and does not open the device.
    Refuses,
    /// An unknown controller with 4 ports of 12 Mb/s.
    Unknown,
}

impl Bus {
    fn model(self) -> (&'static str, usize) {
        match self {
            Self::Good | Self::Refuses => ("qemu-xhci", 15),
            Self::Full => ("qemu-xhci", 1),
            Self::Uhci => ("piix3-usb-uhci", 2),
            Self::Ehci => ("usb-ehci", 6),
            Self::Unknown => ("usb-tomorrow", 4),
        }
    }

    /// The speed that a device of that speed has on this bus.
    fn speed_of(self, speed: &str) -> &str {
        match (self, speed) {
            (Self::Uhci | Self::Unknown, "480" | "5000" | "10000") => "12",
            (Self::Ehci, "5000" | "10000") => "480",
            (_, "10000") => "5000",
            (_, other) => other,
        }
    }
}
