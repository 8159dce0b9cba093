//! `check`: the problems of an installation, their places, and how to fix them.
//!
//! Each file is about one thing: it reads the facts and judges them. Nothing is changed, with one
//! exception: a QEMU without usb-host is noted, because a second try would abort it.

pub mod config;
pub mod devices;
pub mod finding;
pub mod ports;
pub mod process;
pub mod program;
pub mod rules;
pub mod socket_users;
pub mod state;
pub mod udev_rules;
pub mod units;
pub mod vm;

use std::path::Path;
use std::thread;

use self::config::ConfigFacts;
use self::devices::{DeviceFacts, RunningPrograms};
use self::finding::Report;
use self::program::ProgramFacts;
use self::rules::RulesFacts;
use self::state::StateFacts;
use self::units::UnitsFacts;
use self::vm::VmFacts;
use crate::clock::Monotonic;
use crate::host::topology::{Topology, read_topology};
use crate::root::Root;

#[derive(Debug)]
pub struct Facts {
    pub config: ConfigFacts,
    pub topology: Topology,
    pub rules: RulesFacts,
    pub programs: Vec<ProgramFacts>,
    pub units: UnitsFacts,
    pub state: StateFacts,
    pub vms: Vec<VmFacts>,
    pub devices: Vec<DeviceFacts>,
    pub running: RunningPrograms,
}

impl Facts {
    /// Reads all facts. `named` is the config file of the command line, if it has one.
    pub fn gather(root: &Root, named: Option<&Path>) -> Self {
        let rules = rules::gather(root);
        let config = config::gather(root, named, &rules);
        let topology = read_topology(root);
        // Each VM may take its whole timeout.
        let vms = thread::scope(|scope| {
            let gather = |vm| {
                let (config, topology) = (config.config(), &topology);
                scope.spawn(move || vm::gather(root, config, vm, topology))
            };
            let handles: Vec<_> = config.config().virtual_machines.iter().map(gather).collect();
            handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
        });
        Self {
            programs: rules.programs().iter().map(|named| program::gather(root, named)).collect(),
            units: units::gather(root, &rules, config.understood()),
            state: state::gather(root, &topology),
            devices: devices::gather(root, config.config(), &topology),
            running: devices::running_programs(root),
            config,
            topology,
            rules,
            vms,
        }
    }

    /// What only root can read and was not read.
    fn skipped(&self) -> Vec<String> {
        let mut skipped = Vec::new();
        if rustix::process::geteuid().is_root() {
            return skipped;
        }
        if let ConfigFacts::Unreadable { path, denied: true, .. } = &self.config {
            skipped.push(format!("the config {}", path.display()));
        }
        if self.state.directory.is_some_and(|stat| stat.is_directory) && self.state.files.is_none()
        {
            skipped.push(format!("the files in {}", self.state.path.display()));
        }
        for vm in &self.vms {
            let name = &vm.vm.name;
            if vm.is_hidden() {
                skipped.push(format!("the socket and QEMU of `{name}`"));
            } else if vm.process.is_some() && vm.nodes.iter().any(|node| node.visible.is_none()) {
                skipped.push(format!("the /dev of `{name}`'s QEMU"));
            }
        }
        skipped
    }
}

pub fn check(facts: &Facts) -> Report {
    let mut report = Report::default();
    report.add(config::check(&facts.config));
    let (config, path) = (facts.config.config(), facts.config.path());
    report.add(config::check_sockets(config, path));
    report.add(ports::check(config, path, &facts.topology));
    report.add(rules::check(&facts.rules));
    report.add(program::check(&facts.programs));
    report.add(units::check(&facts.units));
    report.add(state::check(&facts.state));
    for vm in &facts.vms {
        report.add(vm::check(vm));
        report.add(vm::check_guest(vm));
        report.add(process::check(vm));
    }
    report.add(devices::check(&facts.devices, &facts.running, &facts.vms, Monotonic::now()));
    report.skipped = facts.skipped();
    report.summarize(config, facts.vms.iter().filter(|vm| vm.is_off()).count());
    report
}

/// The users who may own what root relies on: root, and in a moved root the user who made it.
fn trusted_owners(root: &Root) -> Vec<u32> {
    let moved = root.is_moved().then(|| rustix::process::geteuid().as_raw());
    [0].into_iter().chain(moved.filter(|user| *user != 0)).collect()
}
