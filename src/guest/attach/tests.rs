use serde_json::json;

use super::*;
use crate::guest::fake::{Bus, FakeQemu, HostDevice};
use crate::guest::objects::detach;
use crate::qmp::handover::Recipient;

const ID: &str = "hotplugger-1-3-16";

static FRESH: GuestPortHistory = GuestPortHistory { own: None, others: Vec::new() };

/// A device that is in its port as long as the function says so.
struct Device<'a>(&'a dyn Fn() -> bool);

impl UsbSource for Device<'_> {
    fn recheck(&self) -> Result<(), Unavailable> {
        if (self.0)() { Ok(()) } else { Err(Unavailable::Unplugged) }
    }

    fn may_be_listed(&self) -> bool {
        true
    }
}

impl Recipient for Device<'_> {
    fn user(&self) -> std::io::Result<Option<u32>> {
        Ok(None)
    }

    fn trusts_folder(&self) -> bool {
        true
    }
}

impl Handover for Device<'_> {
    fn open(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

fn request<'a>(hubs: &'a [String], source: &'a dyn UsbSource) -> AttachRequest<'a> {
    AttachRequest {
        id: ID.parse().unwrap(),
        speed: Some("5000".parse().unwrap()),
        hubs,
        memory: &FRESH,
        named: true,
        node: "/dev/bus/usb/001/016".into(),
        access: AccessMode::Node,
        expected_attached: false,
        source,
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

/// Bus, port and whether it is slow there.
fn attached_on(qmp: &mut FakeQemu, hubs: &[String]) -> (String, String, bool) {
    place_of(&attach(qmp, &request(hubs, &Device(&|| true))).unwrap())
}

fn place_of(attached: &Attached) -> (String, String, bool) {
    match attached {
        Attached::Now(GuestLocation { bus, place, slow, .. }) => {
            (bus.clone().unwrap_or_default(), place.port.clone().unwrap(), *slow)
        }
        other => panic!("{other:?}"),
    }
}

/// What is remembered of a port whose last device was in that place.
fn had(bus: &str, port: usize, speed: Option<Speed>) -> GuestPortHistory {
    let place = GuestPort { bus: bus.to_owned(), port };
    GuestPortHistory { own: Some(LastPort { place, speed }), others: Vec::new() }
}

fn on(bus: &str, port: &str) -> (String, String, bool) {
    (bus.to_owned(), port.to_owned(), false)
}

#[test]
fn a_device_is_attached_by_bus_port_and_number_and_proved() {
    let mut qmp = guest(&[]);
    assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "1"));
    assert_eq!(qmp.ids(), [ID]);
    let added = qmp.added()[0].clone();
    assert_eq!(added["hostbus"], json!(1));
    assert_eq!(added["hostport"], json!("3"));
    assert_eq!(added["hostaddr"], json!(16));
    assert_eq!((&added["bus"], &added["port"]), (&json!("xhci0.0"), &json!("1")));
    assert!(matches!(attach(&mut qmp, &request(&[], &Device(&|| true))), Ok(Attached::Before)));
    assert_eq!(qmp.added().len(), 1);
}

/// Each is a round trip: what is ours, the guest's buses and the ports of each speed of the
/// controller, the object, the proof, and where it is.
#[test]
fn an_attach_takes_seven_commands_and_a_look_at_one_that_is_attached_two() {
    let mut qmp = guest(&[]);
    attached_on(&mut qmp, &[]);
    let monitor = "human-monitor-command";
    let all = ["qom-list", monitor, "qom-get", "qom-get", "device_add", "qom-get", monitor];
    assert_eq!(commands(&qmp), all);
    qmp.said.clear();
    assert!(matches!(attach(&mut qmp, &request(&[], &Device(&|| true))), Ok(Attached::Before)));
    assert_eq!(commands(&qmp), ["qom-list", "qom-get"]);
}

#[test]
fn what_stood_for_earlier_devices_in_the_port_goes_first() {
    let mut qmp = guest(&["hotplugger-1-3-9", "hotplugger-1-3.1-9", "kbd0"]);
    // And its port is free again.
    assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "1"));
    assert_eq!(qmp.ids(), [ID, "hotplugger-1-3.1-9", "kbd0"]);
}

