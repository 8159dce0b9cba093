use std::cell::Cell;

use serde_json::{Value, json};

use super::*;
use crate::config::usb_host::UsbHostProperties;
use crate::guest::detach;
use crate::guest::fake::{Bus, FakeQemu, Hmp, HostDevice};

const ID: &str = "hotplugger-1-3-16";

static FRESH: GuestPortHistory = GuestPortHistory { last: None, reserved: Vec::new() };

/// A device that stays in its port.
struct Present;

/// A device that is unplugged after so many rechecks.
struct UnpluggedAfter(Cell<u32>);

impl UsbSource for Present {
    fn recheck(&self) -> Result<DiskClaims, Unavailable> {
        Ok(DiskClaims::default())
    }

    fn check_present(&self) -> Result<(), Unavailable> {
        self.recheck().map(drop)
    }

    fn open_node(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn may_be_listed(&self) -> bool {
        true
    }
}

impl UsbSource for UnpluggedAfter {
    fn recheck(&self) -> Result<DiskClaims, Unavailable> {
        let left = self.0.get().checked_sub(1).ok_or(Unavailable::Unplugged)?;
        self.0.set(left);
        Ok(DiskClaims::default())
    }

    fn check_present(&self) -> Result<(), Unavailable> {
        self.recheck().map(drop)
    }

