//! Our objects in a guest, and the sets of file descriptors from which QEMU opens devices.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::device_id::DeviceId;
use crate::port::{DevNum, Port};
use crate::qmp::{Error, OpenDevice, Qmp};
use crate::text::sanitize;
use crate::usb_device::UsbDevice;

/// Where QEMU keeps the devices with an ID (`softmmu/qdev-monitor.c`: `qdev_set_id`).
pub(super) const PERIPHERAL: &str = "/machine/peripheral";

/// Where QEMU keeps the devices without an ID.
pub(super) const ANONYMOUS: &str = "/machine/peripheral-anon";

/// How long to wait before QEMU is queried again whether an object or its ID is still there.
pub(super) const DELETE_POLL: Duration = Duration::from_millis(20);

/// Returns the names and types of a QOM object's children.
pub(super) fn children(qmp: &mut dyn Qmp, path: &str) -> Result<Vec<(String, String)>, Error> {
    #[derive(Deserialize)]
    struct Property {
        name: String,
        #[serde(rename = "type")]
        kind: String,
    }

    let properties = qmp.execute("qom-list", json!({ "path": path }))?;
    let properties = Vec::<Property>::deserialize(properties)
        .map_err(|error| Error::Protocol(format!("qom-list: {error}")))?;
    let child = |property: Property| {
        let kind = property.kind.strip_prefix("child<")?.strip_suffix('>')?;
        Some((property.name, kind.to_owned()))
    };
    Ok(properties.into_iter().filter_map(child).collect())
}

/// Returns a property's value, or null if the object has no such property.
pub(super) fn property(qmp: &mut dyn Qmp, path: &str, property: &str) -> Result<Value, Error> {
    match qmp.execute("qom-get", json!({ "path": path, "property": property })) {
        Err(Error::Command { .. }) => Ok(Value::Null),
        answer => answer,
    }
}

/// Returns the IDs of our objects, attached or not.
pub fn list(qmp: &mut dyn Qmp) -> Result<Vec<DeviceId>, Error> {
    let children = children(qmp, PERIPHERAL)?;
    Ok(children.into_iter().filter_map(|(name, _)| name.parse().ok()).collect())
}

/// A usb-host object that hotplugger did not make, with the properties by which QEMU chooses its
/// device (`hw/usb/host-libusb.c`: `usb_host_dev_properties`). 0 matches any value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherUsbHost {
    pub id: Option<String>,
    pub bus: u64,
    pub port: Option<String>,
    pub address: u64,
    pub vendor_id: u64,
    pub product_id: u64,
}

impl OtherUsbHost {
    /// Whether QEMU opens the device in that port for it.
    pub fn is_of(&self, port: &Port, device: &UsbDevice) -> bool {
        let is = |wanted: u64, actual: u64| wanted == 0 || wanted == actual;
        let chooses =
            self.bus | self.address | self.vendor_id | self.product_id != 0 || self.port.is_some();
        chooses
            && is(self.bus, port.bus().0.into())
            && is(self.address, device.devnum.0.into())
            && is(self.vendor_id, device.vendor_id.into())
            && is(self.product_id, device.product_id.into())
            && self.port.as_ref().is_none_or(|own| own.as_str() == port.hostport())
    }
}

impl fmt::Display for OtherUsbHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "its usb-host {}", sanitize(id, 64)),
            None => f.write_str("a usb-host without an id"),
        }
    }
}

/// Returns the usb-host objects that hotplugger did not make.
pub fn others(qmp: &mut dyn Qmp) -> Result<Vec<OtherUsbHost>, Error> {
    let mut others = Vec::new();
    for parent in [PERIPHERAL, ANONYMOUS] {
        for (name, kind) in children(qmp, parent)? {
            if kind != "usb-host" || name.parse::<DeviceId>().is_ok() {
                continue;
            }
            let path = format!("{parent}/{name}");
            let port = property(qmp, &path, "hostport")?.as_str().map(str::to_owned);
            let mut number =
                |name| property(qmp, &path, name).map(|value| value.as_u64().unwrap_or(0));
            others.push(OtherUsbHost {
                id: (parent == PERIPHERAL).then_some(name.clone()),
                bus: number("hostbus")?,
                port: port.filter(|port| !port.is_empty()),
                address: number("hostaddr")?,
                vendor_id: number("vendorid")?,
                product_id: number("productid")?,
            });
        }
    }
    Ok(others)
}

