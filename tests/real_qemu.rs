//! The library against a real QEMU: its words, its ways with several clients, its end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use hotplugger::config::access::AccessMode;
use hotplugger::deadline::Deadline;
use hotplugger::device_id::DeviceId;
use hotplugger::guest::attach::{
    AttachError, AttachRequest, Attached, BusError, BusErrorKind, Unavailable, UsbSource, attach,
};
use hotplugger::guest::bus::buses;
use hotplugger::guest::objects::detach;
use hotplugger::guest::ports::{GuestPort, GuestPortHistory, LastPort};
use hotplugger::guest::{hmp, objects};
use hotplugger::port::DevNum;
use hotplugger::qmp::client::QmpClient;
use hotplugger::qmp::handover::{Handover, Recipient};
use hotplugger::qmp::{Error, Qmp, Stage};
use hotplugger::speed::Speed;
use serde_json::{Value, json};

use support::qemu::{CONTROLLER, PATIENCE, Qemu};
use support::root::Root;
use support::udev::run_manual;

/// Time enough for what is to come, none to waste on what is not.
const SHORT: Duration = Duration::from_millis(300);

const ID: &str = "hotplugger-1-3-16";

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

/// Attaches [`ID`], a high-speed device, to the first of the buses that takes it.
fn attach_to(qmp: &mut QmpClient, buses: &[&str]) -> Result<Attached, AttachError> {
    place(qmp, ID, Speed::HIGH, buses)
}

fn place(
    qmp: &mut QmpClient,
    name: &str,
    speed: Speed,
    buses: &[&str],
) -> Result<Attached, AttachError> {
    place_again(qmp, name, speed, buses, &GuestPortHistory::default())
}

fn place_again(
    qmp: &mut QmpClient,
    name: &str,
    speed: Speed,
    buses: &[&str],
    memory: &GuestPortHistory,
) -> Result<Attached, AttachError> {
    let hubs: Vec<String> = buses.iter().map(|bus| (*bus).to_owned()).collect();
    attach(
        qmp,
        &AttachRequest {
            id: id(name),
            speed: Some(speed),
            hubs: &hubs,
            memory,
            named: true,
            node: "/dev/bus/usb/001/016".into(),
            access: AccessMode::Node,
            expected_attached: false,
            source: &Zeros,
        },
    )
}

fn no_seat(result: Result<Attached, AttachError>) -> Vec<BusError> {
    match result {
        Err(AttachError::NoUsablePort { refusals, .. }) => refusals,
        other => panic!("{other:?}"),
    }
}

/// As a paused guest has it.
fn waiting(bus: &str, port: usize) -> Attached {
    Attached::PendingResume(Some(GuestPort { bus: bus.to_owned(), port }))
}

#[test]
fn a_paused_guest_gets_an_object_that_waits() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    assert!(!objects::is_running(&mut qmp).unwrap());
    assert_eq!(attach_to(&mut qmp, &[]).unwrap(), waiting("xhci0.0", 1));
    assert_eq!(objects::list(&mut qmp).unwrap(), [id(ID)]);
    assert!(!objects::is_attached(&mut qmp, &id(ID)).unwrap());
    // Before the guest goes on: this host may well have such a device.
    assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
    qmp.execute("cont", Value::Null).unwrap();
    assert!(objects::is_running(&mut qmp).unwrap());
}

/// A connection on which QEMU refuses monitor commands, as one that is confined by a proxy.
struct WithoutMonitor(QmpClient);

impl Qmp for WithoutMonitor {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        if command == "human-monitor-command" {
            let (class, desc) = ("CommandNotFound".to_owned(), "it has been disabled".to_owned());
            return Err(Error::Command { command, class, desc });
        }
        self.0.execute(command, arguments)
    }

    fn hand_over(
        &mut self,
        command: &'static str,
        arguments: Value,
        handover: &dyn Handover,
    ) -> Result<Value, Error> {
        self.0.hand_over(command, arguments, handover)
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        self.0.pause(time)
    }
}

