//! A device's way between the host and a guest: [`attach`] and [`detach`], and what is remembered
//! of it. [`candidate`] knows what may go, and keeps the host off it until it does.

pub mod attach;
pub mod candidate;
pub mod detach;
mod handover;

use std::collections::BTreeMap;
use std::io;

use anyhow::Result;

use crate::config::VirtualMachine;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::guest::object;
use crate::host::{ExchangeError, Host};
use crate::port::{DevNum, Port};
use crate::state::record::{Attachment, Record, UeventMark, VERSION};

/// What is remembered of the device at `devpath`, as far as it still holds.
pub fn recall(world: &dyn Host, port: &Port, devpath: &DevPath) -> Option<Record> {
    let mut found = None;
    // State is disposable: what cannot be read was never there.
    let _ = world.remember(port, &mut |record| found.clone_from(record));
    let mut record = found.filter(|record| record.devpath == *devpath)?;
    // A QEMU that was started anew has nothing of what the one before it had.
    let same = |attached: &Attachment| world.socket_file(&attached.socket) == attached.socket_file;
    record.attached = record.attached.filter(same);
    Some(record)
}

/// The same of the device with that number alone, not of one that was in the port before.
pub fn recall_device(
    world: &dyn Host,
    port: &Port,
    devpath: &DevPath,
    devnum: DevNum,
) -> Option<Record> {
    recall(world, port, devpath).filter(|record| record.devnum == devnum)
}

/// Whether the virtual machine's guest has an object for that device.
///
/// # Errors
///
/// It could not be asked.
pub fn has_object(
    world: &dyn Host,
    vm: &VirtualMachine,
    id: &DeviceId,
) -> Result<bool, ExchangeError> {
    let mut has = false;
    world.exchange(&vm.socket, vm.timeout, &mut |qmp| {
        has = object::list(qmp)?.contains(id);
        Ok(())
    })?;
    Ok(has)
}

/// What came of giving a device to the host's drivers.
pub struct Given {
    /// How many of its interfaces had one before.
    pub before: usize,
    /// How many have one now.
    pub now: usize,
    /// Whether the kernel was to be asked.
    pub probed: io::Result<()>,
}

/// Lets the host's drivers have what they do not have of the device.
pub fn give_to_host(world: &dyn Host, devpath: &DevPath) -> Given {
    let driven = || {
        let interfaces = world.interfaces(devpath);
        interfaces.iter().filter(|interface| interface.driver.is_some()).count()
    };
    let before = driven();
    let probed = world.probe_drivers(devpath);
    Given { before, now: driven(), probed }
}

/// What there is to remember of a device at this moment.
pub fn new_record(
    world: &dyn Host,
    port: &Port,
    devpath: &DevPath,
    devnum: DevNum,
    seen: UeventMark,
) -> Record {
    Record {
        version: VERSION,
        boot_id: world.boot_id().to_owned(),
        port: port.clone(),
        devpath: devpath.clone(),
        devnum,
        plugged: world.plugged_at(port.bus(), devnum).unwrap_or(seen.at).min(seen.at),
        seen,
        newest_interface: None,
        attached: None,
        detached_manual: false,
        properties: BTreeMap::new(),
    }
}

/// Stores a record; a failure is worth a note and no more.
pub fn keep(world: &dyn Host, record: &Record) -> Option<String> {
    let stored = world.remember(&record.port, &mut |stored| *stored = Some(record.clone()));
    not_kept(stored)
}

fn not_kept(stored: Result<()>) -> Option<String> {
    stored.err().map(|error| format!("state not kept: {error:#}"))
}