    fn open_node(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn may_be_listed(&self) -> bool {
        true
    }
}

fn request<'a>(hubs: &'a [String], device: &'a dyn UsbSource) -> AttachRequest<'a> {
    AttachRequest {
        id: ID.parse().unwrap(),
        speed: Some("5000".parse().unwrap()),
        hubs,
        history: &FRESH,
        has_product_name: true,
        node: "/dev/bus/usb/001/016".into(),
        access: AccessMode::Node,
        properties: UsbHostProperties::new(),
        expected_attached: false,
        claim: Claim::Free,
        host_drives_storage: false,
        device,
    }
}

fn guest(objects: &[&str]) -> FakeQemu {
    let stick = HostDevice {
        id: ID.parse().unwrap(),
        speed: "5000".to_owned(),
        product: "Stick".to_owned(),
    };
    FakeQemu::new(objects, vec![stick])
}

fn with(buses: &[(&str, Bus)]) -> FakeQemu {
    let mut guest = guest(&[]);
    guest.buses = buses.iter().map(|(name, bus)| ((*name).to_owned(), *bus)).collect();
    guest
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Bus, port, and whether the device is below its native speed there.
fn attached_on(qmp: &mut FakeQemu, hubs: &[String]) -> (String, String, bool) {
    place_of(&attach(qmp, &request(hubs, &Present)).unwrap())
}

fn place_of(attached: &Attached) -> (String, String, bool) {
    match attached {
        Attached::Now(GuestLocation { bus, device, below_native_speed, .. }) => {
            (bus.clone().unwrap_or_default(), device.port.clone().unwrap(), *below_native_speed)
        }
        other => panic!("{other:?}"),
    }
}

/// The history of a host port with that last guest port.
fn had(bus: &str, port: usize, speed: Option<Speed>) -> GuestPortHistory {
    let place = GuestPort { bus: bus.to_owned(), port };
    GuestPortHistory { last: Some(LastPort { port: place, speed }), reserved: Vec::new() }
}

fn on(bus: &str, port: &str) -> (String, String, bool) {
    (bus.to_owned(), port.to_owned(), false)
}

#[test]
fn attach_names_bus_port_and_device_number_and_proves_it() {
    let mut qmp = guest(&[]);
    assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "1"));
    assert_eq!(qmp.ids(), [ID]);
    let arguments = added(&qmp)[0].clone();
    assert_eq!(arguments["hostbus"], json!(1));
    assert_eq!(arguments["hostport"], json!("3"));
    assert_eq!(arguments["hostaddr"], json!(16));
    assert_eq!((&arguments["bus"], &arguments["port"]), (&json!("xhci0.0"), &json!("1")));
    assert!(matches!(attach(&mut qmp, &request(&[], &Present)), Ok(Attached::Before)));
    assert_eq!(added(&qmp).len(), 1);
}

/// Each command is a round trip: our objects, the guest's buses, the controller's ports of each
/// speed, the new object, the proof, and the details.
#[test]
fn attach_takes_seven_commands_and_two_if_already_attached() {
    let mut qmp = guest(&[]);
    attached_on(&mut qmp, &[]);
    let monitor = "human-monitor-command";
    let all = ["qom-list", monitor, "qom-get", "qom-get", "device_add", "qom-get", monitor];
    assert_eq!(commands(&qmp), all);
    qmp.commands.clear();
    assert!(matches!(attach(&mut qmp, &request(&[], &Present)), Ok(Attached::Before)));
    assert_eq!(commands(&qmp), ["qom-list", "qom-get"]);
}

/// QEMU has claimed the device by our object, or by another one, which `device_add` would not
/// notice.
#[test]
fn device_that_a_qemu_has_claimed_is_attached_only_by_our_object() {
    let history = had("xhci0.0", 1, Some(Speed::SUPER));
    let claimed = AttachRequest {
        claim: Claim::ByQemu("qemu-system-x86_64 (process 7)".to_owned()),
        history: &history,
        ..request(&[], &Present)
    };
    let mut ours = guest(&[ID]);
    assert!(matches!(attach(&mut ours, &claimed), Ok(Attached::Before)));
    assert_eq!(added(&ours).len(), 0);
    let mut others = guest(&["usb0"]);
    let error = attach(&mut others, &claimed).unwrap_err().to_string();
    assert!(error.starts_with("qemu-system-x86_64 (process 7) uses it already;"), "{error}");
    assert_eq!(added(&others).len(), 0);
}

/// QEMU would open the device when the guest resumes, whatever the host has mounted by then.
#[test]
fn paused_guest_gets_no_object_for_storage_that_the_host_drives() {
    let mut qmp = guest(&[]);
    qmp.running = false;
    let driven = AttachRequest { host_drives_storage: true, ..request(&[], &Present) };
    let error = attach(&mut qmp, &driven).unwrap_err();
    assert!(matches!(error, AttachError::StorageWhilePaused), "{error}");
    assert_eq!(qmp.ids().len(), 0);
    assert!(matches!(attach(&mut qmp, &request(&[], &Present)), Ok(Attached::PendingResume(_))));
}

#[test]
fn attach_deletes_objects_of_earlier_devices_first() {
    let mut qmp = guest(&["hotplugger-1-3-9", "hotplugger-1-3.1-9", "kbd0"]);
    // Its port is free again.
    assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "1"));
    assert_eq!(qmp.ids(), [ID, "hotplugger-1-3.1-9", "kbd0"]);
}

#[test]
fn attach_prefers_the_last_port() {
    let history = had("xhci0.0", 9, None);
    let attached =
        attach(&mut guest(&[]), &AttachRequest { history: &history, ..request(&[], &Present) })
            .unwrap();
    assert_eq!(place_of(&attached), on("xhci0.0", "9"));
    assert_eq!(attached.last_port(Some(Speed::SUPER)), had("xhci0.0", 9, Some(Speed::SUPER)).last);
}

/// At the last port of a device of that speed the guest's buses are not queried.
#[test]
fn attach_in_the_last_port_takes_four_commands() {
    let history = had("xhci0.0", 9, Some(Speed::SUPER));
    let mut qmp = guest(&[]);
    let attached =
        attach(&mut qmp, &AttachRequest { history: &history, ..request(&[], &Present) }).unwrap();
    assert_eq!(place_of(&attached), on("xhci0.0", "9"));
    let all = ["device_add", "qom-get", "human-monitor-command", "qom-list"];
    assert_eq!(commands(&qmp), all);
    assert_eq!(qmp.commands[2].1, json!({ "command-line": "info usb" }));
    // The same with a file descriptor, except for the commands about it.
    let mut qmp = guest(&[]);
    attach(&mut qmp, &AttachRequest { history: &history, ..with_access(AccessMode::Fd, &Present) })
        .unwrap();
    let without_fds = |command: &&str| !command.contains("-fd");
    assert_eq!(commands(&qmp).into_iter().filter(without_fds).collect::<Vec<_>>(), all);
    // A device of another speed may have a better port.
    let mut qmp = guest(&[]);
    let history = had("xhci0.0", 9, Some(Speed::HIGH));
    attach(&mut qmp, &AttachRequest { history: &history, ..request(&[], &Present) }).unwrap();
    assert_eq!(commands(&qmp).len(), 7);
}

