//! What QEMU answers while a device is attached and detached: QOM, `info qtree`, `info usb`.

use std::path::PathBuf;

use hotplugger::config::access::AccessMode;
use hotplugger::config::usb_host::UsbHostProperties;
use hotplugger::guest::attach::{AttachRequest, Attached, Claim, attach};
use hotplugger::guest::bus::buses;
use hotplugger::guest::detach;
use hotplugger::guest::hmp::guest_device;
use hotplugger::guest::ports::{GuestPort, GuestPortHistory, LastPort};
use hotplugger::speed::Speed;

use super::script::{Device, Script};

/// Attaches and detaches with a server that gives these replies.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let id: hotplugger::device_id::DeviceId = "hotplugger-1-3-16".parse().expect("an id");
    let _ = guest_device(&mut Script::new(&text), &id);
    if let Ok(buses) = buses(&mut Script::new(&text), &[]) {
        assert!(buses.len() <= 128 && buses.iter().all(|bus| bus.devices.len() <= 127));
    }
    let modes = [AccessMode::Node, AccessMode::Auto, AccessMode::Fd];
    let hubs = ["xhci0.0".to_owned()];
    let port = GuestPort { bus: hubs[0].clone(), port: 1 };
    let usual = LastPort { port, speed: Some(Speed::HIGH) };
    let usual = GuestPortHistory { last: Some(usual), reserved: Vec::new() };
    let fresh = GuestPortHistory::default();
    for (hubs, history, access) in [(&[][..], &fresh), (&hubs, &fresh), (&hubs, &usual)]
        .into_iter()
        .flat_map(|(hubs, history)| modes.map(|access| (hubs, history, access)))
    {
        let request = AttachRequest {
            id: id.clone(),
            speed: Some(Speed::HIGH),
            hubs,
            history,
            has_product_name: true,
            node: PathBuf::from("/dev/bus/usb/001/016"),
            access,
            properties: UsbHostProperties::new(),
            expected_attached: false,
            claim: Claim::Free,
            host_drives_storage: false,
            device: &Device,
        };
        match attach(&mut Script::new(&text), &request) {
            Ok(Attached::Now(seated)) => drop(format!("{seated:?}")),
            Ok(_) => {}
            Err(error) => {
                let said = error.to_string();
                assert!(said.len() < 16 * 1024, "{} bytes", said.len());
            }
        }
    }
    let _ = detach(&mut Script::new(&text), &id.port, None);
}
