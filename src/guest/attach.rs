//! Attaching: `device_add`, and the proof that the guest has the device.
//!
//! A device is named by bus, port and number together: QEMU then opens that device in that port
//! and never the next one that comes (`hw/usb/host-libusb.c`: `usb_host_auto_check` compares all
//! that is given). In this form `device_add` succeeds whatever becomes of it, so afterwards the
//! object's `attached` is asked; what the monitor says of USB is asked only where it is not, to
//! tell why.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::deadline::Deadline;
use crate::device_id::DeviceId;
use crate::qmp::Qmp;
use crate::speed::Speed;

use super::bus;
use super::object;
pub use super::refusal::{AttachError, Refusal, Why};
use super::refusal::{mend, without_a_seat};
use super::seat::{GuestPort, Memory, Seat, seats};
use super::view::{self, Place};

/// A device to be attached.
pub struct Wanted<'a> {
    /// Its id, which says port and number.
    pub id: DeviceId,
    /// Its speed on the host.
    pub speed: Option<Speed>,
    /// The guest's buses to use, in order; empty for whichever there are.
    pub hubs: &'a [String],
    /// What is remembered of the guest's ports.
    pub memory: &'a Memory,
    /// Whether it has a product name, which QEMU shows only of devices it can open.
    pub named: bool,
    /// Its node, for messages.
    pub node: PathBuf,
    /// Whether the very same device is still in its port and may be attached.
    pub still_there: &'a dyn Fn() -> bool,
}

/// How an attach went well.
#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    /// The guest has the device.
    Now(Seated),
    /// The guest had it already.
    Before,
    /// The guest is paused; QEMU opens the device, in this port, when it goes on.
    WhenRunning(Option<GuestPort>),
}

/// Where the device sits in the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Seated {
    /// The bus, if one was asked for.
    pub bus: Option<String>,
    /// Port, speed and product there.
    pub place: Place,
    /// Whether the guest got it slower than it is, for want of a bus that is fast enough.
    pub slow: bool,
}

impl Attached {
    /// The guest's port that the device has got, if that is known.
    pub fn guest_port(&self) -> Option<GuestPort> {
        match self {
            Self::Now(Seated { bus, place, .. }) => {
                // What is behind a hub of QEMU's has no port that could be asked for again.
                Some(GuestPort { bus: bus.clone()?, port: place.port.as_ref()?.parse().ok()? })
            }
            Self::WhenRunning(port) => port.clone(),
            Self::Before => None,
        }
    }
}

/// How long QEMU may take to learn of a device that udevd has told it of.
const UNTIL_SEEN: Duration = Duration::from_secs(2);

