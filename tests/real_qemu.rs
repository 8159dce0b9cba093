//! The library against a real QEMU: its texts, several clients, and its end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use hotplugger::clock::Deadline;
use hotplugger::config::access::AccessMode;
use hotplugger::config::usb_host::UsbHostProperties;
use hotplugger::device_id::DeviceId;
use hotplugger::guest::attach::{
    AttachError, AttachRequest, Attached, BusError, BusErrorKind, Claim, Unavailable, UsbSource,
    attach,
};
use hotplugger::guest::bus::buses;
use hotplugger::guest::ports::{GuestPort, GuestPortHistory, LastPort};
use hotplugger::guest::{detach, hmp, load_usb_host, objects};
use hotplugger::host::session::Session;
use hotplugger::port::DevNum;
use hotplugger::qmp::{Error, OpenDevice, Qmp, Step};
use hotplugger::speed::Speed;
use hotplugger::usb_device::DiskClaims;
use serde_json::{Value, json};

use support::qemu::{CONTROLLER, PATIENCE, Qemu, connect};
use support::root::Root;
use support::udev::run_manual;

/// A time in which an expected reply comes, and after which a missing one is given up.
const SHORT: Duration = Duration::from_millis(300);

const ID: &str = "hotplugger-1-3-16";

/// A device that QEMU can open, but not as a USB device.
struct Zero;

impl UsbSource for Zero {
    fn recheck(&self) -> Result<DiskClaims, Unavailable> {
        Ok(DiskClaims::default())
    }

    fn check_present(&self) -> Result<(), Unavailable> {
        self.recheck().map(drop)
    }

    fn open_node(&self) -> io::Result<OwnedFd> {
        File::options().read(true).write(true).open("/dev/zero").map(OwnedFd::from)
    }

    fn may_be_listed(&self) -> bool {
        true
    }
}

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

/// Attaches [`ID`], a high-speed device, to the first of the buses that accepts it.
fn attach_to(qmp: &mut dyn Qmp, buses: &[&str]) -> Result<Attached, AttachError> {
    place(qmp, ID, Speed::HIGH, buses)
}

fn place(
    qmp: &mut dyn Qmp,
    name: &str,
    speed: Speed,
    buses: &[&str],
) -> Result<Attached, AttachError> {
    place_again(qmp, name, speed, buses, &GuestPortHistory::default())
}

fn place_again(
    qmp: &mut dyn Qmp,
    name: &str,
    speed: Speed,
    buses: &[&str],
    history: &GuestPortHistory,
) -> Result<Attached, AttachError> {
    let hubs: Vec<String> = buses.iter().map(|bus| (*bus).to_owned()).collect();
    attach(qmp, &request(name, speed, &hubs, history))
}

fn request<'a>(
    name: &str,
    speed: Speed,
    hubs: &'a [String],
    history: &'a GuestPortHistory,
) -> AttachRequest<'a> {
    AttachRequest {
        id: id(name),
        speed: Some(speed),
        hubs,
        history,
        has_product_name: true,
        node: "/dev/bus/usb/001/016".into(),
        access: AccessMode::Node,
        properties: UsbHostProperties::new(),
        expected_attached: false,
        claim: Claim::Free,
        host_drives_storage: false,
        device: &Zero,
    }
}

fn no_seat(result: Result<Attached, AttachError>) -> Vec<BusError> {
    match result {
        Err(AttachError::NoUsablePort { errors, .. }) => errors,
        other => panic!("{other:?}"),
    }
}

/// The result in a paused guest.
fn waiting(bus: &str, port: usize) -> Attached {
    Attached::PendingResume(Some(GuestPort { bus: bus.to_owned(), port }))
}