/// Returns whether the object has its host device open. A missing object has not.
///
/// This is the only proof: `device_add` by `hostport` succeeds without the device
/// (`hw/usb/host-libusb.c`: `usb_host_realize`).
pub fn is_attached(qmp: &mut dyn Qmp, id: &DeviceId) -> Result<bool, Error> {
    let path = format!("{PERIPHERAL}/{id}");
    match qmp.execute("qom-get", json!({ "path": path, "property": "attached" })) {
        Ok(value) => bool::deserialize(value)
            .map_err(|error| Error::Protocol(format!("`attached`: {error}"))),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

pub fn attached(qmp: &mut dyn Qmp, objects: &[DeviceId]) -> Result<Vec<DeviceId>, Error> {
    let mut attached = Vec::new();
    for id in objects {
        if is_attached(qmp, id)? {
            attached.push(id.clone());
        }
    }
    Ok(attached)
}

/// Returns whether the guest runs. While it is paused QEMU opens no device
/// (`hw/usb/host-libusb.c`: `usb_host_auto_check`).
pub fn is_running(qmp: &mut dyn Qmp) -> Result<bool, Error> {
    let status = qmp.execute("query-status", Value::Null)?;
    Ok(status.get("running").and_then(Value::as_bool).unwrap_or(true))
}

/// Deletes the object and waits until QEMU no longer lists it. Returns whether it existed.
pub fn delete(qmp: &mut dyn Qmp, id: &DeviceId) -> Result<bool, Error> {
    match qmp.execute("device_del", json!({ "id": id })) {
        Ok(_) => {}
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    }
    // QEMU 7 and 10 delete it before they reply. Older versions delete it before DEVICE_DELETED.
    while list(qmp)?.contains(id) {
        qmp.pause(DELETE_POLL)?;
    }
    Ok(true)
}

/// Deletes the objects for which that is true. Returns the IDs of those that existed, and the error that
/// ended it early.
pub fn delete_each(
    qmp: &mut dyn Qmp,
    ids: &[DeviceId],
    is_stale: impl Fn(&DeviceId) -> bool,
) -> (Vec<DeviceId>, Option<Error>) {
    let mut deleted = Vec::new();
    for id in ids.iter().filter(|id| is_stale(id)) {
        match delete(qmp, id) {
            Ok(true) => deleted.push(id.clone()),
            Ok(false) => {}
            Err(error) => return (deleted, Some(error)),
        }
    }
    (deleted, None)
}

/// Deletes the objects of other devices in the port, and this device's own object if it has not got
/// the device. Returns whether the device is attached. If that `is_known`, it is not queried again.
pub(super) fn clean_port(qmp: &mut dyn Qmp, id: &DeviceId, is_known: bool) -> Result<bool, Error> {
    let objects = list(qmp)?;
    for stale in objects.iter().filter(|object| object.port == id.port && *object != id) {
        delete(qmp, stale)?;
    }
    if is_known || !objects.contains(id) {
        return Ok(is_known);
    }
    let attached = is_attached(qmp, id)?;
    if !attached {
        delete(qmp, id)?;
    }
    Ok(attached)
}

/// Resolves what an earlier session left unknown. Returns whether the device is attached; if it is
/// not, or not `wanted`, neither an object nor a file descriptor of it is left.
pub fn resolve(qmp: &mut dyn Qmp, id: &DeviceId, wanted: bool) -> Result<bool, Error> {
    sweep_fd_sets(qmp)?;
    // A paused guest opens the device of its object when it resumes.
    if wanted && (is_attached(qmp, id)? || (list(qmp)?.contains(id) && !is_running(qmp)?)) {
        return Ok(true);
    }
    delete(qmp, id)?;
    Ok(false)
}

/// Deletes all objects of the port except the one of the device that is `present` there now, and
/// returns those that it deleted. After an error it still tries the others.
pub fn detach(
    qmp: &mut dyn Qmp,
    port: &Port,
    present: Option<DevNum>,
) -> Result<Vec<DeviceId>, Error> {
    let (mut deleted, mut failed) = (Vec::new(), None);
    for id in list(qmp)? {
        if id.port != *port || Some(id.devnum) == present {
            continue;
        }
        match delete(qmp, &id) {
            Ok(true) => deleted.push(id),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    // An interrupted session may have left a file descriptor, also without an object.
    let swept = sweep_fd_sets(qmp);
    failed.or(swept.err().filter(Error::is_without_reply)).map_or(Ok(deleted), Err)
}

/// The number of our first set. QEMU and libvirt count up from 0 or from the largest number.
const FIRST_SET: u64 = 0x6870_0000;

/// How many sets, from [`FIRST_SET`] down, are ours. A paused QEMU keeps the file descriptors of a
/// set until it resumes (`monitor/misc.c`: `monitor_fdset_cleanup`), so each device takes one set.
const MAX_SETS: u64 = 256;

/// A set of file descriptors in QEMU with one device.
///
/// `device_add` opens a copy of the file descriptor, so the set can be removed right after it. QEMU
/// counts the copies but never uncounts them (`hw/usb/host-libusb.c` closes them with close(2)), so a
/// used set stays listed without file descriptors. The same number is therefore used each time.
#[derive(Debug)]
pub(super) struct FdSet(u64);

impl FdSet {
    pub(super) fn add(
        qmp: &mut dyn Qmp,
        id: &DeviceId,
        open: &OpenDevice<'_>,
    ) -> Result<Self, Error> {
        let used = sweep_fd_sets(qmp)?;
        let free = (FIRST_SET - MAX_SETS..=FIRST_SET).rev().find(|set| !used.contains(set));
        let set = Self(free.unwrap_or(FIRST_SET));
        let arguments = json!({ "fdset-id": set.0, "opaque": id });
        qmp.execute_with_fd("add-fd", arguments, open)?;
        Ok(set)
    }

    /// The path by which QEMU opens the device.
    pub(super) fn path(&self) -> String {
        format!("/dev/fdset/{}", self.0)
    }

    /// Removes the file descriptor. A device that QEMU has opened stays open.
    pub(super) fn remove(self, qmp: &mut dyn Qmp) -> Result<(), Error> {
        qmp.execute("remove-fd", json!({ "fdset-id": self.0 })).map(drop)
    }
}

/// Removes the file descriptors that an interrupted session left. Returns our sets that had some.
fn sweep_fd_sets(qmp: &mut dyn Qmp) -> Result<Vec<u64>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Set {
        fdset_id: u64,
        fds: Vec<IgnoredAny>,
    }

    let sets = qmp.execute("query-fdsets", Value::Null)?;
    let sets = Vec::<Set>::deserialize(sets).unwrap_or_default();
    let is_ours = |set: &Set| (FIRST_SET - MAX_SETS..=FIRST_SET).contains(&set.fdset_id);
    let left = sets.into_iter().filter(|set| is_ours(set) && !set.fds.is_empty());
    let left: Vec<u64> = left.map(|set| set.fdset_id).collect();
    for set in &left {
        match qmp.execute("remove-fd", json!({ "fdset-id": set })) {
            Ok(_) | Err(Error::Command { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::fake::FakeQemu;

    fn ids(names: &[&str]) -> Vec<DeviceId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn detach_deletes_only_our_objects_of_that_port() {
        let mut qmp = FakeQemu::new(
            &[
                "hotplugger-1-1-5",
                "hotplugger-1-10-5",
                "hotplugger-1-1.4-5",
                "hotplugger-1-1-7",
                "kbd0",
                "hotplugger-1-1-x",
            ],
            Vec::new(),
        );
        let port = "1-1".parse().unwrap();
        let deleted = detach(&mut qmp, &port, None).unwrap();
        assert_eq!(deleted, ids(&["hotplugger-1-1-5", "hotplugger-1-1-7"]));
        assert_eq!(detach(&mut qmp, &port, None).unwrap(), []);
        assert_eq!(
            qmp.ids(),
            ["hotplugger-1-1-x", "hotplugger-1-1.4-5", "hotplugger-1-10-5", "kbd0"]
        );
    }

    #[test]
    fn detach_keeps_the_object_of_the_device_that_is_present() {
        let mut qmp = FakeQemu::new(&["hotplugger-1-1-5", "hotplugger-1-1-6"], Vec::new());
        let deleted = detach(&mut qmp, &"1-1".parse().unwrap(), Some(DevNum(6))).unwrap();
        assert_eq!(deleted, ids(&["hotplugger-1-1-5"]));
    }
}
