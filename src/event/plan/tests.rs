use super::{
    AccessMode, Candidate, Config, EventKind, Plan, Record, SkipReason, UsbEvent, UsbLocation,
    VirtualMachine, candidates,
};
use std::time::Duration;

use crate::clock::Monotonic;
use crate::config::parse::parse;
use crate::location::PortLocation;
use crate::port::DevNum;
use crate::state::record::Attachment;
use crate::state::record::tests::record;

fn config() -> Config {
    parse(
        "virtual_machines:\n  windows:\n    socket: /run/w\n    ports: [/devices/x/usb1/1-1]\n  \
         linux:\n    socket: /run/l\n    timeout: 7\n    ports: [/devices/x/usb1/1-2]\n",
    )
    .unwrap()
}

fn event(kind: EventKind, port: &str) -> UsbEvent {
    UsbEvent {
        kind,
        device: format!("/devices/x/usb1/{port}").parse().unwrap(),
        port: port.parse().unwrap(),
        devnum: Some(DevNum(5)),
        seqnum: Some(100),
        synthetic: false,
        initialized_at: None,
    }
}

/// Plans for a device of which only the DEVPATH is known.
fn plan<'a>(event: &UsbEvent, config: &'a Config, record: Option<&'a Record>) -> Plan<'a> {
    let location = UsbLocation::of(PortLocation::of(event.device.clone()));
    super::plan(event, &location, config, record, false)
}

fn attached(vm: &str, socket: &str) -> Record {
    let mut record = record("1-1", 5);
    record.attached = Some(Attachment {
        vm: vm.to_owned(),
        monitor: crate::monitor::Monitor::Socket(socket.into()),
        socket_file: None,
        id: "hotplugger-1-1-5".parse().unwrap(),
        device: "Stick (46f4:0001)".to_owned(),
        at: Monotonic(30),
    });
    record
}

fn vms<'a>(plan: &Plan<'a>) -> Vec<&'a str> {
    match plan {
        Plan::Detach(targets) => targets.iter().map(|target| target.vm).collect(),
        other => panic!("{other:?}"),
    }
}

fn one(vm: &VirtualMachine, has_device: bool) -> Vec<Candidate<'_>> {
    vec![Candidate { vm, has_device }]
}

#[test]
fn plug_is_recorded_then_attached_to_the_vm_of_the_port() {
    let config = config();
    let [windows, linux] = &config.virtual_machines[..] else { panic!() };
    let add = event(EventKind::DeviceAdd, "1-1");
    let record_it = Plan::Record(one(windows, false));
    assert_eq!(plan(&add, &config, None), record_it);
    let bind = event(EventKind::DeviceBind, "1-1");
    let attach = |vm, unless_newer| Plan::Attach { candidates: one(vm, false), unless_newer };
    assert_eq!(plan(&bind, &config, Some(&record("1-1", 5))), attach(windows, false));
    assert_eq!(plan(&bind, &config, None), attach(windows, false));
    let bind = event(EventKind::DeviceBind, "1-2");
    assert_eq!(plan(&bind, &config, None), attach(linux, false));
    let mut interface = event(EventKind::InterfaceAdd, "1-1");
    interface.devnum = None;
    assert_eq!(plan(&interface, &config, None), attach(windows, true));
}

