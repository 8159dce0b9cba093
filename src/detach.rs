//! Detaches a device: deletes its objects in the guest.

use crate::config::Target;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::guest;
use crate::host::Host;
use crate::outcome::{EventContext, Outcome, Report};
use crate::port::{DevNum, Port};
use crate::qmp::Error;
use crate::state::record::Record;
use crate::uevent::UsbEvent;

/// Detaches the device of a `remove` event from the first of the guests that has it, and deletes its
/// record. A VM that does not answer does not keep the others from being asked.
pub fn detach(
    host: &dyn Host,
    event: &UsbEvent,
    targets: &[Target<'_>],
    record: Option<&Record>,
) -> Report {
    let is_of_device = |record: &Record| event.devnum.is_none_or(|devnum| devnum == record.devnum);
    let attached = record.filter(|record| is_of_device(record)).and_then(Record::holder);
    let mut context = EventContext::of(event);
    context.device = attached.map(|attached| attached.device.clone());
    context.vm = targets.first().map(|target| target.vm.to_owned());
    let mut deleted = Vec::new();
    let mut errors = Vec::new();
    for target in targets {
        match detach_port(host, target, &event.port, &event.device, event.devnum) {
            Ok(ids) if ids.is_empty() => {}
            Ok(ids) => {
                context.vm = Some(target.vm.to_owned());
                deleted = ids;
                break;
            }
            // A VM that does not run has nothing attached.
            Err(Error::NotRunning { .. }) => {}
            Err(error) => errors.push(format!("{}: {error}", target.vm)),
        }
    }
    let mut report = if deleted.is_empty() && !errors.is_empty() {
        let why = format!("unplugged, and not detached: {}", errors.join("; "));
        Report::new(Some(context), Outcome::Failed(why))
    } else {
        Report { warnings: errors, ..Report::new(Some(context), Outcome::Detached(deleted)) }
    };
    // The record of a device that was plugged in since then is kept.
    if record.is_none_or(is_of_device)
        && let Err(error) = host.delete_record(&event.port)
    {
        report.warnings.push(format!("record not deleted: {error:#}"));
    }
    report
}

/// Deletes the objects of the port's devices in the guest, and waits until the guest has none of
/// them. A device that was plugged in after the one with number `devnum` keeps its object.
pub fn detach_port(
    host: &dyn Host,
    target: &Target<'_>,
    port: &Port,
    devpath: &DevPath,
    devnum: Option<DevNum>,
) -> Result<Vec<DeviceId>, Error> {
    let mut session = host.connect(target)?;
    let present = host.usb_device(devpath).ok().flatten().map(|device| device.devnum);
    let present = present.filter(|present| Some(*present) != devnum);
    guest::detach(session.as_mut(), port, present)
}
