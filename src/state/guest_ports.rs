//! Which port of its guest each port of the host had last: a device that comes again gets the same
//! one, because a guest's drivers and settings belong to a port.
//!
//! One file of JSON lines for all, oldest first. It outlives the devices and, as a wrong line costs
//! nothing but a choice, the boot too.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::dir::{Records, StateDir};
use crate::guest::ports::{GuestPort, GuestPortHistory, LastPort};
use crate::port::Port;
use crate::speed::Speed;

const NAME: &str = "guest-ports.jsonl";

/// Of more than these the oldest are forgotten: two controllers of eight VMs.
const MAX_LINES: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    vm: String,
    host_port: Port,
    #[serde(flatten)]
    guest_port: GuestPort,
    /// Of the device that was in it, in Mb/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    speed: Option<String>,
}

/// The VM's guest ports that devices of this port and of the other ports had last.
pub fn history(state: &StateDir, vm: &str, port: &Port) -> GuestPortHistory {
    let mut history = GuestPortHistory::default();
    for line in state.read_lines::<Line>(NAME).into_iter().filter(|line| line.vm == vm) {
        if line.host_port == *port {
            let speed = line.speed.and_then(|speed| speed.parse().ok());
            history.last = Some(LastPort { port: line.guest_port, speed });
        } else {
            history.reserved.push(line.guest_port);
        }
    }
    history
}

/// Records that the VM's port belongs to the host's `port`, and to no other. Only the process that has
/// hold of the records may write.
pub fn save(records: &Records<'_>, vm: &str, port: &Port, last: &LastPort) -> Result<()> {
    let state = records.dir();
    let (guest_port, speed) = (&last.port, last.speed.map(Speed::number));
    let mut lines = state.read_lines::<Line>(NAME);
    // A file that was damaged may say more of the port.
    let mut matching = lines.iter().filter(|line| {
        line.vm == vm && (line.host_port == *port || line.guest_port == *guest_port)
    });
    if let (Some(line), None) = (matching.next(), matching.next())
        && line.host_port == *port
        && line.guest_port == *guest_port
        && line.speed == speed
    {
        return Ok(());
    }
    lines.retain(|line| {
        line.vm != vm || (line.host_port != *port && line.guest_port != *guest_port)
    });
    lines.push(Line {
        vm: vm.to_owned(),
        host_port: port.clone(),
        guest_port: guest_port.clone(),
        speed,
    });
    let over = lines.len().saturating_sub(MAX_LINES);
    records.replace_lines(NAME, &lines[over..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Deadline;
    use crate::root::Root;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn each_port_has_its_own_and_the_newest_owner_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        fs::create_dir(root.path("/tmp")).unwrap();
        fs::set_permissions(root.path("/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let state = StateDir::open(&root).unwrap();
        let save_port = |vm: &str, port: &str, number: usize| {
            let records = state.records(&Deadline::after(Duration::from_secs(5))).unwrap();
            let place = GuestPort { bus: "xhci0.0".to_owned(), port: number };
            let last = LastPort { port: place, speed: Some(Speed::HIGH) };
            save(&records, vm, &port.parse().unwrap(), &last).unwrap();
        };
        let stored = |vm: &str, port: &str| {
            let history = history(&state, vm, &port.parse().unwrap());
            let others: Vec<usize> =
                history.reserved.iter().map(|guest_port| guest_port.port).collect();
            assert!(history.last.iter().all(|last| last.speed == Some(Speed::HIGH)));
            (history.last.map(|last| last.port.port), others)
        };
        assert_eq!(stored("windows", "1-3"), (None, vec![]));
        save_port("windows", "1-3", 1);
        save_port("windows", "1-3.1", 2);
        save_port("linux", "1-3", 7);
        assert_eq!(stored("windows", "1-3"), (Some(1), vec![2]));
        assert_eq!(stored("linux", "1-4"), (None, vec![7]));
        save_port("windows", "1-3", 2);
        assert_eq!(stored("windows", "1-3"), (Some(2), vec![]));
        assert_eq!(stored("windows", "1-3.1"), (None, vec![2]));
        let file = root.path("/tmp/hotplugger/guest-ports.jsonl");
        fs::write(&file, fs::read_to_string(&file).unwrap() + "{\"vm\":\n\n[]\n").unwrap();
        assert_eq!(stored("windows", "1-3"), (Some(2), vec![]));
        for number in 1..=300 {
            save_port("many", &format!("1-{}.{}", number / 20 + 1, number % 20 + 1), number);
        }
        assert_eq!(stored("windows", "1-3"), (None, vec![]));
        assert_eq!(stored("many", "1-16.1").1.len(), MAX_LINES - 1);
    }
}
