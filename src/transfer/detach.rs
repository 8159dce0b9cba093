//! Detaching: what stands for a device is deleted.

use super::not_kept;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::event::plan::Target;
use crate::event::uevent::UsbEvent;
use crate::guest::detach::detach as detach_port;
use crate::host::{ExchangeError, Host};
use crate::outcome::{EventContext, Outcome, Report};
use crate::port::{DevNum, Port};
use crate::state::record::Record;

/// Detaches the device of a `remove` event from the first of the targets that has it, and forgets
/// it. Goes on past errors: one virtual machine that is stuck keeps no other from letting go.
pub fn detach(
    event: &UsbEvent,
    mut context: EventContext,
    targets: &[Target<'_>],
    world: &dyn Host,
    record: Option<&Record>,
) -> Report {
    let of_device = |record: &&Record| event.devnum.is_none_or(|devnum| devnum == record.devnum);
    let attached = record.filter(of_device).and_then(|record| record.attached.as_ref());
    context.device = attached.map(|attached| attached.device.clone());
    let leaving =
        Leaving { world, port: &event.port, devpath: &event.device, devnum: event.devnum };
    let mut deleted = Vec::new();
    let mut errors = Vec::new();
    for target in targets {
        match leaving.leave(target) {
            Ok(ids) if ids.is_empty() => {}
            Ok(ids) => {
                context.vm = Some(target.vm.to_owned());
                deleted = ids;
                break;
            }
            // Nothing of it is left in a guest that is not there.
            Err(error) if error.not_running().is_some() => {}
            Err(error) => errors.push(format!("{}: {error}", target.vm)),
        }
    }
    let mut outcome = if deleted.is_empty() && !errors.is_empty() {
        let errors = errors.join("; ");
        Report::new(Some(context), Outcome::Failed(format!("gone, and not detached: {errors}")))
    } else {
        Report { context: Some(context), end: Outcome::Detached(deleted), notes: errors }
    };
    // A record of the device that came after stays.
    if record.is_none_or(|record| of_device(&record)) {
        outcome.notes.extend(not_kept(world.remember(&event.port, &mut |stored| *stored = None)));
    }
    outcome
}

/// A device that leaves its guest, be it still in its port or not.
pub struct Leaving<'a> {
    /// The world in which it happens.
    pub world: &'a dyn Host,
    /// The port.
    pub port: &'a Port,
    /// The same, as the device's DEVPATH.
    pub devpath: &'a DevPath,
    /// The device's number, if it is known.
    pub devnum: Option<DevNum>,
}

impl Leaving<'_> {
    /// Deletes what stands for it and for earlier devices in the port, and waits until the guest
    /// has none of it. The device that came after stays.
    pub fn leave(&self, target: &Target<'_>) -> Result<Vec<DeviceId>, ExchangeError> {
        let mut deleted = Vec::new();
        self.world.exchange(target.socket, target.timeout, &mut |qmp| {
            let present = self.world.usb_device(self.devpath).ok().flatten();
            let present = present.map(|device| device.devnum);
            let present = present.filter(|devnum| Some(*devnum) != self.devnum);
            deleted = detach_port(qmp, self.port, present)?;
            Ok(())
        })?;
        Ok(deleted)
    }
}
