//! `status`: each VM, the devices in its ports and in its guest, and the last events.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{CommandStatus, Context};
use crate::clock::{Deadline, Monotonic};
use crate::config::port::PortName;
use crate::config::section::BrokenSection;
use crate::config::{Config, VirtualMachine};
use crate::device_id::DeviceId;
use crate::guest::bus::{GuestBus, buses};
use crate::guest::objects;
use crate::host::drivers::{self, Interface};
use crate::host::session::Session;
use crate::host::topology::{Topology, read_topology};
use crate::host::{sysfs, usbfs};
use crate::output::{Line, Output, Style};
use crate::qmp::{Error, Qmp};
use crate::root::Root;
use crate::speed::Speed;
use crate::state::record::Record;
use crate::state::{dir, history};

#[derive(Debug, Args)]
pub struct Status {
    /// Print a JSON object
    #[arg(long)]
    json: bool,

    /// How many of the last events to print
    #[arg(long, value_name = "N", default_value_t = 10)]
    events: usize,
}

/// The output; docs/json.md has the form.
#[derive(Debug, Serialize)]
struct StatusReport {
    virtual_machines: Vec<VmStatus>,
    events: Vec<history::Entry>,
}

#[derive(Debug, Default, Serialize)]
struct VmStatus {
    name: String,
    socket: String,
    /// `running`, `paused`, `not-running`, `unreachable`, or `misconfigured`.
    state: &'static str,
    problem: Option<String>,
    buses: Vec<Bus>,
    attached: Vec<Object>,
    ports: Vec<ConfiguredPort>,
}

#[derive(Debug, Serialize)]
struct Bus {
    name: String,
    controller: String,
    free_usb2: usize,
    free_usb3: usize,
}

/// A device that hotplugger attached to the guest.
#[derive(Debug, Serialize)]
struct Object {
    id: String,
    bus: String,
    port: String,
    product: String,
    speed: Option<String>,
    /// Whether QEMU has it open. It has not while the guest is paused, or if it was unplugged.
    attached: bool,
    /// Whether the guest has configured it.
    in_use: bool,
    /// For how many seconds, if a record says it.
    seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ConfiguredPort {
    /// `None` if it is not named by its DEVPATH and the host has no such port now.
    devpath: Option<String>,
    name: String,
    exists: bool,
    devices: Vec<String>,
}

impl Status {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let config = context.config()?;
        let mut events = history::read(context.root);
        events.drain(..events.len().saturating_sub(self.events));
        let report = StatusReport { virtual_machines: vm_states(context.root, &config), events };
        if self.json {
            output.json(&report)?;
            return Ok(CommandStatus::Ok);
        }
        if report.virtual_machines.is_empty() {
            output.line(&Line::from("No virtual machine is configured."))?;
        }
        for vm in &report.virtual_machines {
            print_vm(vm, output)?;
        }
        if !report.events.is_empty() {
            output.line(&Line::from((Style::Strong, "last events")))?;
        }
        for event in &report.events {
            output.line(&event_line(event))?;
        }
        if dir::is_unreadable(context.root) {
            let note = "Events and times only root can see: sudo hotplugger status";
            output.line(&Line::from((Style::Faint, note)))?;
        }
        Ok(CommandStatus::Ok)
    }
}

