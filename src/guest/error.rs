//! Why a device was not attached, and which action helps.

use std::fmt;
use std::path::PathBuf;

use super::bus::GuestBus;
use super::ports::PortCandidate;
use crate::qmp::Error;
use crate::speed::Speed;

/// Why a device was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Qmp(#[from] Error),
    /// The session ended before QEMU replied to a command after which it may have the device, or
    /// may open it later.
    #[error("{0}")]
    Unconfirmed(#[source] Error),
    /// Nothing of the device stayed in the guest.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(
        "the guest is paused, and the host's driver serves the disk until the guest takes it; resume the \
         guest and run `hotplugger sync`"
    )]
    StorageWhilePaused,
    #[error(
        "QEMU does not list the device; check that QEMU's /dev has {} (namespace, container) and that \
         udev runs where QEMU runs",
        node.display()
    )]
    NotSeen { node: PathBuf },
    /// QEMU does not show which devices of the host it lists.
    #[error(
        "QEMU did not open {}; check that QEMU's user may access that node and that QEMU's /dev has it \
         (namespace, container)",
        node.display()
    )]
    NotOpened { node: PathBuf },
    #[error("QEMU may not open {}; give QEMU's user access to that node", node.display())]
    NoPermission { node: PathBuf },
    #[error(
        "this QEMU accepts no file descriptor of a USB device, QEMU 5.1 and later do; give QEMU's user \
         access to the node and write `access: node`"
    )]
    FdUnsupported,
    #[error(
        "the file descriptor did not reach QEMU: a security module (AppArmor, SELinux) removed it; run \
         `hotplugger check` for the fix"
    )]
    FdBlocked,
    /// QEMU opened neither the node nor the file descriptor.
    #[error("{node}; {fd}")]
    Both { node: Box<AttachError>, fd: Box<AttachError> },
    #[error("{}", describe(errors, suggestion))]
    NoUsablePort {
        errors: Vec<BusError>,
        /// Empty if more ports do not help.
        suggestion: String,
    },
}

/// Why the device on the host can no longer go to the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("it was unplugged")]
    Unplugged,
    /// The policy rejects it now.
    #[error("{0}")]
    Rejected(String),
    /// A QEMU has it, but we have no object for it.
    #[error(
        "{0} uses it already; remove the device from that VM's arguments or definition, or detach it \
         there"
    )]
    InOtherQemu(String),
}

#[derive(Debug, PartialEq, Eq)]
pub struct BusError {
    /// `None` if QEMU chose the bus.
    pub bus: Option<String>,
    pub kind: BusErrorKind,
}

#[derive(Debug, PartialEq, Eq)]
pub enum BusErrorKind {
    Full,
    NoController,
    NoSuchBus,
    /// It takes only faster devices.
    TooFast(Speed),
    /// It takes this speed at most, at which the device does not work.
    TooSlow(Speed),
    /// QEMU lists the device and did not open it: the bus does not take its speed, or the kernel
    /// returned an error.
    NotOpened(Option<Speed>),
}

impl BusErrorKind {
    pub(super) fn is_port_shortage(&self) -> bool {
        matches!(self, Self::Full | Self::NoController | Self::TooFast(_) | Self::TooSlow(_))
    }
}

/// Why a bus has no port for a device of that speed.
pub fn no_port_reason(bus: &GuestBus, speed: Speed) -> BusErrorKind {
    if bus.ports.is_empty() || bus.ports.iter().any(|port| port.min <= speed) {
        BusErrorKind::Full
    } else {
        BusErrorKind::TooFast(speed)
    }
}

impl AttachError {
    pub(super) fn of_bus(port: &PortCandidate, kind: BusErrorKind) -> Self {
        let errors = vec![BusError { bus: port.bus.clone(), kind }];
        Self::NoUsablePort { errors, suggestion: String::new() }
    }

    /// Returns whether a file descriptor may help: QEMU does not list the device, or may not open
    /// it.
    pub(super) fn is_access_error(&self) -> bool {
        matches!(self, Self::NotSeen { .. } | Self::NotOpened { .. } | Self::NoPermission { .. })
    }
}

/// The most buses that a message names.
const MAX_REPORTED: usize = 8;

fn describe(errors: &[BusError], suggestion: &str) -> String {
    let (full, others): (Vec<&BusError>, Vec<&BusError>) =
        errors.iter().take(MAX_REPORTED).partition(|error| error.kind == BusErrorKind::Full);
    let names: Vec<&str> =
        full.iter().map(|error| error.bus.as_deref().unwrap_or("USB bus")).collect();
    let full = match names.as_slice() {
        [] => None,
        [one] => Some(format!("the guest's {one} has no free port")),
        [some @ .., last] => {
            Some(format!("the guest's {} and {last} have no free port", some.join(", ")))
        }
    };
    let mut parts: Vec<String> =
        full.into_iter().chain(others.iter().map(ToString::to_string)).collect();
    let more = errors.len().saturating_sub(MAX_REPORTED);
    parts.extend((more > 0).then(|| format!("and {more} more")));
    if !suggestion.is_empty() {
        parts.push(format!("start QEMU with {suggestion}"));
    }
    parts.join("; ")
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = self.bus.as_deref().unwrap_or("the guest's USB bus");
        match &self.kind {
            BusErrorKind::Full => write!(f, "{bus} has no free port"),
            BusErrorKind::NoController => f.write_str("the guest has no USB controller"),
            BusErrorKind::NoSuchBus => write!(
                f,
                "the guest has no bus {bus}; write a controller's id and `.0` to `hubs:`, as in xhci0.0"
            ),
            BusErrorKind::TooFast(speed) => write!(f, "{bus} takes no devices of {speed}"),
            BusErrorKind::TooSlow(max) => {
                write!(f, "{bus} takes {max} at most, and the device does not work at that speed")
            }
            BusErrorKind::NotOpened(speed) => {
                write!(f, "QEMU did not open the device on {bus}")?;
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
}