#[test]
fn vm_with_fd_access_and_no_delay_gets_a_device_on_add() {
    let mut config = config();
    config.virtual_machines[0].access.mode = AccessMode::Fd;
    assert!(!one(&config.virtual_machines[0], false)[0].attaches_on_add(), "there is a delay");
    config.virtual_machines[0].delay = Duration::ZERO;
    let [windows, linux] = &config.virtual_machines[..] else { panic!() };
    assert!(one(windows, false)[0].attaches_on_add());
    assert!(!one(linux, false)[0].attaches_on_add());
    let mut add = event(EventKind::DeviceAdd, "1-1");
    let at_once = Plan::AttachOnAdd(one(windows, false));
    assert_eq!(plan(&add, &config, None), at_once);
    // The record of another device in the port changes nothing.
    assert_eq!(plan(&add, &config, Some(&record("1-1", 4))), at_once);
    let bind = event(EventKind::DeviceBind, "1-1");
    let known = attached("windows", "/run/w");
    let candidates = one(windows, true);
    assert_eq!(
        plan(&bind, &config, Some(&known)),
        Plan::Attach { candidates, unless_newer: false }
    );
    // A synthetic event is not a plug.
    add.synthetic = true;
    assert_eq!(plan(&add, &config, None), Plan::Record(one(windows, false)));
}

#[test]
fn event_of_an_unconfigured_port_is_skipped() {
    let config = config();
    for kind in [
        EventKind::DeviceAdd,
        EventKind::DeviceBind,
        EventKind::InterfaceAdd,
        EventKind::DeviceRemove,
    ] {
        let event = event(kind, "1-10");
        assert_eq!(plan(&event, &config, None), Plan::Skip(SkipReason::NotConfigured));
    }
}

#[test]
fn device_recorded_as_attached_need_not_settle() {
    let config = config();
    let windows = &config.virtual_machines[0];
    let record = attached("windows", "/run/w");
    let bind = event(EventKind::DeviceBind, "1-1");
    let attach =
        |has_device| Plan::Attach { candidates: one(windows, has_device), unless_newer: false };
    assert_eq!(plan(&bind, &config, Some(&record)), attach(true));
    let mut next = bind.clone();
    next.devnum = Some(DevNum(6));
    assert_eq!(plan(&next, &config, Some(&record)), attach(false));
}

#[test]
fn synthetic_add_of_a_recorded_device_is_skipped() {
    let config = config();
    let mut add = event(EventKind::DeviceAdd, "1-1");
    add.synthetic = true;
    assert_eq!(
        plan(&add, &config, Some(&record("1-1", 5))),
        Plan::Skip(SkipReason::AlreadyRecorded)
    );
    assert!(matches!(plan(&add, &config, Some(&record("1-1", 6))), Plan::Record { .. }));
    assert!(matches!(plan(&add, &config, None), Plan::Record { .. }));
}

/// Two that list one port, and one that lists none of it.
fn shared() -> Config {
    parse(
        "virtual_machines:\n  first:\n    socket: /run/1\n    ports: [/devices/x/usb1/1-1]\n  \
         second:\n    socket: /run/2\n    ports: [/devices/x/usb1/1-1]\n  \
         third:\n    socket: /run/3\n    ports: [/devices/x/usb1/1-3]\n",
    )
    .unwrap()
}

/// The VMs in the order in which they are tried; `*` marks the one that has the device.
fn order(record: Option<&Record>) -> Vec<String> {
    let config = shared();
    let bind = event(EventKind::DeviceBind, "1-1");
    let location = UsbLocation::of(PortLocation::of(bind.device));
    let candidates = candidates(&config, &location, record);
    let mark = |has_device| if has_device { "*" } else { "" };
    candidates.iter().map(|one| format!("{}{}", one.vm.name, mark(one.has_device))).collect()
}

#[test]
fn vms_that_list_a_port_are_tried_in_the_order_of_the_config() {
    assert_eq!(order(None), ["first", "second"]);
    assert_eq!(order(Some(&record("1-1", 5))), ["first", "second"]);
}

#[test]
fn vm_that_has_the_device_is_tried_first() {
    assert_eq!(order(Some(&attached("second", "/run/2"))), ["second*", "first"]);
    let manual = attached("third", "/run/3");
    assert_eq!(order(Some(&manual)), ["third*", "first", "second"]);
    let renamed = attached("second", "/run/9");
    assert_eq!(order(Some(&renamed)), ["first", "second"]);
}

