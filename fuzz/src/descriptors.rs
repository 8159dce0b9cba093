//! The descriptors of a USB device: what a device claims of itself, and which interfaces it has.

use hotplugger::devpath::DevPath;
use hotplugger::host::drivers::interface_classes;

use super::host::{Host, TABLET};

pub fn run(data: &[u8]) {
    thread_local!(static HOST: Host = Host::new());
    HOST.with(|host| {
        host.write(&format!("/sys{TABLET}/descriptors"), data);
        let devpath: DevPath = TABLET.parse().expect("a DEVPATH");
        // An interface's descriptor has nine bytes, but one that lies may have six at the end.
        assert!(interface_classes(&host.root, &devpath).len() <= data.len() / 2);
    });
}