#[test]
fn guest_port_is_found_without_the_monitor() {
    let root = Root::new();
    let second = ["-device", "qemu-xhci,id=xhci1,p2=2,p3=2"];
    let taken = ["-device", "usb-kbd,bus=xhci0.0,port=1", "-device", "usb-kbd,bus=xhci1.0,port=1"];
    let arguments = [&["-S"], &CONTROLLER[..], &second, &taken].concat();
    let qemu = Qemu::start(&root, "vm", &arguments);
    let mut qmp = WithoutMonitor(qemu.connect());
    let history = GuestPortHistory::default();
    let request = |hubs: &'static [String]| AttachRequest {
        id: id(ID),
        speed: Some(Speed::HIGH),
        hubs,
        memory: &history,
        named: true,
        node: "/dev/bus/usb/001/016".into(),
        access: AccessMode::Node,
        expected_attached: false,
        source: &Zeros,
    };
    assert_eq!(attach(&mut qmp, &request(&[])).unwrap(), waiting("xhci0.0", 2));
    assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
    let hubs = ["xhci1.0".to_owned()];
    assert_eq!(
        attach(&mut qmp, &AttachRequest { hubs: &hubs, ..request(&[]) }).unwrap(),
        waiting("xhci1.0", 2)
    );
}

/// An emulated device stands for one of the host that QEMU has opened.
#[test]
fn attached_device_is_recognized_without_the_monitor() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    assert_eq!(qemu.monitor(&format!("device_add usb-kbd,id={ID}")), "");
    let mut qmp = WithoutMonitor(qemu.connect());
    let place = hmp::place(&mut qmp, &id(ID)).unwrap();
    assert_eq!(place, hmp::GuestDeviceInfo::default());
    assert!(objects::is_attached(&mut qmp, &id(ID)).unwrap());
    assert_eq!(buses(&mut qmp).unwrap().len(), 1);
}

/// `-mon` with a name is deprecated since QEMU 11.1.
#[test]
fn printed_arguments_start_qemu_without_a_warning() {
    let root = Root::new();
    let socket = root.path("/run/windows.qmp");
    let config = format!(
        "virtual_machines:\n  windows:\n    socket: {}\n    hubs: [xhci0.0, xhci1.0]\n    ports:\n",
        socket.display()
    );
    root.config(&config);
    let printed = run_manual(&root, &["qemu-args", "windows", "--json"]).stdout;
    let printed: Vec<String> = serde_json::from_str(&printed).unwrap();
    let printed: Vec<&str> = printed.iter().map(String::as_str).collect();
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &printed[..]].concat());
    QmpClient::connect(&socket, Deadline::after(PATIENCE)).unwrap();
    assert_eq!(std::fs::read_to_string(root.path("/run/vm.stderr")).unwrap(), "");
    assert!(qemu.pid() > 0);
}

#[test]
fn an_id_that_is_taken_is_no_error_to_attach() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    let arguments = || json!({ "driver": "usb-host", "id": ID, "hostbus": 1, "hostport": "3" });
    qmp.execute("device_add", arguments()).unwrap();
    let error = qmp.execute("device_add", arguments()).unwrap_err();
    assert!(error.refusal().unwrap().starts_with("Duplicate "), "{error}");
    assert_eq!(attach_to(&mut qmp, &[]).unwrap(), waiting("xhci0.0", 1));
    assert_eq!(qemu.objects(), [ID]);
}

/// An emulated device stands for one of the host that QEMU has opened.
#[test]
fn what_is_attached_is_left_and_found() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    assert_eq!(qemu.monitor(&format!("device_add usb-kbd,id={ID}")), "");
    let mut qmp = qemu.connect();
    assert!(objects::is_attached(&mut qmp, &id(ID)).unwrap());
    assert_eq!(attach_to(&mut qmp, &[]).unwrap(), Attached::Before);
    let place = hmp::place(&mut qmp, &id(ID)).unwrap();
    assert_eq!(place.port.as_deref(), Some("1"));
    assert_eq!(place.speed.unwrap().to_string(), "480 Mb/s");
    assert_eq!(place.product.as_deref(), Some("QEMU USB Keyboard"));
    assert_eq!(
        hmp::place(&mut qmp, &id("hotplugger-1-3-1")).unwrap(),
        hmp::GuestDeviceInfo::default()
    );
}