#[test]
fn attach_in_the_last_port_deletes_stale_objects_afterwards() {
    let history = had("xhci0.0", 9, Some(Speed::SUPER));
    let last_request = || AttachRequest { history: &history, ..request(&[], &Present) };
    let mut qmp = guest(&["hotplugger-1-3-9", "hotplugger-1-3.1-9", "kbd0"]);
    assert_eq!(place_of(&attach(&mut qmp, &last_request()).unwrap()), on("xhci0.0", "9"));
    assert_eq!(qmp.ids(), [ID, "hotplugger-1-3.1-9", "kbd0"]);
    // It is attached already, and no record says so.
    assert!(matches!(attach(&mut qmp, &last_request()), Ok(Attached::Before)));
    qmp.commands.clear();
    let known = AttachRequest { expected_attached: true, ..last_request() };
    assert!(matches!(attach(&mut qmp, &known), Ok(Attached::Before)));
    assert_eq!(commands(&qmp), ["qom-list", "qom-get"]);
    // An object without the device is replaced.
    let mut qmp = guest(&[ID]);
    let host = qmp.host.clone();
    qmp.running = false;
    qmp.host_changed(Vec::new());
    qmp.host_changed(host);
    assert_eq!(qmp.open(), [""; 0]);
    qmp.running = true;
    assert_eq!(place_of(&attach(&mut qmp, &last_request()).unwrap()), on("xhci0.0", "9"));
    // An object of an earlier device frees the last port.
    let (first, mut qmp) = (had("xhci0.0", 1, Some(Speed::SUPER)), guest(&["hotplugger-1-3-9"]));
    let attached = attach(&mut qmp, &AttachRequest { history: &first, ..last_request() }).unwrap();
    assert_eq!((place_of(&attached), qmp.ids()), (on("xhci0.0", "1"), vec![ID]));
    // Stale objects are deleted also if QEMU cannot open the device.
    let mut qmp = guest(&["hotplugger-1-3-9"]);
    qmp.may_open = false;
    attach(&mut qmp, &last_request()).unwrap_err();
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn attach_passes_over_a_last_port_that_is_taken_missing_or_slow() {
    let last_request = |bus| had(bus, 1, Some(Speed::SUPER));
    let mut taken = with(&[("a.0", Bus::Full), ("b.0", Bus::Good)]);
    let mut gone = with(&[("b.0", Bus::Good)]);
    let mut slow = with(&[("a.0", Bus::Ehci), ("b.0", Bus::Good)]);
    let mut refuses = with(&[("a.0", Bus::Refuses), ("b.0", Bus::Good)]);
    for qmp in [&mut taken, &mut gone, &mut slow, &mut refuses] {
        let history = last_request("a.0");
        let attached =
            attach(qmp, &AttachRequest { history: &history, ..request(&[], &Present) }).unwrap();
        assert_eq!(place_of(&attached), on("b.0", "1"));
        assert_eq!(qmp.ids(), [ID]);
    }
    // `hubs` no longer names the bus of the last port.
    let (mut qmp, hubs) = (with(&[("a.0", Bus::Good), ("b.0", Bus::Good)]), names(&["b.0"]));
    let history = last_request("a.0");
    let attached =
        attach(&mut qmp, &AttachRequest { history: &history, ..request(&hubs, &Present) });
    assert_eq!(place_of(&attached.unwrap()), on("b.0", "1"));
    assert_eq!(added(&qmp).len(), 1);
    // If no port takes the device, the error is the same as without a last port.
    let (history, hubs) = (last_request("a.0"), names(&["a.0", "c.0"]));
    let said = |history| {
        let mut qmp = with(&[("a.0", Bus::Full)]);
        attach(&mut qmp, &AttachRequest { history, ..request(&hubs, &Present) })
            .unwrap_err()
            .to_string()
    };
    assert_eq!(said(&history), said(&FRESH));
}

/// No other port is tried, because access is missing at every port.
#[test]
fn attach_passes_the_fd_in_the_last_port_if_qemu_may_not_open_the_node() {
    let history = had("xhci0.0", 9, Some(Speed::SUPER));
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    let attached = attach(
        &mut qmp,
        &AttachRequest { history: &history, ..with_access(AccessMode::Auto, &Present) },
    )
    .unwrap();
    assert!(is_via_fd(&attached));
    assert_eq!(place_of(&attached), on("xhci0.0", "9"));
    assert!(!qmp.commands.iter().any(|(_, said)| *said == json!({ "command-line": "info qtree" })));
    let said = |history| {
        let mut qmp = guest(&[]);
        qmp.may_open = false;
        attach(&mut qmp, &AttachRequest { history, ..request(&[], &Present) })
            .unwrap_err()
            .to_string()
    };
    assert_eq!(said(&history), said(&FRESH));
}

#[test]
fn attach_passes_over_a_port_that_another_client_takes() {
    let mut qmp = guest(&[]);
    qmp.taken_by_other = vec![("xhci0.0".to_owned(), 1), ("xhci0.0".to_owned(), 2)];
    assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "3"));
    qmp = guest(&[]);
    qmp.taken_by_other = (1..=15).map(|port| ("xhci0.0".to_owned(), port)).collect();
    let said = attach(&mut qmp, &request(&[], &Present)).unwrap_err().to_string();
    assert_eq!(
        said,
        "the guest's xhci0.0 has no free port; start QEMU with -device \
         qemu-xhci,id=xhci1,p2=15,p3=15"
    );
}

