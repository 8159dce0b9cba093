//! The `remove` event: what stood for the device is deleted, and the port forgotten.

use super::not_kept;
use crate::device_id::DeviceId;
use crate::guest::detach::detach as detach_port;
use crate::outcome::{End, Outcome, Subject};
use crate::plan::Target;
use crate::state::record::Record;
use crate::uevent::UsbEvent;
use crate::world::{ExchangeError, World};

/// Detaches the device from the first of the targets that has it. Goes on past errors: one virtual
/// machine that is stuck keeps no other from letting go.
pub(super) fn detach(
    event: &UsbEvent,
    mut subject: Subject,
    targets: &[Target<'_>],
    world: &dyn World,
    record: Option<&Record>,
) -> Outcome {
    let of_device = |record: &&Record| event.devnum.is_none_or(|devnum| devnum == record.devnum);
    let attached = record.filter(of_device).and_then(|record| record.attached.as_ref());
    subject.device = attached.map(|attached| attached.device.clone());
    let mut deleted = Vec::new();
    let mut errors = Vec::new();
    for target in targets {
        match detach_from(event, target, world) {
            Ok(ids) if ids.is_empty() => {}
            Ok(ids) => {
                subject.vm = Some(target.vm.to_owned());
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
        Outcome::new(Some(subject), End::Failed(format!("gone, and not detached: {errors}")))
    } else {
        Outcome { subject: Some(subject), end: End::Detached(deleted), notes: errors }
    };
    // A record of the device that came after stays.
    if record.is_none_or(|record| of_device(&record)) {
        outcome.notes.extend(not_kept(world.remember(&event.port, &mut |stored| *stored = None)));
    }
    outcome
}

fn detach_from(
    event: &UsbEvent,
    target: &Target<'_>,
    world: &dyn World,
) -> Result<Vec<DeviceId>, ExchangeError> {
    let mut deleted = Vec::new();
    world.exchange(target.socket, target.timeout, &mut |qmp| {
        // The next device may be there already, and attached.
        let present = world
            .usb_device(&event.device)
            .ok()
            .flatten()
            .map(|device| device.devnum)
            .filter(|devnum| Some(*devnum) != event.devnum);
        deleted = detach_port(qmp, &event.port, present)?;
        Ok(())
    })?;
    Ok(deleted)
}