fn print_vm(vm: &VmStatus, output: &mut Output) -> Result<()> {
    let style = match vm.state {
        "running" => Style::Good,
        "unreachable" | "misconfigured" => Style::Bad,
        _ => Style::Warning,
    };
    let head = Line::default().with(Style::Strong, vm.name.as_str()).plain("  ");
    let mut head = head.with(style, vm.state);
    if !vm.socket.is_empty() {
        head = head.with(Style::Faint, format!("  {}", vm.socket));
    }
    output.line(&head)?;
    if let Some(problem) = &vm.problem {
        output.line(&Line::from("  ").with(style, problem.as_str()))?;
    }
    let mut rows = Vec::new();
    for bus in &vm.buses {
        rows.push(vec![
            Line::from("  bus"),
            Line::from(bus.name.as_str()),
            Line::from(bus.controller.as_str()),
            Line::from(format!("free: {} USB 2, {} USB 3", bus.free_usb2, bus.free_usb3)),
        ]);
    }
    output.table(&rows)?;
    rows.clear();
    for device in &vm.attached {
        let speed = device.speed.as_ref().map(|speed| format!("{speed} Mb/s"));
        let (style, state) = match (device.attached, device.in_use) {
            (true, true) => (Style::Good, "in use by the guest"),
            (true, false) => (Style::Warning, "attached, not configured by the guest"),
            (false, _) => (Style::Warning, "not open"),
        };
        rows.push(vec![
            Line::from("  has"),
            Line::from(device.id.as_str()),
            Line::from(device.product.as_str()),
            Line::from(format!("{} {}", device.bus, device.port)),
            Line::from(speed.unwrap_or_default()),
            Line::from((style, state)),
            Line::from(
                device.seconds.map(|age| format!("for {}", duration(age))).unwrap_or_default(),
            ),
        ]);
    }
    output.table(&rows)?;
    rows.clear();
    for port in &vm.ports {
        let content = match (port.exists, port.devices.as_slice()) {
            (false, _) => Line::from((Style::Warning, "this host has no such port now")),
            (true, []) => Line::from((Style::Faint, "empty")),
            (true, devices) => Line::from(devices.join("; ")),
        };
        rows.push(vec![Line::from("  port"), Line::from(port.name.as_str()), content]);
    }
    output.table(&rows)?;
    Ok(())
}

