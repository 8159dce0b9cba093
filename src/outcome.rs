//! How an event ended: the one line for the journal, its level, its fields and the exit status.
//! Pure.

use std::fmt;
use std::time::Duration;

use log::Level;

use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::event::uevent::UsbEvent;
use crate::guest::attach::GuestLocation;
use crate::port::{DevNum, Port};
use crate::text::sanitize;

/// How an event ended.
#[derive(Debug)]
pub struct Report {
    /// What the event was about, if it was about a USB device.
    pub context: Option<EventContext>,
    /// What was done.
    pub end: Outcome,
    /// What else has to be said: troubles that did not keep it from being done.
    pub notes: Vec<String>,
}

/// What an event was about.
#[derive(Clone, Debug)]
pub struct EventContext {
    /// The port.
    pub port: Port,
    /// The DEVPATH of the device.
    pub devpath: String,
    /// What to call the device.
    pub device: Option<String>,
    /// The virtual machine.
    pub vm: Option<String>,
    /// The id of the device in the guest.
    pub id: Option<DeviceId>,
}

/// What was done.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing, for this reason; not worth a line.
    Skipped(SkipReason),
    /// The device is remembered; not worth a line, its attachment will have one.
    Recorded,
    /// The guest had it already; not worth a line.
    AlreadyAttached,
    /// The guest has the device.
    Attached {
        /// Where.
        seat: GuestLocation,
        /// The times it took since the plug; none if it was attached by hand.
        times: Option<Times>,
    },
    /// The guest is paused and gets it when it goes on.
    PendingResume,
    /// The virtual machine does not run, so the device stays with the host.
    NotRunning(String),
    /// The device may not go to a guest, for this reason.
    Rejected(String),
    /// The device was pulled before it was attached.
    UnpluggedEarly,
    /// The device is gone, and these objects of it were deleted.
    Detached(Vec<DeviceId>),
    /// The device is the host's again, and these objects of it were deleted.
    DetachedManually(Vec<DeviceId>),
    /// The host's drivers have the device again, which its virtual machine has left behind.
    ReturnedToHost,
    /// The event could not be handled; what went wrong and what to do.
    Failed(String),
}

/// Why nothing is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// The event can mean nothing for any port.
    NoUsbDevice,
    /// No port of the config is at or above the device.
    NotConfigured,
    /// It is known already.
    Known,
    /// A newer interface of the device attaches it.
    LeftToNewerInterface,
    /// Somebody detached it by hand.
    DetachedByHand,
    /// It has gone to another virtual machine meanwhile.
    Elsewhere,
}

/// Where the time went.
#[derive(Debug)]
pub struct Times {
    /// Since the kernel added the device.
    pub since_plug: Duration,
    /// Of that, settling in this process.
    pub settling: Duration,
    /// Of that, the exchange with QEMU, the wait for others at the socket included.
    pub exchange: Duration,
}

impl Report {
    /// An end without more to say.
    pub fn new(context: Option<EventContext>, end: Outcome) -> Self {
        Self { context, end, notes: Vec::new() }
    }

    /// The level of its line. What is at [`Level::Debug`] is no line worth writing.
    pub fn level(&self) -> Level {
        match &self.end {
            Outcome::Failed(_) => Level::Error,
            _ if !self.notes.is_empty() => Level::Warn,
            Outcome::Rejected(_)
            | Outcome::Attached { seat: GuestLocation { slow: true, .. }, .. } => Level::Warn,
            Outcome::Skipped(_) | Outcome::Recorded | Outcome::AlreadyAttached => Level::Debug,
            _ => Level::Info,
        }
    }

    /// Whether the event was handled.
    pub fn is_success(&self) -> bool {
        !matches!(self.end, Outcome::Failed(_))
    }

    /// Whether a person who wanted the device somewhere has it there.
    pub fn is_as_wished(&self) -> bool {
        matches!(
            self.end,
            Outcome::Attached { .. }
                | Outcome::AlreadyAttached
                | Outcome::PendingResume
                | Outcome::DetachedManually(_)
        )
    }

    /// The journal's fields (systemd.journal-fields(7)): names and values.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("HOTPLUGGER_OUTCOME", self.end.name().to_owned())];
        if let Some(context) = &self.context {
            fields.push(("HOTPLUGGER_PORT", context.port.to_string()));
            fields.push(("HOTPLUGGER_DEVPATH", context.devpath.clone()));
            fields.extend(context.vm.clone().map(|vm| ("HOTPLUGGER_VM", vm)));
            fields.extend(context.id.as_ref().map(|id| ("HOTPLUGGER_DEVICE_ID", id.to_string())));
        }
        if let Outcome::Attached { seat, times } = &self.end {
            let product = seat.place.product.clone();
            fields.extend(product.map(|product| ("HOTPLUGGER_GUEST_PRODUCT", product)));
            let times = times.iter().flat_map(|times| {
                [
                    ("HOTPLUGGER_SINCE_PLUG_USEC", times.since_plug),
                    ("HOTPLUGGER_SETTLING_USEC", times.settling),
                    ("HOTPLUGGER_EXCHANGE_USEC", times.exchange),
                ]
            });
            fields.extend(times.map(|(name, time)| (name, time.as_micros().to_string())));
        }
        fields
    }
}