/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Attaches the device in the first of its [`seats`] that takes it at its own speed, else in the
/// one where it is fastest, and proves it.
///
/// Objects of ours that stand for other devices in the port are deleted first. When it fails,
/// no object stays behind that could open the device later.
pub fn attach(qmp: &mut dyn Qmp, wanted: &Wanted<'_>) -> Result<Attached, AttachError> {
    for id in object::list(qmp)?.into_iter().filter(|id| id.port == wanted.id.port) {
        if id == wanted.id && object::is_attached(qmp, &id)? {
            return Ok(Attached::Before);
        }
        object::delete(qmp, &id)?;
    }
    if !(wanted.still_there)() {
        return Err(AttachError::Gone);
    }
    let buses = bus::buses_of(qmp, wanted.hubs)?;
    let seats = seats(&buses, wanted.hubs, wanted.speed, wanted.memory);
    let mut refusals: Vec<Refusal> = Vec::new();
    let mut slow: Option<(&Seat, Option<Speed>)> = None;
    for (number, seat) in seats.iter().enumerate() {
        let of_bus = refusals.iter().find(|refusal| refusal.bus == seat.bus);
        if of_bus.is_some_and(|refusal| refusal.why != Why::Full) || !may_be_faster(seat, slow) {
            continue;
        }
        match try_seat(qmp, wanted, seat)? {
            Tried::Open => {}
            Tried::Armed => return Ok(Attached::WhenRunning(seat.guest_port())),
            Tried::Refused(why) => {
                let everywhere = matches!(why, Why::NoPermission(_));
                refusals.retain(|refusal| refusal.bus != seat.bus);
                refusals.push(Refusal { bus: seat.bus.clone(), why });
                if everywhere {
                    break;
                }
                continue;
            }
        }
        let seated = seated(qmp, wanted, seat)?;
        let now = Some((seat, seated.place.speed));
        let best = slow.is_none_or(|(_, speed)| seated.place.speed > speed);
        let last = !seats[number + 1..].iter().any(|later| may_be_faster(later, now));
        if !seated.slow || (best && last) {
            return Ok(Attached::Now(seated));
        }
        object::delete(qmp, &wanted.id)?;
        if best {
            slow = now;
        }
    }
    if let Some((seat, _)) = slow {
        match try_seat(qmp, wanted, seat)? {
            Tried::Open => return Ok(Attached::Now(seated(qmp, wanted, seat)?)),
            // The guest was paused in between.
            Tried::Armed => return Ok(Attached::WhenRunning(seat.guest_port())),
            Tried::Refused(why) => refusals.push(Refusal { bus: seat.bus.clone(), why }),
        }
    }
    let speed = wanted.speed.unwrap_or(Speed::HIGH).min(Speed::SUPER);
    for bus in &buses {
        // Those with places were tried, or another one ended it.
        if !seats.iter().any(|seat| seat.bus.as_ref() == Some(&bus.name)) {
            let why = without_a_seat(bus, speed);
            refusals.push(Refusal { bus: Some(bus.name.clone()), why });
        }
    }
    Err(AttachError::NoSeat { refusals, mend: mend(&buses) })
}

/// Whether the device might be faster in this seat than it was in that one.
fn may_be_faster(seat: &Seat, than: Option<(&Seat, Option<Speed>)>) -> bool {
    than.is_none_or(|(slow, speed)| {
        seat.bus != slow.bus && seat.at.is_none_or(|at| speed.is_none_or(|speed| at > speed))
    })
}

/// Where the open device is.
fn seated(qmp: &mut dyn Qmp, wanted: &Wanted<'_>, seat: &Seat) -> Result<Seated, AttachError> {
    let mut place = view::place(qmp, &wanted.id)?;
    place.port = place.port.or_else(|| seat.port.map(|port| port.to_string()));
    let slow = is_slow(&place, wanted);
    Ok(Seated { bus: seat.bus.clone(), place, slow })
}

/// How it went with one seat.
enum Tried {
    /// QEMU has the device open.
    Open,
    /// QEMU will open it when the guest goes on.
    Armed,
    /// No object is left.
    Refused(Why),
}

fn try_seat(qmp: &mut dyn Qmp, wanted: &Wanted<'_>, seat: &Seat) -> Result<Tried, AttachError> {
    if let Some(why) = device_add(qmp, wanted, seat)? {
        return Ok(Tried::Refused(why));
    }
    if object::is_attached(qmp, &wanted.id)? {
        return Ok(Tried::Open);
    }
    if !object::is_running(qmp)? {
        return Ok(Tried::Armed);
    }
    match explain(qmp, wanted, seat) {
        Ok(None) => Ok(Tried::Open),
        Ok(Some(why)) => {
            object::delete(qmp, &wanted.id)?;
            Ok(Tried::Refused(why))
        }
        Err(error) => {
            // An exchange that is over cannot be tidied up in; the port's next event does.
            let _ = object::delete(qmp, &wanted.id);
            Err(error)
        }
    }
}