#[test]
fn a_bus_that_is_missing_is_told_from_one_that_is_full() {
    let root = Root::new();
    let full = ["-device", "qemu-xhci,id=xhci0,p2=1,p3=1", "-device", "usb-kbd,port=1"];
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &full[..]].concat());
    let mut qmp = qemu.connect();
    let refusals = no_seat(attach_to(&mut qmp, &["xhci0", "xhci0.0", "nowhere.0"]));
    let refusal = |bus: &str, why| BusError { bus: Some(bus.to_owned()), why };
    assert_eq!(
        refusals,
        [
            refusal("xhci0", BusErrorKind::NoSuchBus),
            refusal("nowhere.0", BusErrorKind::NoSuchBus),
            refusal("xhci0.0", BusErrorKind::Full),
        ]
    );
    assert_eq!(no_seat(attach_to(&mut qmp, &[])), [refusal("xhci0.0", BusErrorKind::Full)]);
    assert_eq!(objects::list(&mut qmp).unwrap(), []);
}

/// QEMU takes each port that is asked for, says who is in it, and adds no hub, whatever comes last.
#[test]
fn each_speed_gets_a_port_that_takes_it() {
    let root = Root::new();
    let all = ["usb-ehci,id=ehci", "piix3-usb-uhci,id=uhci", "qemu-xhci,id=xhci,p2=3,p3=2"];
    let arguments: Vec<&str> = all.iter().flat_map(|device| ["-device", device]).collect();
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &arguments[..]].concat());
    let mut qmp = qemu.connect();
    let mut next = 0;
    let mut put = |qmp: &mut QmpClient, speed| {
        next += 1;
        place(qmp, &format!("hotplugger-1-{next}-5"), speed, &[])
    };
    for (speed, bus, port) in [
        (Speed::LOW, "uhci.0", 1),
        (Speed::SUPER, "xhci.0", 1),
        (Speed::FULL, "uhci.0", 2),
        (Speed::FULL, "xhci.0", 3),
        (Speed::HIGH, "ehci.0", 1),
        (Speed::LOW, "xhci.0", 2),
    ] {
        assert_eq!(put(&mut qmp, speed).unwrap(), waiting(bus, port), "{speed}");
    }
    let full = put(&mut qmp, Speed::FULL).unwrap_err().to_string();
    assert_eq!(
        full,
        "the guest's uhci.0 and xhci.0 have no free port; ehci.0 takes no devices of 12 Mb/s; start QEMU with \
         -device qemu-xhci,id=xhci,p2=15,p3=15 in place of its xhci"
    );
    for port in 2..=6 {
        assert_eq!(put(&mut qmp, Speed::HIGH).unwrap(), waiting("ehci.0", port));
    }
    assert!(put(&mut qmp, Speed::HIGH).is_err());
    let seen = qemu.monitor("info usb");
    assert!(!seen.contains("Hub") && seen.lines().count() == 11, "{seen}");
    // What is freed is there again.
    assert!(objects::delete(&mut qmp, &id("hotplugger-1-3-5")).unwrap());
    assert_eq!(put(&mut qmp, Speed::FULL).unwrap(), waiting("uhci.0", 2));
}

/// All that QEMU may say of a seat that is not to be had sends the device to the next one.
#[test]
fn the_usual_seat_is_taken_where_qemu_gives_it() {
    let root = Root::new();
    let qemu = Qemu::start(
        &root,
        "vm",
        &["-S", "-device", "usb-ehci,id=ehci", "-device", "qemu-xhci,id=xhci,p2=4,p3=4"],
    );
    let mut qmp = qemu.connect();
    assert_eq!(qemu.monitor("device_add usb-mouse,bus=xhci.0,port=2"), "");
    let full = Some(Speed::FULL);
    for (bus, port, seat) in [
        ("xhci.0", 3, waiting("xhci.0", 3)),
        ("xhci.0", 2, waiting("xhci.0", 1)),
        ("xhci.0", 99, waiting("xhci.0", 1)),
        ("gone.0", 1, waiting("xhci.0", 1)),
    ] {
        let place = GuestPort { bus: bus.to_owned(), port };
        let memory =
            GuestPortHistory { own: Some(LastPort { place, speed: full }), others: Vec::new() };
        let attached = place_again(&mut qmp, ID, Speed::FULL, &[], &memory);
        assert_eq!(attached.unwrap(), seat, "{bus} {port}");
        assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
    }
}