impl EventContext {
    /// The subject of an event of which nothing else is known yet.
    pub fn of(event: &UsbEvent) -> Self {
        Self::new(&event.port, &event.device, event.devnum)
    }

    /// The subject that a device in that port is.
    pub fn new(port: &Port, devpath: &DevPath, devnum: Option<DevNum>) -> Self {
        Self {
            port: port.clone(),
            devpath: devpath.to_string(),
            device: None,
            vm: None,
            id: devnum.map(|devnum| DeviceId { port: port.clone(), devnum }),
        }
    }
}

impl Outcome {
    /// Its name in the journal's fields and in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Skipped(_) => "skipped",
            Self::Recorded => "recorded",
            Self::AlreadyAttached => "already-attached",
            Self::Attached { .. } => "attached",
            Self::PendingResume => "pending-resume",
            Self::NotRunning(_) => "not-running",
            Self::Rejected(_) => "rejected",
            Self::UnpluggedEarly => "unplugged-early",
            Self::Detached(_) => "detached",
            Self::DetachedManually(_) => "detached-manually",
            Self::ReturnedToHost => "returned-to-host",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for Report {
    /// The one line: `windows: port 1-3, QEMU USB Tablet (0627:0001): attached …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.context {
            if let Some(vm) = &context.vm {
                write!(f, "{}: ", sanitize(vm, 64))?;
            }
            write!(f, "port {}", context.port)?;
            if let Some(device) = &context.device {
                write!(f, ", {device}")?;
            }
            f.write_str(": ")?;
        }
        self.end.fmt(f)?;
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped(idle) => idle.fmt(f),
            Self::Recorded => f.write_str("recorded, attached by a later event"),
            Self::AlreadyAttached => f.write_str("attached already"),
            Self::Attached { seat, times } => attached(f, seat, times.as_ref()),
            Self::PendingResume => {
                f.write_str("the guest is paused; it gets the device when it goes on")
            }
            Self::NotRunning(why) => {
                write!(
                    f,
                    "stays with the host, the virtual machine is {why}; `hotplugger sync` attaches it once \
                     it runs"
                )
            }
            Self::Rejected(why) => write!(f, "not attached: {why}"),
            Self::UnpluggedEarly => f.write_str("pulled before it was attached"),
            Self::Detached(ids) if ids.is_empty() => f.write_str("gone; it was in no guest"),
            Self::Detached(ids) => {
                f.write_str("gone, detached")?;
                ids.iter().try_for_each(|id| write!(f, " {id}"))
            }
            Self::ReturnedToHost => f.write_str("the host's drivers have it again"),
            Self::DetachedManually(ids) => {
                if !ids.is_empty() {
                    f.write_str("detached")?;
                    ids.iter().try_for_each(|id| write!(f, " {id}"))?;
                    f.write_str("; ")?;
                }
                f.write_str("it stays with the host until it is pulled or attached by hand")
            }
            Self::Failed(why) => f.write_str(why),
        }
    }
}

fn attached(
    f: &mut fmt::Formatter<'_>,
    seat: &GuestLocation,
    times: Option<&Times>,
) -> fmt::Result {
    f.write_str("attached")?;
    if let Some(port) = &seat.place.port {
        f.write_str(" in the guest's port ")?;
        if let Some(bus) = &seat.bus {
            write!(f, "{bus} ")?;
        }
        f.write_str(port)?;
    }
    if let Some(speed) = seat.place.speed {
        write!(f, " at {speed}")?;
        if seat.slow {
            f.write_str(
                ", slower than it is: the guest has no free port that is fast enough, give it \
                 -device qemu-xhci,p2=15,p3=15",
            )?;
        }
    }
    if seat.handed {
        f.write_str(", by its descriptor")?;
    }
    let Some(Times { since_plug, settling, exchange }) = times else { return Ok(()) };
    write!(
        f,
        ", {:.3} s after the kernel's add ({:.3} s settling, {:.3} s with QEMU)",
        since_plug.as_secs_f64(),
        settling.as_secs_f64(),
        exchange.as_secs_f64()
    )
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoUsbDevice => "no event of a USB device that is no hub",
            Self::NotConfigured => "in no configured port",
            Self::Known => "known already",
            Self::LeftToNewerInterface => "left to a newer interface's event",
            Self::DetachedByHand => "detached by hand, stays with the host until it is pulled",
            Self::Elsewhere => "attached to another virtual machine meanwhile",
        })
    }
}

#[cfg(test)]
mod tests;