/// Finds out why the object has no device; none if it has it in the end.
fn explain(
    qmp: &mut dyn Qmp,
    wanted: &Wanted<'_>,
    seat: &Seat,
) -> Result<Option<Why>, AttachError> {
    let end = Deadline::after(UNTIL_SEEN);
    let looks = UNTIL_SEEN.as_millis() / PAUSE.as_millis();
    for _ in (0..looks).take_while(|_| end.remaining().is_some()) {
        if !(wanted.still_there)() {
            return Err(AttachError::Gone);
        }
        let devices = view::host_devices(qmp)?.ok_or(AttachError::NoUsbHost)?;
        let seen = devices
            .iter()
            .find(|device| device.port == wanted.id.port && device.devnum == wanted.id.devnum);
        if object::is_attached(qmp, &wanted.id)? {
            return Ok(None);
        }
        let Some(seen) = seen else {
            qmp.pause(PAUSE)?;
            continue;
        };
        // QEMU may have learned of it only now, and looks of itself every two seconds: a new
        // object makes it look at once.
        object::delete(qmp, &wanted.id)?;
        if let Some(why) = device_add(qmp, wanted, seat)? {
            return Ok(Some(why));
        }
        if object::is_attached(qmp, &wanted.id)? {
            return Ok(None);
        }
        let at =
            seat.at.filter(|at| wanted.speed.is_some_and(|speed| *at < speed.min(Speed::SUPER)));
        return Ok(Some(match at {
            _ if wanted.named && !seen.named => Why::NoPermission(wanted.node.clone()),
            Some(at) => Why::TooSlow(at),
            None => Why::NotOpened(wanted.speed),
        }));
    }
    Err(AttachError::NotSeen { node: wanted.node.clone() })
}

/// Adds the object; returns why the bus does not take it, if that is all that is wrong.
fn device_add(
    qmp: &mut dyn Qmp,
    wanted: &Wanted<'_>,
    seat: &Seat,
) -> Result<Option<Why>, AttachError> {
    let DeviceId { port, devnum } = &wanted.id;
    let mut arguments = json!({
        "driver": "usb-host",
        "id": wanted.id,
        "hostbus": port.bus(),
        "hostport": port.hostport(),
        "hostaddr": devnum,
    });
    if let Some(bus) = &seat.bus {
        arguments["bus"] = Value::from(bus.as_str());
    }
    if let Some(port) = seat.port {
        // Text, as QEMU wants it: a port behind a hub is `4.1`.
        arguments["port"] = Value::from(port.to_string());
    }
    let Err(error) = qmp.execute("device_add", arguments) else { return Ok(None) };
    // QMP has no classes for these; the words are those of QEMU 5 to 10 (`hw/usb/bus.c`:
    // `usb_claim_port`; `softmmu/qdev-monitor.c`: `qdev_device_add_from_qdict`).
    let said = error.refusal().unwrap_or_default();
    if said.contains("no free ports") || said.contains("(in use?)") {
        Ok(Some(Why::Full))
    } else if said.starts_with("Bus '") && said.ends_with("not found") {
        Ok(Some(Why::NoSuchBus))
    } else if said.starts_with("No 'usb-bus' bus found") {
        Err(AttachError::NoController)
    } else if said.contains("is not a valid device model name") {
        Err(AttachError::NoUsbHost)
    } else if said.starts_with("Duplicate ") {
        // Another hotplugger was faster, or QEMU 5 has not yet let the id go: whether the device
        // is attached is asked next in any case.
        Ok(None)
    } else {
        Err(error.into())
    }
}