/// As libvirt gives a guest USB 2: the EHCI's ports take slow devices by its companions.
#[test]
fn an_ehci_with_companions_takes_all_that_is_usb_2() {
    let root = Root::new();
    let devices = [
        "ich9-usb-ehci1,id=usb",
        "ich9-usb-uhci1,masterbus=usb.0,firstport=0",
        "ich9-usb-uhci2,masterbus=usb.0,firstport=2",
    ];
    let arguments: Vec<&str> = devices.iter().flat_map(|device| ["-device", device]).collect();
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &arguments[..]].concat());
    let mut qmp = qemu.connect();
    let free = |qmp: &mut QmpClient, speed| buses(qmp).unwrap()[0].free(speed);
    assert_eq!(free(&mut qmp, Speed::FULL), [1, 2, 3, 4]);
    assert_eq!(free(&mut qmp, Speed::HIGH), [1, 2, 3, 4, 5, 6]);
    assert_eq!(place(&mut qmp, ID, Speed::FULL, &[]).unwrap(), waiting("usb.0", 1));
    let emulated = "device_add usb-mouse,usb_version=1,bus=usb.0,port=4";
    assert_eq!(qemu.monitor(emulated), "", "a full-speed device works there");
}

/// What looks like a device to us and like none to QEMU.
struct Zeros;

impl UsbSource for Zeros {
    fn recheck(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn may_be_listed(&self) -> bool {
        true
    }
}

impl Recipient for Zeros {
    fn user(&self) -> io::Result<Option<u32>> {
        Ok(None)
    }

    fn trusts_folder(&self) -> bool {
        true
    }
}

impl Handover for Zeros {
    fn open(&self) -> io::Result<OwnedFd> {
        File::options().read(true).write(true).open("/dev/zero").map(OwnedFd::from)
    }
}

fn hand_over(qmp: &mut QmpClient, speed: Speed) -> Result<Attached, AttachError> {
    attach(
        qmp,
        &AttachRequest {
            id: id(ID),
            speed: Some(speed),
            hubs: &[],
            memory: &GuestPortHistory::default(),
            named: true,
            node: "/dev/bus/usb/001/016".into(),
            access: AccessMode::Fd,
            expected_attached: false,
            source: &Zeros,
        },
    )
}

/// How many descriptors QEMU has in its sets.
fn in_sets(qemu: &Qemu) -> usize {
    let sets = qemu.execute("query-fdsets", Value::Null).unwrap();
    let sets = sets.as_array().unwrap();
    sets.iter().map(|set| set["fds"].as_array().unwrap().len()).sum()
}

/// QEMU gets the descriptor, and says that it is no USB device; it has it no longer then.
#[test]
fn a_descriptor_reaches_qemu_and_is_taken_away_again() {
    let root = Root::new();
    let arguments = ["-device", "qemu-xhci,id=xhci0", "-device", "usb-ehci,id=ehci"];
    let qemu = Qemu::start(&root, "vm", &arguments);
    let mut qmp = qemu.connect();
    for _ in 0..50 {
        let refusals = no_seat(hand_over(&mut qmp, Speed::HIGH));
        let refusal = |bus: &str, why| BusError { bus: Some(bus.to_owned()), why };
        let not_opened = || BusErrorKind::NotOpened(Some(Speed::HIGH));
        assert_eq!(refusals, [refusal("ehci.0", not_opened()), refusal("xhci0.0", not_opened())]);
        assert_eq!(in_sets(&qemu), 0);
    }
    assert_eq!(objects::list(&mut qmp).unwrap(), []);
    let sets = qmp.execute("query-fdsets", Value::Null).unwrap();
    assert!(sets.as_array().unwrap().len() <= 1, "one set is used again: {sets}");
}

/// QEMU before 10 keeps removed descriptors while it is paused. What is open must not be mistaken for
/// the next device.
#[test]
fn paused_qemu_gets_each_descriptor_in_a_set_of_its_own() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    for before in 0..3 {
        // QEMU 10 frees it at once.
        let left = in_sets(&qemu);
        assert!(left == before || left == 0, "{left} of {before}");
        no_seat(hand_over(&mut qemu.connect(), Speed::HIGH));
    }
    let sets = qemu.execute("query-fdsets", Value::Null).unwrap();
    assert!(sets.as_array().unwrap().iter().all(|set| set["fds"].as_array().unwrap().len() <= 1));
    qemu.execute("cont", Value::Null).unwrap();
    no_seat(hand_over(&mut qemu.connect(), Speed::HIGH));
    assert_eq!(in_sets(&qemu), 0);
}