#[test]
fn paused_guest_gets_an_object_that_waits() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    assert!(!objects::is_running(&mut qmp).unwrap());
    assert_eq!(attach_to(&mut qmp, &[]).unwrap(), waiting("xhci0.0", 1));
    assert_eq!(objects::list(&mut qmp).unwrap(), [id(ID)]);
    assert!(!objects::is_attached(&mut qmp, &id(ID)).unwrap());
    // This host may have such a device, so the object is deleted before the guest resumes.
    assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
    qmp.execute("cont", Value::Null).unwrap();
    assert!(objects::is_running(&mut qmp).unwrap());
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
    connect(&socket, Deadline::after(PATIENCE)).unwrap();
    assert_eq!(std::fs::read_to_string(root.path("/run/vm.stderr")).unwrap(), "");
    assert!(qemu.pid() > 0);
}

#[test]
fn properties_of_usb_host_reach_qemu() {
    let root = Root::new();
    let qemu = Qemu::start(&root, "vm", &["-device", "qemu-xhci,id=xhci0", "-S"]);
    let mut qmp = qemu.connect();
    let history = GuestPortHistory::default();
    let request = AttachRequest {
        properties: [("guest-reset", Value::Bool(false)), ("isobufs", 7.into())].into(),
        ..request(ID, Speed::HIGH, &[], &history)
    };
    attach(&mut qmp, &request).unwrap();
    let arguments = serde_json::json!({ "command-line": "info qtree" });
    let tree = qmp.execute("human-monitor-command", arguments).unwrap();
    let tree = tree.as_str().unwrap();
    assert!(tree.contains("guest-reset = false") && tree.contains("isobufs = 7"), "{tree}");
}

#[test]
fn attach_replaces_an_object_with_the_same_id() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    let arguments = || json!({ "driver": "usb-host", "id": ID, "hostbus": 1, "hostport": "3" });
    qmp.execute("device_add", arguments()).unwrap();
    let error = qmp.execute("device_add", arguments()).unwrap_err();
    assert!(error.desc().unwrap().starts_with("Duplicate "), "{error}");
    assert_eq!(attach_to(&mut qmp, &[]).unwrap(), waiting("xhci0.0", 1));
    assert_eq!(qemu.objects(), [ID]);
}

/// An emulated device replaces a host device that QEMU has opened.
#[test]
fn attached_device_is_found_and_kept() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    assert_eq!(qemu.monitor(&format!("device_add usb-kbd,id={ID}")), "");
    let mut qmp = qemu.connect();
    assert!(objects::is_attached(&mut qmp, &id(ID)).unwrap());
    assert_eq!(attach_to(&mut qmp, &[]).unwrap(), Attached::Before);
    let device = hmp::guest_device(&mut qmp, &id(ID)).unwrap();
    assert_eq!(device.port.as_deref(), Some("1"));
    assert_eq!(device.speed.unwrap().to_string(), "480 Mb/s");
    assert_eq!(device.product.as_deref(), Some("QEMU USB Keyboard"));
    assert_eq!(
        hmp::guest_device(&mut qmp, &id("hotplugger-1-3-1")).unwrap(),
        hmp::GuestDeviceInfo::default()
    );
}

#[test]
fn missing_bus_differs_from_a_full_one() {
    let root = Root::new();
    let full = ["-device", "qemu-xhci,id=xhci0,p2=1,p3=1", "-device", "usb-kbd,port=1"];
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &full[..]].concat());
    let mut qmp = qemu.connect();
    let errors = no_seat(attach_to(&mut qmp, &["xhci0", "xhci0.0", "nowhere.0"]));
    let error_of = |bus: &str, kind| BusError { bus: Some(bus.to_owned()), kind };
    assert_eq!(
        errors,
        [
            error_of("xhci0", BusErrorKind::NoSuchBus),
            error_of("nowhere.0", BusErrorKind::NoSuchBus),
            error_of("xhci0.0", BusErrorKind::Full),
        ]
    );
    assert_eq!(no_seat(attach_to(&mut qmp, &[])), [error_of("xhci0.0", BusErrorKind::Full)]);
    assert_eq!(objects::list(&mut qmp).unwrap(), []);
}

