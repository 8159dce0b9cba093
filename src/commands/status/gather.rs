//! Asks the guests and the host for what `status` shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Bus, Machine, Object, Port};
use crate::clock::Monotonic;
use crate::config::port::PortName;
use crate::config::{Config, VirtualMachine};
use crate::deadline::Deadline;
use crate::device_id::DeviceId;
use crate::guest::bus::{GuestBus, buses};
use crate::guest::object;
use crate::host::session::Session;
use crate::host::topology::Topology;
use crate::host::topology::read::topology;
use crate::qmp::Error;
use crate::root::Root;
use crate::speed::Speed;
use crate::state::dir;
use crate::state::record::Record;

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// All virtual machines of the config, asked at the same time: one that is stuck delays no other.
pub(super) fn machines(root: &Root, config: &Config) -> Vec<Machine> {
    let topology = topology(root);
    let records = dir::peek_all(root);
    std::thread::scope(|scope| {
        let asked: Vec<_> = config
            .virtual_machines
            .iter()
            .map(|vm| scope.spawn(|| machine(root, vm, &topology, &records)))
            .collect();
        // A thread that ends otherwise than by returning has ended the process already.
        asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
    })
}

fn machine(root: &Root, vm: &VirtualMachine, topology: &Topology, records: &[Record]) -> Machine {
    let mut machine = Machine {
        name: vm.name.clone(),
        socket: vm.socket.display().to_string(),
        state: "running",
        problem: None,
        buses: Vec::new(),
        attached: Vec::new(),
        ports: vm.ports.iter().map(|port| configured_port(vm, port, topology)).collect(),
    };
    match ask(root, vm) {
        Ok((running, buses)) => {
            machine.state = if running { "running" } else { "paused" };
            machine.attached = buses.iter().flat_map(|bus| attached(bus, records)).collect();
            machine.buses = buses
                .into_iter()
                .map(|bus| Bus {
                    free_usb2: bus.free(Speed::HIGH).len().max(bus.free(Speed::FULL).len()),
                    free_usb3: bus.free(Speed::SUPER).len(),
                    name: bus.name,
                    controller: bus.controller,
                })
                .collect();
        }
        Err(error) => {
            let down = matches!(error, Error::NotRunning { .. });
            machine.state = if down { "not-running" } else { "unreachable" };
            machine.problem = Some(error.to_string());
        }
    }
    machine
}

fn ask(root: &Root, vm: &VirtualMachine) -> Result<(bool, Vec<GuestBus>), Error> {
    let mut qmp = Session::connect(root, &vm.socket, Deadline::after(vm.timeout), None)?;
    Ok((object::is_running(&mut qmp)?, buses(&mut qmp)?))
}

/// The devices of ours on a bus.
fn attached(bus: &GuestBus, records: &[Record]) -> Vec<Object> {
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
            seconds: known.map(|attached| Monotonic::now().since(attached.at).as_secs()),
        })
    });
    ours.collect()
}

fn configured_port(vm: &VirtualMachine, name: &PortName, topology: &Topology) -> Port {
    let devices = topology
        .devices()
        .filter(|(port, _)| name.has(&topology.places(&port.devpath), vm.peer_ports))
        .map(|(port, device)| format!("{} {}", port.port, device.label()));
    let place = topology.all_places().into_iter().find(|place| name.is(place));
    Port {
        devpath: match name {
            PortName::DevPath(devpath) => Some(devpath.to_string()),
            PortName::Stable { .. } => place.as_ref().map(|place| place.devpath.to_string()),
        },
        name: name.to_string(),
        exists: place.is_some(),
        devices: devices.collect(),
    }
}