pub(super) fn event_line(event: &history::Entry) -> Line {
    let age = duration(history::now().saturating_sub(event.time) / 1000);
    let style = match event.outcome.as_str() {
        "failed" | "unconfirmed" => Style::Bad,
        "rejected" => Style::Warning,
        _ => Style::Plain,
    };
    let line = Line::default().with(Style::Faint, format!("  {age:>6} ago  "));
    line.with(style, event.line.as_str())
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Reads all VMs of the config at the same time: one that is stuck delays no other.
fn vm_states(root: &Root, config: &Config) -> Vec<VmStatus> {
    let topology = read_topology(root);
    let records = dir::read_all_unlocked(root);
    std::thread::scope(|scope| {
        let (topology, records) = (&topology, &records);
        let spawn = |vm| scope.spawn(move || vm_status(root, vm, topology, records));
        let threads: Vec<_> = config.virtual_machines.iter().map(spawn).collect();
        // A thread that ends otherwise than by returning has ended the process already.
        let vms = threads.into_iter().filter_map(|thread| thread.join().ok());
        vms.chain(config.broken.iter().map(misconfigured)).collect()
    })
}

fn misconfigured(section: &BrokenSection) -> VmStatus {
    VmStatus {
        name: section.vm.clone(),
        state: "misconfigured",
        problem: Some(section.to_string()),
        ..VmStatus::default()
    }
}

fn vm_status(
    root: &Root,
    vm: &VirtualMachine,
    topology: &Topology,
    records: &[Record],
) -> VmStatus {
    let mut status = VmStatus {
        name: vm.name.clone(),
        socket: vm.monitor.file().display().to_string(),
        ports: vm.ports.iter().map(|port| configured_port(vm, port, topology)).collect(),
        ..VmStatus::default()
    };
    if let Err(error) = add_guest(&mut status, root, vm, topology, records) {
        let is_off = matches!(error, Error::NotRunning { .. });
        status.state = if is_off { "not-running" } else { "unreachable" };
        status.problem = Some(error.to_string());
    }
    status
}

/// Adds what QEMU replies.
fn add_guest(
    status: &mut VmStatus,
    root: &Root,
    vm: &VirtualMachine,
    topology: &Topology,
    records: &[Record],
) -> Result<(), Error> {
    let mut qmp =
        Session::connect(root, &vm.monitor, &vm.access, Deadline::after(vm.timeout), None)?;
    status.state = if objects::is_running(&mut qmp)? { "running" } else { "paused" };
    let buses = buses(&mut qmp, &[])?;
    let pid = qmp.qemu_pid();
    // Other processes may wait for the socket.
    drop(qmp);
    let is_in_use = |id: &DeviceId| is_in_use(root, topology, id, pid);
    status.attached = buses.iter().flat_map(|bus| attached(bus, records, &is_in_use)).collect();
    let bus = |bus: GuestBus| {
        let free = |speed| bus.free_ports_for(speed).len();
        Bus {
            free_usb2: free(Speed::HIGH).max(free(Speed::FULL)),
            free_usb3: free(Speed::SUPER),
            name: bus.name,
            controller: bus.controller,
        }
    };
    status.buses = buses.into_iter().map(bus).collect();
    Ok(())
}

/// Whether the guest has configured the device: QEMU then claims its interfaces
/// (`hw/usb/host-libusb.c`: `usb_host_set_config`).
fn is_in_use(root: &Root, topology: &Topology, id: &DeviceId, pid: Option<u32>) -> bool {
    let Some((port, device)) = topology.device(id) else { return false };
    let node = sysfs::node(device.busnum, device.devnum);
    drivers::interfaces(root, &port.devpath).iter().any(Interface::is_claimed)
        && pid.and_then(|pid| usbfs::has_open(root, pid, &node)).unwrap_or(true)
}

/// The devices on a bus that hotplugger attached.
fn attached(bus: &GuestBus, records: &[Record], uses: &dyn Fn(&DeviceId) -> bool) -> Vec<Object> {
    let ours = bus.devices.iter().filter_map(|occupant| {
        let id: DeviceId = occupant.id.as_deref()?.parse().ok()?;
        let known = records.iter().filter_map(|record| record.attached.as_ref());
        let known = known.clone().find(|attached| attached.id == id);
        Some(Object {
            id: id.to_string(),
            bus: bus.name.clone(),
            port: occupant.port.clone(),
            product: occupant.product.clone(),
            speed: occupant.speed.map(Speed::number),
            attached: occupant.attached,
            in_use: occupant.attached && uses(&id),
            seconds: known.map(|attached| Monotonic::now().since(attached.at).as_secs()),
        })
    });
    ours.collect()
}

fn configured_port(vm: &VirtualMachine, name: &PortName, topology: &Topology) -> ConfiguredPort {
    let devices = topology
        .devices()
        .filter(|(port, _)| name.contains(&topology.usb_location(&port.devpath), vm.peer_ports))
        .map(|(port, device)| format!("{} {}", port.port, device.label()));
    let location =
        topology.port_locations().into_iter().find(|location| name.names_exactly(location));
    ConfiguredPort {
        devpath: match name {
            PortName::DevPath(devpath) => Some(devpath.to_string()),
            PortName::DevPathEnd(_) | PortName::Stable { .. } => {
                location.as_ref().map(|location| location.devpath.to_string())
            }
        },
        name: name.to_string(),
        exists: location.is_some(),
        devices: devices.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_greatest_unit() {
        let texts: Vec<String> = [5, 119, 120, 7200, 200_000].into_iter().map(duration).collect();
        assert_eq!(texts, ["5 s", "119 s", "2 min", "2 h", "2 d"]);
    }

    #[test]
    fn line_of_an_error_is_red() {
        let line = |outcome: &str| {
            let (outcome, line) = (outcome.to_owned(), "port 1-3".to_owned());
            event_line(&history::Entry { time: u64::MAX, port: None, vm: None, outcome, line })
        };
        let expected = |style| Line::from((Style::Faint, "     0 s ago  ")).with(style, "port 1-3");
        assert_eq!(line("failed"), expected(Style::Bad));
        assert_eq!(line("unconfirmed"), expected(Style::Bad));
        assert_eq!(line("rejected"), expected(Style::Warning));
        assert_eq!(line("attached"), expected(Style::Plain));
    }
}
