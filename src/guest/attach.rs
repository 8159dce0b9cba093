//! Attaching: `device_add`, and the proof that the guest has the device.
//!
//! QEMU gets at a device in one of two ways. It opens the node itself, and is told bus, port and
//! number together: it then opens that device in that port and never the next one that comes
//! (`hw/usb/host-libusb.c`: `usb_host_auto_check` compares all that is given). In this form
//! `device_add` succeeds whatever becomes of it, so afterwards the object's `attached` is asked;
//! what the monitor says of USB is asked only where it is not, to tell why. Or it is handed a
//! descriptor, which can be of no other device; then `device_add` opens it, or says that it did
//! not.

mod attempt;
mod walk;

use std::path::PathBuf;
use std::time::Duration;

use self::attempt::Source;
use self::walk::Walk;
use crate::config::access::AccessMode;
use crate::device_id::DeviceId;
use crate::qmp::Qmp;
use crate::qmp::handover::Handover;
use crate::speed::Speed;

pub use super::error::{AttachError, BusError, BusErrorKind};
use super::hmp::GuestDeviceInfo;
use super::ports::{GuestPort, GuestPortHistory, LastPort};

/// A device to be attached.
pub struct AttachRequest<'a> {
    /// Its id, which says port and number.
    pub id: DeviceId,
    /// Its speed on the host.
    pub speed: Option<Speed>,
    /// The guest's buses to use, in order; empty for whichever there are.
    pub hubs: &'a [String],
    /// What is remembered of the guest's ports.
    pub memory: &'a GuestPortHistory,
    /// Whether it has a product name, which QEMU shows only of devices it can open.
    pub named: bool,
    /// Its node, for messages.
    pub node: PathBuf,
    /// How QEMU gets the device.
    pub access: AccessMode,
    /// Whether it is thought to be attached already.
    pub expected_attached: bool,
    /// The device on the host.
    pub source: &'a dyn UsbSource,
}

/// The device on the host, as far as attaching it needs the host.
pub trait UsbSource: Handover {
    /// Checks that the very same device is still in its port and may be attached.
    fn recheck(&self) -> Result<(), Unavailable>;

    /// Whether QEMU may be made to list the host's devices (`info usbhost`).
    ///
    /// With a 20 Gb/s device on the host QEMU reads beyond a table then (`hw/usb/host-libusb.c`:
    /// `speed_name` has no entry for libusb's `LIBUSB_SPEED_SUPER_PLUS_X2`).
    fn may_be_listed(&self) -> bool;
}

/// Why a device cannot be attached any more.
#[derive(Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// It was unplugged, or another device is in its port.
    Unplugged,
    /// The policy rejects it now, for this reason.
    Rejected(String),
}

/// How an attach went well.
#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    /// The guest has the device.
    Now(GuestLocation),
    /// The guest had it already.
    Before,
    /// The guest is paused; QEMU opens the device, in this port, when it goes on.
    PendingResume(Option<GuestPort>),
}

/// Where the device sits in the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct GuestLocation {
    /// The bus, if one was asked for.
    pub bus: Option<String>,
    /// Port, speed and product there.
    pub place: GuestDeviceInfo,
    /// Whether the guest got it slower than it is, for want of a bus that is fast enough.
    pub slow: bool,
    /// Whether QEMU was handed its descriptor.
    pub handed: bool,
}

impl Attached {
    /// The guest's port that a device of that speed has got, if that is known.
    pub fn usual(&self, speed: Option<Speed>) -> Option<LastPort> {
        match self {
            Self::Now(GuestLocation { bus, place, slow, .. }) => {
                // What is behind a hub of QEMU's has no port that could be asked for again.
                let port = place.port.as_ref()?.parse().ok()?;
                let place = GuestPort { bus: bus.clone()?, port };
                Some(LastPort { place, speed: speed.filter(|_| !slow) })
            }
            Self::PendingResume(port) => Some(LastPort { place: port.clone()?, speed: None }),
            Self::Before => None,
        }
    }
}

/// How long QEMU may take to learn of a device that udevd has told it of.
const UNTIL_SEEN: Duration = Duration::from_secs(2);

/// The same where it can be handed the device as well, which takes less time than to wait.
const UNTIL_HANDED: Duration = Duration::from_millis(300);

/// Attaches the device in the first of its [guest ports](super::ports) that takes it at its own
/// speed, else in the one where it is fastest, and proves it.
///
/// Objects of ours that stand for other devices in the port are deleted: first, but for a device
/// that goes to its usual seat, which has it sooner so. When it fails, no object stays behind that
/// could open the device later, and no descriptor.
pub fn attach(qmp: &mut dyn Qmp, request: &AttachRequest<'_>) -> Result<Attached, AttachError> {
    let mut walk = Walk::new(request);
    if !walk.is_usual() && walk.tidy(qmp)? {
        return Ok(Attached::Before);
    }
    request.source.recheck()?;
    let walked = take(qmp, request, &mut walk);
    if !walk.is_tidy() {
        // What became of the device does not change with it; the port's next event tidies as well.
        let _ = walk.delete_others(qmp);
    }
    walked
}

/// By the ways that are open to it, one after the other.
fn take(
    qmp: &mut dyn Qmp,
    request: &AttachRequest<'_>,
    walk: &mut Walk<'_>,
) -> Result<Attached, AttachError> {
    match request.access {
        AccessMode::Node => walk.run(qmp, Source::Node(UNTIL_SEEN)),
        AccessMode::Fd => walk.with_descriptor(qmp),
        AccessMode::Auto => match walk.run(qmp, Source::Node(UNTIL_HANDED)) {
            Err(first) if first.is_for_want_of_access(request.named) => {
                walk.with_descriptor(qmp).map_err(|then| first.and_then(then))
            }
            walked => walked,
        },
    }
}

#[cfg(test)]
mod tests;
