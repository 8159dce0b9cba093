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
use crate::qmp::handover::Handover;

/// A guest, its objects, and what QEMU knows of the host.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a way to misbehave by itself")]
pub struct FakeQemu {
    /// The devices of the host.
    pub host: Vec<HostDevice>,
    /// Its buses; the first is what QEMU chooses.
    pub buses: BTreeMap<String, Bus>,
    /// Whether QEMU tells of the buses.
    pub tells: bool,
    /// Ports that another client takes as soon as they have been told of.
    pub raced: Vec<(String, usize)>,
    /// After how many looks QEMU sees the host's devices.
    pub sees_after: u32,
    /// Whether QEMU may open them.
    pub may_open: bool,
    /// Its sets of descriptors.
    pub sets: Sets,
    /// Whether the guest runs.
    pub running: bool,
    /// Whether QEMU accepts monitor commands.
    pub has_monitor: bool,
    /// How many more times an ID counts as taken although it has no object, as in QEMU before 6.2.
    pub busy_ids: u32,
    /// The commands it was sent, and their arguments.
    pub said: Vec<(&'static str, Value)>,
    objects: BTreeMap<String, Object>,
}

/// A usb-host object.
#[derive(Clone, Debug)]
struct Object {
    bus: String,
    port: usize,
    /// In Mb/s, as the guest was told.
    speed: String,
    /// Whether it has its device open.
    open: bool,
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

impl FakeQemu {
    /// A guest that runs, has one good bus, and these objects in it, attached, on a host with these
    /// devices.
    pub fn new(objects: &[&str], host: Vec<HostDevice>) -> Self {
        let mut guest = Self {
            host,
            buses: BTreeMap::from([("xhci0.0".to_owned(), Bus::Good)]),
            tells: true,
            raced: Vec::new(),
            sees_after: 0,
            may_open: true,
            sets: Sets::new(),
            running: true,
            has_monitor: true,
            busy_ids: 0,
            said: Vec::new(),
            objects: BTreeMap::new(),
        };
        for id in objects {
            guest.hold(id);
        }
        guest
    }

    /// Gives it an object, attached, on the bus that QEMU chooses.
    pub fn hold(&mut self, id: &str) {
        let bus = self.buses.keys().next().cloned().unwrap_or_default();
        let port = self.first_free(&bus).unwrap_or(1);
        let object = Object { bus, port, speed: "480".to_owned(), open: true };
        self.objects.entry(id.to_owned()).or_insert(object);
    }

    /// The ids of the objects that have their device open.
    pub fn open(&self) -> Vec<&str> {
        let open = self.objects.iter().filter(|(_, object)| object.open);
        open.map(|(id, _)| id.as_str()).collect()
    }

    /// The host's devices have changed: what is gone is closed, and in a guest that runs, what is
    /// there is opened, as QEMU's timer does (`hw/usb/host-libusb.c`: `usb_host_auto_check`).
    pub fn host_changed(&mut self, host: Vec<HostDevice>) {
        self.host = host;
        for (id, object) in &mut self.objects {
            let there = self.host.iter().any(|device| device.id.to_string() == *id);
            object.open = there && (object.open || self.running);
        }
    }

    fn is_taken(&self, bus: &str, port: usize) -> bool {
        self.buses.get(bus) == Some(&Bus::Full)
            || self.objects.values().any(|object| object.bus == bus && object.port == port)
    }

    fn first_free(&self, bus: &str) -> Option<usize> {
        (1..=self.buses.get(bus)?.ports()).find(|port| !self.is_taken(bus, *port))
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
        if self.busy_ids > 0 {
            self.busy_ids -= 1;
            return refused(&format!("Duplicate ID '{}' for device", text(&arguments["id"])));
        }
        if !self.has_monitor {
            self.sees_after = self.sees_after.saturating_sub(1);
        }
        let chosen = self.buses.keys().next().cloned().unwrap_or_default();
        let name = arguments["bus"].as_str().map_or(chosen, str::to_owned);
        let Some(bus) = self.buses.get(&name).copied() else {
            return refused(&format!("Bus '{name}' not found"));
        };
        let port = match arguments["port"].as_str().map(str::parse) {
            None => self.first_free(&name),
            Some(port) => {
                let port = port.unwrap_or(0);
                let raced = self.raced.contains(&(name.clone(), port));
                if raced || port > bus.ports() || self.is_taken(&name, port) {
                    return refused(&format!("usb port {port} (bus {name}) not found (in use?)"));
                }
                Some(port)
            }
        };
        let Some(port) = port else {
            return refused(
                "tried to attach usb device USB Host Device to a bus with no free ports",
            );
        };
        let id = text(&arguments["id"]);
        let device = self.host.iter().find(|device| device.id.to_string() == id);
        let speed = device.map_or("1.5", |device| bus.gives(&device.speed)).to_owned();
        let by_itself = self.sees_after == 0 && self.may_open && self.running;
        let open = match arguments["hostdevice"].as_str() {
            None => by_itself && bus != Bus::Refuses && device.is_some(),
            Some(_) if !self.sets.are_taken => {
                return refused("Property 'usb-host.hostdevice' not found");
            }
            // In a paused guest too.
            Some(path) if self.sets.opens(path) && bus != Bus::Refuses => device.is_some(),
            Some(path) => return refused(&format!("failed to open host usb device {path}")),
        };
        self.objects.insert(id, Object { bus: name, port, speed, open });
        Ok(json!({}))
    }

