//! The host of the model: a port with a device or none, udev's queue, two guests, what is
//! remembered.

use std::collections::VecDeque;
use std::time::Duration;

use hotplugger::config::Config;
use hotplugger::config::file::ConfigFile;
use hotplugger::config::parse::parse;
use hotplugger::device_id::DeviceId;
use hotplugger::event;
use hotplugger::guest::fake::{FakeQemu, HostDevice};
use hotplugger::host::topology::{Connector, Controller, Hub, HubPort, Plugged, Topology};
use hotplugger::port::{BusNum, DevNum};
use hotplugger::root::Root;
use hotplugger::state::record::{Attachment, Record};
use hotplugger::sync;
use hotplugger::usb_device::UsbDevice;

use crate::host::ModelHost;

pub(crate) const PORT: &str = "1-1";
pub(crate) const DEVPATH: &str = "/devices/x/usb1/1-1";
pub(crate) const SOCKETS: [&str; 2] = ["/run/first.qmp", "/run/second.qmp"];
const CONFIG: &str = "virtual_machines:\n  first:\n    socket: /run/first.qmp\n    \
    ports: [/devices/x/usb1/1-1]\n  second:\n    socket: /run/second.qmp\n    \
    ports: [/devices/x/usb1/1-1]\n";

/// An event in udev's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) action: &'static str,
    pub(crate) devnum: u8,
    synthetic: bool,
}

/// A guest.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) qemu: FakeQemu,
    /// Which start of it this is: its socket is another file each time.
    pub(crate) start: u64,
}

/// All that there is.
#[derive(Clone, Debug)]
pub(crate) struct PortState {
    /// The number of the device in the port.
    pub(crate) device: Option<u8>,
    /// The number of the last one that was plugged.
    last: u8,
    pub(crate) events: VecDeque<Event>,
    pub(crate) guests: [Option<Guest>; 2],
    starts: u64,
    pub(crate) record: Option<Record>,
}

/// What happens beside the program's runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Plug,
    Pull,
    /// The guest of that number is killed or ends.
    Stop(usize),
    Start(usize),
    Pause(usize),
    GoOn(usize),
    /// It goes on, and its QEMU does not open what it has: it has not heard of the device, as while
    /// udevd was restarted.
    GoOnDeaf(usize),
    /// Somebody deletes the state folder.
    Wipe,
    /// `udevadm trigger`.
    Trigger,
}

impl Act {
    pub(crate) const ALL: [Self; 14] = [
        Self::Plug,
        Self::Pull,
        Self::Stop(0),
        Self::Stop(1),
        Self::Start(0),
        Self::Start(1),
        Self::Pause(0),
        Self::Pause(1),
        Self::GoOn(0),
        Self::GoOn(1),
        Self::GoOnDeaf(0),
        Self::GoOnDeaf(1),
        Self::Wipe,
        Self::Trigger,
    ];

    /// The acts that change something.
    pub(crate) fn possible(host: &PortState) -> Vec<Self> {
        Self::ALL.into_iter().filter(|act| act.is_possible(host)).collect()
    }

    fn is_possible(self, host: &PortState) -> bool {
        let running = |number: usize| host.guests[number].as_ref().map(|guest| guest.qemu.running);
        match self {
            Self::Plug => host.device.is_none(),
            Self::Pull | Self::Trigger => host.device.is_some(),
            Self::Stop(number) => host.guests[number].is_some(),
            Self::Start(number) => host.guests[number].is_none(),
            Self::Pause(number) => running(number) == Some(true),
            Self::GoOn(number) | Self::GoOnDeaf(number) => running(number) == Some(false),
            Self::Wipe => host.record.is_some(),
        }
    }

    /// Whether what must hold afterwards needs a `sync`: a guest comes or goes, or memory does.
    pub(crate) fn loses(self) -> bool {
        matches!(self, Self::Stop(_) | Self::Start(_) | Self::GoOnDeaf(_) | Self::Wipe)
    }
}