#[test]
fn attach_passes_over_full_missing_and_slow_buses() {
    let mut qmp = with(&[("a.0", Bus::Full), ("uhci.0", Bus::Uhci), ("xhci.0", Bus::Good)]);
    let hubs = names(&["a.0", "nowhere.0", "uhci.0", "xhci.0"]);
    assert_eq!(attached_on(&mut qmp, &hubs), on("xhci.0", "1"));
    assert_eq!(qmp.ids(), [ID]);
    assert_eq!(added(&qmp).len(), 1, "the first place is the right one");
}

#[test]
fn attach_takes_the_fastest_of_slow_buses() {
    let mut qmp = with(&[("ehci.0", Bus::Ehci), ("uhci.0", Bus::Uhci)]);
    let slow = ("ehci.0".to_owned(), "1".to_owned(), true);
    assert_eq!(attached_on(&mut qmp, &names(&["uhci.0", "ehci.0"])), slow);
    assert_eq!(added(&qmp).len(), 1);
    // Unknown buses are tried.
    let mut qmp = with(&[("a.0", Bus::Unknown), ("b.0", Bus::Ehci), ("c.0", Bus::Uhci)]);
    qmp.hmp = Hmp::WithoutBuses;
    let slow = ("b.0".to_owned(), "1".to_owned(), true);
    assert_eq!(attached_on(&mut qmp, &names(&["a.0", "b.0", "c.0"])), slow);
    assert_eq!(qmp.ids(), [ID]);
}

#[test]
fn qemu_chooses_where_buses_are_unknown() {
    let mut qmp = guest(&["kbd0"]);
    qmp.hmp = Hmp::WithoutBuses;
    assert_eq!(attached_on(&mut qmp, &[]), on("", "2"));
    assert_eq!(added(&qmp)[0].get("bus"), None);
}