#[test]
fn manually_detached_device_stays_until_another_is_plugged_in() {
    let config = config();
    let mut record = record("1-1", 5);
    record.detached_manual = true;
    for kind in [EventKind::DeviceBind, EventKind::InterfaceAdd] {
        let stays = Plan::Skip(SkipReason::DetachedManually);
        assert_eq!(plan(&event(kind, "1-1"), &config, Some(&record)), stays);
    }
    let mut add = event(EventKind::DeviceAdd, "1-1");
    assert!(matches!(plan(&add, &config, Some(&record)), Plan::Record { .. }));
    add.synthetic = true;
    let stays = Plan::Skip(SkipReason::DetachedManually);
    assert_eq!(plan(&add, &config, Some(&record)), stays);
    let mut next = event(EventKind::DeviceBind, "1-1");
    next.devnum = Some(DevNum(6));
    assert!(matches!(plan(&next, &config, Some(&record)), Plan::Attach { .. }));
    let location = UsbLocation::of(PortLocation::of(next.device.clone()));
    let kept = super::plan(&next, &location, &config, None, true);
    assert_eq!(kept, Plan::Skip(SkipReason::Kept));
    let remove = event(EventKind::DeviceRemove, "1-1");
    let of_kept = |record| super::plan(&remove, &location, &config, record, true);
    assert_eq!(of_kept(None), Plan::Skip(SkipReason::Kept));
    assert_eq!(vms(&of_kept(Some(&record))), ["windows"]);
    let remove = event(EventKind::DeviceRemove, "1-1");
    assert_eq!(vms(&plan(&remove, &config, Some(&record))), ["windows"]);
}

#[test]
fn device_in_a_peer_port_is_attached_and_detached() {
    let config = config();
    let place = |path: &str| PortLocation::of(path.parse().unwrap());
    let places = UsbLocation {
        own: place("/devices/x/usb2/2-1"),
        peers: vec![place("/devices/x/usb1/1-1")],
    };
    let mut bind = event(EventKind::DeviceBind, "1-1");
    (bind.device, bind.port) = (places.own.devpath.clone(), "2-1".parse().unwrap());
    assert!(matches!(
        super::plan(&bind, &places, &config, None, false),
        Plan::Attach { candidates, .. } if candidates == one(&config.virtual_machines[0], false)
    ));
    let remove = UsbEvent { kind: EventKind::DeviceRemove, ..bind };
    let asked = super::plan(&remove, &places, &config, None, false);
    assert_eq!(vms(&asked), ["windows", "linux"]);
}

#[test]
fn removal_goes_to_the_recorded_vm_even_if_the_config_has_changed() {
    let config = config();
    let remove = event(EventKind::DeviceRemove, "1-1");
    assert_eq!(vms(&plan(&remove, &config, Some(&attached("gone", "/run/gone")))), ["gone"]);
    assert_eq!(
        vms(&plan(&remove, &Config::default(), Some(&attached("windows", "/run/w")))),
        ["windows"]
    );
    let renamed = attached("renamed", "/run/l");
    let Plan::Detach(targets) = plan(&remove, &config, Some(&renamed)) else { panic!() };
    assert_eq!(targets[0].timeout, Duration::from_secs(7));
}

#[test]
fn removal_without_a_record_goes_to_the_vm_of_the_port_first() {
    let config = config();
    let remove = event(EventKind::DeviceRemove, "1-2");
    assert_eq!(vms(&plan(&remove, &config, None)), ["linux", "windows"]);
    let remove = event(EventKind::DeviceRemove, "1-1");
    assert_eq!(vms(&plan(&remove, &config, Some(&record("1-1", 5)))), ["windows"]);
}

#[test]
fn record_of_a_port_that_is_no_longer_configured_is_deleted() {
    let remove = event(EventKind::DeviceRemove, "1-1");
    assert!(vms(&plan(&remove, &Config::default(), Some(&record("1-1", 5)))).is_empty());
}
