//! Attaching: `device_add`, and the proof that the guest has the device.
//!
//! A device is named by bus, port and number together: QEMU then opens that device in that port
//! and never the next one that comes (`hw/usb/host-libusb.c`: `usb_host_auto_check` compares all
//! that is given). In this form `device_add` succeeds whatever becomes of it, so afterwards the
//! object's `attached` is asked; what the monitor says of USB is asked only where it is not, to
//! tell why.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::deadline::Deadline;
use crate::device_id::DeviceId;
use crate::qmp::{Error, Qmp};
use crate::speed::Speed;

use super::object;
use super::view::{self, Place};

/// A device to be attached.
pub struct Wanted<'a> {
    /// Its id, which says port and number.
    pub id: DeviceId,
    /// Its speed on the host.
    pub speed: Option<Speed>,
    /// The guest's buses to try, in order; empty for QEMU's choice.
    pub hubs: &'a [String],
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
    Now(Seat),
    /// The guest had it already.
    Before,
    /// The guest is paused; QEMU opens the device when it goes on.
    WhenRunning,
}

/// Where the device sits in the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Seat {
    /// The bus, if one was asked for.
    pub bus: Option<String>,
    /// Port, speed and product there.
    pub place: Place,
    /// Whether the guest got it slower than it is, for want of a bus that is fast enough.
    pub slow: bool,
}

/// Why a device was not attached.
#[derive(Debug)]
pub enum AttachError {
    /// The exchange failed.
    Qmp(Error),
    /// The device left meanwhile; nothing of it stayed behind.
    Gone,
    /// This QEMU has no usb-host.
    NoUsbHost,
    /// The guest has no USB controller.
    NoController,
    /// QEMU does not see the device.
    NotSeen {
        /// Its node.
        node: PathBuf,
    },
    /// No bus took it.
    NoSeat(Vec<Refusal>),
}

/// Why a bus did not take the device.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The bus, or QEMU's choice.
    pub bus: Option<String>,
    /// Why not.
    pub why: Why,
}

/// Reasons of a bus.
#[derive(Debug, PartialEq, Eq)]
pub enum Why {
    /// It has no free port.
    Full,
    /// The guest has no bus of that name.
    NoSuchBus,
    /// QEMU sees the device and may not open its node.
    NoPermission(PathBuf),
    /// QEMU sees the device and did not open it: the bus does not take its speed, or the kernel
    /// refused.
    NotOpened(Option<Speed>),
}

/// How long QEMU may take to learn of a device that udevd has told it of.
const UNTIL_SEEN: Duration = Duration::from_secs(2);

/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Attaches the device to the first bus that takes it at its own speed, else to the one on which
/// it is fastest, and proves it.
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
    let buses: Vec<Option<&str>> = match wanted.hubs {
        [] => vec![None],
        hubs => hubs.iter().map(|hub| Some(hub.as_str())).collect(),
    };
    let mut refusals = Vec::new();
    let mut slow: Option<(Option<&str>, Option<Speed>)> = None;
    for &bus in &buses {
        match try_bus(qmp, wanted, bus)? {
            Tried::Open => {}
            Tried::Armed => return Ok(Attached::WhenRunning),
            Tried::Refused(why) => {
                refusals.push(Refusal { bus: bus.map(str::to_owned), why });
                continue;
            }
        }
        let place = view::place(qmp, &wanted.id)?;
        if !is_slow(&place, wanted) {
            return Ok(Attached::Now(Seat { bus: bus.map(str::to_owned), place, slow: false }));
        }
        if buses.len() == 1 {
            return Ok(Attached::Now(Seat { bus: bus.map(str::to_owned), place, slow: true }));
        }
        object::delete(qmp, &wanted.id)?;
        if slow.is_none_or(|(_, speed)| place.speed > speed) {
            slow = Some((bus, place.speed));
        }
    }
    if let Some((bus, _)) = slow
        && let Tried::Open = try_bus(qmp, wanted, bus)?
    {
        let place = view::place(qmp, &wanted.id)?;
        return Ok(Attached::Now(Seat { bus: bus.map(str::to_owned), place, slow: true }));
    }
    Err(AttachError::NoSeat(refusals))
}

/// How it went with one bus.
enum Tried {
    /// QEMU has the device open.
    Open,
    /// QEMU will open it when the guest goes on.
    Armed,
    /// No object is left.
    Refused(Why),
}

fn try_bus(
    qmp: &mut dyn Qmp,
    wanted: &Wanted<'_>,
    bus: Option<&str>,
) -> Result<Tried, AttachError> {
    if let Some(why) = device_add(qmp, wanted, bus)? {
        return Ok(Tried::Refused(why));
    }
    if object::is_attached(qmp, &wanted.id)? {
        return Ok(Tried::Open);
    }
    if !object::is_running(qmp)? {
        return Ok(Tried::Armed);
    }
    match explain(qmp, wanted, bus) {
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
    bus: Option<&str>,
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
        if let Some(why) = device_add(qmp, wanted, bus)? {
            return Ok(Some(why));
        }
        if object::is_attached(qmp, &wanted.id)? {
            return Ok(None);
        }
        return Ok(Some(if wanted.named && !seen.named {
            Why::NoPermission(wanted.node.clone())
        } else {
            Why::NotOpened(wanted.speed)
        }));
    }
    Err(AttachError::NotSeen { node: wanted.node.clone() })
}