fn is_slow(place: &Place, wanted: &Wanted<'_>) -> bool {
    match (place.speed, wanted.speed) {
        (Some(in_guest), Some(on_host)) => in_guest < on_host.min(Speed::SUPER),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::model::{Bus, HostDevice, ModelGuest};

    const ID: &str = "hotplugger-1-3-16";

    static FRESH: Memory = Memory { own: None, others: Vec::new() };

    fn wanted<'a>(hubs: &'a [String], still_there: &'a dyn Fn() -> bool) -> Wanted<'a> {
        Wanted {
            id: ID.parse().unwrap(),
            speed: Some("5000".parse().unwrap()),
            hubs,
            memory: &FRESH,
            named: true,
            node: "/dev/bus/usb/001/016".into(),
            still_there,
        }
    }

    fn guest(objects: &[&str]) -> ModelGuest {
        let stick = HostDevice {
            id: ID.parse().unwrap(),
            speed: "5000".to_owned(),
            product: "Stick".to_owned(),
        };
        ModelGuest::new(objects, vec![stick])
    }

    fn with(buses: &[(&str, Bus)]) -> ModelGuest {
        let mut guest = guest(&[]);
        guest.buses = buses.iter().map(|(name, bus)| ((*name).to_owned(), *bus)).collect();
        guest
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Bus, port and whether it is slow there.
    fn attached_on(qmp: &mut ModelGuest, hubs: &[String]) -> (String, String, bool) {
        match attach(qmp, &wanted(hubs, &|| true)).unwrap() {
            Attached::Now(Seated { bus, place, slow }) => {
                (bus.unwrap_or_default(), place.port.unwrap(), slow)
            }
            other => panic!("{other:?}"),
        }
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
        assert!(matches!(attach(&mut qmp, &wanted(&[], &|| true)), Ok(Attached::Before)));
        assert_eq!(qmp.added().len(), 1);
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
        let memory = Memory {
            own: Some(GuestPort { bus: "xhci0.0".to_owned(), port: 9 }),
            others: Vec::new(),
        };
        let attached =
            attach(&mut guest(&[]), &Wanted { memory: &memory, ..wanted(&[], &|| true) }).unwrap();
        assert_eq!(attached.guest_port(), memory.own);
    }

    #[test]
    fn a_port_that_another_client_takes_meanwhile_is_passed_over() {
        let mut qmp = guest(&[]);
        qmp.raced = vec![("xhci0.0".to_owned(), 1), ("xhci0.0".to_owned(), 2)];
        assert_eq!(attached_on(&mut qmp, &[]), on("xhci0.0", "3"));
        qmp = guest(&[]);
        qmp.raced = (1..=15).map(|port| ("xhci0.0".to_owned(), port)).collect();
        let said = attach(&mut qmp, &wanted(&[], &|| true)).unwrap_err().to_string();
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
        let said = attach(&mut qmp, &wanted(&hubs, &|| true)).unwrap_err().to_string();
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
        let said = attach(&mut qmp, &wanted(&[], &|| true)).unwrap_err().to_string();
        assert!(said.contains("may not open /dev/bus/usb/001/016"), "{said}");
        assert_eq!(qmp.ids(), [""; 0]);
    }

    #[test]
    fn a_device_that_qemu_never_sees_is_told() {
        let mut qmp = guest(&[]);
        qmp.sees_after = u32::MAX;
        let said = attach(&mut qmp, &wanted(&[], &|| true)).unwrap_err().to_string();
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
        assert!(matches!(attach(&mut qmp, &wanted(&[], &|| false)), Err(AttachError::Gone)));
        assert!(qmp.added().is_empty());
        qmp.sees_after = u32::MAX;
        let looks = std::cell::Cell::new(0);
        let leaves = || looks.replace(looks.get() + 1) < 3;
        assert!(matches!(attach(&mut qmp, &wanted(&[], &leaves)), Err(AttachError::Gone)));
        assert_eq!(qmp.ids(), [""; 0]);
    }

    #[test]
    fn a_paused_guest_gets_it_when_it_goes_on() {
        let mut qmp = guest(&[]);
        qmp.running = false;
        assert!(matches!(attach(&mut qmp, &wanted(&[], &|| true)), Ok(Attached::WhenRunning(_))));
        assert_eq!(qmp.ids(), [ID]);
    }
}
