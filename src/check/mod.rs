//! `check`: the problems of an installation, their places, and how to fix them.
//!
//! Each file is about one thing: it reads the facts and judges them. Nothing is changed, with one
//! exception: a QEMU without usb-host is noted, because a second try would abort it.

pub mod config;
pub mod devices;
pub mod finding;
pub mod ports;
pub mod process;
pub mod rules;
pub mod socket_users;
pub mod state;
pub mod udev_rules;
pub mod units;
pub mod vm;

use std::path::Path;
use std::thread;

use self::config::CheckedConfig;
use self::finding::Report;
use self::rules::Rules;
use self::vm::VmFacts;
use crate::clock::Monotonic;
use crate::host::topology::read_topology;
use crate::root::Root;

/// Checks the installation. `named` is the config file of the command line, if it has one.
pub fn check(root: &Root, named: Option<&Path>) -> Report {
    let rules = Rules::read(root);
    let mut checked = config::check(root, named, &rules);
    let mut report = Report::default();
    report.add(std::mem::take(&mut checked.findings));
    let CheckedConfig { path, config, .. } = &checked;
    let topology = read_topology(root);
    // Each VM may take its whole timeout.
    let vms: Vec<VmFacts> = thread::scope(|scope| {
        let topology = &topology;
        let gather = |vm| scope.spawn(move || vm::gather(root, config, vm, topology));
        let handles: Vec<_> = config.virtual_machines.iter().map(gather).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    report.add(ports::check(config, path, &topology));
    report.add(rules::check(root, &rules));
    report.add(units::check(root, &rules, checked.is_whole.then_some(config)));
    report.add(state::check(root, &topology));
    for vm in &vms {
        report.add(vm::check(vm));
        report.add(vm::check_guest(vm));
        report.add(process::check(vm));
    }
    let devices = devices::gather(root, config, &topology);
    let running = devices::running_programs(root);
    report.add(devices::check(&devices, &running, &vms, Monotonic::now()));
    if !rustix::process::geteuid().is_root() {
        report.skipped = skipped(root, &checked, &vms);
    }
    report.summarize(config, vms.iter().filter(|vm| vm.is_off()).count());
    report
}

/// What only root can read and was not read.
fn skipped(root: &Root, config: &CheckedConfig, vms: &[VmFacts]) -> Vec<String> {
    let mut skipped = Vec::new();
    if config.is_hidden {
        skipped.push(format!("the config {}", config.path.display()));
    }
    if state::is_hidden(root) {
        skipped.push(format!("the files in {}", state::directory(root).display()));
    }
    for vm in vms {
        let name = &vm.vm.name;
        if vm.is_hidden() {
            skipped.push(format!("the socket and QEMU of `{name}`"));
        } else if vm.process.is_some() && vm.nodes.iter().any(|node| node.visible.is_none()) {
            skipped.push(format!("the /dev of `{name}`'s QEMU"));
        }
    }
    skipped
}

/// The users who may own what root relies on: root, and in a moved root the user who made it.
fn trusted_owners(root: &Root) -> [u32; 2] {
    [0, if root.is_moved() { rustix::process::geteuid().as_raw() } else { 0 }]
}
