//! Detaching: what stood for a port's device in the guest is deleted.

use crate::device_id::DeviceId;
use crate::port::{DevNum, Port};
use crate::qmp::{Error, Qmp};

use super::{fdset, object};

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
    let stale = object::list(qmp)?
        .into_iter()
        .filter(|id| id.port == *port && Some(id.devnum) != present)
        .collect::<Vec<_>>();
    let mut deleted = Vec::new();
    let mut failed = None;
    for id in stale {
        match object::delete(qmp, &id) {
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
mod tests {
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
