//! A device that may go to a virtual machine: why it may not, and keeping the host's hands off it
//! until it does.

use std::cell::Cell;

use super::{Given, give_to_host};
use crate::config::{Config, VirtualMachine};
use crate::devpath::DevPath;
use crate::host::Host;
use crate::host::disks::in_use;
use crate::host::sysfs::UsbDevice;
use crate::location::UsbLocation;
use crate::port::DevNum;

/// Whose a device is, and where it is.
#[derive(Clone, Copy)]
pub struct Assignment<'a> {
    /// The config.
    pub config: &'a Config,
    /// The virtual machine that is to have it.
    pub vm: &'a VirtualMachine,
    /// Where it is.
    pub places: &'a UsbLocation,
}

/// A device in a port of a virtual machine.
pub struct Candidate<'a> {
    world: &'a dyn Host,
    owner: Assignment<'a>,
    vm: &'a VirtualMachine,
    devpath: &'a DevPath,
    devnum: DevNum,
    /// Whether drivers of the host's were unbound.
    taken: Cell<bool>,
}

impl<'a> Candidate<'a> {
    /// The device with that number, if it is still there.
    pub fn new(world: &'a dyn Host, owner: Assignment<'a>, devnum: DevNum) -> Self {
        let Assignment { vm, places, .. } = owner;
        Self { world, owner, vm, devpath: &places.own.devpath, devnum, taken: Cell::new(false) }
    }

    /// Why the device may not go to the guest, as it is at this moment.
    pub fn refusal(&self, device: &UsbDevice) -> Option<String> {
        if device.is_hub() {
            let why = "it is a hub; what is plugged into it is attached, the hub never";
            return Some(why.to_owned());
        }
        if !device.authorized {
            let why = "the host has not authorized it (USBGuard, or `authorized` in sysfs); it is \
                       attached when it is";
            return Some(why.to_owned());
        }
        let interfaces = self.world.interfaces(self.devpath);
        let classes: Vec<u8> = interfaces.iter().map(|interface| interface.class).collect();
        if let Some(entry) =
            self.owner.config.exclusion(self.vm, self.owner.places, device, &classes)
        {
            return Some(format!("it stays with the host, the config excludes `{entry}`"));
        }
        in_use(self.devpath, &self.world.disks(self.devpath)).map(|used| used.to_string())
    }

    /// Takes the device from the host's drivers, unless it may not go to the guest. Called again
    /// when a driver has come since: udevd loads modules after the kernel's `bind`.
    ///
    /// A disk would otherwise be read a second after the plug (usb-storage's `delay_use`), which
    /// is cut off in the middle when the guest takes it, or mounted by a desktop.
    pub fn keep_host_off(&self) -> Option<String> {
        if !self.vm.unbind_host_drivers || self.world.socket_file(&self.vm.socket).is_none() {
            return None;
        }
        let device = self.world.usb_device(self.devpath).ok().flatten()?;
        if device.devnum != self.devnum || self.refusal(&device).is_some() {
            return None;
        }
        self.take()
    }

    /// The same where it was told a moment ago that the machine runs and may have the device.
    pub fn take(&self) -> Option<String> {
        if !self.vm.unbind_host_drivers {
            return None;
        }
        match self.world.unbind_drivers(self.devpath) {
            Ok(unbound) => {
                self.taken.set(self.taken.get() || unbound > 0);
                None
            }
            Err(error) => Some(format!("the host keeps using it: {error}")),
        }
    }

    /// Gives the device back to the host's drivers, and says so. An earlier event's process may
    /// have taken it from them, so that what has no driver counts as taken.
    pub fn give_back(&self) -> Option<String> {
        let device = self.world.usb_device(self.devpath).ok().flatten()?;
        if !self.vm.unbind_host_drivers || device.devnum != self.devnum {
            return None;
        }
        let Given { before, now, probed } = give_to_host(self.world, self.devpath);
        if now > before || (self.taken.get() && before > 0) {
            return Some("the host's drivers have it back".to_owned());
        }
        match probed {
            Err(error) => Some(format!("the host's drivers do not have it back: {error}")),
            Ok(()) if self.taken.get() => {
                Some("no driver of the host's took it back, plug it again".to_owned())
            }
            Ok(()) => None,
        }
    }
}
