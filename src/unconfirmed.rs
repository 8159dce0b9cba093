//! Finds out whether a guest has a device, after a session that ended without QEMU's reply.

use crate::config::Config;
use crate::guest::objects;
use crate::host::Host;
use crate::qmp::Error;
use crate::state::record::{Attachment, Record};

/// Asks the QEMU that may have the record's device, and changes the record. Returns whether the
/// guest has it.
///
/// A device that a person detached is deleted from the guest. Call it with the port's lock.
///
/// # Errors
///
/// Why it is still unknown.
pub fn resolve(
    host: &dyn Host,
    config: &Config,
    record: &Record,
    unconfirmed: &Attachment,
) -> Result<bool, String> {
    let target = config.target(&unconfirmed.vm, &unconfirmed.monitor);
    let result = host.connect(&target).and_then(|mut session| {
        objects::resolve(session.as_mut(), &unconfirmed.id, !record.detached_manual)
    });
    let is_attached = match result {
        Ok(is_attached) => is_attached,
        // A QEMU that has ended has no devices.
        Err(Error::NotRunning { .. }) => false,
        Err(error) => return Err(format!("{}: {error}", unconfirmed.vm)),
    };
    let stored = host.update_record(&record.port, &|stored| {
        let mut stored = stored?;
        if stored.devnum == record.devnum {
            stored.attached = stored.unconfirmed.take().filter(|_| is_attached);
            stored.unbound = !is_attached;
        }
        Some(stored)
    });
    stored.map_err(|error| format!("record not saved: {error:#}"))?;
    Ok(is_attached)
}

/// The note in a report about a device whose guest was unknown.
pub fn note(unconfirmed: &Attachment) -> String {
    format!("until now it was unknown whether {} has it", unconfirmed.vm)
}
