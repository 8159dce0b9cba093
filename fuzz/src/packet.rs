//! A packet of the kernel's uevent socket.

use std::time::Duration;

use hotplugger::clock::Monotonic;
use hotplugger::devpath::DevPath;
use hotplugger::host::settle::Settle;
use hotplugger::uevent::Uevent;

use super::host::TABLET;

/// Reads it, and lets a device hear it that settles.
pub fn run(data: &[u8]) {
    let Some(uevent) = Uevent::from_packet(data) else { return };
    if let Some(event) = uevent.usb() {
        assert_eq!(event.device.port().as_ref(), Some(&event.port));
        assert!(uevent.busnum.is_none_or(|bus| bus == event.port.bus()));
    }
    let device: DevPath = TABLET.parse().expect("a DEVPATH");
    let start = Monotonic(u64::MAX / 2);
    let mut settle = Settle::new(&device, Duration::from_secs(1), start, start);
    settle.on_uevent(&uevent, start.after(Duration::from_millis(500)));
    assert!(settle.ready_at() >= start && settle.ready_at() <= start.after(Duration::from_secs(3)));
}
