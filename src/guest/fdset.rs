//! The set of descriptors in QEMU through which it takes a device that it is handed.
//!
//! `device_add` opens `/dev/fdset/N` as a copy of the set's descriptor, so that the set can go as
//! soon as that is done. QEMU counts such copies and forgets to count them off again
//! (`hw/usb/host-libusb.c` closes them with close(2)), so that a set which was used once stays
//! listed without descriptors: one and the same is used each time. Its number is not one that QEMU
//! or libvirt chooses, who count up from 0 or from the largest there is.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::device_id::DeviceId;
use crate::qmp::handover::Handover;
use crate::qmp::{Error, Qmp};

/// The number of the set that is used first.
const FIRST: u64 = 0x6870_0000;

/// How many sets, from [`FIRST`] down, are ours. A paused QEMU keeps a set's descriptors until it
/// goes on (`monitor/misc.c`: `monitor_fdset_cleanup`), so that each device takes one then.
const MOST: u64 = 256;

/// A set with the descriptor of one device.
#[derive(Debug)]
pub struct FdSet(u64);

impl FdSet {
    /// Hands QEMU the descriptor in a set of its own.
    pub fn add(qmp: &mut dyn Qmp, id: &DeviceId, handover: &dyn Handover) -> Result<Self, Error> {
        let taken = sweep(qmp)?;
        let free = (FIRST - MOST..=FIRST).rev().find(|set| !taken.contains(set));
        let set = Self(free.unwrap_or(FIRST));
        let arguments = json!({ "fdset-id": set.0, "opaque": id });
        qmp.hand_over("add-fd", arguments, handover)?;
        Ok(set)
    }

    /// The path by which QEMU opens it.
    pub fn path(&self) -> String {
        format!("/dev/fdset/{}", self.0)
    }

    /// Takes the descriptor away again; what QEMU has opened stays open.
    pub fn remove(self, qmp: &mut dyn Qmp) -> Result<(), Error> {
        qmp.execute("remove-fd", json!({ "fdset-id": self.0 })).map(drop)
    }
}

/// Takes away the descriptors that an exchange left which was broken off. Returns the sets of ours
/// that had some.
pub fn sweep(qmp: &mut dyn Qmp) -> Result<Vec<u64>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Set {
        fdset_id: u64,
        fds: Vec<serde::de::IgnoredAny>,
    }

    let sets = qmp.execute("query-fdsets", Value::Null)?;
    // What is no such list has none of ours.
    let sets = Vec::<Set>::deserialize(sets).unwrap_or_default();
    let is_ours = |set: &Set| (FIRST - MOST..=FIRST).contains(&set.fdset_id);
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
