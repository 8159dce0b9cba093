//! Which port of its guest each port of the host had last: a device that comes again gets the same
//! one, because a guest's drivers and settings belong to a port.
//!
//! One file of JSON lines for all, oldest first. It outlives the devices and, as a wrong line costs
//! nothing but a choice, the boot too.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::dir::{Records, StateDir};
use crate::guest::ports::{GuestPort, GuestPortHistory, LastPort};
use crate::port::Port;
use crate::speed::Speed;

const NAME: &str = "seats.jsonl";

/// Of more than these the oldest are forgotten: two controllers of eight VMs.
const MAX_LINES: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    vm: String,
    /// The host's port.
    host_port: Port,
    #[serde(flatten)]
    seat: GuestPort,
    /// Of the device that was in it, in Mb/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    speed: Option<String>,
}

/// What is remembered of the VM's ports, for that port of the host.
pub fn memory(state: &StateDir, vm: &str, port: &Port) -> GuestPortHistory {
    let mut memory = GuestPortHistory::default();
    for line in read(state).into_iter().filter(|line| line.vm == vm) {
        if line.host_port == *port {
            let speed = line.speed.and_then(|speed| speed.parse().ok());
            memory.last = Some(LastPort { port: line.seat, speed });
        } else {
            memory.reserved.push(line.seat);
        }
    }
    memory
}

/// Records that the VM's port belongs to the host's `port`, and to no other. Only the process that has
/// hold of the records may write.
pub fn keep(records: &Records<'_>, vm: &str, port: &Port, usual: &LastPort) -> Result<()> {
    let state = records.dir();
    let (seat, speed) = (&usual.port, usual.speed.map(Speed::number));
    let mut lines = read(state);
    // A file that was damaged may say more of the port.
    let mut said = lines
        .iter()
        .filter(|line| line.vm == vm && (line.host_port == *port || line.seat == *seat));
    if let (Some(line), None) = (said.next(), said.next())
        && line.host_port == *port
        && line.seat == *seat
        && line.speed == speed
    {
        return Ok(());
    }
    lines.retain(|line| line.vm != vm || (line.host_port != *port && line.seat != *seat));
    lines.push_back(Line { vm: vm.to_owned(), host_port: port.clone(), seat: seat.clone(), speed });
    let over = lines.len().saturating_sub(MAX_LINES);
    let mut text = String::new();
    for line in lines.range(over..) {
        text.push_str(&serde_json::to_string(line)?);
        text.push('\n');
    }
    state.replace(NAME, text.as_bytes()).with_context(|| format!("state file {NAME}"))
}

/// The lines; those that are damaged were never there.
fn read(state: &StateDir) -> VecDeque<Line> {
    let text = state.read_text(NAME).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::Deadline;
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
        let keep = |vm: &str, port: &str, number: usize| {
            let records = state.records(&Deadline::after(Duration::from_secs(5))).unwrap();
            let place = GuestPort { bus: "xhci0.0".to_owned(), port: number };
            let usual = LastPort { port: place, speed: Some(Speed::HIGH) };
            keep(&records, vm, &port.parse().unwrap(), &usual).unwrap();
        };
        let memory = |vm: &str, port: &str| {
            let memory = memory(&state, vm, &port.parse().unwrap());
            let others: Vec<usize> = memory.reserved.iter().map(|seat| seat.port).collect();
            assert!(memory.last.iter().all(|last| last.speed == Some(Speed::HIGH)));
            (memory.last.map(|last| last.port.port), others)
        };
        assert_eq!(memory("windows", "1-3"), (None, vec![]));
        keep("windows", "1-3", 1);
        keep("windows", "1-3.1", 2);
        keep("linux", "1-3", 7);
        assert_eq!(memory("windows", "1-3"), (Some(1), vec![2]));
        assert_eq!(memory("linux", "1-4"), (None, vec![7]));
        keep("windows", "1-3", 2);
        assert_eq!(memory("windows", "1-3"), (Some(2), vec![]));
        assert_eq!(memory("windows", "1-3.1"), (None, vec![2]));
        let file = root.path("/tmp/hotplugger/seats.jsonl");
        fs::write(&file, fs::read_to_string(&file).unwrap() + "{\"vm\":\n\n[]\n").unwrap();
        assert_eq!(memory("windows", "1-3"), (Some(2), vec![]));
        for number in 1..=300 {
            keep("many", &format!("1-{}.{}", number / 20 + 1, number % 20 + 1), number);
        }
        assert_eq!(memory("windows", "1-3"), (None, vec![]));
        assert_eq!(memory("many", "1-16.1").1.len(), MAX_LINES - 1);
    }
}