/// QEMU would make the last port a hub. The bus has 4 ports, and each number is tried.
#[test]
fn bus_with_an_unknown_number_of_ports_is_filled() {
    let mut qmp = with(&[("odd.0", Bus::Unknown)]);
    for number in 2..=4 {
        qmp.add_object(&format!("usb{number}"));
    }
    let last = ("odd.0".to_owned(), "4".to_owned(), true);
    assert_eq!(attached_on(&mut qmp, &[]), last);
    detach(&mut qmp, &"1-3".parse().unwrap(), None).unwrap();
    qmp.add_object("usb5");
    let said = attach(&mut qmp, &request(&[], &Present)).unwrap_err().to_string();
    assert_eq!(
        said,
        "the guest's odd.0 has no free port; start QEMU with -device qemu-xhci,id=xhci0,p2=15,p3=15"
    );
}

#[test]
fn error_names_the_cause_of_each_bus_and_no_object_stays() {
    let mut qmp = with(&[("a.0", Bus::Full), ("b.0", Bus::Refuses)]);
    let hubs = names(&["a.0", "b.0", "c.0"]);
    let said = attach(&mut qmp, &request(&hubs, &Present)).unwrap_err().to_string();
    for hint in [
        "a.0 has no free port",
        "p2=15,p3=15",
        "did not open the device on b.0; does that bus take 5000 Mb/s?",
        "no bus c.0",
    ] {
        assert!(said.contains(hint), "{said}");
    }
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn error_names_a_node_that_qemu_may_not_open() {
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    let said = attach(&mut qmp, &request(&[], &Present)).unwrap_err().to_string();
    assert!(said.contains("may not open /dev/bus/usb/001/016"), "{said}");
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn error_says_that_qemu_does_not_list_the_device() {
    let mut qmp = guest(&[]);
    qmp.sees_after_polls = u32::MAX;
    let said = attach(&mut qmp, &request(&[], &Present)).unwrap_err().to_string();
    assert!(said.contains("does not list the device"), "{said}");
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn device_that_qemu_lists_late_is_attached_at_once() {
    let mut qmp = guest(&[]);
    qmp.sees_after_polls = 3;
    attached_on(&mut qmp, &[]);
    assert_eq!(added(&qmp).len(), 2);
}

#[test]
fn device_that_is_unplugged_meanwhile_leaves_no_object() {
    let mut qmp = guest(&[]);
    assert!(matches!(
        attach(&mut qmp, &request(&[], &UnpluggedAfter(Cell::new(0)))),
        Err(AttachError::Unavailable(Unavailable::Unplugged))
    ));
    assert!(added(&qmp).is_empty());
    qmp.sees_after_polls = u32::MAX;
    let device = UnpluggedAfter(Cell::new(3));
    assert!(matches!(
        attach(&mut qmp, &request(&[], &device)),
        Err(AttachError::Unavailable(Unavailable::Unplugged))
    ));
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn paused_guest_gets_the_device_when_it_resumes() {
    let mut qmp = guest(&[]);
    qmp.running = false;
    assert!(matches!(attach(&mut qmp, &request(&[], &Present)), Ok(Attached::PendingResume(_))));
    assert_eq!(qmp.ids(), [ID]);
}

fn commands(qmp: &FakeQemu) -> Vec<&'static str> {
    qmp.commands.iter().map(|(command, _)| *command).collect()
}

/// The arguments of each `device_add`.
fn added(qmp: &FakeQemu) -> Vec<&Value> {
    let added = qmp.commands.iter().filter(|(command, _)| *command == "device_add");
    added.map(|(_, arguments)| arguments).collect()
}

fn with_access(access: AccessMode, device: &dyn UsbSource) -> AttachRequest<'_> {
    AttachRequest { access, ..request(&[], device) }
}

fn is_via_fd(attached: &Attached) -> bool {
    matches!(attached, Attached::Now(GuestLocation { via_fd: true, .. }))
}

#[test]
fn device_via_fd_is_proved_and_its_fd_removed() {
    let mut qmp = guest(&[]);
    // QEMU neither lists the device nor may open it.
    (qmp.sees_after_polls, qmp.may_open) = (u32::MAX, false);
    let attached = attach(&mut qmp, &with_access(AccessMode::Fd, &Present)).unwrap();
    assert!(is_via_fd(&attached), "{attached:?}");
    assert_eq!(place_of(&attached), on("xhci0.0", "1"));
    let arguments = added(&qmp)[0].clone();
    assert_eq!(arguments["hostdevice"], json!("/dev/fdset/1752170496"));
    assert_eq!((arguments.get("hostbus"), &arguments["port"]), (None, &json!("1")));
    assert!(!qmp.commands.iter().any(|(_, said)| *said == json!({"command-line": "info usbhost"})));
    let position = |name| commands(&qmp).iter().position(|command| *command == name).unwrap();
    assert!(position("add-fd") < position("device_add"));
    assert!(position("device_add") < position("remove-fd"));
    assert_eq!((qmp.fd_count(), qmp.ids()), (0, vec![ID]));
    assert!(matches!(
        attach(&mut qmp, &with_access(AccessMode::Fd, &Present)),
        Ok(Attached::Before)
    ));
}

#[test]
fn auto_passes_the_fd_only_if_qemu_does_not_list_or_may_not_open_the_device() {
    let mut qmp = guest(&[]);
    let attached = attach(&mut qmp, &with_access(AccessMode::Auto, &Present)).unwrap();
    assert!(!is_via_fd(&attached) && !commands(&qmp).contains(&"add-fd"));
    let unseen = |qmp: &mut FakeQemu| qmp.sees_after_polls = u32::MAX;
    let forbidden = |qmp: &mut FakeQemu| qmp.may_open = false;
    for obstacle in [unseen as fn(&mut FakeQemu), forbidden] {
        let mut qmp = guest(&[]);
        obstacle(&mut qmp);
        let attached = attach(&mut qmp, &with_access(AccessMode::Auto, &Present)).unwrap();
        assert!(is_via_fd(&attached), "{attached:?}");
        assert_eq!((qmp.fd_count(), qmp.ids()), (0, vec![ID]));
    }
    // Without a product name QEMU does not show whether it may open the device.
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    let nameless =
        AttachRequest { has_product_name: false, ..with_access(AccessMode::Auto, &Present) };
    assert!(is_via_fd(&attach(&mut qmp, &nameless).unwrap()));
    // A file descriptor does not help against a full bus.
    let mut qmp = with(&[("a.0", Bus::Full)]);
    let said = attach(&mut qmp, &with_access(AccessMode::Auto, &Present)).unwrap_err().to_string();
    assert!(said.starts_with("the guest's a.0 has no free port; start"), "{said}");
    assert!(!commands(&qmp).contains(&"add-fd"));
}

#[test]
fn error_names_both_causes_if_passing_the_fd_fails_too() {
    let mut qmp = with(&[("a.0", Bus::Refuses), ("b.0", Bus::Refuses)]);
    let said = attach(&mut qmp, &with_access(AccessMode::Fd, &Present)).unwrap_err().to_string();
    assert!(
        said.starts_with("QEMU did not open the device on a.0; does that bus take 5000"),
        "{said}"
    );
    assert_eq!((added(&qmp).len(), qmp.fd_count(), qmp.ids().len()), (2, 0, 0));
    let mut qmp = guest(&[]);
    (qmp.may_open, qmp.opens_fds) = (false, false);
    let said = attach(&mut qmp, &with_access(AccessMode::Auto, &Present)).unwrap_err().to_string();
    for hint in ["QEMU may not open /dev/bus/usb/001/016", "accepts no file descriptor"] {
        assert!(said.contains(hint), "{said}");
    }
    assert_eq!((qmp.fd_count(), qmp.ids().len()), (0, 0));
}

#[test]
fn one_fd_serves_all_ports() {
    let mut qmp = with(&[("a.0", Bus::Refuses), ("b.0", Bus::Good)]);
    let attached = attach(&mut qmp, &with_access(AccessMode::Fd, &Present)).unwrap();
    assert_eq!(place_of(&attached), on("b.0", "1"));
    assert_eq!(commands(&qmp).iter().filter(|command| **command == "add-fd").count(), 1);
    // The device moves from the first slow bus to the fastest one.
    let mut qmp = with(&[("a.0", Bus::Unknown), ("b.0", Bus::Ehci)]);
    qmp.hmp = Hmp::WithoutBuses;
    let hubs = names(&["a.0", "b.0"]);
    let attached =
        attach(&mut qmp, &AttachRequest { hubs: &hubs, ..with_access(AccessMode::Fd, &Present) })
            .unwrap();
    assert!(
        matches!(&attached, Attached::Now(GuestLocation { below_native_speed: true, bus: Some(bus), .. }) if bus == "b.0")
    );
    assert_eq!((qmp.fd_count(), qmp.ids()), (0, vec![ID]));
}

#[test]
fn fds_of_an_interrupted_session_are_removed_and_never_used() {
    let mut qmp = guest(&[]);
    qmp.fds.insert(1_752_170_496, 1);
    qmp.fds.insert(3, 1);
    attach(&mut qmp, &with_access(AccessMode::Fd, &Present)).unwrap();
    assert_eq!(added(&qmp)[0]["hostdevice"], json!("/dev/fdset/1752170495"));
    assert_eq!(qmp.fd_count(), 1, "sets of other clients stay");
    qmp.fds.insert(1_752_170_496, 1);
    detach(&mut qmp, &"1-3".parse().unwrap(), None).unwrap();
    assert_eq!(qmp.fd_count(), 1);
}

/// QEMU opens a file descriptor at once, unlike a node.
#[test]
fn paused_guest_gets_an_fd_at_once_each_in_a_set_of_its_own() {
    let mut qmp = guest(&[]);
    qmp.running = false;
    let attached = attach(&mut qmp, &with_access(AccessMode::Fd, &Present)).unwrap();
    assert!(is_via_fd(&attached), "{attached:?}");
    detach(&mut qmp, &"1-3".parse().unwrap(), None).unwrap();
    attach(&mut qmp, &with_access(AccessMode::Fd, &Present)).unwrap();
    let sets: Vec<_> = added(&qmp).iter().map(|added| added["hostdevice"].clone()).collect();
    assert_ne!(sets[0], sets[1]);
    qmp.running = true;
    attach(
        &mut qmp,
        &AttachRequest {
            id: "hotplugger-1-3-17".parse().unwrap(),
            ..with_access(AccessMode::Fd, &Present)
        },
    )
    .unwrap_err();
    assert_eq!(qmp.fd_count(), 0);
}

/// As QEMU 5.2 does.
#[test]
fn attach_waits_for_an_id_that_lingers_without_an_object() {
    // After the deletion of an object that has not got the device.
    let mut qmp = guest(&[ID]);
    let host = qmp.host.clone();
    qmp.running = false;
    qmp.host_changed(Vec::new());
    qmp.host_changed(host);
    qmp.running = true;
    qmp.ids_linger = 3;
    assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "1"));
    assert_eq!((qmp.ids(), qmp.open()), (vec![ID], vec![ID]));
    // After a rejected `device_add`, also in a paused guest.
    for running in [true, false] {
        let mut qmp = guest(&[]);
        (qmp.running, qmp.ids_linger) = (running, 3);
        qmp.taken_by_other = vec![("xhci0.0".to_owned(), 1)];
        let attached = attach(&mut qmp, &request(&[], &Present)).unwrap();
        assert_eq!(matches!(attached, Attached::PendingResume(_)), !running, "{attached:?}");
        assert_eq!(attached.last_port(None).unwrap().port.port, 2);
        assert_eq!(qmp.ids(), [ID]);
    }
}