#[test]
fn the_port_it_had_last_is_asked_for() {
    let memory = had("xhci0.0", 9, None);
    let attached = attach(
        &mut guest(&[]),
        &AttachRequest { memory: &memory, ..request(&[], &Device(&|| true)) },
    )
    .unwrap();
    assert_eq!(place_of(&attached), on("xhci0.0", "9"));
    assert_eq!(attached.usual(Some(Speed::SUPER)), had("xhci0.0", 9, Some(Speed::SUPER)).own);
}

/// Where a device of that speed was last, the guest's buses are not asked for.
#[test]
fn an_attach_in_the_usual_seat_takes_four_commands() {
    let memory = had("xhci0.0", 9, Some(Speed::SUPER));
    let mut qmp = guest(&[]);
    let attached =
        attach(&mut qmp, &AttachRequest { memory: &memory, ..request(&[], &Device(&|| true)) })
            .unwrap();
    assert_eq!(place_of(&attached), on("xhci0.0", "9"));
    let all = ["device_add", "qom-get", "human-monitor-command", "qom-list"];
    assert_eq!(commands(&qmp), all);
    assert_eq!(qmp.said[2].1, json!({ "command-line": "info usb" }));
    // So it is where the device is handed over, but for the descriptor.
    let mut qmp = guest(&[]);
    attach(
        &mut qmp,
        &AttachRequest { memory: &memory, ..handed(AccessMode::Fd, &Device(&|| true)) },
    )
    .unwrap();
    let without_fds = |command: &&str| !command.contains("-fd");
    assert_eq!(commands(&qmp).into_iter().filter(without_fds).collect::<Vec<_>>(), all);
    // A device of another speed may have a better one.
    let mut qmp = guest(&[]);
    let memory = had("xhci0.0", 9, Some(Speed::HIGH));
    attach(&mut qmp, &AttachRequest { memory: &memory, ..request(&[], &Device(&|| true)) })
        .unwrap();
    assert_eq!(commands(&qmp).len(), 7);
}

