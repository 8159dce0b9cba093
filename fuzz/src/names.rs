//! The names of ports: a name, NUL, a DEVPATH.

use hotplugger::config::parse::parse;
use hotplugger::config::port::PortName;
use hotplugger::config::prefilter::may_match;
use hotplugger::devpath::DevPath;
use hotplugger::location::{
    ControllerName, Generation, PeerPorts, PortLocation, UsbLocation, is_numbered_at_probe,
};

/// Reads the name, and asks whether the device at the DEVPATH is in that port.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((name, devpath)) = text.split_once('\0') else { return };
    let Ok(name) = name.parse::<PortName>() else { return };
    assert_eq!(name.to_string().parse::<PortName>().as_ref(), Ok(&name));
    let config = format!("virtual_machines:\n  w:\n    socket: /run/w\n    ports: ['{name}']\n");
    let Ok(config_read) = parse(&config) else { return };
    let Ok(devpath) = devpath.parse::<DevPath>() else { return };
    let mut controller = devpath.root_hub().and_then(|hub| hub.parent());
    while controller.as_ref().is_some_and(|path| is_numbered_at_probe(path.sysname())) {
        controller = controller.and_then(|path| path.parent());
    }
    for subsystem in [Some("pci"), Some("platform"), Some("usb"), None] {
        for generation in [Generation::Usb1, Generation::Usb2, Generation::Usb3] {
            let controller_name = |path: &DevPath| ControllerName::new(subsystem, path.sysname());
            let own = PortLocation {
                controller: controller.as_ref().and_then(controller_name),
                generation: Some(generation),
                ..PortLocation::of(devpath.clone())
            };
            if config_read.is_configured(&UsbLocation::of(own)) {
                let found = may_match(config.as_bytes(), &devpath, |_| PeerPorts::default());
                assert!(found, "{devpath} in {name} is overlooked");
            }
        }
    }
}