    fn qom_list(&self, path: &str) -> Value {
        let child =
            |name: &str, kind: &str| json!({"name": name, "type": format!("child<{kind}>")});
        let controller = path.strip_prefix("/machine/peripheral/");
        if let Some(name) = controller.map(|id| format!("{id}.0")) {
            return self
                .buses
                .keys()
                .filter(|bus| **bus == name)
                .map(|bus| child(bus, "usb-bus"))
                .collect();
        }
        let controllers = self
            .buses
            .iter()
            .filter_map(|(name, bus)| Some(child(name.strip_suffix(".0")?, bus.controller())));
        let objects = self.objects.keys().map(|id| child(id, "usb-host"));
        objects.chain(controllers).collect()
    }

    fn monitor(&mut self, line: &str) -> String {
        match line {
            "info usb" => return self.objects.keys().map(|id| self.info_usb(id)).collect(),
            "info qtree" if self.tells => return self.info_qtree(),
            "info qtree" => return String::new(),
            _ => {}
        }
        if self.sees_after > 0 {
            self.sees_after -= 1;
            return String::new();
        }
        self.host.iter().map(|device| self.info_usbhost(device)).collect()
    }

    /// The newest controller first, as QEMU has it.
    fn info_qtree(&self) -> String {
        let mut lines = vec!["bus: main-system-bus".to_owned(), "  type System".to_owned()];
        for (name, bus) in self.buses.iter().rev() {
            let controller = bus.controller();
            let id = name.strip_suffix(".0").unwrap_or_default();
            lines.push(format!("  dev: {controller}, id \"{id}\""));
            lines.push(format!("    bus: {name}"));
            lines.push("      type usb-bus".to_owned());
            if *bus == Bus::Full {
                lines.push("      dev: usb-kbd, id \"\"".to_owned());
                lines.push(occupant(1, "12", "QEMU USB Keyboard", true));
            }
            for (id, object) in self.objects.iter().filter(|(_, object)| object.bus == *name) {
                lines.push(format!("      dev: usb-host, id \"{id}\""));
                lines.push(occupant(object.port, &object.speed, self.product(id), object.open));
            }
        }
        lines.join("\r\n")
    }

    fn product(&self, id: &str) -> &str {
        let device = self.host.iter().find(|device| device.id.to_string() == id);
        device.map_or("USB Host Device", |device| &device.product)
    }

    fn info_usb(&self, id: &str) -> String {
        let object = self.objects.get(id);
        let (port, speed) = object.map_or((0, "1.5"), |object| (object.port, &object.speed));
        let product = self.product(id);
        format!("  Device 0.1, Port {port}, Speed {speed} Mb/s, Product {product}, ID: {id}\r\n")
    }

    /// The number of ports that the controller at that path has of each speed.
    fn ports(&self, path: &str) -> Option<usize> {
        let id = path.strip_prefix("/machine/peripheral/")?;
        self.buses.get(&format!("{id}.0")).map(|bus| bus.ports())
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
        self.said.push((command, arguments.clone()));
        let not_found = || refusal(command, "DeviceNotFound", "Device not found");
        match command {
            "qom-list" => Ok(self.qom_list(&text(&arguments["path"]))),
            "qom-get" => {
                let path = text(&arguments["path"]);
                if ["p2", "p3"].contains(&text(&arguments["property"]).as_str()) {
                    return self.ports(&path).map(|ports| json!(ports)).ok_or_else(not_found);
                }
                let id = path.rsplit('/').next().unwrap_or_default();
                self.objects.get(id).map(|object| json!(object.open)).ok_or_else(not_found)
            }
            "device_add" => self.device_add(&arguments),
            "device_del" => {
                let gone = self.objects.remove(&text(&arguments["id"]));
                gone.map(|_| json!({})).ok_or_else(not_found)
            }
            "query-fdsets" => Ok(self.sets.list()),
            "remove-fd" => {
                let set = arguments["fdset-id"].as_u64();
                let removed = set.and_then(|set| self.sets.remove(set, self.running));
                removed.map(|()| json!({})).ok_or_else(not_found)
            }
            "query-status" => Ok(json!({"running": self.running})),
            "device-list-properties" => Ok(json!([])),
            "human-monitor-command" if !self.has_monitor => {
                Err(refusal(command, "CommandNotFound", "The command has been disabled"))
            }
            "human-monitor-command" => Ok(json!(self.monitor(&text(&arguments["command-line"])))),
            _ => Err(refusal(command, "CommandNotFound", "no such command")),
        }
    }

