//! One attempt: the device in one seat, from one source; the proof that it is open, or why not.

use std::time::Duration;

use serde_json::{Value, json};

use super::{AttachRequest, BusErrorKind, GuestLocation};
use crate::deadline::Deadline;
use crate::device_id::DeviceId;
use crate::guest::error::AttachError;
use crate::guest::fdset::FdSet;
use crate::guest::hmp::HostDevice;
use crate::guest::ports::PortCandidate;
use crate::guest::{hmp, object};
use crate::qmp::{Error, Qmp, UsbHostProblem};
use crate::speed::Speed;

/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// From where QEMU takes the device.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// From its node, which it opens itself, as soon as it has heard of the device: for at most so
    /// long.
    Node(Duration),
    /// From a set with its descriptor.
    Set(&'a FdSet),
}

/// An attempt.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) request: &'a AttachRequest<'a>,
    pub(super) source: Source<'a>,
    pub(super) seat: &'a PortCandidate,
}

/// How it went.
pub(super) enum Tried {
    /// QEMU has the device open.
    Open,
    /// QEMU had it open already.
    Before,
    /// QEMU will open it when the guest goes on.
    PendingResume,
    /// No object is left.
    Refused(BusErrorKind),
}

/// What became of `device_add`.
enum Added {
    /// There is an object.
    Now,
    /// There was one already.
    Before,
    /// The bus does not take it, which is all that is wrong.
    Refused(BusErrorKind),
}