#[test]
fn attach_without_hmp_finds_a_port_by_qom_and_reports_the_one_that_was_requested() {
    let mut qmp = with(&[("a.0", Bus::Uhci), ("b.0", Bus::Good)]);
    qmp.hmp = Hmp::Refused;
    // QOM does not show that the port is taken.
    qmp.taken_by_other = vec![("b.0".to_owned(), 1)];
    assert_eq!(attached_on(&mut qmp, &[]), on("b.0", "2"));
    let last = had("b.0", 9, Some(Speed::SUPER));
    let mut qmp = with(&[("b.0", Bus::Good)]);
    qmp.hmp = Hmp::Refused;
    let again = AttachRequest { history: &last, ..request(&[], &Present) };
    assert_eq!(place_of(&attach(&mut qmp, &again).unwrap()), on("b.0", "9"));
    let mut qmp = guest(&[]);
    (qmp.hmp, qmp.buses) = (Hmp::Refused, [("odd.0".to_owned(), Bus::Unknown)].into());
    let attached = attach(&mut qmp, &request(&[], &Present)).unwrap();
    let Attached::Now(location) = attached else { panic!("{attached:?}") };
    assert_eq!((location.bus, location.device.port), (None, None), "QEMU chooses");
}

#[test]
fn attach_without_hmp_says_that_the_cause_is_hidden_or_passes_the_fd() {
    let mut qmp = guest(&[]);
    (qmp.hmp, qmp.may_open) = (Hmp::Refused, false);
    let said = attach(&mut qmp, &request(&[], &Present)).unwrap_err().to_string();
    assert!(said.starts_with("QEMU did not open /dev/bus/usb/001/016; check that"), "{said}");
    assert_eq!(qmp.ids(), [""; 0]);
    assert!(is_via_fd(&attach(&mut qmp, &with_access(AccessMode::Auto, &Present)).unwrap()));
}

