//! A virtual machine: its socket's folder, what QEMU says, QEMU's process, the devices' nodes.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{holder, owners, process};
use crate::check::machine::{Answer, Holders, MachineLook};
use crate::check::process::{Node, parse_list};
use crate::config::{Config, VirtualMachine};
use crate::deadline::Deadline;
use crate::device_id::DeviceId;
use crate::guest::{bus, hmp, object};
use crate::host::session::Session;
use crate::host::sysfs;
use crate::host::topology::{HubPort, Topology};
use crate::host::users;
use crate::libvirt;
use crate::permissions::{PermissionIssue, PermissionKind, weakness_on_the_way};
use crate::qmp::handover::Recipient;
use crate::qmp::{Error, Stage};
use crate::root::Root;
use crate::usb_device::UsbDevice;

pub(super) fn look(
    root: &Root,
    config: &Config,
    vm: &VirtualMachine,
    topology: &Topology,
) -> MachineLook {
    let socket = root.path(&vm.socket);
    let answer = ask(root, vm);
    let holders = match &answer {
        Err(Error::Timeout { stage: Stage::Connect | Stage::Greeting, .. }) => {
            holder::look(root, &socket)
        }
        _ => Holders::default(),
    };
    let pid = answer.as_ref().ok().and_then(|answer| answer.pid);
    MachineLook {
        weakness: match libvirt::domain(&vm.socket) {
            Some(_) => None,
            None => weakness(root, &socket).unwrap_or_default(),
        },
        process: pid.and_then(|pid| process::look(root, pid)),
        nodes: nodes(root, config, vm, topology, pid),
        root: rustix::process::geteuid().is_root(),
        vm: vm.clone(),
        socket,
        answer,
        holders,
    }
}

fn ask(root: &Root, vm: &VirtualMachine) -> Result<Answer, Error> {
    let mut session = Session::connect(root, &vm.socket, Deadline::after(vm.timeout), None)?;
    let qmp = &mut session;
    let mut attached = Vec::new();
    for id in object::list(qmp)? {
        if object::is_attached(qmp, &id)? {
            attached.push(id);
        }
    }
    Ok(Answer {
        attached,
        no_usb_host: match hmp::load_usb_host(qmp) {
            Ok(()) => None,
            Err(Error::NoUsbHost(problem)) => Some(problem),
            Err(error) => return Err(error),
        },
        running: object::is_running(qmp)?,
        buses: bus::buses(qmp)?,
        version: session.version(),
        pid: session.peer_pid(),
        not_handed: session.check(&Configured { root, vm }).err().map(|error| error.to_string()),
    })
}

/// Who may be handed a descriptor, as the config has it.
struct Configured<'a> {
    root: &'a Root,
    vm: &'a VirtualMachine,
}

impl Recipient for Configured<'_> {
    fn user(&self) -> io::Result<Option<u32>> {
        self.vm.access.uid(|name| users::uid(self.root, name))
    }

    fn trusts_folder(&self) -> bool {
        self.vm.access.trust_socket_directory
    }
}

/// What lets others than root and the socket's owner put another socket in its place. In the
/// folder itself the sticky bit does not help: while the machine is off the name is free.
fn weakness(root: &Root, socket: &Path) -> io::Result<Option<PermissionIssue>> {
    let mut trusted = owners(root);
    let own = fs::symlink_metadata(socket).ok().filter(|own| own.file_type().is_socket());
    let folder = socket.parent().unwrap_or(socket);
    let metadata = fs::metadata(folder)?;
    match own {
        Some(own) => trusted.push(own.uid()),
        None => trusted.push(metadata.uid()),
    }
    if metadata.mode() & 0o022 != 0 {
        let door = PermissionKind::Mode(metadata.mode() & 0o7777);
        return Ok(Some(PermissionIssue { path: folder.to_path_buf(), door }));
    }
    weakness_on_the_way(folder, &trusted)
}

/// The nodes of the devices that are in the machine's ports, with what decides who may open them.
fn nodes(
    root: &Root,
    config: &Config,
    vm: &VirtualMachine,
    topology: &Topology,
    pid: Option<u32>,
) -> Vec<Node> {
    let node = |(port, device): (&HubPort, &UsbDevice)| {
        let owners = config.owners(&topology.places(&port.devpath));
        owners.iter().find(|owner| owner.name == vm.name)?;
        let path = root.path(sysfs::node(device.busnum, device.devnum));
        let metadata = fs::metadata(&path).ok()?;
        let mut list = [0; 1024];
        let length = rustix::fs::getxattr(&path, "system.posix_acl_access", &mut list);
        Some(Node {
            device: device.label(),
            devpath: port.devpath.clone(),
            id: DeviceId { port: port.port.clone(), devnum: device.devnum },
            owner: metadata.uid(),
            group: metadata.gid(),
            mode: metadata.mode() & 0o7777,
            list: parse_list(&list[..length.unwrap_or_default()]),
            visible: pid.and_then(|pid| visible(root, pid, &path)),
            path,
        })
    };
    topology.devices().filter_map(node).collect()
}

/// Whether the process has that path in its own tree; none if that cannot be seen.
fn visible(root: &Root, pid: u32, path: &Path) -> Option<bool> {
    let own_root = process::file(root, pid, "root");
    fs::metadata(&own_root).ok()?;
    match fs::metadata(own_root.join(path.strip_prefix("/").ok()?)) {
        Ok(_) => Some(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}