/// QEMU accepts each requested port, lists the device there, and adds no hub.
#[test]
fn each_speed_gets_a_port_that_takes_it() {
    let root = Root::new();
    let all = ["usb-ehci,id=ehci", "piix3-usb-uhci,id=uhci", "qemu-xhci,id=xhci,p2=3,p3=2"];
    let arguments: Vec<&str> = all.iter().flat_map(|device| ["-device", device]).collect();
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &arguments[..]].concat());
    let mut qmp = qemu.connect();
    let mut next = 0;
    let mut put = |qmp: &mut dyn Qmp, speed| {
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
    // A freed port is used again.
    assert!(objects::delete(&mut qmp, &id("hotplugger-1-3-5")).unwrap());
    assert_eq!(put(&mut qmp, Speed::FULL).unwrap(), waiting("uhci.0", 2));
}

/// After each error that QEMU may return for the last port, another port is tried.
#[test]
fn attach_uses_the_last_port_unless_qemu_rejects_it() {
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
        let history = GuestPortHistory {
            last: Some(LastPort { port: place, speed: full }),
            reserved: Vec::new(),
        };
        let attached = place_again(&mut qmp, ID, Speed::FULL, &[], &history);
        assert_eq!(attached.unwrap(), seat, "{bus} {port}");
        assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
    }
}

/// This is how libvirt gives a guest USB 2. The companions make the EHCI's ports accept slow devices.
#[test]
fn ehci_with_companions_takes_all_usb_2_speeds() {
    let root = Root::new();
    let devices = [
        "ich9-usb-ehci1,id=usb",
        "ich9-usb-uhci1,masterbus=usb.0,firstport=0",
        "ich9-usb-uhci2,masterbus=usb.0,firstport=2",
    ];
    let arguments: Vec<&str> = devices.iter().flat_map(|device| ["-device", device]).collect();
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &arguments[..]].concat());
    let mut qmp = qemu.connect();
    let free = |qmp: &mut dyn Qmp, speed| buses(qmp, &[]).unwrap()[0].free_ports_for(speed);
    assert_eq!(free(&mut qmp, Speed::FULL), [1, 2, 3, 4]);
    assert_eq!(free(&mut qmp, Speed::HIGH), [1, 2, 3, 4, 5, 6]);
    assert_eq!(place(&mut qmp, ID, Speed::FULL, &[]).unwrap(), waiting("usb.0", 1));
    let emulated = "device_add usb-mouse,usb_version=1,bus=usb.0,port=4";
    assert_eq!(qemu.monitor(emulated), "", "a full-speed device works there");
}

/// Fills a paused guest with devices of that speed. Returns their guest ports, and the error of the
/// first device that got none.
fn fill(qmp: &mut dyn Qmp, speed: Speed) -> (Vec<(String, usize)>, String) {
    let mut ports = Vec::new();
    loop {
        match place(qmp, &format!("hotplugger-1-{}-5", ports.len() + 1), speed, &[]) {
            Ok(Attached::PendingResume(Some(GuestPort { bus, port }))) => ports.push((bus, port)),
            other => {
                ports.sort();
                return (ports, other.unwrap_err().to_string());
            }
        }
    }
}

fn all_ports(bus: &str, count: usize) -> impl Iterator<Item = (String, usize)> {
    (1..=count).map(move |port| (bus.to_owned(), port))
}

/// Fills a guest of that machine, starts it again as the error advises, and fills it again. Returns
/// the first guest's ports, the error, and how many ports the second guest has.
fn fill_and_follow(machine: &[&str], speed: Speed) -> (Vec<(String, usize)>, String, usize) {
    let root = Root::new();
    let arguments = [&["-S"], machine].concat();
    let (ports, error) = fill(&mut Qemu::start(&root, "vm", &arguments).connect(), speed);
    let advice = error.split_once("start QEMU with ").expect(&error).1.to_owned();
    let advice: Vec<&str> = advice.split(' ').collect();
    let larger = Qemu::start(&root, "larger", &[&arguments, &advice[..]].concat());
    let count = fill(&mut larger.connect(), speed).0.len();
    (ports, error, count)
}

