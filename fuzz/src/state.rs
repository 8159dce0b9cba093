//! The files in the state folder, which a crash, a full disk or another version may have left.

use std::time::Duration;

use hotplugger::clock::Deadline;
use hotplugger::guest::ports::{GuestPort, LastPort};
use hotplugger::outcome::{Outcome, Report};
use hotplugger::port::Port;
use hotplugger::speed::Speed;
use hotplugger::state::dir::{StateDir, read_all_unlocked, read_unlocked};
use hotplugger::state::{guest_ports, history};

use super::host::Host;

/// Puts the bytes in each file's place, reads them, and writes what may be written to them.
pub fn run(data: &[u8]) {
    thread_local!(static HOST: Host = Host::new());
    HOST.with(|Host { root, .. }| {
        let state = StateDir::open(root).expect("a folder");
        for name in ["port-1-3.json", "history.jsonl", "guest-ports.jsonl"] {
            let path = root.path(format!("/tmp/hotplugger/{name}"));
            std::fs::write(path, data).expect("a file");
        }
        let port: Port = "1-3".parse().expect("a port");
        let records = state.records(&Deadline::after(Duration::from_secs(60))).expect("the lock");
        let record = records.get(&port);
        assert_eq!(record, read_unlocked(root, &port));
        assert_eq!(read_all_unlocked(root).len(), usize::from(record.is_some()));
        if let Some(record) = record {
            records.save(&record).expect("it is written");
            assert_eq!(records.get(&port).as_ref(), Some(&record));
        }
        guest_ports::history(&state, "w", &port);
        let place = GuestPort { bus: "xhci0.0".to_owned(), port: 1 };
        let usual = LastPort { port: place, speed: Some(Speed::HIGH) };
        guest_ports::save(&records, "w", &port, &usual).expect("it is written");
        assert_eq!(guest_ports::history(&state, "w", &port).last, Some(usual));
        history::append(root, &Report::new(None, Outcome::UnpluggedEarly));
        history::read(root);
    });
}