/// A device on a host that also has one of 20 Gb/s.
struct BesideFastDevice;

impl UsbSource for BesideFastDevice {
    fn recheck(&self) -> Result<DiskClaims, Unavailable> {
        Ok(DiskClaims::default())
    }

    fn check_present(&self) -> Result<(), Unavailable> {
        self.recheck().map(drop)
    }

    fn open_node(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn may_be_listed(&self) -> bool {
        false
    }
}

/// QEMU would read past a table.
#[test]
fn qemu_is_not_made_to_list_a_host_with_a_20_gb_device() {
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    assert!(attach(&mut qmp, &request(&[], &BesideFastDevice)).is_err());
    let list = json!({ "command-line": "info usbhost" });
    assert!(!qmp.commands.iter().any(|(_, arguments)| *arguments == list));
}

#[test]
fn device_that_is_unplugged_while_its_fd_is_passed_leaves_nothing() {
    let mut qmp = with(&[("a.0", Bus::Refuses)]);
    let device = UnpluggedAfter(Cell::new(1));
    assert!(matches!(
        attach(&mut qmp, &with_access(AccessMode::Fd, &device)),
        Err(AttachError::Unavailable(Unavailable::Unplugged))
    ));
    assert_eq!((qmp.fd_count(), qmp.ids().len()), (0, 0));
}

#[test]
fn message_names_full_buses_together() {
    let error_of = |bus: &str, kind| BusError { bus: Some(bus.to_owned()), kind };
    let error = AttachError::NoUsablePort {
        errors: vec![
            error_of("xhci0.0", BusErrorKind::Full),
            error_of("ehci.0", BusErrorKind::TooFast(Speed::FULL)),
            error_of("xhci1.0", BusErrorKind::Full),
        ],
        suggestion: "-device qemu-xhci,id=xhci2".to_owned(),
    };
    assert_eq!(
        error.to_string(),
        "the guest's xhci0.0 and xhci1.0 have no free port; ehci.0 takes no devices of 12 Mb/s; \
         start QEMU with -device qemu-xhci,id=xhci2"
    );
}

#[test]
fn attempt_whose_object_may_be_left_is_unconfirmed_whatever_failed() {
    for (may_open, sees_after_polls) in [(false, 0), (true, u32::MAX)] {
        let mut qmp = guest(&[]);
        qmp.closes_at = Some("device_del");
        (qmp.may_open, qmp.sees_after_polls) = (may_open, sees_after_polls);
        let error = attach(&mut qmp, &request(&[], &Present)).unwrap_err();
        assert!(matches!(error, AttachError::Unconfirmed(_)), "{error:?}");
    }
}