/// The machine has an xHCI with 8 ports, and no PCI bus to which another one could be added.
#[test]
fn all_ports_of_microvm_are_used() {
    let (ports, error, larger) = fill_and_follow(&["-machine", "microvm,usb=on"], Speed::HIGH);
    assert!(ports.into_iter().eq(all_ports("usb-bus.0", 8)), "{error}");
    assert_eq!(
        error,
        "the guest's usb-bus.0 has no free port; start QEMU with -machine microvm,pcie=on -device \
         qemu-xhci,id=xhci0,p2=15,p3=15"
    );
    assert_eq!(larger, 8 + 15);
}

#[test]
fn all_ports_of_an_ohci_are_used() {
    let (ports, error, larger) = fill_and_follow(&["-device", "pci-ohci,num-ports=8"], Speed::FULL);
    assert!(ports.into_iter().eq(all_ports("usb-bus.0", 8)), "{error}");
    assert_eq!(
        error,
        "the guest's usb-bus.0 has no free port; start QEMU with -device \
         qemu-xhci,id=xhci0,p2=15,p3=15"
    );
    assert_eq!(larger, 8 + 15);
}

#[test]
fn all_ports_of_a_nec_xhci_are_used() {
    let (ports, error, larger) =
        fill_and_follow(&["-device", "nec-usb-xhci,p2=6,p3=4"], Speed::HIGH);
    assert!(ports.into_iter().eq(all_ports("usb-bus.0", 6)), "{error}");
    assert_eq!(larger, 6 + 15);
}

#[test]
fn all_ports_of_anonymous_controllers_are_used() {
    let two = ["-device", "qemu-xhci,p2=8,p3=8", "-device", "qemu-xhci,p2=8,p3=8"];
    let (ports, error, larger) = fill_and_follow(&two, Speed::HIGH);
    let both = all_ports("usb-bus.0", 8).chain(all_ports("usb-bus.1", 8));
    assert!(ports.into_iter().eq(both), "{error}");
    assert_eq!(
        error,
        "the guest's usb-bus.0 and usb-bus.1 have no free port; start QEMU with -device \
         qemu-xhci,id=xhci0,p2=15,p3=15"
    );
    assert_eq!(larger, 16 + 15);
}

#[test]
fn bus_with_an_emulated_disk_is_found() {
    let root = Root::new();
    let disk = [
        "-drive",
        "if=none,id=disk,driver=null-co,read-zeroes=on",
        "-device",
        "usb-storage,drive=disk",
    ];
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &CONTROLLER[..], &disk[..]].concat());
    assert_eq!(attach_to(&mut qemu.connect(), &[]).unwrap(), waiting("xhci0.0", 2));
}

/// A QEMU that refuses HMP.
struct WithoutHmp(Session);

impl Qmp for WithoutHmp {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        if command == "human-monitor-command" {
            let (class, desc) = ("CommandNotFound".to_owned(), "no such command".to_owned());
            return Err(Error::Command { command, class, desc });
        }
        self.0.execute(command, arguments)
    }

    fn execute_with_fd(
        &mut self,
        command: &'static str,
        arguments: Value,
        open: &OpenDevice<'_>,
    ) -> Result<Value, Error> {
        self.0.execute_with_fd(command, arguments, open)
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        self.0.pause(time)
    }
}