    /// What is handed over is not opened: nobody is there to have it.
    fn hand_over(
        &mut self,
        command: &'static str,
        arguments: Value,
        _: &dyn Handover,
    ) -> Result<Value, Error> {
        self.said.push((command, arguments.clone()));
        let set = arguments["fdset-id"].as_u64().unwrap_or_default();
        self.sets.put(set);
        Ok(json!({"fdset-id": set, "fd": 12}))
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

/// How a bus of the guest behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// An xHCI of 15 ports that takes any device at its own speed.
    Good,
    /// An xHCI of one port, and that is taken.
    Full,
    /// A UHCI.
    Uhci,
    /// An EHCI that gives any device its own speed.
    Ehci,
    /// An xHCI of 15 ports that takes the object, and QEMU does not open the device.
    Refuses,
    /// A controller that nobody has heard of, with 4 ports of 12 Mb/s.
    Unknown,
}

impl Bus {
    /// QEMU's name of its controller.
    fn controller(self) -> &'static str {
        match self {
            Self::Good | Self::Full | Self::Refuses => "qemu-xhci",
            Self::Uhci => "piix3-usb-uhci",
            Self::Ehci => "usb-ehci",
            Self::Unknown => "usb-tomorrow",
        }
    }

    /// How many ports it has.
    fn ports(self) -> usize {
        match self {
            Self::Good | Self::Refuses => 15,
            Self::Full => 1,
            Self::Uhci => 2,
            Self::Ehci => 6,
            Self::Unknown => 4,
        }
    }

    /// The speed that it gives a device of that one.
    fn gives(self, speed: &str) -> &str {
        match (self, speed) {
            (Self::Uhci | Self::Unknown, "480" | "5000" | "10000") => "12",
            (Self::Ehci, "5000" | "10000") => "480",
            (_, "10000") => "5000",
            (_, other) => other,
        }
    }
}

fn occupant(port: usize, speed: &str, product: &str, attached: bool) -> String {
    let attached = if attached { ", attached" } else { "" };
    format!("        addr 0.1, port {port}, speed {speed}, name {product}{attached}")
}

/// All sets.
#[derive(Clone, Debug)]
pub struct Sets {
    /// Whether this QEMU takes a USB device from one.
    pub are_taken: bool,
    /// How many descriptors are in each set that was ever made.
    descriptors: BTreeMap<u64, usize>,
}

impl Sets {
    fn new() -> Self {
        Self { are_taken: true, descriptors: BTreeMap::new() }
    }

    /// How many descriptors are left in them.
    pub fn left(&self) -> usize {
        self.descriptors.values().sum()
    }

    /// Puts one into that set, as an exchange does that may be broken off then.
    pub fn put(&mut self, set: u64) {
        *self.descriptors.entry(set).or_default() += 1;
    }

    /// Takes those of that set away; as with QEMU, in a paused guest they stay until it goes on.
    fn remove(&mut self, set: u64, running: bool) -> Option<()> {
        let descriptors = self.descriptors.get_mut(&set)?;
        if running {
            *descriptors = 0;
        }
        Some(())
    }

    /// Whether something can be opened at `/dev/fdset/N`.
    fn opens(&self, path: &str) -> bool {
        let set = path.strip_prefix("/dev/fdset/").and_then(|set| set.parse().ok());
        set.and_then(|set: u64| self.descriptors.get(&set)).is_some_and(|count| *count > 0)
    }

    /// What `query-fdsets` returns.
    fn list(&self) -> Value {
        let set = |(set, descriptors): (&u64, &usize)| {
            let fds = vec![json!({"fd": 12}); *descriptors];
            json!({"fdset-id": set, "fds": fds})
        };
        self.descriptors.iter().map(set).collect()
    }
}