impl Attempt<'_> {
    pub(super) fn run(self, qmp: &mut dyn Qmp) -> Result<Tried, AttachError> {
        let id = &self.request.id;
        let mut added = self.add(qmp)?;
        if matches!(added, Added::Before) {
            if object::is_attached(qmp, id)? {
                return Ok(Tried::Before);
            }
            // It may be for another place, and not let go of yet.
            object::delete(qmp, id)?;
            added = self.add(qmp)?;
        }
        if let Added::Refused(why) = added {
            return Ok(Tried::Refused(why));
        }
        if object::is_attached(qmp, id)? {
            return Ok(Tried::Open);
        }
        let Source::Node(until_seen) = self.source else {
            // It had it, and has lost it already.
            object::delete(qmp, id)?;
            return Ok(Tried::Refused(self.not_opened()?));
        };
        if !object::is_running(qmp)? {
            return Ok(Tried::PendingResume);
        }
        match self.explain(qmp, until_seen) {
            Ok(None) => Ok(Tried::Open),
            Ok(Some(why)) => {
                object::delete(qmp, id)?;
                Ok(Tried::Refused(why))
            }
            Err(error) => {
                // An exchange that is over cannot be tidied up in; the port's next event does.
                let _ = object::delete(qmp, id);
                Err(error)
            }
        }
    }

    /// Where the open device is.
    pub(super) fn seated(self, qmp: &mut dyn Qmp) -> Result<GuestLocation, AttachError> {
        let mut place = hmp::place(qmp, &self.request.id)?;
        place.port = place.port.or_else(|| self.seat.port.map(|port| port.to_string()));
        let slow = match (place.speed, self.request.speed) {
            (Some(in_guest), Some(on_host)) => in_guest < on_host.min(Speed::SUPER),
            _ => false,
        };
        let handed = matches!(self.source, Source::Set(_));
        Ok(GuestLocation { bus: self.seat.bus.clone(), place, slow, handed })
    }

    /// Finds out why the object has no device. `None` if it has it in the end.
    fn explain(
        self,
        qmp: &mut dyn Qmp,
        until_seen: Duration,
    ) -> Result<Option<BusErrorKind>, AttachError> {
        let request = self.request;
        let end = Deadline::after(until_seen);
        let polls = until_seen.as_millis() / PAUSE.as_millis();
        for _ in (0..polls).take_while(|_| end.remaining().is_some()) {
            request.source.recheck()?;
            let listed =
                if request.source.may_be_listed() { hmp::host_devices(qmp)? } else { None };
            let seen = listed.map(|devices| devices.into_iter().find(|one| self.is_same(one)));
            if object::is_attached(qmp, &request.id)? {
                return Ok(None);
            }
            // QEMU may have learned of the device only now, and scans every two seconds. A
            // new object makes it scan at once. If it does not list its devices, that is all there is.
            let seen = match seen {
                Some(Some(seen)) => Some(seen),
                Some(None) => {
                    qmp.pause(PAUSE)?;
                    continue;
                }
                None => {
                    qmp.pause(PAUSE * 5)?;
                    None
                }
            };
            object::delete(qmp, &request.id)?;
            if let Added::Refused(why) = self.add(qmp)? {
                return Ok(Some(why));
            }
            if object::is_attached(qmp, &request.id)? {
                return Ok(None);
            }
            match seen {
                Some(seen) if request.named && !seen.named => {
                    return Ok(Some(BusErrorKind::NoPermission(request.node.clone())));
                }
                Some(_) => return self.not_opened().map(Some),
                None => {}
            }
        }
        Err(AttachError::NotSeen { node: request.node.clone() })
    }

    fn is_same(self, device: &HostDevice) -> bool {
        let DeviceId { port, devnum } = &self.request.id;
        device.port == *port && device.devnum == *devnum
    }

    /// Why QEMU did not open what it may open.
    fn not_opened(self) -> Result<BusErrorKind, AttachError> {
        let AttachRequest { speed, source, .. } = self.request;
        source.recheck()?;
        let is_slower = |at: &Speed| speed.is_some_and(|speed| *at < speed.min(Speed::SUPER));
        Ok(match self.seat.at.filter(is_slower) {
            Some(at) => BusErrorKind::TooSlow(at),
            None => BusErrorKind::NotOpened(*speed),
        })
    }

    /// Adds the object. QEMU before 6.2 keeps an ID taken for a moment after its object was deleted,
    /// and after a refused `device_add` (`softmmu/qdev-monitor.c`: `qemu_opts_del` runs when the
    /// device is finalized): the ID is a duplicate, but there is no object.
    fn add(self, qmp: &mut dyn Qmp) -> Result<Added, AttachError> {
        loop {
            match self.device_add(qmp)? {
                Added::Before if !object::list(qmp)?.contains(&self.request.id) => {
                    qmp.pause(Duration::from_millis(20))?;
                }
                added => return Ok(added),
            }
        }
    }

    /// Sends `device_add`.
    fn device_add(self, qmp: &mut dyn Qmp) -> Result<Added, AttachError> {
        let Err(error) = qmp.execute("device_add", self.arguments()) else {
            return Ok(Added::Now);
        };
        // QMP has no classes for these; the words are those of QEMU 5 to 10 (`hw/usb/bus.c`:
        // `usb_claim_port`; `softmmu/qdev-monitor.c`: `qdev_device_add_from_qdict`;
        // `hw/usb/host-libusb.c`: `usb_host_realize`; `qom/object.c`).
        let said = error.refusal().unwrap_or_default();
        let by_set = matches!(self.source, Source::Set(_));
        if said.contains("no free ports") || said.contains("(in use?)") {
            Ok(Added::Refused(BusErrorKind::Full))
        } else if said.starts_with("Bus '") && said.ends_with("not found") {
            Ok(Added::Refused(BusErrorKind::NoSuchBus))
        } else if said.starts_with("No 'usb-bus' bus found") {
            Err(AttachError::NoController)
        } else if said.contains("is not a valid device model name") {
            Err(Error::NoUsbHost(UsbHostProblem::Missing).into())
        } else if said.starts_with("Duplicate ") {
            // Another hotplugger was faster, nothing is remembered of it, or QEMU 5 has not yet let
            // the id go.
            Ok(Added::Before)
        } else if by_set && said.starts_with("failed to open host usb device") {
            self.not_opened().map(Added::Refused)
        } else if by_set && said.contains("hostdevice' not found") {
            Err(AttachError::TakesNoDescriptor)
        } else {
            Err(error.into())
        }
    }

    fn arguments(self) -> Value {
        let AttachRequest { id, .. } = self.request;
        let mut arguments = json!({ "driver": "usb-host", "id": id });
        match self.source {
            Source::Node(_) => {
                let DeviceId { port, devnum } = id;
                arguments["hostbus"] = json!(port.bus());
                arguments["hostport"] = json!(port.hostport());
                arguments["hostaddr"] = json!(devnum);
            }
            Source::Set(set) => arguments["hostdevice"] = json!(set.path()),
        }
        if let Some(bus) = &self.seat.bus {
            arguments["bus"] = json!(bus);
        }
        if let Some(port) = self.seat.port {
            // Text, as QEMU wants it: a port behind a hub is `4.1`.
            arguments["port"] = json!(port.to_string());
        }
        arguments
    }
}

/// Whether the error is that this QEMU has nothing to do with the descriptor it was sent: a
/// security module of the kernel's took it away on the way.
pub(super) fn was_taken_away(error: &Error) -> bool {
    error.refusal().is_some_and(|said| said.starts_with("No file descriptor supplied"))
}
