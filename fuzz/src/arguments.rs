//! The command line, and the names of ports and devices on it.

use clap::Parser;
use hotplugger::cli::Cli;
use hotplugger::config::port::PortName;
use hotplugger::device_id::DeviceId;
use hotplugger::devpath::DevPath;
use hotplugger::location::{ControllerName, PortLocation};
use hotplugger::port::{Chain, Port};
use hotplugger::speed::Speed;
use hotplugger::text::{sanitize, shell_word};

/// Reads the arguments, which have NUL between them, and each as every name there is.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let arguments = || text.split('\0');
    if let Err(error) = Cli::try_parse_from(std::iter::once("hotplugger").chain(arguments())) {
        drop(error.to_string());
    }
    for name in arguments() {
        same::<Port>(name);
        same::<Chain>(name);
        same::<DeviceId>(name);
        same::<DevPath>(name);
        same::<ControllerName>(name);
        let _ = name.parse::<Speed>();
        drop(shell_word(name));
        let cleaned = sanitize(name, 64);
        assert!(cleaned.chars().count() <= 64 && !cleaned.chars().any(char::is_control));
        if let Ok(port) = name.parse::<PortName>() {
            assert_eq!(port.to_string().parse().as_ref(), Ok(&port));
            assert!(port.is_equivalent(&port));
        }
        if let Ok(devpath) = name.parse::<DevPath>() {
            let place = PortLocation::of(devpath.clone());
            assert!(PortName::DevPath(devpath.clone()).names_exactly(&place));
            drop((devpath.root_hub(), devpath.usb_components().count()));
            assert!(devpath.ports_up().count() <= 6);
        }
    }
}

/// What is read is printed as it was.
fn same<T: std::str::FromStr + ToString>(name: &str) {
    if let Ok(value) = name.parse::<T>() {
        assert_eq!(value.to_string(), name);
    }
}