impl PortState {
    /// Nothing is plugged in; the first guest runs.
    pub(crate) fn new() -> Self {
        let mut host = Self {
            device: None,
            last: 1,
            events: VecDeque::new(),
            guests: [None, None],
            starts: 0,
            record: None,
        };
        host.act(Act::Start(0));
        host
    }

    /// What makes a state another one: not how often guests were started, nor what was said.
    pub(crate) fn key(&self) -> impl std::fmt::Debug {
        let guests: Vec<_> = self
            .guests
            .iter()
            .map(|guest| {
                let owned = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect::<Vec<_>>();
                guest.as_ref().map(|guest| {
                    let qemu = &guest.qemu;
                    (owned(qemu.ids()), owned(qemu.open()), qemu.running)
                })
            })
            .collect();
        let attachment = |attached: &Attachment| {
            let number =
                SOCKETS.iter().position(|socket| attached.monitor.file().ends_with(&socket[1..]));
            let start = self.guests[number.expect("a socket of the config")]
                .as_ref()
                .map(|guest| guest.start);
            let holds = attached.socket_file.map(|file| file.inode) == start;
            (number, attached.id.to_string(), holds)
        };
        let record = self.record.as_ref().map(|record| {
            let attached = record.attached.as_ref().map(attachment);
            let unconfirmed = record.unconfirmed.as_ref().map(attachment);
            (record.devnum, attached, unconfirmed, record.detached_manual)
        });
        (self.device, self.last, self.events.clone(), guests, record)
    }

    /// Lets it happen, if it can.
    pub(crate) fn act(&mut self, act: Act) {
        if !act.is_possible(self) {
            return;
        }
        match act {
            Act::Plug => {
                self.last += 1;
                self.device = Some(self.last);
                self.queue(&["add", "bind"], self.last, false);
            }
            Act::Pull => {
                let devnum = self.device.take().expect("a device");
                self.queue(&["remove"], devnum, false);
            }
            Act::Trigger => {
                let devnum = self.device.expect("a device");
                self.queue(&["bind"], devnum, true);
            }
            Act::Stop(number) => self.guests[number] = None,
            Act::Start(number) => {
                self.starts += 1;
                let qemu = FakeQemu::new(&[], self.devices());
                self.guests[number] = Some(Guest { qemu, start: self.starts });
            }
            Act::Pause(number) | Act::GoOn(number) => {
                let guest = self.guests[number].as_mut().expect("a guest");
                guest.qemu.running = matches!(act, Act::GoOn(_));
            }
            Act::GoOnDeaf(number) => {
                self.guests[number].as_mut().expect("a guest").qemu.running = true;
                return;
            }
            Act::Wipe => self.record = None,
        }
        self.look_again();
    }