#[test]
fn in_the_usual_seat_too_nothing_else_of_ours_stays_in_the_port() {
    let memory = had("xhci0.0", 9, Some(Speed::SUPER));
    let usual = || AttachRequest { memory: &memory, ..request(&[], &Device(&|| true)) };
    let mut qmp = guest(&["hotplugger-1-3-9", "hotplugger-1-3.1-9", "kbd0"]);
    assert_eq!(place_of(&attach(&mut qmp, &usual()).unwrap()), on("xhci0.0", "9"));
    assert_eq!(qmp.ids(), [ID, "hotplugger-1-3.1-9", "kbd0"]);
    // It is there already, though nobody remembers it.
    assert!(matches!(attach(&mut qmp, &usual()), Ok(Attached::Before)));
    qmp.said.clear();
    let known = AttachRequest { expected_attached: true, ..usual() };
    assert!(matches!(attach(&mut qmp, &known), Ok(Attached::Before)));
    assert_eq!(commands(&qmp), ["qom-list", "qom-get"]);
    // Of one that has not got the device a new one is made.
    let mut qmp = guest(&[ID]);
    let host = qmp.host.clone();
    qmp.running = false;
    qmp.host_changed(Vec::new());
    qmp.host_changed(host);
    assert_eq!(qmp.open(), [""; 0]);
    qmp.running = true;
    assert_eq!(place_of(&attach(&mut qmp, &usual()).unwrap()), on("xhci0.0", "9"));
    // One of an earlier device that has the seat gives it up.
    let (first, mut qmp) = (had("xhci0.0", 1, Some(Speed::SUPER)), guest(&["hotplugger-1-3-9"]));
    let attached = attach(&mut qmp, &AttachRequest { memory: &first, ..usual() }).unwrap();
    assert_eq!((place_of(&attached), qmp.ids()), (on("xhci0.0", "1"), vec![ID]));
    // Also where the device cannot be had.
    let mut qmp = guest(&["hotplugger-1-3-9"]);
    qmp.may_open = false;
    attach(&mut qmp, &usual()).unwrap_err();
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn a_usual_seat_that_is_taken_gone_or_slow_now_is_no_seat() {
    let usual = |bus| had(bus, 1, Some(Speed::SUPER));
    let mut taken = with(&[("a.0", Bus::Full), ("b.0", Bus::Good)]);
    let mut gone = with(&[("b.0", Bus::Good)]);
    let mut slow = with(&[("a.0", Bus::Ehci), ("b.0", Bus::Good)]);
    let mut refuses = with(&[("a.0", Bus::Refuses), ("b.0", Bus::Good)]);
    for qmp in [&mut taken, &mut gone, &mut slow, &mut refuses] {
        let memory = usual("a.0");
        let attached =
            attach(qmp, &AttachRequest { memory: &memory, ..request(&[], &Device(&|| true)) })
                .unwrap();
        assert_eq!(place_of(&attached), on("b.0", "1"));
        assert_eq!(qmp.ids(), [ID]);
    }
    // Nor is one that `hubs` no longer names.
    let (mut qmp, hubs) = (with(&[("a.0", Bus::Good), ("b.0", Bus::Good)]), names(&["b.0"]));
    let memory = usual("a.0");
    let attached =
        attach(&mut qmp, &AttachRequest { memory: &memory, ..request(&hubs, &Device(&|| true)) });
    assert_eq!(place_of(&attached.unwrap()), on("b.0", "1"));
    assert_eq!(qmp.added().len(), 1);
    // When none takes it, what is said is as if there were no usual one.
    let (memory, hubs) = (usual("a.0"), names(&["a.0", "c.0"]));
    let said = |memory| {
        let mut qmp = with(&[("a.0", Bus::Full)]);
        attach(&mut qmp, &AttachRequest { memory, ..request(&hubs, &Device(&|| true)) })
            .unwrap_err()
            .to_string()
    };
    assert_eq!(said(&memory), said(&FRESH));
}

/// The usual seat is asked for once by each way, and nothing else: access is wanting everywhere.
#[test]
fn what_may_not_be_opened_in_the_usual_seat_is_handed_over_there() {
    let memory = had("xhci0.0", 9, Some(Speed::SUPER));
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    let attached = attach(
        &mut qmp,
        &AttachRequest { memory: &memory, ..handed(AccessMode::Auto, &Device(&|| true)) },
    )
    .unwrap();
    assert!(was_handed(&attached));
    assert_eq!(place_of(&attached), on("xhci0.0", "9"));
    assert!(!qmp.said.iter().any(|(_, said)| *said == json!({ "command-line": "info qtree" })));
    let said = |memory| {
        let mut qmp = guest(&[]);
        qmp.may_open = false;
        attach(&mut qmp, &AttachRequest { memory, ..request(&[], &Device(&|| true)) })
            .unwrap_err()
            .to_string()
    };
    assert_eq!(said(&memory), said(&FRESH));
}

#[test]
fn a_port_that_another_client_takes_meanwhile_is_passed_over() {
    let mut qmp = guest(&[]);
    qmp.raced = vec![("xhci0.0".to_owned(), 1), ("xhci0.0".to_owned(), 2)];
    assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "3"));
    qmp = guest(&[]);
    qmp.raced = (1..=15).map(|port| ("xhci0.0".to_owned(), port)).collect();
    let said = attach(&mut qmp, &request(&[], &Device(&|| true))).unwrap_err().to_string();
    assert_eq!(
        said,
        "the guest's xhci0.0 has no free port; start QEMU with -device \
         qemu-xhci,id=xhci1,p2=15,p3=15"
    );
}

#[test]
fn full_missing_and_slow_buses_are_passed_over() {
    let mut qmp = with(&[("a.0", Bus::Full), ("uhci.0", Bus::Uhci), ("xhci.0", Bus::Good)]);
    let hubs = names(&["a.0", "nowhere.0", "uhci.0", "xhci.0"]);
    assert_eq!(attached_on(&mut qmp, &hubs), on("xhci.0", "1"));
    assert_eq!(qmp.ids(), [ID]);
    assert_eq!(qmp.added().len(), 1, "the first place is the right one");
}

#[test]
fn a_slow_bus_is_better_than_none_and_the_fastest_of_them_is_taken() {
    let mut qmp = with(&[("ehci.0", Bus::Ehci), ("uhci.0", Bus::Uhci)]);
    let slow = ("ehci.0".to_owned(), "1".to_owned(), true);
    assert_eq!(attached_on(&mut qmp, &names(&["uhci.0", "ehci.0"])), slow);
    assert_eq!(qmp.added().len(), 1);
    // Where nothing is known beforehand, it is tried.
    let mut qmp = with(&[("a.0", Bus::Unknown), ("b.0", Bus::Ehci), ("c.0", Bus::Uhci)]);
    qmp.tells = false;
    let slow = ("b.0".to_owned(), "1".to_owned(), true);
    assert_eq!(attached_on(&mut qmp, &names(&["a.0", "b.0", "c.0"])), slow);
    assert_eq!(qmp.ids(), [ID]);
}

