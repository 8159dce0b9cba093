//! A partner that speaks QMP as it is told, for what a real QEMU does not do on demand.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

/// Serves clients until the test ends: each gets the greeting, and each command its answer.
pub(crate) fn serve(path: &Path, greeting: &'static str, answer: fn(&str, &Value) -> Value) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut writer = client.try_clone().unwrap();
            if writeln!(writer, "{greeting}").is_err() {
                continue;
            }
            for line in BufReader::new(client).lines().map_while(Result::ok) {
                let Ok(command) = serde_json::from_str::<Value>(&line) else { break };
                let mut reply = answer(command["execute"].as_str().unwrap(), &command["arguments"]);
                reply["id"] = command["id"].clone();
                if writeln!(writer, "{reply}").is_err() {
                    break;
                }
            }
        }
    });
}

/// What a QEMU with an xHCI answers.
pub(crate) fn intact(command: &str, arguments: &Value) -> Value {
    const QTREE: &str = "bus: pcie.0\r\n  type PCIE\r\n  dev: qemu-xhci, id \"xhci0\"\r\n    \
        bus: xhci0.0\r\n      type usb-bus\r\n";
    json!({"return": match (command, arguments["command-line"].as_str()) {
        ("qom-list", _) => json!([]),
        ("qom-get", _) => json!(15),
        ("query-status", _) => json!({"running": true}),
        ("human-monitor-command", Some("info qtree")) => json!(QTREE),
        _ => json!({}),
    }})
}

/// The same QEMU, built without usb-host.
pub(crate) fn without_usb_host(command: &str, arguments: &Value) -> Value {
    match command {
        "device-list-properties" => {
            json!({"error": {"class": "DeviceNotFound", "desc": "Device 'usb-host' not found"}})
        }
        _ => intact(command, arguments),
    }
}
