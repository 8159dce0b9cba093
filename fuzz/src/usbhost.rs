//! `info usbhost`: the host's devices as QEMU's monitor tells of them.

use hotplugger::guest::hmp::host_devices;
use hotplugger::port::Port;

use super::script::Script;

/// Reads it.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // The first reply is to the question whether there is usb-host at all.
    let script = format!("[]\0{}", text.replace('\0', " "));
    let Ok(Some(devices)) = host_devices(&mut Script::new(&script)) else { return };
    for device in devices {
        let port = device.port.to_string();
        assert_eq!(port.parse::<Port>().as_ref(), Ok(&device.port));
        assert!(text.contains(&port[port.find('-').expect("a bus") + 1..]));
    }
}
