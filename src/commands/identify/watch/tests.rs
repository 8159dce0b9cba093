use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

use super::*;
use crate::host::topology::{Controller, Hub, Plugged};
use crate::port::{BusNum, DevNum};
use crate::usb_device::UsbDevice;

const PCI: &str = "/devices/pci0000:00/0000:00:14.0/usb1";

fn devpath(name: &str) -> DevPath {
    let hub = name.split_once('.').map(|(hub, _)| format!("{hub}/")).unwrap_or_default();
    format!("{PCI}/{hub}{name}").parse().unwrap()
}

/// A machine with a script: milliseconds, and what happens then. Devices are printed by name
/// and device number.
#[derive(Default)]
struct Script {
    now: Monotonic,
    happenings: VecDeque<(u64, Input)>,
    devices: RefCell<Vec<(&'static str, u8)>>,
    /// What sysfs has from a moment on.
    changes: Vec<(u64, Vec<(&'static str, u8)>)>,
}

impl Script {
    fn at(mut self, time: u64, action: &str, name: &str) -> Self {
        self.happenings
            .push_back((time, Input::Kernel(Received::Uevent(Box::new(uevent(action, name))))));
        self
    }

    fn then(mut self, time: u64, happening: Input) -> Self {
        self.happenings.push_back((time, happening));
        self
    }

    fn has(mut self, time: u64, devices: &[(&'static str, u8)]) -> Self {
        self.changes.push((time, devices.to_vec()));
        self
    }

    fn advance(&mut self, to: Monotonic) {
        self.now = to;
        for (time, devices) in &self.changes {
            if time * 1000 <= to.0 {
                devices.clone_into(&mut self.devices.borrow_mut());
            }
        }
    }

    /// Runs it; each event with its time in milliseconds.
    fn run(mut self, until: Option<u64>, count: usize) -> (EndReason, Vec<String>) {
        self.advance(Monotonic(0));
        let before = self.topology();
        let mut seen = Vec::new();
        let until = until.map(|until| Monotonic(until * 1000));
        let end = watch(&mut self, &before, until, |event| {
            let device = |port: &HubPort| {
                let devnum = port.device().map_or(0, |device| device.devnum.0);
                format!("{}#{devnum}", port.port)
            };
            let told = format!("{:?} {}", event.event, device(&event.port));
            let behind = event.behind.iter().map(|port| format!(" +{}", device(port)));
            seen.push(told + &behind.collect::<String>());
            Ok(seen.len() == count)
        });
        (end.unwrap(), seen)
    }
}

fn uevent(action: &str, name: &str) -> Uevent {
    Uevent::from_variables(|variable| match variable {
        "ACTION" => Some(action.to_owned()),
        "DEVPATH" if name.starts_with("usb") => Some(format!("/devices/pci0000:00/{name}")),
        "DEVPATH" => Some(devpath(name).to_string()),
        "SUBSYSTEM" => Some("usb".to_owned()),
        "DEVTYPE" if name.contains(':') => Some("usb_interface".to_owned()),
        "DEVTYPE" => Some("usb_device".to_owned()),
        "SYNTH_UUID" if name == "1-12" => Some("0".to_owned()),
        _ => None,
    })
    .unwrap()
}

impl EventSource for Script {
    fn next(&mut self, time: Option<Duration>) -> io::Result<Input> {
        let until = time.map(|time| self.now.after(time));
        match self.happenings.front() {
            Some((at, _)) if until.is_none_or(|until| at * 1000 <= until.0) => {
                self.advance(Monotonic(at * 1000).max(self.now));
                Ok(self.happenings.pop_front().unwrap().1)
            }
            _ => {
                self.advance(until.expect("the script is over, but does not end"));
                Ok(Input::Kernel(Received::Nothing))
            }
        }
    }

    fn now(&self) -> Monotonic {
        self.now
    }

    fn port(&self, devpath: &DevPath) -> Option<HubPort> {
        self.topology().port(devpath).cloned()
    }

    /// Hubs are the devices that have others behind them; port 9 is always there and empty.
    fn topology(&self) -> Topology {
        let devices = self.devices.borrow();
        let device = |devnum: u8| UsbDevice {
            busnum: BusNum(1),
            devnum: DevNum(devnum),
            class: 0,
            authorized: true,
            vendor_id: 1,
            product_id: 2,
            speed: None,
            product: None,
            serial: None,
        };
        let port = |name: &str, plugged| HubPort {
            port: name.parse().unwrap(),
            devpath: devpath(name),
            connector: Connector::default(),
            plugged,
        };
        let hub = |path: DevPath, ports| Hub { devpath: path, speed: None, ports };
        let mut ports = vec![port("1-9", None)];
        for (name, devnum) in devices.iter().filter(|(name, _)| !name.contains('.')) {
            let below: Vec<HubPort> = devices
                .iter()
                .filter(|(below, _)| below.starts_with(&format!("{name}.")))
                .map(|(below, devnum)| port(below, Some(Plugged::Device(device(*devnum)))))
                .collect();
            let plugged = match below.as_slice() {
                [] => Plugged::Device(device(*devnum)),
                _ => Plugged::Hub(device(*devnum), hub(devpath(name), below)),
            };
            ports.push(port(name, Some(plugged)));
        }
        let root_hubs = vec![hub(PCI.parse().unwrap(), ports)];
        let devpath = "/devices/pci0000:00/0000:00:14.0".parse().unwrap();
        Topology { controllers: vec![Controller { devpath, name: None, root_hubs }] }
    }
}

#[test]
fn a_plug_is_told_at_once_and_once() {
    let script = Script::default()
        .has(1000, &[("1-1", 5)])
        .has(1050, &[("1-1", 5), ("1-1.2", 6)])
        .at(1000, "add", "1-1")
        .at(1001, "add", "1-1:1.0")
        .at(1010, "bind", "1-1")
        .at(1050, "add", "1-1.2");
    let told = vec!["Plug 1-1#5".to_owned(), "Plug 1-1.2#6".to_owned()];
    assert_eq!(script.run(Some(3000), 9), (EndReason::Timeout, told));
    let script = Script::default().has(1000, &[("1-1", 5)]).at(1000, "add", "1-1");
    assert_eq!(script.run(None, 1), (EndReason::Count, vec!["Plug 1-1#5".to_owned()]));
}

#[test]
fn a_pull_is_told_with_what_was_there() {
    let script = Script::default()
        .has(0, &[("1-1", 5), ("1-2", 6)])
        .has(1000, &[("1-2", 6)])
        .at(1000, "remove", "1-1")
        .at(1500, "remove", "1-9");
    assert_eq!(script.run(Some(3000), 9).1, ["Pull 1-1#5", "Pull 1-9#0"]);
}

#[test]
fn a_hub_is_pulled_with_all_behind_it() {
    let hub = [("1-1", 5), ("1-1.2", 6), ("1-1.3", 7)];
    let script = Script::default()
        .has(0, &hub)
        .has(1000, &[])
        .at(1000, "remove", "1-1.2")
        .at(1010, "remove", "1-1.3")
        .at(1020, "remove", "1-1");
    assert_eq!(script.run(Some(3000), 9).1, ["Pull 1-1#5 +1-1.2#6 +1-1.3#7"]);
    let script = Script::default().has(0, &hub).has(1000, &hub[..2]).at(1000, "remove", "1-1.3");
    assert_eq!(script.run(Some(3000), 9).1, ["Pull 1-1.3#7"], "behind a hub that stays");
}

#[test]
fn there_and_gone_is_both() {
    let script = Script::default()
        .has(1000, &[("1-1", 5)])
        .has(1010, &[])
        .at(1000, "add", "1-1")
        .at(1010, "remove", "1-1");
    assert_eq!(script.run(Some(3000), 9).1, ["Plug 1-1#5", "Pull 1-1#5"]);
    // Gone before it was read.
    let script = Script::default().at(1000, "add", "1-1").at(1010, "remove", "1-1");
    assert_eq!(script.run(Some(3000), 9).1, ["Plug 1-1#0", "Pull 1-1#0"]);
}

#[test]
fn root_hubs_interfaces_and_events_made_manual_are_nothing() {
    let script = Script::default()
        .has(0, &[("1-12", 5)])
        .at(1000, "add", "usb7")
        .at(1000, "add", "1-1:1.0")
        .at(1000, "add", "1-12")
        .at(1000, "change", "1-1");
    assert_eq!(script.run(Some(3000), 9).1, [""; 0]);
}

#[test]
fn lost_events_are_made_good_by_a_look() {
    let script = Script::default()
        .has(0, &[("1-1", 5), ("1-1.2", 6), ("1-3", 7), ("1-4", 8)])
        .has(1000, &[("1-3", 9), ("1-4", 8), ("1-5", 10)])
        .then(1000, Input::Kernel(Received::Lost));
    assert_eq!(script.run(Some(3000), 9).1, ["Pull 1-1#5 +1-1.2#6", "Plug 1-3#9", "Plug 1-5#10"]);
}

#[test]
fn the_user_ends_it_and_nothing_is_left_untold() {
    let script = Script::default()
        .has(0, &[("1-1", 5), ("1-1.2", 6)])
        .at(1000, "remove", "1-1.2")
        .then(1010, Input::End(EndReason::Enter));
    assert_eq!(script.run(None, 9), (EndReason::Enter, vec!["Pull 1-1.2#6".to_owned()]));
}
