//! What came of an event or a command: the line for the journal, its level and fields, the exit
//! status. Pure.

use std::fmt;
use std::time::Duration;

use log::Level;

use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::guest::attach::GuestLocation;
use crate::port::{DevNum, Port};
use crate::text::sanitize;
use crate::uevent::UsbEvent;

#[derive(Debug)]
pub struct Report {
    /// `None` for an event that is not about a USB device.
    pub context: Option<EventContext>,
    pub outcome: Outcome,
    pub warnings: Vec<String>,
    pub decision: Option<String>,
}

#[derive(Clone, Debug)]
pub struct EventContext {
    pub port: Port,
    /// The DEVPATH of the device; empty if it is not known.
    pub devpath: String,
    pub device: Option<String>,
    pub vm: Option<String>,
    pub id: Option<DeviceId>,
}

#[derive(Debug)]
pub enum Outcome {
    /// Nothing was done. Not worth a line.
    Skipped(SkipReason),
    /// A record was saved. Not worth a line, because the attach gets one.
    Recorded,
    /// The guest had the device before. Not worth a line.
    AlreadyAttached,
    Attached {
        location: GuestLocation,
        /// `None` if no uevent caused it.
        times: Option<Times>,
    },
    /// The guest is paused. QEMU opens the device when it resumes.
    PendingResume,
    /// The VM does not run, for this reason. The device stays with the host.
    NotRunning(String),
    /// The policy keeps the device from the guest, for this reason.
    Rejected(String),
    UnpluggedEarly,
    /// The device was unplugged, and these objects were deleted.
    Detached(Vec<DeviceId>),
    /// A person detached the device, and these objects were deleted.
    DetachedManually {
        ids: Vec<DeviceId>,
        until: Until,
    },
    /// A VM that ended had left the device without a host driver, and now it has one.
    ReturnedToHost,
    /// It is unknown whether a guest has the device, for this reason. A later session settles it.
    Unconfirmed(String),
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    NotUsbDevice,
    NotConfigured,
    AlreadyRecorded,
    LeftToNewerInterface,
    DetachedManually,
    /// A person keeps the port with the host.
    Kept,
    /// The `remove` was triggered by a program.
    StillPluggedIn,
    AttachedElsewhere,
    AlreadyReturned,
}

/// What ends the detachment by a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Unplugged,
    /// Only `attach`: the port is kept.
    Attached,
    VmRestarted,
}

#[derive(Debug)]
pub struct Times {
    /// Since the kernel added the device.
    pub since_plug: Duration,
    pub settling: Duration,
    pub session: Duration,
}

impl Report {
    pub fn new(context: Option<EventContext>, outcome: Outcome) -> Self {
        Self { context, outcome, warnings: Vec::new(), decision: None }
    }

    /// The report of an object that was deleted because its device is not plugged in.
    pub fn of_stale_object(vm: &str, id: DeviceId) -> Self {
        let context = EventContext {
            port: id.port.clone(),
            devpath: String::new(),
            device: None,
            vm: Some(vm.to_owned()),
            id: Some(id.clone()),
        };
        Self::new(Some(context), Outcome::Detached(vec![id]))
    }

    pub fn skipped(reason: SkipReason) -> Self {
        Self::new(None, Outcome::Skipped(reason))
    }

    /// The level of the line. A line at [`Level::Debug`] is not written.
    pub fn level(&self) -> Level {
        match &self.outcome {
            Outcome::Failed(_) | Outcome::Unconfirmed(_) => Level::Error,
            _ if !self.warnings.is_empty() => Level::Warn,
            Outcome::Rejected(_)
            | Outcome::Attached {
                location: GuestLocation { below_native_speed: true, .. }, ..
            } => Level::Warn,
            Outcome::Skipped(_) | Outcome::Recorded | Outcome::AlreadyAttached => Level::Debug,
            _ => Level::Info,
        }
    }

