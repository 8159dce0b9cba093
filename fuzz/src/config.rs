//! The config file.

use hotplugger::config::edit::{NewPort, add_ports};
use hotplugger::config::parse::parse;
use hotplugger::config::port::PortName;
use hotplugger::config::prefilter::may_match;
use hotplugger::config::section::parse_sections;
use hotplugger::location::{PortLocation, UsbLocation};

/// Reads it, looks for its ports in its raw text, and adds one more to it.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let new: PortName = "pci-0000:00:14.0/usb2:6.6.6".parse().expect("a port's name");
    let new = NewPort { name: new, comment: "a\ncomment".to_owned() };
    let config = match parse(text) {
        Ok(config) => config,
        Err(error) => {
            // Also where a list is still empty, which only this reads.
            let _ = add_ports(text, "w", &[new]);
            if let Ok(config) = parse_sections(text) {
                assert!(!config.broken.is_empty() && !config.virtual_machines.is_empty());
            }
            return drop(error.to_string());
        }
    };
    for vm in &config.virtual_machines {
        for port in &vm.ports {
            let again: PortName = port.to_string().parse().expect("what was printed is read");
            assert_eq!(again, *port);
            if let PortName::DevPath(devpath) = port {
                assert!(
                    may_match(data, devpath, |_| hotplugger::location::PeerPorts::default()),
                    "{devpath} is overlooked"
                );
                let places = UsbLocation::of(PortLocation::of(devpath.clone()));
                assert!(!config.owners(&places).is_empty(), "nobody has {devpath}");
            }
        }
    }
    let Some(vm) = config.virtual_machines.first() else { return };
    if let Ok(insertion) = add_ports(text, &vm.name, std::slice::from_ref(&new)) {
        let edited = parse(&insertion.apply(text)).expect("what was edited is read");
        assert_eq!(edited.virtual_machines[0].ports.last(), Some(&new.name));
    }
}
