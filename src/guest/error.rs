//! Why a device was not attached, in words that say what to do. Pure.

use std::fmt;
use std::path::PathBuf;

use super::attach::Unavailable;
use super::bus::GuestBus;
use crate::qmp::Error;
use crate::speed::Speed;

/// Why a device was not attached.
#[derive(Debug)]
pub enum AttachError {
    /// The exchange failed.
    Qmp(Error),
    /// The device cannot be attached any more. Nothing of it is left in the guest.
    Unavailable(Unavailable),
    /// The guest has no USB controller.
    NoController,
    /// QEMU does not see the device.
    NotSeen {
        /// Its node.
        node: PathBuf,
    },
    /// This QEMU takes no descriptors.
    TakesNoDescriptor,
    /// The descriptor was taken away on its way to QEMU.
    TakenAway,
    /// Neither way worked.
    Both {
        /// Why QEMU did not open it.
        node: Box<AttachError>,
        /// Why it was not handed to it.
        handover: Box<AttachError>,
    },
    /// No bus took it.
    NoUsablePort {
        /// Each bus, and why not.
        refusals: Vec<BusError>,
        /// The argument of QEMU's that would give it a place.
        mend: String,
    },
}

/// Why a bus did not take the device.
#[derive(Debug, PartialEq, Eq)]
pub struct BusError {
    /// The bus, or QEMU's choice.
    pub bus: Option<String>,
    /// Why not.
    pub why: BusErrorKind,
}

/// Reasons of a bus.
#[derive(Debug, PartialEq, Eq)]
pub enum BusErrorKind {
    /// It has no free port.
    Full,
    /// The guest has no bus of that name.
    NoSuchBus,
    /// It takes only what is faster than the device.
    TooFast(Speed),
    /// It takes only what is slower, so fast at most, and the device does not work like that.
    TooSlow(Speed),
    /// QEMU sees the device and may not open its node.
    NoPermission(PathBuf),
    /// QEMU sees the device and did not open it: the bus does not take its speed, or the kernel
    /// refused.
    NotOpened(Option<Speed>),
}

impl BusErrorKind {
    /// Whether another controller, or a larger one, would help.
    fn is_for_want_of_ports(&self) -> bool {
        matches!(self, Self::Full | Self::TooFast(_) | Self::TooSlow(_))
    }
}

/// Why a bus has not one place for a device of that speed.
pub fn without_a_seat(bus: &GuestBus, speed: Speed) -> BusErrorKind {
    if bus.ports.iter().any(|port| port.from <= speed) {
        BusErrorKind::Full
    } else {
        BusErrorKind::TooFast(speed)
    }
}

/// QEMU's argument that gives a guest with these buses more ports: an xHCI with all that it can
/// have in the place of a smaller one, else one more.
pub fn mend(buses: &[GuestBus]) -> String {
    let small = buses.iter().find(|bus| {
        let (usb2, usb3) = (count(bus, Speed::HIGH), count(bus, Speed::SUPER));
        bus.controller.ends_with("xhci") && bus.id.is_some() && usb2.min(usb3) < 15
    });
    if let Some(GuestBus { controller, id: Some(id), .. }) = small {
        return format!("-device {controller},id={id},p2=15,p3=15 in place of its {id}");
    }
    let used = |id: &str| {
        let of = |bus: &GuestBus| bus.id.as_deref() == Some(id) || bus.name == format!("{id}.0");
        buses.iter().any(of)
    };
    let mut ids = (0..).map(|number| format!("xhci{number}"));
    let id = ids.find(|id| !used(id)).unwrap_or_default();
    format!("-device qemu-xhci,id={id},p2=15,p3=15")
}

fn count(bus: &GuestBus, speed: Speed) -> usize {
    bus.ports.iter().filter(|port| port.takes(speed)).count()
}

impl AttachError {
    /// Whether QEMU would have the device if it were handed a descriptor: it does not see it, or
    /// may not open it. Of a device without a name (`named`) QEMU does not say which of its
    /// failures is for want of permission.
    pub(super) fn is_for_want_of_access(&self, named: bool) -> bool {
        match self {
            Self::NotSeen { .. } => true,
            Self::NoUsablePort { refusals, .. } => {
                refusals.iter().any(|refusal| match refusal.why {
                    BusErrorKind::NoPermission(_) => true,
                    BusErrorKind::NotOpened(_) => !named,
                    _ => false,
                })
            }
            _ => false,
        }
    }

    /// This, and then that.
    pub(super) fn and_then(self, handover: Self) -> Self {
        match handover {
            Self::Unavailable(why) => Self::Unavailable(why),
            handover => Self::Both { node: Box::new(self), handover: Box::new(handover) },
        }
    }
}
/// Of so many buses it is told why they do not take the device.
const MAX_REPORTED: usize = 8;