#[test]
fn qemu_without_hmp_gets_the_device_in_a_free_port_that_takes_its_speed() {
    let root = Root::new();
    let devices = [
        "ich9-usb-ehci1,id=ehci",
        "ich9-usb-uhci1,masterbus=ehci.0,firstport=0",
        "qemu-xhci,id=xhci,p2=3,p3=2",
    ];
    let arguments: Vec<&str> = devices.iter().flat_map(|device| ["-device", device]).collect();
    let qemu = Qemu::start(&root, "vm", &[&["-S"], &arguments[..]].concat());
    let with_hmp = buses(&mut qemu.connect(), &[]).unwrap();
    let mut qmp = WithoutHmp(qemu.connect());
    assert_eq!(buses(&mut qmp, &[]).unwrap(), with_hmp);
    for port in 1..=2 {
        assert_eq!(qemu.monitor(&format!("device_add usb-mouse,bus=xhci.0,port={port}")), "");
    }
    let full = place(&mut qmp, ID, Speed::SUPER, &["xhci.0"]).unwrap();
    assert_eq!(full, waiting("xhci.0", 3), "the only free one");
    assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
    assert_eq!(place(&mut qmp, ID, Speed::HIGH, &[]).unwrap(), waiting("ehci.0", 1));
    assert!(objects::delete(&mut qmp, &id(ID)).unwrap());
    // A device that is attached is also found. QEMU 5 does not free the ID at once.
    while !qemu.monitor(&format!("device_add usb-kbd,id={ID},bus=xhci.0,port=3")).is_empty() {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(place(&mut qmp, ID, Speed::FULL, &[]).unwrap(), Attached::Before);
    assert_eq!(objects::attached(&mut qmp, &[id(ID)]).unwrap(), [id(ID)]);
    // A guest without a controller is recognized too.
    let bare = Qemu::start(&root, "bare", &["-S"]);
    let attached = attach_to(&mut WithoutHmp(bare.connect()), &[]);
    assert_eq!(no_seat(attached), [BusError { bus: None, kind: BusErrorKind::NoController }]);
}

/// The order of the controllers in the tree is not the one in which they were made.
#[test]
fn anonymous_controllers_keep_their_own_ports() {
    let root = Root::new();
    let mut arguments =
        vec!["-S".to_owned(), "-device".to_owned(), "pcie-root-port,id=root".to_owned()];
    for count in 1..=11 {
        let bus = if count == 2 { ",bus=root" } else { "" };
        arguments.extend(["-device".to_owned(), format!("qemu-xhci,p2={count},p3=1{bus}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let many = Qemu::start(&root, "many", &arguments);
    let microvm = Qemu::start(&root, "microvm", &["-S", "-machine", "microvm,usb=on"]);
    let counts = |qmp: &mut dyn Qmp| -> BTreeMap<String, usize> {
        buses(qmp, &[]).unwrap().into_iter().map(|bus| (bus.name, bus.ports.len())).collect()
    };
    let expected = (1..=11).map(|count| (format!("usb-bus.{}", count - 1), count)).collect();
    assert_eq!(counts(&mut many.connect()), expected);
    assert_eq!(counts(&mut WithoutHmp(many.connect())), expected);
    assert_eq!(counts(&mut WithoutHmp(microvm.connect())), [("usb-bus.0".to_owned(), 8)].into());
}

fn attach_via_fd(qmp: &mut dyn Qmp, speed: Speed) -> Result<Attached, AttachError> {
    let history = GuestPortHistory::default();
    let request = AttachRequest { access: AccessMode::Fd, ..request(ID, speed, &[], &history) };
    attach(qmp, &request)
}

/// How many file descriptors QEMU has in its sets.
fn in_sets(qemu: &Qemu) -> usize {
    let sets = qemu.execute("query-fdsets", Value::Null).unwrap();
    let sets = sets.as_array().unwrap();
    sets.iter().map(|set| set["fds"].as_array().unwrap().len()).sum()
}

/// QEMU receives the file descriptor and rejects it, because it is not a USB device.
#[test]
fn fd_reaches_qemu_and_is_removed_again() {
    let root = Root::new();
    let arguments = ["-device", "qemu-xhci,id=xhci0", "-device", "usb-ehci,id=ehci"];
    let qemu = Qemu::start(&root, "vm", &arguments);
    let mut qmp = qemu.connect();
    for _ in 0..50 {
        let errors = no_seat(attach_via_fd(&mut qmp, Speed::HIGH));
        let error_of = |bus: &str, kind| BusError { bus: Some(bus.to_owned()), kind };
        let not_opened = || BusErrorKind::NotOpened(Some(Speed::HIGH));
        assert_eq!(errors, [error_of("ehci.0", not_opened()), error_of("xhci0.0", not_opened())]);
        assert_eq!(in_sets(&qemu), 0);
    }
    assert_eq!(objects::list(&mut qmp).unwrap(), []);
    let sets = qmp.execute("query-fdsets", Value::Null).unwrap();
    assert!(sets.as_array().unwrap().len() <= 1, "one set is used again: {sets}");
}

/// QEMU before 10 keeps removed file descriptors while it is paused, so a set must not be used for a
/// second device.
#[test]
fn paused_qemu_gets_each_fd_in_a_set_of_its_own() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    for before in 0..3 {
        // QEMU 10 frees it at once.
        let left = in_sets(&qemu);
        assert!(left == before || left == 0, "{left} of {before}");
        no_seat(attach_via_fd(&mut qemu.connect(), Speed::HIGH));
    }
    let sets = qemu.execute("query-fdsets", Value::Null).unwrap();
    assert!(sets.as_array().unwrap().iter().all(|set| set["fds"].as_array().unwrap().len() <= 1));
    qemu.execute("cont", Value::Null).unwrap();
    no_seat(attach_via_fd(&mut qemu.connect(), Speed::HIGH));
    assert_eq!(in_sets(&qemu), 0);
}

#[test]
fn errors_for_a_missing_or_unsupported_fd_are_known() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let said = |error: Error| error.desc().unwrap_or_default().to_owned();
    let error = qemu.execute("add-fd", json!({})).unwrap_err();
    assert_eq!(said(error), "No file descriptor supplied via SCM_RIGHTS");
    let odd = json!({ "driver": "usb-host", "nohostdevice": "/dev/fdset/1" });
    let said = said(qemu.execute("device_add", odd).unwrap_err());
    assert!(said.ends_with("nohostdevice' not found"), "{said}");
}

#[test]
fn guest_without_usb_is_an_error() {
    let root = Root::new();
    let qemu = Qemu::start(&root, "vm", &["-S"]);
    let mut qmp = qemu.connect();
    let attached = attach_to(&mut qmp, &[]);
    assert_eq!(no_seat(attached), [BusError { bus: None, kind: BusErrorKind::NoController }]);
    // QEMU answers that it has no USB.
    assert_eq!(hmp::guest_device(&mut qmp, &id(ID)).unwrap(), hmp::GuestDeviceInfo::default());
}

#[test]
fn error_for_an_unknown_device_model_is_known() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    let error = qmp.execute("device_add", json!({ "driver": "usb-perpetuum-mobile" })).unwrap_err();
    assert!(error.desc().unwrap().contains("is not a valid device model name"), "{error}");
    let typename = json!({ "typename": "usb-perpetuum-mobile" });
    let error = qmp.execute("device-list-properties", typename).unwrap_err();
    assert!(matches!(error, Error::Command { .. }), "{error}");
}

/// In a modular QEMU `info usbhost` is part of a module that is not loaded yet.
#[test]
fn fresh_qemu_lists_the_hosts_devices() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    load_usb_host(&mut qmp).unwrap();
    assert!(hmp::host_devices(&mut qmp).unwrap().is_some());
    drop(qmp);
    let said = qemu.monitor("info usbhost");
    assert!(!said.contains("not available"), "{said}");
}

#[test]
fn detach_deletes_only_our_objects_of_that_port() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    // The controller has 4 ports. QEMU adds hubs for more devices.
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
fn second_deletion_is_not_an_error() {
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
fn socket_with_another_client_costs_the_deadline() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let first = qemu.connect();
    let error = connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
    let Error::Timeout { step: Step::Greeting, budget } = error else { panic!("{error}") };
    assert_eq!(budget, SHORT);
    drop(first);
    qemu.connect();
}

/// QEMU sends the reply to the client that is connected, even if an earlier client sent the command.
#[test]
fn reply_to_an_earlier_client_is_ignored() {
    let root = Root::new();
    let mut qemu = Qemu::paused(&root, "vm");
    let mut aborts = 0;
    for round in 0..100 {
        let mut client = UnixStream::connect(&qemu.socket).unwrap();
        let mut said = BufReader::new(client.try_clone().unwrap()).lines();
        said.next().unwrap().unwrap();
        writeln!(client, "{}", json!({ "execute": "qmp_capabilities" })).unwrap();
        said.next().unwrap().unwrap();
        // The command takes QEMU some time, and has the ID of a client that counts from 1.
        let last = json!({ "execute": "qom-list-types", "id": 1 }).to_string();
        client.write_all(last.as_bytes()).unwrap();
        // Some clients leave while QEMU executes it.
        thread::sleep(Duration::from_micros(20 * round));
        drop((client, said));
        let connected = connect(&qemu.socket, Deadline::after(PATIENCE));
        // QEMU before 6.1 may abort when a client leaves while it executes a command
        // (`monitor/qmp.c`: `monitor_qmp_event`, a race at CHR_EVENT_CLOSED), before or after the
        // next client has connected.
        let has_left =
            matches!(connected, Err(Error::NotRunning { .. } | Error::Closed(Step::Greeting)));
        if has_left && aborts < 2 {
            aborts += 1;
            qemu.wait();
            drop(qemu);
            qemu = Qemu::paused(&root, "vm");
            continue;
        }
        let mut qmp = connected.unwrap();
        assert_eq!(qmp.execute("query-status", Value::Null).unwrap()["running"], json!(false));
    }
}

/// QEMU's backlog is short. The kernel rejects further clients.
#[test]
fn more_clients_than_the_backlog_all_end() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let first = qemu.connect();
    let steps: Vec<Step> = thread::scope(|scope| {
        let connect = || connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(connect)).collect();
        let errors = clients.into_iter().map(|client| client.join().unwrap());
        let step = |error| match error {
            Error::Timeout { step, .. } => step,
            other => panic!("{other}"),
        };
        errors.map(step).collect()
    });
    assert!(steps.contains(&Step::Greeting) && steps.contains(&Step::Connect), "{steps:?}");
    drop(first);
    qemu.connect();
}

