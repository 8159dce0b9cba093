//! The objects of ours in a guest: which there are, whether one has its device, deleting one.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::fdset;
use crate::device_id::DeviceId;
use crate::port::{DevNum, Port};
use crate::qmp::{Error, Qmp};

/// Where QEMU keeps the devices that were given an id (`softmmu/qdev-monitor.c`: `qdev_set_id`).
pub(super) const PERIPHERAL: &str = "/machine/peripheral";

/// The ids of the objects with our prefix, attached or not.
pub fn list(qmp: &mut dyn Qmp) -> Result<Vec<DeviceId>, Error> {
    #[derive(Deserialize)]
    struct Property {
        name: String,
    }

    let children = qmp.execute("qom-list", json!({ "path": PERIPHERAL }))?;
    let children = Vec::<Property>::deserialize(children)
        .map_err(|error| Error::Protocol(format!("qom-list: {error}")))?;
    Ok(children.into_iter().filter_map(|child| child.name.parse().ok()).collect())
}

/// Whether the object has its host device open. `device_add` by `hostport` succeeds without it
/// (`hw/usb/host-libusb.c`: `usb_host_realize`), so only this is proof.
///
/// False too if there is no such object.
pub fn is_attached(qmp: &mut dyn Qmp, id: &DeviceId) -> Result<bool, Error> {
    let path = format!("{PERIPHERAL}/{id}");
    match qmp.execute("qom-get", json!({ "path": path, "property": "attached" })) {
        Ok(Value::Bool(attached)) => Ok(attached),
        Ok(other) => Err(Error::Protocol(format!("`attached` is no bool, but {}", kind(&other)))),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the guest runs. In a paused one QEMU opens no device until it goes on
/// (`hw/usb/host-libusb.c`: `usb_host_auto_check`).
pub fn is_running(qmp: &mut dyn Qmp) -> Result<bool, Error> {
    let status = qmp.execute("query-status", Value::Null)?;
    Ok(status.get("running").and_then(Value::as_bool).unwrap_or(true))
}

/// Deletes the object and waits until QEMU no longer lists it. Returns whether it was there.
pub fn delete(qmp: &mut dyn Qmp, id: &DeviceId) -> Result<bool, Error> {
    match qmp.execute("device_del", json!({ "id": id })) {
        Ok(_) => {}
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    }
    // Gone with the reply in QEMU 7 and 10; older ones take until DEVICE_DELETED.
    while list(qmp)?.contains(id) {
        qmp.pause(Duration::from_millis(20))?;
    }
    Ok(true)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Deletes all objects of the port but that of the device which is there now, `present`, and waits
/// until QEMU lists none of them. Returns those it deleted.
///
/// # Errors
///
/// The first error that kept one from being deleted; the others are tried all the same.
pub fn detach(
    qmp: &mut dyn Qmp,
    port: &Port,
    present: Option<DevNum>,
) -> Result<Vec<DeviceId>, Error> {
    let stale = list(qmp)?
        .into_iter()
        .filter(|id| id.port == *port && Some(id.devnum) != present)
        .collect::<Vec<_>>();
    let mut deleted = Vec::new();
    let mut failed = None;
    for id in stale {
        match delete(qmp, &id) {
            Ok(true) => deleted.push(id),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if !deleted.is_empty() {
        // What is left of an exchange that was broken off keeps nobody from anything.
        let _ = fdset::sweep(qmp);
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(deleted),
    }
}

#[cfg(test)]
mod detach_tests {
    use super::*;
    use crate::guest::fake::FakeQemu;

    fn ids(names: &[&str]) -> Vec<DeviceId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn only_what_is_ours_in_that_port_goes() {
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
        let gone = detach(&mut qmp, &port, None).unwrap();
        assert_eq!(gone, ids(&["hotplugger-1-1-5", "hotplugger-1-1-7"]));
        assert_eq!(detach(&mut qmp, &port, None).unwrap(), []);
        assert_eq!(
            qmp.ids(),
            ["hotplugger-1-1-x", "hotplugger-1-1.4-5", "hotplugger-1-10-5", "kbd0"]
        );
    }

    #[test]
    fn the_device_that_came_after_stays() {
        let mut qmp = FakeQemu::new(&["hotplugger-1-1-5", "hotplugger-1-1-6"], Vec::new());
        let gone = detach(&mut qmp, &"1-1".parse().unwrap(), Some(DevNum(6))).unwrap();
        assert_eq!(gone, ids(&["hotplugger-1-1-5"]));
    }
}