    fn queue(&mut self, actions: &[&'static str], devnum: u8, synthetic: bool) {
        let events = actions.iter().map(|action| Event { action, devnum, synthetic });
        self.events.extend(events);
    }

    /// What QEMU has open follows what is plugged in. Nobody keeps two of them from opening one
    /// device: interfaces are claimed only when the guest configures it
    /// (`hw/usb/host-libusb.c`: `usb_host_set_config`).
    fn look_again(&mut self) {
        let devices = self.devices();
        for guest in self.guests.iter_mut().flatten() {
            guest.qemu.host_changed(devices.clone());
        }
    }

    fn devices(&self) -> Vec<HostDevice> {
        let device = |devnum: u8| HostDevice {
            id: id(devnum),
            speed: "480".to_owned(),
            product: "Stick".to_owned(),
        };
        self.device.map(device).into_iter().collect()
    }

    /// The device in the port, as sysfs has it.
    pub(crate) fn usb_device(&self) -> Option<UsbDevice> {
        self.device.map(|devnum| UsbDevice {
            busnum: BusNum(1),
            devnum: DevNum(devnum),
            class: 0,
            authorized: true,
            vendor_id: 0x46f4,
            product_id: 1,
            speed: "480".parse().ok(),
            product: Some("Stick".to_owned()),
            serial: None,
        })
    }

    /// The numbers of the guests that have the device open.
    pub(crate) fn open(&self) -> Vec<usize> {
        let has = |guest: &Guest| !guest.qemu.open().is_empty();
        (0..self.guests.len())
            .filter(|number| self.guests[*number].as_ref().is_some_and(has))
            .collect()
    }

    /// Whether a guest is paused, and may open what it has later.
    pub(crate) fn is_paused(&self) -> bool {
        self.guests.iter().flatten().any(|guest| !guest.qemu.running)
    }

    /// What is not as it must be at rest.
    pub(crate) fn wrong(&self) -> Option<String> {
        let present = self.device.map(|devnum| id(devnum).to_string());
        let mut ids: Vec<&str> = Vec::new();
        for guest in self.guests.iter().flatten() {
            if guest.qemu.ids() != guest.qemu.open() {
                return Some("an object has no device".to_owned());
            }
            ids.extend(guest.qemu.ids());
        }
        let runs = self.guests.iter().any(Option::is_some);
        let wanted: Vec<&str> = present.as_deref().filter(|_| runs).into_iter().collect();
        if ids != wanted {
            return Some(format!("the guests have {ids:?}, not {wanted:?}"));
        }
        let kept = self.record.as_ref().map(|record| record.devnum.0);
        if kept.is_some() && kept != self.device {
            return Some(format!("device {kept:?} is remembered, and {:?} there", self.device));
        }
        None
    }

    /// The tree of ports.
    pub(crate) fn topology(&self) -> Topology {
        let port = HubPort {
            port: PORT.parse().expect("a port"),
            devpath: DEVPATH.parse().expect("a DEVPATH"),
            connector: Connector::default(),
            plugged: self.usb_device().map(Plugged::Device),
        };
        let root_hub = Hub {
            devpath: "/devices/x/usb1".parse().expect("a DEVPATH"),
            speed: "480".parse().ok(),
            ports: vec![port],
        };
        Topology {
            controllers: vec![Controller {
                devpath: "/devices/x".parse().expect("a DEVPATH"),
                name: None,
                root_hubs: vec![root_hub],
            }],
        }
    }
}

fn id(devnum: u8) -> DeviceId {
    DeviceId { port: PORT.parse().expect("a port"), devnum: DevNum(devnum) }
}

/// What does not change: the config, on disk for the hook and parsed for `sync`.
pub(crate) struct Model {
    _folder: tempfile::TempDir,
    root: Root,
    config: Config,
}

impl Model {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::at(folder.path());
        std::fs::create_dir_all(root.path("/etc/hotplugger")).expect("a folder");
        std::fs::write(root.path("/etc/hotplugger/config.yaml"), CONFIG).expect("a file");
        Self { root, config: parse(CONFIG).expect("a config"), _folder: folder }
    }

    /// A udev call.
    pub(crate) fn handle(&self, host: &ModelHost, event: &Event) {
        let devnum = event.devnum.to_string();
        let variables = [
            ("ACTION", event.action),
            ("DEVPATH", DEVPATH),
            ("SUBSYSTEM", "usb"),
            ("DEVTYPE", "usb_device"),
            ("BUSNUM", "1"),
            ("DEVNUM", &devnum),
            ("SEQNUM", "1"),
            ("SYNTH_UUID", "0"),
        ];
        let known = &variables[..variables.len() - usize::from(!event.synthetic)];
        let variable = |wanted: &str| {
            let known = known.iter().find(|(name, _)| *name == wanted);
            known.map(|(_, value)| (*value).to_owned())
        };
        event::handle(&variable, ConfigFile::find(&self.root, None), host);
    }

    /// `hotplugger sync`, which does one machine beside the other: in one order or the other.
    pub(crate) fn sync(&self, host: &ModelHost, last_first: bool) {
        sync::delete_stale_records(host);
        let mut vms: Vec<_> = self.config.virtual_machines.iter().collect();
        if last_first {
            vms.reverse();
        }
        for vm in vms {
            if host.is_up(&vm.monitor) {
                let job = sync::SyncJob { host, config: &self.config, vm };
                let _ = job.run(Duration::from_secs(5), &mut |_| {});
            }
        }
    }
}
