//! The policy: whether a device may go to a guest.

use crate::config::{Config, VirtualMachine};
use crate::devpath::DevPath;
use crate::host::Host;
use crate::host::drivers::Interface;
use crate::location::UsbLocation;
use crate::usb_device::{CLASS_HUB, DiskClaims, UsbDevice};

/// A device's location, and the VM that the config assigns to it.
#[derive(Clone, Copy)]
pub struct Assignment<'a> {
    pub config: &'a Config,
    pub vm: &'a VirtualMachine,
    pub location: &'a UsbLocation,
}

impl<'a> Assignment<'a> {
    pub fn devpath(&self) -> &'a DevPath {
        &self.location.own.devpath
    }
}

/// Checks the device as it is at this moment, with its interfaces. While the result lives, nothing
/// on the host can begin to use its disks.
///
/// # Errors
///
/// Why the device stays with the host.
pub fn check(
    host: &dyn Host,
    assignment: Assignment<'_>,
    device: &UsbDevice,
    interfaces: &[Interface],
) -> Result<DiskClaims, String> {
    let Assignment { config, vm, location } = assignment;
    let mut classes: Vec<u8> = interfaces.iter().map(|interface| interface.class).collect();
    if device.is_hub() || classes.contains(&CLASS_HUB) {
        let why = "it is a hub; devices behind it are attached, the hub itself never is";
        return Err(why.to_owned());
    }
    if !device.authorized {
        let why = "the host has not authorized it (USBGuard, or `authorized` in sysfs); it is \
                   attached once it is authorized";
        return Err(why.to_owned());
    }
    let by_class = config.class_matcher(vm, location);
    if by_class.is_some() {
        // The guest may choose another configuration than the host has.
        classes.extend(host.interface_classes(assignment.devpath()));
    }
    if let Some(refusal) = config.refusal(vm, location, device, &classes) {
        return Err(format!("it stays with the host; {refusal}"));
    }
    if let Some(entry) = by_class
        && classes.is_empty()
        && !host.has_interfaces(assignment.devpath())
    {
        return Err(format!(
            "it has no active configuration, so its classes are not known; the config excludes \
             `{entry}`"
        ));
    }
    host.claim_disks(assignment.devpath()).map_err(|used| used.to_string())
}
