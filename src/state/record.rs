//! The state file of one port: its device, and where it is attached. Pure.

use serde::{Deserialize, Serialize};

use crate::clock::Monotonic;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::monitor::Monitor;
use crate::port::{DevNum, Port};
use crate::state::socket_file::SocketFile;

/// The form of the file; a file of another version counts as absent.
pub const VERSION: u32 = 1;

/// One port's state, stored as `port-3-1.4.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    /// The boot it was written in: after another one nothing in it is true.
    pub boot_id: String,
    pub port: Port,
    pub devpath: DevPath,
    pub devnum: DevNum,
    /// When the kernel added the device, as exactly as it is known.
    pub plugged_at: Monotonic,
    /// The newest uevent when the record was made.
    pub seen: UeventMark,
    /// The newest of the device's interfaces whose `add` was handled.
    pub newest_interface: Option<u64>,
    pub attached: Option<Attachment>,
    /// The guest that may have it: its QEMU did not reply to the command that attaches or detaches
    /// it. Until that is settled, the device is neither returned to the host nor offered to another
    /// VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Attachment>,
    /// Whether the host's drivers may be unbound from a device that is in no guest. They are not
    /// for long, unless the process that unbound them was killed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unbound: bool,
    /// Whether it was detached by hand: it stays with the host until it is pulled.
    #[serde(default)]
    pub detached_manual: bool,
    /// The VM whose start ends that detachment; `None` if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached_for: Option<VmStart>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UeventMark {
    pub at: Monotonic,
    /// The number of the newest uevent of any device, `/sys/kernel/uevent_seqnum`.
    pub seqnum: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStart {
    pub monitor: Monitor,
    /// The socket's file. A QEMU that was started again has created another one.
    pub socket_file: Option<SocketFile>,
}

/// A device in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub vm: String,
    /// Its QMP socket, so that `remove` finds it when the config has changed.
    pub monitor: Monitor,
    /// The socket's file. A QEMU that was started again has created another one.
    #[serde(default)]
    pub socket_file: Option<SocketFile>,
    pub id: DeviceId,
    /// The device's label, because sysfs has no device after an unplug.
    pub device: String,
    /// When it was proved attached.
    pub at: Monotonic,
}

impl Attachment {
    /// Whether this is the same device in the same guest.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.vm, &self.monitor, &self.id, self.socket_file)
            == (&other.vm, &other.monitor, &other.id, other.socket_file)
    }
}

impl Record {
    /// The guest that has the device, or may have it.
    pub fn holder(&self) -> Option<&Attachment> {
        self.attached.as_ref().or(self.unconfirmed.as_ref())
    }

    /// Whether a person detached the device, and no start of its VM has ended that. `socket_file` is
    /// the file that a VM's socket has now.
    pub fn is_detached(&self, socket_file: impl Fn(&Monitor) -> Option<SocketFile>) -> bool {
        let holds = |start: &VmStart| socket_file(&start.monitor) == start.socket_file;
        self.detached_manual && self.detached_for.as_ref().is_none_or(holds)
    }

    /// Whether the device with that number is thought to be in a guest.
    pub fn has_attached(&self, devnum: DevNum) -> bool {
        self.devnum == devnum && self.attached.is_some()
    }

    /// Since when the device is known to have been quiet, seen at `now`: since the record was
    /// made, if the kernel has sent nothing at all since; else only since `now`.
    pub fn quiet_since(&self, now: UeventMark) -> Monotonic {
        match (self.seen.seqnum, now.seqnum) {
            (Some(then), Some(newest)) if then == newest => self.seen.at,
            _ => now.at,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(port: &str, devnum: u8) -> Record {
        Record {
            version: VERSION,
            boot_id: "boot".to_owned(),
            port: port.parse().unwrap(),
            devpath: format!("/devices/x/usb1/{port}").parse().unwrap(),
            devnum: DevNum(devnum),
            plugged_at: Monotonic(10),
            seen: UeventMark { at: Monotonic(20), seqnum: Some(100) },
            newest_interface: None,
            attached: None,
            unconfirmed: None,
            unbound: false,
            detached_manual: false,
            detached_for: None,
        }
    }

    #[test]
    fn time_spent_counts_only_when_the_kernel_was_silent() {
        let record = record("1-1", 5);
        let now = |seqnum| UeventMark { at: Monotonic(50), seqnum };
        assert_eq!(record.quiet_since(now(Some(100))), Monotonic(20));
        assert_eq!(record.quiet_since(now(Some(101))), Monotonic(50));
        assert_eq!(record.quiet_since(now(None)), Monotonic(50));
    }

    #[test]
    fn the_file_is_readable_json_with_the_fields_words() {
        let text = serde_json::to_string(&record("1-1", 5)).unwrap();
        assert!(text.contains(r#""port":"1-1""#) && text.contains(r#""devnum":5"#), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record("1-1", 5));
        // Older versions saved the variables of the uevent too.
        let older = text.replacen('{', r#"{"properties":{"ACTION":"add"},"#, 1);
        assert_eq!(serde_json::from_str::<Record>(&older).unwrap(), record("1-1", 5));
    }
}