#[test]
fn the_words_of_a_qemu_that_does_not_get_the_descriptor_or_takes_none_are_known() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let said = |error: Error| error.refusal().unwrap_or_default().to_owned();
    let error = qemu.execute("add-fd", json!({})).unwrap_err();
    assert_eq!(said(error), "No file descriptor supplied via SCM_RIGHTS");
    let odd = json!({ "driver": "usb-host", "nohostdevice": "/dev/fdset/1" });
    let said = said(qemu.execute("device_add", odd).unwrap_err());
    assert!(said.ends_with("nohostdevice' not found"), "{said}");
}

#[test]
fn a_guest_without_usb_is_told() {
    let root = Root::new();
    let qemu = Qemu::start(&root, "vm", &["-S"]);
    let mut qmp = qemu.connect();
    let attached = attach_to(&mut qmp, &[]);
    assert!(matches!(attached, Err(AttachError::NoController)), "{attached:?}");
    // QEMU then says that it has no USB, which is no place.
    assert_eq!(hmp::place(&mut qmp, &id(ID)).unwrap(), hmp::GuestDeviceInfo::default());
}

#[test]
fn the_words_for_a_device_that_this_qemu_lacks_are_known() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    let error = qmp.execute("device_add", json!({ "driver": "usb-perpetuum-mobile" })).unwrap_err();
    assert!(error.refusal().unwrap().contains("is not a valid device model name"), "{error}");
    let typename = json!({ "typename": "usb-perpetuum-mobile" });
    let error = qmp.execute("device-list-properties", typename).unwrap_err();
    assert!(matches!(error, Error::Command { .. }), "{error}");
}

/// Debian's QEMU has `info usbhost` in a module that nothing has loaded yet.
#[test]
fn the_hosts_devices_are_listed_by_a_fresh_qemu() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    assert!(hmp::host_devices(&mut qemu.connect()).unwrap().is_some());
    let said = qemu.monitor("info usbhost");
    assert!(!said.contains("not available"), "{said}");
}

#[test]
fn detaching_takes_only_what_is_ours_in_that_port() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    // One controller has 4 ports; QEMU adds hubs of its own where they do not suffice.
    for foreign in ["kbd0", "hotplugger", "hotplugger-1-3-09", "hotplugger-1-3-9-1"] {
        assert_eq!(qemu.monitor(&format!("device_add usb-mouse,id={foreign}")), "");
    }
    for (port, devnum) in [("3", 9), ("3", 16), ("3.1", 9), ("30", 9)] {
        let id = format!("hotplugger-1-{port}-{devnum}");
        let device = format!("usb-host,id={id},hostbus=1,hostport={port},hostaddr={devnum}");
        assert_eq!(qemu.monitor(&format!("device_add {device}")), "");
    }
    let mut qmp = qemu.connect();
    let port = "1-3".parse().unwrap();
    assert_eq!(detach(&mut qmp, &port, Some(DevNum(16))).unwrap(), [id("hotplugger-1-3-9")]);
    assert_eq!(detach(&mut qmp, &port, None).unwrap(), [id(ID)]);
    assert_eq!(detach(&mut qmp, &port, None).unwrap(), []);
    assert_eq!(
        qemu.objects(),
        [
            "hotplugger",
            "hotplugger-1-3-09",
            "hotplugger-1-3-9-1",
            "hotplugger-1-3.1-9",
            "hotplugger-1-30-9",
            "kbd0"
        ]
    );
}

/// Each deletion is followed by an event, which may come before the next reply.
#[test]
fn deleting_is_certain_and_deleting_again_is_no_error() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    for _ in 0..20 {
        assert_eq!(attach_to(&mut qmp, &[]).unwrap(), waiting("xhci0.0", 1));
        assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
        assert!(!objects::delete(&mut qmp, &id(ID)).unwrap());
        assert!(!objects::is_attached(&mut qmp, &id(ID)).unwrap());
    }
}

#[test]
fn pretty_printed_messages_are_read() {
    let root = Root::new();
    let arguments = [&["-S"], &CONTROLLER[..]].concat();
    let qemu = Qemu::start_speaking(&root, "vm", "-qmp-pretty", &arguments);
    let mut qmp = qemu.connect();
    assert_eq!(attach_to(&mut qmp, &["xhci0.0"]).unwrap(), waiting("xhci0.0", 1));
    let port = "1-3".parse().unwrap();
    assert_eq!(detach(&mut qmp, &port, None).unwrap(), [id(ID)]);
}