/// Adds the object; returns why the bus does not take it, if that is all that is wrong.
fn device_add(
    qmp: &mut dyn Qmp,
    wanted: &Wanted<'_>,
    bus: Option<&str>,
) -> Result<Option<Why>, AttachError> {
    let DeviceId { port, devnum } = &wanted.id;
    let mut arguments = json!({
        "driver": "usb-host",
        "id": wanted.id,
        "hostbus": port.bus(),
        "hostport": port.hostport(),
        "hostaddr": devnum,
    });
    if let Some(bus) = bus {
        arguments["bus"] = Value::from(bus);
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

impl From<Error> for AttachError {
    fn from(error: Error) -> Self {
        Self::Qmp(error)
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qmp(error) => error.fmt(f),
            Self::Gone => f.write_str("it was pulled meanwhile"),
            Self::NoUsbHost => f.write_str(
                "this QEMU has no usb-host device; install your distribution's QEMU package for USB \
                 host devices",
            ),
            Self::NoController => f.write_str(
                "the guest has no USB controller; start QEMU with -device qemu-xhci,id=xhci0,p2=15,p3=15",
            ),
            Self::NotSeen { node } => write!(
                f,
                "QEMU does not see it; does QEMU's /dev have {} (namespace, container), and does udev \
                 run where QEMU runs?",
                node.display()
            ),
            Self::NoSeat(refusals) => {
                for (index, refusal) in refusals.iter().enumerate() {
                    if index > 0 {
                        f.write_str("; ")?;
                    }
                    refusal.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for AttachError {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = self.bus.as_deref().unwrap_or("the guest's USB bus");
        match &self.why {
            Why::Full => write!(
                f,
                "{bus} has no free port; give its controller more (qemu-xhci: p2=15,p3=15)"
            ),
            Why::NoSuchBus => write!(
                f,
                "the guest has no bus {bus}; `hubs:` wants a controller's id and `.0`, as in xhci0.0"
            ),
            Why::NoPermission(node) => write!(
                f,
                "QEMU may not open {}; give the user it runs as access to that node",
                node.display()
            ),
            Why::NotOpened(speed) => {
                write!(f, "QEMU did not open it on {bus}")?;
                if let Some(speed) = speed {
                    write!(f, "; does that bus take {speed}?")?;
                }
                f.write_str(" QEMU's own messages say more")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::model::{Bus, HostDevice, ModelGuest};

    const ID: &str = "hotplugger-1-3-16";

    fn wanted<'a>(hubs: &'a [String], still_there: &'a dyn Fn() -> bool) -> Wanted<'a> {
        Wanted {
            id: ID.parse().unwrap(),
            speed: Some("5000".parse().unwrap()),
            hubs,
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

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn attached_on(qmp: &mut ModelGuest, hubs: &[String]) -> (Option<String>, bool) {
        match attach(qmp, &wanted(hubs, &|| true)).unwrap() {
            Attached::Now(seat) => (seat.bus, seat.slow),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_device_is_attached_by_bus_port_and_number_and_proved() {
        let mut qmp = guest(&[]);
        assert_eq!(attached_on(&mut qmp, &[]), (None, false));
        assert_eq!(qmp.ids(), [ID]);
        let added = qmp.added()[0].clone();
        assert_eq!(added["hostbus"], json!(1));
        assert_eq!(added["hostport"], json!("3"));
        assert_eq!(added["hostaddr"], json!(16));
        assert_eq!(added.get("bus"), None);
        assert!(matches!(attach(&mut qmp, &wanted(&[], &|| true)), Ok(Attached::Before)));
        assert_eq!(qmp.added().len(), 1);
    }

    #[test]
    fn what_stood_for_earlier_devices_in_the_port_goes_first() {
        let mut qmp = guest(&["hotplugger-1-3-9", "hotplugger-1-3.1-9", "kbd0"]);
        attached_on(&mut qmp, &[]);
        assert_eq!(qmp.ids(), [ID, "hotplugger-1-3.1-9", "kbd0"]);
    }

    #[test]
    fn full_missing_and_slow_buses_are_passed_over() {
        let mut qmp = guest(&[]);
        qmp.buses.insert("a.0".to_owned(), Bus::Full);
        qmp.buses.insert("uhci.0".to_owned(), Bus::Speed("12"));
        qmp.buses.insert("xhci.0".to_owned(), Bus::Speed("5000"));
        let hubs = names(&["a.0", "nowhere.0", "uhci.0", "xhci.0"]);
        assert_eq!(attached_on(&mut qmp, &hubs), (Some("xhci.0".to_owned()), false));
        assert_eq!(qmp.ids(), [ID]);
    }

    #[test]
    fn a_slow_bus_is_better_than_none_and_the_fastest_of_them_is_taken() {
        let mut qmp = guest(&[]);
        qmp.buses.insert("uhci.0".to_owned(), Bus::Speed("12"));
        qmp.buses.insert("ehci.0".to_owned(), Bus::Speed("480"));
        let hubs = names(&["uhci.0", "ehci.0"]);
        assert_eq!(attached_on(&mut qmp, &hubs), (Some("ehci.0".to_owned()), true));
        let mut qmp = guest(&[]);
        qmp.default = Bus::Speed("480");
        assert_eq!(attached_on(&mut qmp, &[]), (None, true));
    }

    #[test]
    fn when_no_bus_takes_it_each_one_says_why_and_nothing_stays() {
        let mut qmp = guest(&[]);
        qmp.buses.insert("a.0".to_owned(), Bus::Full);
        qmp.buses.insert("b.0".to_owned(), Bus::Refuses);
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
        assert!(matches!(attach(&mut qmp, &wanted(&[], &|| true)), Ok(Attached::WhenRunning)));
        assert_eq!(qmp.ids(), [ID]);
    }
}