    /// Whether the exit status is 0.
    pub fn is_success(&self) -> bool {
        !matches!(self.outcome, Outcome::Failed(_) | Outcome::Unconfirmed(_))
    }

    /// The journal's fields (systemd.journal-fields(7)): names and values.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let (name, message_id) = self.outcome.kind();
        let mut fields =
            vec![("MESSAGE_ID", message_id.to_owned()), ("HOTPLUGGER_OUTCOME", name.to_owned())];
        if let Some(context) = &self.context {
            fields.push(("HOTPLUGGER_PORT", context.port.to_string()));
            fields.push(("HOTPLUGGER_DEVPATH", context.devpath.clone()));
            fields.extend(context.vm.clone().map(|vm| ("HOTPLUGGER_VM", vm)));
            fields.extend(context.id.as_ref().map(|id| ("HOTPLUGGER_DEVICE_ID", id.to_string())));
        }
        if let Outcome::Attached { location, times } = &self.outcome {
            let product = location.device.product.clone();
            fields.extend(product.map(|product| ("HOTPLUGGER_GUEST_PRODUCT", product)));
            let times = times.iter().flat_map(|times| {
                [
                    ("HOTPLUGGER_SINCE_PLUG_USEC", times.since_plug),
                    ("HOTPLUGGER_SETTLING_USEC", times.settling),
                    ("HOTPLUGGER_SESSION_USEC", times.session),
                ]
            });
            fields.extend(times.map(|(name, time)| (name, time.as_micros().to_string())));
        }
        fields
    }
}

impl EventContext {
    pub fn of(event: &UsbEvent) -> Self {
        Self::new(&event.port, &event.device, event.devnum)
    }

    pub fn new(port: &Port, devpath: &DevPath, devnum: Option<DevNum>) -> Self {
        Self {
            port: port.clone(),
            devpath: devpath.to_string(),
            device: None,
            vm: None,
            id: devnum.map(|devnum| DeviceId { port: port.clone(), devnum }),
        }
    }

    #[must_use]
    pub fn with_vm(self, name: &str) -> Self {
        Self { vm: Some(name.to_owned()), ..self }
    }

    #[must_use]
    pub fn with_device(self, label: String) -> Self {
        Self { device: Some(label), ..self }
    }
}

impl Outcome {
    /// The name, and the ID of the explanation in dist/catalog/hotplugger.catalog. Journals keep IDs
    /// for years, so none changes or gets another meaning.
    pub fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Skipped(_) => ("skipped", "49aab004b83140ca99a4fd70eeacda31"),
            Self::Recorded => ("recorded", "f8ba2e5a43064d50a20c823c7be3f1a8"),
            Self::AlreadyAttached => ("already-attached", "8d17a56c592f46949bf49624720d93b7"),
            Self::Attached { .. } => ("attached", "5b0d8ca1f6c1445789ae2044f4e0bdb3"),
            Self::PendingResume => ("pending-resume", "215b3945a5cb4bbf8cf5eae08b54762c"),
            Self::NotRunning(_) => ("not-running", "9966f51630414c4fa9d2df261c50ff91"),
            Self::Rejected(_) => ("rejected", "e16397807bc84c548887b529a38fec90"),
            Self::UnpluggedEarly => ("unplugged-early", "bf37daf837e3403a95289d6ae6560ecd"),
            Self::Detached(_) => ("detached", "785eefa021fb46baa88da7b6afe7ed4e"),
            Self::DetachedManually { .. } => {
                ("detached-manually", "c6403c171fe24f7fb33f81620ec277e4")
            }
            Self::ReturnedToHost => ("returned-to-host", "32739f8f478346bc859c38c5302e8ffa"),
            Self::Unconfirmed(_) => ("unconfirmed", "66cfcfff59ed42beb076a07f9373e431"),
            Self::Failed(_) => ("failed", "f462e3b91cd348608eb52407a3ce16bf"),
        }
    }

    pub fn name(&self) -> &'static str {
        self.kind().0
    }

    /// Whether the guest has the device, or gets it when it resumes.
    pub fn is_attached(&self) -> bool {
        matches!(self, Self::Attached { .. } | Self::AlreadyAttached | Self::PendingResume)
    }
}

