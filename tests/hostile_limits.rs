//! QMP servers that want the program's memory, and those that lie about what they have done. The
//! program runs with 16 MiB of memory of its own, where an allocation that exceeds it kills it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use support::hostile::{Session, serve};
use support::root::Root;
use support::udev::{Ended, Running};

const SOCKET: &str = "/run/windows.qmp";

/// The largest message, in bytes.
const LARGEST: usize = 1 << 20;

/// Runs a `bind` event against a server with that script, with little memory.
fn run(
    timeout: &str,
    script: impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static,
) -> Ended {
    let mut root = Root::new();
    root.config(&format!(
        "virtual_machines:\n  windows:\n    socket: {SOCKET}\n    delay: 0\n    timeout: {timeout}\n    \
         ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n"
    ));
    root.plug("1-3", "tablet", 16);
    serve(&root.path(SOCKET), script);
    let event = root.event("bind", "1-3");
    let mut command = Command::new("/bin/sh");
    event.set_up(&mut command, &root);
    let program = env!("CARGO_BIN_EXE_hotplugger");
    Running::start(command.args(["-c", "ulimit -d 16384 && exec \"$0\"", program])).end()
}

fn assert_failed(run: &Ended, why: &str) {
    let line = run.line();
    assert!(line.starts_with("windows: port 1-3, QEMU USB Tablet (0627:0001): not attached: "));
    assert!(line.contains(why), "{line}\nwithout: {why}");
    assert_eq!(run.status, 1);
}

/// One that is told of it at once: no more than a message and what the kernel buffers is taken.
#[test]
fn a_greeting_of_1_gb() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let run = run("25", move |session| {
        session.send(r#"{"QMP": {"version": ""#)?;
        let block = vec![b'x'; 1 << 16];
        while counted.load(Ordering::SeqCst) < 1_000_000_000 {
            session.send(&block)?;
            counted.fetch_add(1 << 16, Ordering::SeqCst);
        }
        session.send("\"}}\r\n")
    });
    assert_failed(&run, "does not speak QMP: a message without end");
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < 4 * LARGEST, "{sent} bytes were taken");
}

/// Small in bytes, and large as a tree in memory.
#[test]
fn replies_of_very_many_values() {
    for value in ["0", "{}", "{\"\":0}", "[[[[]]]]", "\"\""] {
        let run = run("25", move |session| {
            session.greet()?;
            let command = session.polite_until("qom-list")?;
            let list = format!("[{}0]", format!("{value},").repeat(LARGEST / (value.len() + 2)));
            session.send(format!("{{\"return\": {list}, \"id\": {}}}", command.id))?;
            session.fall_silent()
        });
        assert_failed(&run, "does not speak QMP: a message of too many values");
    }
}

/// What is wrong with a reply is told without all that is in it.
#[test]
fn replies_that_are_one_long_string() {
    for wrong in
        ["{\"return\": @, \"id\": #}", "{\"error\": @}", "{\"error\": {\"class\": 1, @: 2}}"]
    {
        let run = run("25", move |session| {
            session.greet()?;
            let command = session.polite_until("qom-list")?;
            let wrong = wrong.replace('#', &command.id.to_string());
            session.send(wrong.replace('@', &format!("\"{}\"", "x".repeat(LARGEST - 100))))?;
            session.fall_silent()
        });
        assert_failed(&run, "does not speak QMP: ");
    }
}

/// As many as are taken, each as large as can be.
#[test]
fn a_reply_of_as_many_values_as_are_taken() {
    let run = run("25", |session| {
        session.greet()?;
        let command = session.polite_until("qom-list")?;
        let deep = format!("{}0{}", "{\"\":".repeat(100), "}".repeat(100));
        let list = format!("[{}0]", format!("{deep},").repeat(80));
        session.send(format!("{{\"return\": {list}, \"id\": {}}}", command.id))?;
        session.fall_silent()
    });
    assert_failed(&run, "does not speak QMP: qom-list: ");
}

