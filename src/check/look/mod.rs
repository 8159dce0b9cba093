//! Gathers what the check judges; changes nothing and judges nothing.

mod holder;
mod machine;
mod pieces;
mod process;
mod program;
mod rules;
mod state;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::config::{ConfigFileLook, ConfigLook};
use super::grabbers::{Daemons, DeviceLook};
use super::machine::MachineLook;
use super::pieces::PiecesLook;
use super::program::ProgramLook;
use super::rule::RulesLook;
use super::state::StateLook;
use crate::config::Config;
use crate::config::file::{ConfigFile, VARIABLE};
use crate::config::parse::{ConfigError, parse};
use crate::host::sysfs;
use crate::host::topology::{Topology, read::topology};
use crate::root::Root;

/// All that was gathered.
#[derive(Debug)]
pub struct Scene {
    /// The config.
    pub config: ConfigLook,
    /// The host's ports.
    pub topology: Topology,
    /// udev's rules.
    pub rules: RulesLook,
    /// The programs they start.
    pub programs: Vec<ProgramLook>,
    /// The units and hooks that run `sync`.
    pub pieces: PiecesLook,
    /// The state folder.
    pub state: StateLook,
    /// The virtual machines.
    pub machines: Vec<MachineLook>,
    /// The devices in configured ports.
    pub devices: Vec<DeviceLook>,
    /// The programs that take devices.
    pub daemons: Daemons,
}

impl Scene {
    /// Looks at everything; `named` is the config file of the command line, if it has one.
    pub fn gather(root: &Root, named: Option<&Path>) -> Self {
        let rules = rules::look(root);
        let config = config(root, named, &rules);
        let topology = topology(root);
        let devices = devices(root, config.config(), &topology);
        // Each may take its whole timeout.
        let machines = thread::scope(|scope| {
            let look = |vm| {
                let (config, topology) = (config.config(), &topology);
                scope.spawn(move || machine::look(root, config, vm, topology))
            };
            let handles: Vec<_> = config.config().virtual_machines.iter().map(look).collect();
            handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
        });
        let pieces = pieces::look(root, &rules, config.understood());
        let programs = rules.programs().iter().map(|named| program::look(root, named)).collect();
        let state = state::look(root, &topology);
        let daemons = process::daemons(root);
        Self { config, topology, rules, programs, pieces, state, machines, devices, daemons }
    }

    /// What only root can look at and was not.
    pub fn unseen(&self) -> Vec<String> {
        let mut unseen = Vec::new();
        if rustix::process::geteuid().is_root() {
            return unseen;
        }
        if let ConfigLook::Unreadable { path, denied: true, .. } = &self.config {
            unseen.push(format!("the config {}", path.display()));
        }
        if self.state.folder.is_some_and(|stat| stat.folder) && self.state.files.is_none() {
            unseen.push(format!("what is in {}", self.state.path.display()));
        }
        for machine in &self.machines {
            if machine.is_hidden() {
                unseen.push(format!("the socket and QEMU of `{}`", machine.vm.name));
            } else if machine.process.is_some()
                && machine.nodes.iter().any(|node| node.visible.is_none())
            {
                unseen.push(format!("the /dev that QEMU of `{}` has", machine.vm.name));
            }
        }
        unseen
    }
}

/// The users who may own what root relies on: root, and in a moved root whoever made that.
fn owners(root: &Root) -> Vec<u32> {
    let moved = root.is_moved().then(|| rustix::process::geteuid().as_raw());
    [0].into_iter().chain(moved.filter(|user| *user != 0)).collect()
}

fn config(root: &Root, given: Option<&Path>, rules: &RulesLook) -> ConfigLook {
    let named = given
        .map(Path::to_path_buf)
        .or_else(|| env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
    let path = root.path(named.clone().unwrap_or_else(|| ConfigFile::SYSTEM.into()));
    let file = match ConfigFile::find(root, given) {
        Ok(Some(file)) => file,
        Ok(None) => return ConfigLook::None { path },
        Err(error) => {
            let denied = error
                .root_cause()
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
            return ConfigLook::Unreadable { path, why: format!("{error:#}"), denied };
        }
    };
    let text = String::from_utf8_lossy(&file.text).into_owned();
    let parsed = match std::str::from_utf8(&file.text) {
        Ok(text) => parse(text),
        Err(error) => {
            let line = file.text[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n');
            let message = "this is no UTF-8 text".to_owned();
            Err(ConfigError { line: Some(line.count() + 1), column: Some(1), message })
        }
    };
    ConfigLook::File(Box::new(ConfigFileLook {
        unknown_to_udev: named.is_some_and(|named| {
            root.path(&named) != root.path(ConfigFile::SYSTEM) && !rules.mentions(&named)
        }),
        // What cannot be looked at is said by whoever cannot open it.
        weakness: file.weakness(&owners(root)).unwrap_or_default(),
        path: file.path,
        text,
        parsed,
    }))
}

fn devices(root: &Root, config: &Config, topology: &Topology) -> Vec<DeviceLook> {
    let looks = topology.devices().filter_map(|(port, device)| {
        if !config.is_configured(&topology.places(&port.devpath)) {
            return None;
        }
        let folder = sysfs::folder(root, &port.devpath);
        let interfaces = fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
        let storage = interfaces
            .filter_map(|entry| sysfs::attribute(entry.path().join("bInterfaceClass")).ok())
            .any(|class| class == "08");
        Some(DeviceLook { devpath: port.devpath.clone(), folder, device: device.clone(), storage })
    });
    looks.collect()
}
