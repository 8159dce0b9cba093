use super::{
    AccessMode, Config, Duration, EventKind, Plan, Record, SkipReason, UsbEvent, UsbLocation,
    VirtualMachine,
};
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
    }
}

/// Decides about a device whose place is its DEVPATH and no more.
fn plan<'a>(event: &UsbEvent, config: &'a Config, record: Option<&'a Record>) -> Plan<'a> {
    let places = UsbLocation::of(PortLocation::of(event.device.clone()));
    super::plan(event, &places, config, record, &|_| panic!("there is no choice"))
}

fn attached(vm: &str, socket: &str) -> Record {
    let mut record = record("1-1", 5);
    record.attached = Some(Attachment {
        vm: vm.to_owned(),
        socket: socket.into(),
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

#[test]
fn a_plug_is_recorded_then_attached_to_its_own_vm() {
    let config = config();
    let [windows, linux] = &config.virtual_machines[..] else { panic!() };
    let add = event(EventKind::DeviceAdd, "1-1");
    assert_eq!(plan(&add, &config, None), Plan::Record(windows));
    let bind = event(EventKind::DeviceBind, "1-1");
    let attach = |vm, settle, unless_newer| Plan::Attach { vm, settle, unless_newer };
    assert_eq!(plan(&bind, &config, Some(&record("1-1", 5))), attach(windows, true, false));
    assert_eq!(plan(&bind, &config, None), attach(windows, true, false));
    let bind = event(EventKind::DeviceBind, "1-2");
    assert_eq!(plan(&bind, &config, None), attach(linux, true, false));
    let mut interface = event(EventKind::InterfaceAdd, "1-1");
    interface.devnum = None;
    assert_eq!(plan(&interface, &config, None), attach(windows, true, true));
}

#[test]
fn what_is_handed_over_without_a_delay_goes_with_its_add_and_bind_finds_it() {
    let mut config = config();
    config.virtual_machines[0].access.way = AccessMode::Fd;
    let mut add = event(EventKind::DeviceAdd, "1-1");
    assert!(matches!(plan(&add, &config, None), Plan::Record(_)), "there is a delay");
    config.virtual_machines[0].delay = Duration::ZERO;
    let [windows, linux] = &config.virtual_machines[..] else { panic!() };
    assert_eq!(plan(&add, &config, None), Plan::AttachEarly(windows));
    // What is remembered of another device there changes nothing.
    assert_eq!(plan(&add, &config, Some(&record("1-1", 4))), Plan::AttachEarly(windows));
    let bind = event(EventKind::DeviceBind, "1-1");
    let known = attached("windows", "/run/w");
    let attach = |vm, settle| Plan::Attach { vm, settle, unless_newer: false };
    assert_eq!(plan(&bind, &config, Some(&known)), attach(windows, false));
    assert_eq!(plan(&bind, &config, Some(&record("1-1", 5))), attach(windows, true));
    // A synthetic event is no plug, and QEMU cannot open by itself what it has not heard of.
    add.synthetic = true;
    assert_eq!(plan(&add, &config, None), Plan::Record(windows));
    let add = event(EventKind::DeviceAdd, "1-2");
    assert_eq!(plan(&add, &config, None), Plan::Record(linux));
}

#[test]
fn ports_nobody_configured_are_left_alone() {
    let config = config();
    for kind in [
        EventKind::DeviceAdd,
        EventKind::DeviceBind,
        EventKind::InterfaceAdd,
        EventKind::DeviceRemove,
    ] {
        let event = event(kind, "1-10");
        assert_eq!(plan(&event, &config, None), Plan::Nothing(SkipReason::NotConfigured));
    }
}

#[test]
fn what_is_thought_attached_is_looked_after_without_a_wait() {
    let config = config();
    let record = attached("windows", "/run/w");
    let bind = event(EventKind::DeviceBind, "1-1");
    assert!(matches!(plan(&bind, &config, Some(&record)), Plan::Attach { settle: false, .. }));
    let mut next = bind.clone();
    next.devnum = Some(DevNum(6));
    assert!(matches!(plan(&next, &config, Some(&record)), Plan::Attach { settle: true, .. }));
}

#[test]
fn a_synthetic_add_of_a_known_device_is_nothing() {
    let config = config();
    let mut add = event(EventKind::DeviceAdd, "1-1");
    add.synthetic = true;
    assert_eq!(plan(&add, &config, Some(&record("1-1", 5))), Plan::Nothing(SkipReason::Known));
    assert!(matches!(plan(&add, &config, Some(&record("1-1", 6))), Plan::Record(_)));
    assert!(matches!(plan(&add, &config, None), Plan::Record(_)));
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

/// Where a device goes with these running.
fn goes_to(record: Option<&Record>, running: &[&str]) -> (String, bool) {
    let config = shared();
    let bind = event(EventKind::DeviceBind, "1-1");
    let places = UsbLocation::of(PortLocation::of(bind.device.clone()));
    let runs = |vm: &VirtualMachine| running.contains(&vm.name.as_str());
    match super::plan(&bind, &places, &config, record, &runs) {
        Plan::Attach { vm, settle, .. } => (vm.name.clone(), settle),
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_several_the_first_that_runs_gets_it() {
    let to = |vm: &str, settle| (vm.to_owned(), settle);
    assert_eq!(goes_to(None, &["first", "second", "third"]), to("first", true));
    assert_eq!(goes_to(None, &["second", "third"]), to("second", true));
    assert_eq!(goes_to(None, &["third"]), to("first", true), "which then says what is wrong");
    let fresh = record("1-1", 5);
    assert_eq!(goes_to(Some(&fresh), &["second"]), to("second", true));
    let in_second = attached("second", "/run/2");
    assert_eq!(goes_to(Some(&in_second), &["first", "second"]), to("second", false));
    assert_eq!(goes_to(Some(&in_second), &["first"]), to("first", true));
    let manual = attached("third", "/run/3");
    assert_eq!(goes_to(Some(&manual), &["first", "third"]), to("third", false));
    let renamed = attached("second", "/run/9");
    assert_eq!(goes_to(Some(&renamed), &["first", "second"]), to("first", true));
}

#[test]
fn what_was_detached_manual_stays_until_another_is_plugged() {
    let config = config();
    let mut record = record("1-1", 5);
    record.detached_manual = true;
    for kind in [EventKind::DeviceBind, EventKind::InterfaceAdd] {
        let stays = Plan::Nothing(SkipReason::DetachedByHand);
        assert_eq!(plan(&event(kind, "1-1"), &config, Some(&record)), stays);
    }
    let mut add = event(EventKind::DeviceAdd, "1-1");
    assert!(matches!(plan(&add, &config, Some(&record)), Plan::Record(_)));
    add.synthetic = true;
    let stays = Plan::Nothing(SkipReason::DetachedByHand);
    assert_eq!(plan(&add, &config, Some(&record)), stays);
    let mut next = event(EventKind::DeviceBind, "1-1");
    next.devnum = Some(DevNum(6));
    assert!(matches!(plan(&next, &config, Some(&record)), Plan::Attach { .. }));
    let remove = event(EventKind::DeviceRemove, "1-1");
    assert_eq!(vms(&plan(&remove, &config, Some(&record))), ["windows"]);
}

#[test]
fn the_other_half_of_a_configured_port_is_attached_and_detached() {
    let config = config();
    let place = |path: &str| PortLocation::of(path.parse().unwrap());
    let places = UsbLocation {
        own: place("/devices/x/usb2/2-1"),
        peers: vec![place("/devices/x/usb1/1-1")],
    };
    let mut bind = event(EventKind::DeviceBind, "1-1");
    (bind.device, bind.port) = (places.own.devpath.clone(), "2-1".parse().unwrap());
    assert!(matches!(
        super::plan(&bind, &places, &config, None, &|_| true),
        Plan::Attach { vm, .. } if vm.name == "windows"
    ));
    let remove = UsbEvent { kind: EventKind::DeviceRemove, ..bind };
    let asked = super::plan(&remove, &places, &config, None, &|_| true);
    assert_eq!(vms(&asked), ["windows", "linux"]);
}

#[test]
fn removal_goes_to_the_vm_that_has_it_even_when_the_config_has_changed() {
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
fn removal_without_any_memory_asks_the_owner_first_and_then_the_others() {
    let config = config();
    let remove = event(EventKind::DeviceRemove, "1-2");
    assert_eq!(vms(&plan(&remove, &config, None)), ["linux", "windows"]);
    let remove = event(EventKind::DeviceRemove, "1-1");
    assert_eq!(vms(&plan(&remove, &config, Some(&record("1-1", 5)))), ["windows"]);
}

#[test]
fn a_record_of_a_port_that_left_the_config_is_forgotten() {
    let remove = event(EventKind::DeviceRemove, "1-1");
    assert!(vms(&plan(&remove, &Config::default(), Some(&record("1-1", 5)))).is_empty());
}