#[test]
fn events_as_large_as_can_be() {
    let run = run("2", |session| {
        session.greet()?;
        let event = json!({ "event": "X", "data": "x".repeat(LARGEST - 100) }).to_string();
        loop {
            session.send(&event)?;
        }
    });
    assert_failed(&run, "no reply within 2 s: waiting for the reply to qmp_capabilities");
}

/// A monitor's answer is one value, and made of lines that could stand for anything.
#[test]
fn a_guest_of_more_buses_and_devices_than_there_can_be() {
    let companion = "dev: usb-uhci, id \"\"\n masterbus = \"b\"\n";
    for line in [
        "bus: b\n  type usb-bus\n",
        "dev: qemu-xhci, id \"x\"\n bus: b\n  type usb-bus\n",
        "bus: b\n  type usb-bus\n  dev: d, id \"\"\n    addr 0.0, port 1, speed 12, name n\n",
        companion,
    ] {
        let bus = "bus: u\n  type usb-bus\n  dev: d, id \"d\"\n";
        let device = "    addr 0.0, port 1, speed 12, name n, attached\n";
        let text = match line {
            // Buses and companions of each other, and one bus with all the devices.
            _ if line == companion => {
                let pair = format!("{line}{}", "bus: b\n  type usb-bus\n");
                pair.repeat(900_000 / pair.len())
            }
            "bus: b\n  type usb-bus\n" => format!("{bus}{}", device.repeat(900_000 / device.len())),
            _ => line.repeat(900_000 / line.len()),
        };
        let run = run("2", move |session| {
            session.greet()?;
            loop {
                let command = session.polite_until("human-monitor-command")?;
                session.reply(&command, &json!(text))?;
            }
        });
        let line = run.line();
        assert!(line.contains(": attached") || line.contains(": not attached: "), "{line}");
    }
}

/// The line names some of the buses, and counts the others.
#[test]
fn a_guest_whose_buses_have_long_names_and_take_nothing() {
    let bus = |number| {
        let name = format!("{number:03}{}", "x".repeat(100));
        format!("dev: piix3-usb-uhci, id \"u{number}\"\n  bus: {name}\n    type usb-bus\n")
    };
    let text: String = (0..200).map(bus).collect();
    let run = run("25", move |session| {
        session.greet()?;
        loop {
            let command = session.command()?;
            let value = match command.name.as_str() {
                "qom-list" => json!([]),
                "human-monitor-command" => json!(text),
                _ => json!({}),
            };
            if command.name != "device_add" {
                session.reply(&command, &value)?;
                continue;
            }
            let error = json!({ "class": "GenericError", "desc": "Bus 'x' not found" });
            session.send(json!({ "error": error, "id": command.id }).to_string())?;
        }
    });
    assert_failed(&run, "; and 120 more");
}

/// It takes the object and says for ever that the device is not in it.
#[test]
fn one_that_denies_to_have_the_device() {
    let run = run("25", |session| {
        session.greet()?;
        loop {
            let command = session.polite_until("qom-get")?;
            session.reply(&command, &json!(false))?;
        }
    });
    assert_failed(&run, "QEMU does not list the device; check that QEMU's /dev has ");
}

/// Objects of ours that are of other ports are not deleted, however they are listed.
#[test]
fn one_that_lists_the_objects_of_others() {
    let deleted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&deleted);
    let run = run("25", move |session| {
        session.greet()?;
        loop {
            let command = session.command()?;
            let names = ["hotplugger-1-4-16", "hotplugger-1-3.1-16", "hotplugger-1-3-09", "disk"];
            let listed = names.map(|name| json!({ "name": name, "type": "child<usb-host>" }));
            let value = match command.name.as_str() {
                "qom-list" => json!(listed),
                "qom-get" => json!(true),
                "human-monitor-command" => json!(""),
                _ => json!({}),
            };
            counted.fetch_add(usize::from(command.name == "device_del"), Ordering::SeqCst);
            session.reply(&command, &value)?;
        }
    });
    assert_eq!(run.status, 0, "{}", run.line());
    assert_eq!(deleted.load(Ordering::SeqCst), 0);
}