#[test]
fn what_qemu_does_not_tell_is_left_to_it() {
    let mut qmp = guest(&["kbd0"]);
    qmp.tells = false;
    assert_eq!(attached_on(&mut qmp, &[]), on("", "2"));
    assert_eq!(qmp.added()[0].get("bus"), None);
    let mut qmp = with(&[("odd.0", Bus::Unknown)]);
    let slow = ("odd.0".to_owned(), "1".to_owned(), true);
    assert_eq!(attached_on(&mut qmp, &[]), slow);
    assert_eq!(qmp.added()[0].get("port"), None);
}

#[test]
fn when_no_bus_takes_it_each_one_says_why_and_nothing_stays() {
    let mut qmp = with(&[("a.0", Bus::Full), ("b.0", Bus::Refuses)]);
    let hubs = names(&["a.0", "b.0", "c.0"]);
    let said = attach(&mut qmp, &request(&hubs, &Device(&|| true))).unwrap_err().to_string();
    for hint in [
        "a.0 has no free port",
        "p2=15,p3=15",
        "did not open it on b.0; does that bus take 5000 Mb/s?",
        "no bus c.0",
    ] {
        assert!(said.contains(hint), "{said}");
    }
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn a_node_that_qemu_may_not_open_is_told() {
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    let said = attach(&mut qmp, &request(&[], &Device(&|| true))).unwrap_err().to_string();
    assert!(said.contains("may not open /dev/bus/usb/001/016"), "{said}");
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn a_device_that_qemu_never_sees_is_told() {
    let mut qmp = guest(&[]);
    qmp.sees_after = u32::MAX;
    let said = attach(&mut qmp, &request(&[], &Device(&|| true))).unwrap_err().to_string();
    assert!(said.contains("does not see it"), "{said}");
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn a_device_that_qemu_sees_late_is_attached_at_once_then() {
    let mut qmp = guest(&[]);
    qmp.sees_after = 3;
    attached_on(&mut qmp, &[]);
    assert_eq!(qmp.added().len(), 2);
}

#[test]
fn a_device_that_leaves_meanwhile_leaves_nothing() {
    let mut qmp = guest(&[]);
    assert!(matches!(
        attach(&mut qmp, &request(&[], &Device(&|| false))),
        Err(AttachError::Unavailable(Unavailable::Unplugged))
    ));
    assert!(qmp.added().is_empty());
    qmp.sees_after = u32::MAX;
    let looks = std::cell::Cell::new(0);
    let leaves = || looks.replace(looks.get() + 1) < 3;
    assert!(matches!(
        attach(&mut qmp, &request(&[], &Device(&leaves))),
        Err(AttachError::Unavailable(Unavailable::Unplugged))
    ));
    assert_eq!(qmp.ids(), [""; 0]);
}

#[test]
fn a_paused_guest_gets_it_when_it_goes_on() {
    let mut qmp = guest(&[]);
    qmp.running = false;
    assert!(matches!(
        attach(&mut qmp, &request(&[], &Device(&|| true))),
        Ok(Attached::PendingResume(_))
    ));
    assert_eq!(qmp.ids(), [ID]);
}

/// A request to pass a file descriptor, always or if QEMU cannot open the device.
fn handed(access: AccessMode, source: &dyn UsbSource) -> AttachRequest<'_> {
    AttachRequest { access, ..request(&[], source) }
}

fn commands(qmp: &FakeQemu) -> Vec<&'static str> {
    qmp.said.iter().map(|(command, _)| *command).collect()
}

fn was_handed(attached: &Attached) -> bool {
    matches!(attached, Attached::Now(GuestLocation { handed: true, .. }))
}

#[test]
fn a_device_that_is_handed_over_is_proved_and_its_descriptor_taken_away() {
    let mut qmp = guest(&[]);
    // QEMU need not have heard of it, nor may it open anything.
    (qmp.sees_after, qmp.may_open) = (u32::MAX, false);
    let attached = attach(&mut qmp, &handed(AccessMode::Fd, &Device(&|| true))).unwrap();
    assert!(was_handed(&attached), "{attached:?}");
    assert_eq!(place_of(&attached), on("xhci0.0", "1"));
    let added = qmp.added()[0].clone();
    assert_eq!(added["hostdevice"], json!("/dev/fdset/1752170496"));
    assert_eq!((added.get("hostbus"), &added["port"]), (None, &json!("1")));
    assert!(!qmp.said.iter().any(|(_, said)| *said == json!({"command-line": "info usbhost"})));
    let position = |name| commands(&qmp).iter().position(|command| *command == name).unwrap();
    assert!(position("add-fd") < position("device_add"));
    assert!(position("device_add") < position("remove-fd"));
    assert_eq!((qmp.sets.left(), qmp.ids()), (0, vec![ID]));
    assert!(matches!(
        attach(&mut qmp, &handed(AccessMode::Fd, &Device(&|| true))),
        Ok(Attached::Before)
    ));
}

#[test]
fn auto_hands_over_what_qemu_does_not_see_or_may_not_open_and_nothing_else() {
    let mut qmp = guest(&[]);
    let attached = attach(&mut qmp, &handed(AccessMode::Auto, &Device(&|| true))).unwrap();
    assert!(!was_handed(&attached) && !commands(&qmp).contains(&"add-fd"));
    let unseen = |qmp: &mut FakeQemu| qmp.sees_after = u32::MAX;
    let forbidden = |qmp: &mut FakeQemu| qmp.may_open = false;
    for obstacle in [unseen as fn(&mut FakeQemu), forbidden] {
        let mut qmp = guest(&[]);
        obstacle(&mut qmp);
        let attached = attach(&mut qmp, &handed(AccessMode::Auto, &Device(&|| true))).unwrap();
        assert!(was_handed(&attached), "{attached:?}");
        assert_eq!((qmp.sets.left(), qmp.ids()), (0, vec![ID]));
    }
    // One without a name does not show whether QEMU may open it.
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    let nameless = AttachRequest { named: false, ..handed(AccessMode::Auto, &Device(&|| true)) };
    assert!(was_handed(&attach(&mut qmp, &nameless).unwrap()));
    // For want of a port no descriptor helps.
    let mut qmp = with(&[("a.0", Bus::Full)]);
    let said =
        attach(&mut qmp, &handed(AccessMode::Auto, &Device(&|| true))).unwrap_err().to_string();
    assert!(said.starts_with("the guest's a.0 has no free port; start"), "{said}");
    assert!(!commands(&qmp).contains(&"add-fd"));
}

#[test]
fn when_handing_over_fails_nothing_stays_and_both_reasons_are_told() {
    let mut qmp = with(&[("a.0", Bus::Refuses), ("b.0", Bus::Refuses)]);
    let said =
        attach(&mut qmp, &handed(AccessMode::Fd, &Device(&|| true))).unwrap_err().to_string();
    assert!(said.starts_with("QEMU did not open it on a.0; does that bus take 5000"), "{said}");
    assert_eq!((qmp.added().len(), qmp.sets.left(), qmp.ids().len()), (2, 0, 0));
    let mut qmp = guest(&[]);
    (qmp.may_open, qmp.sets.are_taken) = (false, false);
    let said =
        attach(&mut qmp, &handed(AccessMode::Auto, &Device(&|| true))).unwrap_err().to_string();
    for hint in ["QEMU may not open /dev/bus/usb/001/016", "takes no descriptor"] {
        assert!(said.contains(hint), "{said}");
    }
    assert_eq!((qmp.sets.left(), qmp.ids().len()), (0, 0));
}

#[test]
fn a_bus_that_takes_it_is_found_with_one_descriptor() {
    let mut qmp = with(&[("a.0", Bus::Refuses), ("b.0", Bus::Good)]);
    let attached = attach(&mut qmp, &handed(AccessMode::Fd, &Device(&|| true))).unwrap();
    assert_eq!(place_of(&attached), on("b.0", "1"));
    assert_eq!(commands(&qmp).iter().filter(|command| **command == "add-fd").count(), 1);
    // And the fastest of slow ones, which takes it away from the first again.
    let mut qmp = with(&[("a.0", Bus::Unknown), ("b.0", Bus::Ehci)]);
    qmp.tells = false;
    let hubs = names(&["a.0", "b.0"]);
    let attached = attach(
        &mut qmp,
        &AttachRequest { hubs: &hubs, ..handed(AccessMode::Fd, &Device(&|| true)) },
    )
    .unwrap();
    assert!(
        matches!(&attached, Attached::Now(GuestLocation { slow: true, bus: Some(bus), .. }) if bus == "b.0")
    );
    assert_eq!((qmp.sets.left(), qmp.ids()), (0, vec![ID]));
}

#[test]
fn what_a_broken_exchange_left_is_taken_away_and_never_mistaken_for_the_device() {
    let mut qmp = guest(&[]);
    qmp.sets.put(1_752_170_496);
    qmp.sets.put(3);
    attach(&mut qmp, &handed(AccessMode::Fd, &Device(&|| true))).unwrap();
    assert_eq!(qmp.added()[0]["hostdevice"], json!("/dev/fdset/1752170495"));
    assert_eq!(qmp.sets.left(), 1, "and what is not ours stays");
    qmp.sets.put(1_752_170_496);
    detach(&mut qmp, &"1-3".parse().unwrap(), None).unwrap();
    assert_eq!(qmp.sets.left(), 1);
}

/// QEMU opens it at once, unlike what it is to open itself.
#[test]
fn a_paused_guest_is_handed_it_at_once_and_each_device_in_a_set_of_its_own() {
    let mut qmp = guest(&[]);
    qmp.running = false;
    let attached = attach(&mut qmp, &handed(AccessMode::Fd, &Device(&|| true))).unwrap();
    assert!(was_handed(&attached), "{attached:?}");
    detach(&mut qmp, &"1-3".parse().unwrap(), None).unwrap();
    attach(&mut qmp, &handed(AccessMode::Fd, &Device(&|| true))).unwrap();
    let sets: Vec<_> = qmp.added().iter().map(|added| added["hostdevice"].clone()).collect();
    assert_ne!(sets[0], sets[1]);
    qmp.running = true;
    attach(
        &mut qmp,
        &AttachRequest {
            id: "hotplugger-1-3-17".parse().unwrap(),
            ..handed(AccessMode::Fd, &Device(&|| true))
        },
    )
    .unwrap_err();
    assert_eq!(qmp.sets.left(), 0);
}

#[test]
fn a_device_that_leaves_while_it_is_handed_over_leaves_nothing() {
    let mut qmp = with(&[("a.0", Bus::Refuses)]);
    let looks = std::cell::Cell::new(0);
    let leaves = || looks.replace(looks.get() + 1) < 1;
    assert!(matches!(
        attach(&mut qmp, &handed(AccessMode::Fd, &Device(&leaves))),
        Err(AttachError::Unavailable(Unavailable::Unplugged))
    ));
    assert_eq!((qmp.sets.left(), qmp.ids().len()), (0, 0));
}

#[test]
fn busy_id_without_an_object_is_waited_for() {
    let mut qmp = guest(&[]);
    qmp.busy_ids = 3;
    let attached = attach(&mut qmp, &request(&[], &Device(&|| true))).unwrap();
    assert!(matches!(attached, Attached::Now(_)), "{attached:?}");
    assert_eq!(qmp.ids(), [ID]);
}

#[test]
fn device_is_attached_without_the_monitor() {
    let mut qmp = with(&[("xhci0.0", Bus::Full), ("xhci1.0", Bus::Good)]);
    qmp.has_monitor = false;
    let attached = attach(&mut qmp, &request(&[], &Device(&|| true))).unwrap();
    let Attached::Now(location) = attached else { panic!("{attached:?}") };
    assert_eq!(location.bus.as_deref(), Some("xhci1.0"));
    assert_eq!(location.place.port.as_deref(), Some("1"));
    // QEMU learns of the device late, and its list cannot be read.
    let mut qmp = guest(&[]);
    (qmp.has_monitor, qmp.sees_after) = (false, 2);
    let attached = attach(&mut qmp, &request(&[], &Device(&|| true))).unwrap();
    assert!(matches!(attached, Attached::Now(_)), "{attached:?}");
}

/// A device on a host that also has one of 20 Gb/s.
struct BesideFastDevice;

impl UsbSource for BesideFastDevice {
    fn recheck(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn may_be_listed(&self) -> bool {
        false
    }
}

impl Recipient for BesideFastDevice {
    fn user(&self) -> std::io::Result<Option<u32>> {
        Ok(None)
    }

    fn trusts_folder(&self) -> bool {
        true
    }
}

impl Handover for BesideFastDevice {
    fn open(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn qemu_is_not_made_to_list_a_host_with_a_20_gb_device() {
    let mut qmp = guest(&[]);
    qmp.may_open = false;
    assert!(attach(&mut qmp, &request(&[], &BesideFastDevice)).is_err());
    assert!(!qmp.said.iter().any(|(_, said)| *said == json!({"command-line": "info usbhost"})));
}
