//! A device as a descriptor for the QEMU of its virtual machine.

use std::io;
use std::os::fd::OwnedFd;

use crate::config::VirtualMachine;
use crate::config::access::User;
use crate::devpath::DevPath;
use crate::qmp::handover::Handover;
use crate::sysfs::UsbDevice;
use crate::world::World;

/// A device that QEMU may be handed.
pub(super) struct DeviceHandover<'a> {
    pub(super) world: &'a dyn World,
    pub(super) vm: &'a VirtualMachine,
    pub(super) devpath: &'a DevPath,
    pub(super) device: &'a UsbDevice,
}

impl Handover for DeviceHandover<'_> {
    fn user(&self) -> io::Result<Option<u32>> {
        match &self.vm.access.user {
            None => Ok(None),
            Some(User::Id(id)) => Ok(Some(*id)),
            Some(User::Name(name)) => match self.world.uid(name)? {
                Some(id) => Ok(Some(id)),
                None => Err(io::Error::other(format!(
                    "the config wants user {name} there, who is not in /etc/passwd; write the \
                     number that `id -u {name}` says"
                ))),
            },
        }
    }

    fn trusts_folder(&self) -> bool {
        self.vm.access.trust_socket_folder
    }

    fn open(&self) -> io::Result<OwnedFd> {
        self.world.open_node(self.devpath, self.device)
    }
}
