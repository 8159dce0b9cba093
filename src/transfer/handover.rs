//! A device as a descriptor for the QEMU of its virtual machine.

use std::io;
use std::os::fd::OwnedFd;

use crate::config::VirtualMachine;
use crate::devpath::DevPath;
use crate::host::Host;
use crate::host::sysfs::UsbDevice;
use crate::qmp::handover::{Handover, Recipient};

/// A device that QEMU may be handed.
pub(super) struct DeviceHandover<'a> {
    pub(super) world: &'a dyn Host,
    pub(super) vm: &'a VirtualMachine,
    pub(super) devpath: &'a DevPath,
    pub(super) device: &'a UsbDevice,
}

impl Recipient for DeviceHandover<'_> {
    fn user(&self) -> io::Result<Option<u32>> {
        self.vm.access.uid(|name| self.world.uid(name))
    }

    fn trusts_folder(&self) -> bool {
        self.vm.access.trust_socket_directory
    }
}

impl Handover for DeviceHandover<'_> {
    fn open(&self) -> io::Result<OwnedFd> {
        self.world.open_node(self.devpath, self.device)
    }
}