impl From<Unavailable> for AttachError {
    fn from(why: Unavailable) -> Self {
        Self::Unavailable(why)
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
            Self::Unavailable(Unavailable::Unplugged) => f.write_str("it was unplugged"),
            Self::Unavailable(Unavailable::Rejected(why)) => f.write_str(why),
            Self::NoController => f.write_str(
                "the guest has no USB controller; start QEMU with -device qemu-xhci,id=xhci0,p2=15,p3=15",
            ),
            Self::NotSeen { node } => write!(
                f,
                "QEMU does not see it; does QEMU's /dev have {} (namespace, container), and does udev \
                 run where QEMU runs?",
                node.display()
            ),
            Self::TakesNoDescriptor => f.write_str(
                "this QEMU takes no descriptor of a USB device, 5.1 and later do; give the user it \
                 runs as access to the node and write `access: node`",
            ),
            Self::TakenAway => f.write_str(
                "the descriptor did not reach QEMU: a security module (AppArmor, SELinux) forbids \
                 it the device; `hotplugger check` tells what mends it",
            ),
            Self::Both { node, handover } => {
                let node = node.to_string();
                write!(f, "{}; {handover}", node.trim_end_matches('?'))
            }
            Self::NoUsablePort { refusals, mend } => {
                let (full, others): (Vec<&BusError>, Vec<&BusError>) =
                    refusals.iter().take(MAX_REPORTED).partition(|refusal| refusal.why == BusErrorKind::Full);
                let names: Vec<&str> = full.iter().map(|refusal| refusal.name()).collect();
                let full = match names.as_slice() {
                    [] => None,
                    [one] => Some(format!("the guest's {one} has no free port")),
                    [some @ .., last] => {
                        let some = some.join(", ");
                        Some(format!("the guest's {some} and {last} have no free port"))
                    }
                };
                let mut parts: Vec<String> = others.iter().map(ToString::to_string).collect();
                parts.splice(0..0, full);
                let more = refusals.len().saturating_sub(MAX_REPORTED);
                parts.extend((more > 0).then(|| format!("and {more} more")));
                f.write_str(&parts.join("; "))?;
                if refusals.iter().any(|refusal| refusal.why.is_for_want_of_ports()) {
                    write!(f, "; start QEMU with {mend}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for AttachError {}

impl BusError {
    fn name(&self) -> &str {
        self.bus.as_deref().unwrap_or("USB bus")
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = self.bus.as_deref().unwrap_or("the guest's USB bus");
        match &self.why {
            BusErrorKind::Full => write!(f, "{bus} has no free port"),
            BusErrorKind::NoSuchBus => write!(
                f,
                "the guest has no bus {bus}; `hubs:` wants a controller's id and `.0`, as in xhci0.0"
            ),
            BusErrorKind::TooFast(speed) => write!(f, "{bus} takes no devices of {speed}"),
            BusErrorKind::TooSlow(at) => {
                write!(f, "{bus} takes no more than {at}, and the device does not work at that")
            }
            BusErrorKind::NoPermission(node) => write!(
                f,
                "QEMU may not open {}; give the user it runs as access to that node",
                node.display()
            ),
            BusErrorKind::NotOpened(speed) => {
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
    use crate::guest::bus::SpeedRange;

    fn bus(name: &str, controller: &str, ports: usize) -> GuestBus {
        GuestBus {
            name: name.to_owned(),
            controller: controller.to_owned(),
            id: name.strip_suffix(".0").map(str::to_owned),
            ports: vec![SpeedRange { from: Speed::LOW, to: Speed::SUPER }; ports],
            devices: Vec::new(),
        }
    }

    #[test]
    fn what_mends_it_is_a_larger_controller_or_one_more() {
        assert_eq!(mend(&[]), "-device qemu-xhci,id=xhci0,p2=15,p3=15");
        let full = [bus("xhci0.0", "qemu-xhci", 15), bus("xhci1.0", "qemu-xhci", 15)];
        assert_eq!(mend(&full), "-device qemu-xhci,id=xhci2,p2=15,p3=15");
        let small = [bus("xhci0.0", "qemu-xhci", 15), bus("usb.0", "nec-usb-xhci", 4)];
        assert_eq!(mend(&small), "-device nec-usb-xhci,id=usb,p2=15,p3=15 in place of its usb");
    }

    #[test]
    fn full_buses_are_told_in_one_breath() {
        let refusal = |bus: &str, why| BusError { bus: Some(bus.to_owned()), why };
        let error = AttachError::NoUsablePort {
            refusals: vec![
                refusal("xhci0.0", BusErrorKind::Full),
                refusal("ehci.0", BusErrorKind::TooFast(Speed::FULL)),
                refusal("xhci1.0", BusErrorKind::Full),
            ],
            mend: "-device qemu-xhci,id=xhci2".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "the guest's xhci0.0 and xhci1.0 have no free port; ehci.0 takes no devices of 12 Mb/s; \
             start QEMU with -device qemu-xhci,id=xhci2"
        );
    }
}