#[test]
fn a_socket_that_another_client_holds_costs_the_deadline() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let first = qemu.connect();
    let error = QmpClient::connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
    let Error::Timeout { stage: Stage::Greeting, budget } = error else { panic!("{error}") };
    assert_eq!(budget, SHORT);
    drop(first);
    qemu.connect();
}

/// QEMU replies to whoever is there: what one client asked for that was killed, the next one gets.
#[test]
fn a_reply_to_who_has_left_is_nobodys() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    for round in 0..100 {
        let mut client = UnixStream::connect(&qemu.socket).unwrap();
        let mut said = BufReader::new(client.try_clone().unwrap()).lines();
        said.next().unwrap().unwrap();
        writeln!(client, "{}", json!({ "execute": "qmp_capabilities" })).unwrap();
        said.next().unwrap().unwrap();
        // It takes QEMU some time, and is the first command of a client that counts from 1.
        let last = json!({ "execute": "qom-list-types", "id": 1 }).to_string();
        client.write_all(last.as_bytes()).unwrap();
        // Some leave while it is at it.
        thread::sleep(Duration::from_micros(20 * round));
        drop((client, said));
        let mut qmp = qemu.connect();
        assert_eq!(qmp.execute("query-status", Value::Null).unwrap()["running"], json!(false));
    }
}

/// QEMU's queue has few places; the kernel turns away who finds none.
#[test]
fn more_clients_than_the_queue_has_places_all_end() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let first = qemu.connect();
    let stages: Vec<Stage> = thread::scope(|scope| {
        let connect = || QmpClient::connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(connect)).collect();
        let errors = clients.into_iter().map(|client| client.join().unwrap());
        let stage = |error| match error {
            Error::Timeout { stage, .. } => stage,
            other => panic!("{other}"),
        };
        errors.map(stage).collect()
    });
    assert!(stages.contains(&Stage::Greeting) && stages.contains(&Stage::Connect), "{stages:?}");
    drop(first);
    qemu.connect();
}

#[test]
fn a_client_that_waits_gets_through_when_the_first_one_leaves() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let first = qemu.connect();
    thread::scope(|scope| {
        let second = scope.spawn(|| objects::is_running(&mut qemu.connect()));
        thread::sleep(SHORT);
        assert!(!second.is_finished());
        drop(first);
        assert!(!second.join().unwrap().unwrap());
    });
}

#[test]
fn a_qemu_that_is_killed_in_the_middle_of_a_command_closes_the_connection() {
    let root = Root::new();
    let mut qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    qemu.freeze();
    thread::scope(|scope| {
        let command = scope.spawn(|| qmp.execute("query-status", Value::Null));
        thread::sleep(SHORT);
        assert!(!command.is_finished());
        qemu.kill();
        let error = command.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Closed(Stage::Command("query-status"))), "{error}");
    });
    let error = QmpClient::connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
    assert!(matches!(error, Error::NotRunning { stale: true, .. }), "{error}");
}

#[test]
fn a_frozen_qemu_costs_the_deadline_and_one_that_thaws_answers() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = QmpClient::connect(&qemu.socket, Deadline::after(SHORT * 10)).unwrap();
    qemu.freeze();
    let error = qmp.execute("query-status", Value::Null).unwrap_err();
    let Error::Timeout { stage, .. } = error else { panic!("{error}") };
    assert_eq!(stage, Stage::Command("query-status"));
    drop(qmp);
    qemu.thaw();
    assert!(!objects::is_running(&mut qemu.connect()).unwrap());
}

#[test]
fn a_qemu_that_quits_takes_its_socket_along() {
    let root = Root::new();
    let mut qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    qmp.execute("quit", Value::Null).unwrap();
    // QEMU 5 may still answer while it quits.
    qemu.wait();
    let error = qmp.execute("query-status", Value::Null).unwrap_err();
    assert!(matches!(error, Error::Closed(_)), "{error}");
    let error = QmpClient::connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
    assert!(matches!(error, Error::NotRunning { stale: false, .. }), "{error}");
}