impl fmt::Display for Report {
    /// The line: `windows: port 1-3, QEMU USB Tablet (0627:0001): attached …`.
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
        self.outcome.fmt(f)?;
        self.warnings.iter().try_for_each(|warning| write!(f, "; {warning}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped(reason) => reason.fmt(f),
            Self::Recorded => f.write_str("recorded; a later event attaches it"),
            Self::AlreadyAttached => f.write_str("already attached"),
            Self::Attached { location, times } => write_attached(f, location, times.as_ref()),
            Self::PendingResume => f.write_str(
                "not attached yet: the guest is paused and gets the device when it resumes",
            ),
            Self::NotRunning(why) => write!(
                f,
                "stays with the host: the VM is {why}; `hotplugger sync` attaches it once the VM \
                 runs"
            ),
            Self::Rejected(why) => write!(f, "not attached: {why}"),
            Self::UnpluggedEarly => f.write_str("unplugged before it was attached"),
            Self::Detached(ids) if ids.is_empty() => {
                f.write_str("unplugged; it was not attached to any guest")
            }
            Self::Detached(ids) => {
                f.write_str("unplugged, detached")?;
                ids.iter().try_for_each(|id| write!(f, " {id}"))
            }
            Self::ReturnedToHost => f.write_str("returned to the host's drivers"),
            Self::DetachedManually { ids, until } => {
                if !ids.is_empty() {
                    f.write_str("detached")?;
                    ids.iter().try_for_each(|id| write!(f, " {id}"))?;
                    f.write_str("; ")?;
                }
                write!(f, "it stays with the host until {until}")
            }
            Self::Unconfirmed(why) => write!(
                f,
                "it is unknown whether the guest has it: {why}; the port's next event or `hotplugger \
                 sync` settles it"
            ),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

fn write_attached(
    f: &mut fmt::Formatter<'_>,
    location: &GuestLocation,
    times: Option<&Times>,
) -> fmt::Result {
    f.write_str("attached")?;
    if let Some(port) = &location.device.port {
        f.write_str(" to guest port ")?;
        if let Some(bus) = &location.bus {
            write!(f, "{bus} ")?;
        }
        f.write_str(port)?;
    }
    if let Some(speed) = location.device.speed {
        write!(f, " at {speed}")?;
        if location.below_native_speed {
            f.write_str(
                ", below its own speed: the guest has no free port that is fast enough; start QEMU \
                 with -device qemu-xhci,p2=15,p3=15",
            )?;
        }
    }
    if location.via_fd {
        f.write_str(", via file descriptor")?;
    }
    let Some(Times { since_plug, settling, session }) = times else { return Ok(()) };
    write!(
        f,
        ", {:.3} s after the kernel's add ({:.3} s settling, {:.3} s with QEMU)",
        since_plug.as_secs_f64(),
        settling.as_secs_f64(),
        session.as_secs_f64()
    )
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unplugged => "it is unplugged or attached manually",
            Self::Attached => "it is attached manually, also if it is plugged in again",
            Self::VmRestarted => "the VM is started again, or it is unplugged or attached manually",
        })
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotUsbDevice => "not an event of a USB device, or of a hub",
            Self::NotConfigured => "the port is not configured",
            Self::AlreadyRecorded => "already recorded",
            Self::LeftToNewerInterface => "left to the event of a newer interface",
            Self::DetachedManually => {
                "detached manually; it stays with the host until it is unplugged"
            }
            Self::Kept => "the port is kept with the host until `hotplugger attach` or `move`",
            Self::StillPluggedIn => {
                "the device is still plugged in; if QEMU closes it, run `hotplugger sync`"
            }
            Self::AttachedElsewhere => "already attached to another VM",
            Self::AlreadyReturned => "the host has it",
        })
    }
}

#[cfg(test)]
mod tests;