#[test]
fn waiting_client_connects_when_the_first_one_leaves() {
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
fn killed_qemu_closes_the_connection() {
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
        assert!(matches!(error, Error::Closed(Step::Command("query-status"))), "{error}");
    });
    let error = connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
    assert!(matches!(error, Error::NotRunning { stale: true, .. }), "{error}");
}

#[test]
fn frozen_qemu_costs_the_deadline_and_replies_after_it_thaws() {
    let root = Root::new();
    let qemu = Qemu::paused(&root, "vm");
    let mut qmp = connect(&qemu.socket, Deadline::after(SHORT * 10)).unwrap();
    qemu.freeze();
    let error = qmp.execute("query-status", Value::Null).unwrap_err();
    let Error::Timeout { step, .. } = error else { panic!("{error}") };
    assert_eq!(step, Step::Command("query-status"));
    drop(qmp);
    qemu.thaw();
    assert!(!objects::is_running(&mut qemu.connect()).unwrap());
}

#[test]
fn qemu_that_quits_removes_its_socket() {
    let root = Root::new();
    let mut qemu = Qemu::paused(&root, "vm");
    let mut qmp = qemu.connect();
    qmp.execute("quit", Value::Null).unwrap();
    // QEMU 5 may still answer while it quits.
    qemu.wait();
    let error = qmp.execute("query-status", Value::Null).unwrap_err();
    assert!(matches!(error, Error::Closed(_)), "{error}");
    qemu.wait();
    let error = connect(&qemu.socket, Deadline::after(SHORT)).unwrap_err();
    assert!(matches!(error, Error::NotRunning { stale: false, .. }), "{error}");
}
