//! `attach`, `detach` and `move`: what a person does with the device in a port.
//!
//! The policy is the same as for a plug, and the same records are kept.

use std::iter;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{CommandStatus, Context};
use crate::attach::{self, AttachJob, Trigger};
use crate::config::port::PortName;
use crate::config::{Config, VirtualMachine};
use crate::detach::detach_port;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::event::first_running;
use crate::event::plan::candidates;
use crate::guest::objects;
use crate::host::Host;
use crate::host::drivers::Interface;
use crate::host::real::RealHost;
use crate::host::topology::{HubPort, Topology, devpath_of, read_topology};
use crate::location::UsbLocation;
use crate::outcome::{EventContext, Outcome, Report, Until};
use crate::output::{Output, Style};
use crate::policy::{self, Assignment};
use crate::port::{DevNum, Port};
use crate::qmp::Error;
use crate::root::Root;
use crate::state::record::{Record, VmStart};
use crate::unconfirmed;
use crate::usb_device::UsbDevice;

pub(super) const PORT_HELP: &str = "The port: as `hotplugger ports` shows it (1-4), its name \
    (pci-0000:00:14.0/usb2:4), its DEVPATH or its path below /sys. Devices behind a hub in it are \
    included";

/// The arguments of `attach` and `move`.
#[derive(Debug, Args)]
pub struct PortAndVm {
    #[arg(help = PORT_HELP)]
    port: String,

    /// The VM. It need not list the port
    #[arg(long, value_name = "VM")]
    vm: Option<String>,
}

#[derive(Debug, Args)]
pub struct Detach {
    #[arg(help = PORT_HELP, required_unless_present = "vm")]
    port: Option<String>,

    /// The VM that has them. Without a port: all its devices, until it is started again, so that
    /// its state can be saved
    #[arg(long, value_name = "VM")]
    vm: Option<String>,

    /// Keep the port with the host, whatever is plugged into it, until `attach`, `move` or
    /// the next boot
    #[arg(long, requires = "port")]
    keep: bool,
}

#[derive(Clone, Copy)]
pub enum ManualAction {
    Attach,
    Detach(Until),
    Move,
}

impl PortAndVm {
    pub fn run(
        &self,
        context: &Context<'_>,
        output: &mut Output,
        action: ManualAction,
    ) -> Result<CommandStatus> {
        run(context, output, Some(&self.port), self.vm.as_deref(), action)
    }
}

impl Detach {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let Self { port, vm, keep } = self;
        let until = match (port, keep) {
            (None, _) => Until::VmRestarted,
            (Some(_), true) => Until::Attached,
            (Some(_), false) => Until::Unplugged,
        };
        run(context, output, port.as_deref(), vm.as_deref(), ManualAction::Detach(until))
    }
}

/// Acts on the devices in the port, or without a port on those of the VM.
fn run(
    context: &Context<'_>,
    output: &mut Output,
    port: Option<&str>,
    vm: Option<&str>,
    action: ManualAction,
) -> Result<CommandStatus> {
    let config = context.trusted_config()?;
    let vm = vm.map(|name| config.named(name)).transpose()?;
    let topology = read_topology(context.root);
    let host = RealHost::open_with_state(context.root)?;
    let devices = match (port, vm) {
        (Some(port), _) => {
            let name = port_name(context.root, &topology, port)?;
            let changed = change_kept_ports(&host, &topology, &name, action)?;
            let devices = devices_in(&topology, &name);
            if let ([], Some(what)) = (&devices[..], changed) {
                output.text(&format!("{port}: {what}; nothing is plugged in there now"))?;
            } else if devices.is_empty() {
                bail!("{port}: nothing is plugged in there");
            }
            devices
        }
        (None, Some(vm)) => {
            let (devices, stale) = devices_of(&host, &topology, vm)?;
            for id in stale {
                context.report(&Report::of_stale_object(&vm.name, id), Style::Plain, output)?;
            }
            devices
        }
        (None, None) => bail!("name a port or a VM"),
    };
    let mut status = CommandStatus::Ok;
    for device in devices {
        let location = topology.usb_location(&device.devpath);
        let job = ManualJob {
            host: &host,
            config: &config,
            location: &location,
            port: &device.port,
            devnum: device.plugged.as_ref().map(|plugged| plugged.device().devnum),
            vm,
        };
        let takes_away = matches!(action, ManualAction::Detach(_) | ManualAction::Move);
        if takes_away && output.is_terminal() && guest_uses_disk(&host, &device.devpath) {
            output.text(&format!(
                "port {}: the guest may still be writing to the disk; it should be ejected there first",
                device.port
            ))?;
        }
        let report = job.run(action).unwrap_or_else(|failed| failed);
        let is_done = report.outcome.is_attached()
            || matches!(report.outcome, Outcome::DetachedManually { .. });
        let style = if is_done { Style::Plain } else { Style::Bad };
        context.report(&report, style, output)?;
        if !is_done {
            status = CommandStatus::Problems;
        }
    }
    Ok(status)
}

/// Whether a program, the guest's QEMU, has claimed a storage interface of the device.
fn guest_uses_disk(host: &dyn Host, devpath: &DevPath) -> bool {
    host.interfaces(devpath).iter().any(Interface::is_claimed_storage)
}

/// Keeps the port and its peer ports with the host, or no longer. Returns the change.
///
/// It comes before the devices are detached or attached, so that no event comes between.
fn change_kept_ports(
    host: &dyn Host,
    topology: &Topology,
    name: &PortName,
    action: ManualAction,
) -> Result<Option<&'static str>> {
    let ports = named_ports(topology, name);
    match action {
        ManualAction::Detach(Until::Attached) => {
            host.save_kept_ports(&ports, &[])?;
            Ok(Some("kept with the host until `hotplugger attach` or `move`"))
        }
        ManualAction::Detach(_) => Ok(None),
        ManualAction::Attach | ManualAction::Move => {
            let kept = host.kept_ports();
            let is_kept =
                kept.iter().any(|kept| ports.iter().any(|port| kept.is_at_or_below(port)));
            if is_kept {
                host.save_kept_ports(&[], &ports)?;
            }
            Ok(is_kept.then_some("no longer kept with the host"))
        }
    }
}

/// The port and its peer ports.
pub(super) fn named_ports(topology: &Topology, name: &PortName) -> Vec<DevPath> {
    let is_named = |location: &UsbLocation| {
        let mut both = iter::once(&location.own).chain(&location.peers);
        both.any(|location| name.names_exactly(location))
    };
    let ports = topology.ports().into_iter().map(|port| port.devpath.clone());
    ports.filter(|devpath| is_named(&topology.usb_location(devpath))).collect()
}

/// The plugged-in devices that the VM has. Deletes its objects of others, and returns their IDs: QEMU could
/// not restore a state that was saved with one.
fn devices_of<'a>(
    host: &dyn Host,
    topology: &'a Topology,
    vm: &VirtualMachine,
) -> Result<(Vec<&'a HubPort>, Vec<DeviceId>)> {
    let context = || format!("`{}` does not say which devices it has", vm.name);
    let mut session = host.connect(&vm.target()).with_context(context)?;
    let ids = objects::list(session.as_mut()).with_context(context)?;
    // Read only now: the object of a device that was plugged in after the query is not stale.
    let now = host.topology();
    let is_stale = |id: &DeviceId| now.device(id).is_none();
    let (stale, error) = objects::delete_each(session.as_mut(), &ids, is_stale);
    error.map_or(Ok(()), Err).with_context(context)?;
    let devices = topology.devices().filter(|(port, device)| {
        let is_it = |id: &DeviceId| id.port == port.port && id.devnum == device.devnum;
        ids.iter().any(|id| is_it(id) && !is_stale(id))
    });
    Ok((devices.map(|(port, _)| port).collect(), stale))
}

/// Fails if this host has no such port.
pub(super) fn port_name(root: &Root, topology: &Topology, text: &str) -> Result<PortName> {
    const NO_SUCH_PORT: &str = "this host has no such port; `hotplugger ports` lists its ports";
    let name = if let Ok(port) = text.parse::<Port>() {
        let known = topology.ports().into_iter().find(|known| known.port == port);
        let known = known.with_context(|| format!("{text}: {NO_SUCH_PORT}"))?;
        PortName::DevPath(known.devpath.clone())
    } else if text.starts_with("/sys/") {
        let devpath: Option<DevPath> = devpath_of(&root.path("/sys"), &root.path(Path::new(text)));
        let devpath = devpath.filter(|devpath| devpath.port().is_some());
        devpath.map(PortName::DevPath).with_context(|| {
            format!("{text}: not a USB device; `hotplugger ports` lists the devices by port")
        })?
    } else {
        text.parse().map_err(|error| {
            anyhow::anyhow!(
                "`{text}` {error}; write a port as `hotplugger ports` shows it, such as 1-4 or \
                 pci-0000:00:14.0/usb2:4"
            )
        })?
    };
    let exists = topology.port_locations().iter().any(|place| name.names_exactly(place));
    if !exists && devices_in(topology, &name).is_empty() {
        bail!("{text}: {NO_SUCH_PORT}");
    }
    Ok(name)
}

/// The devices in the port, in its peer ports, or behind a hub there.
fn devices_in<'a>(topology: &'a Topology, name: &PortName) -> Vec<&'a HubPort> {
    let ports = topology.devices().map(|(port, _)| port);
    ports.filter(|port| name.contains(&topology.usb_location(&port.devpath), true)).collect()
}

struct ManualJob<'a> {
    host: &'a dyn Host,
    config: &'a Config,
    location: &'a UsbLocation,
    port: &'a Port,
    /// The device that was in the port when the command started.
    devnum: Option<DevNum>,
    /// The VM that was named.
    vm: Option<&'a VirtualMachine>,
}

impl<'a> ManualJob<'a> {
    /// Acts while no other hotplugger process handles the port. The error is the report of a failure.
    fn run(&self, action: ManualAction) -> Result<Report, Report> {
        let failed = |why| {
            let context = EventContext::new(self.port, self.devpath(), None);
            Report::new(Some(context), Outcome::Failed(why))
        };
        let lock = self.host.lock_port(self.port);
        let _lock = lock.map_err(|error| failed(format!("{error:#}")))?;
        // Read under the lock: another device may have been plugged in while this process waited.
        let device = self.host.usb_device(self.devpath());
        let device = device.map_err(|error| failed(error.to_string()))?;
        let device = device.ok_or_else(|| failed("it was unplugged".to_owned()))?;
        if self.devnum.is_some_and(|devnum| devnum != device.devnum) {
            let why = "another device was plugged in in the meantime; nothing was done";
            return Err(failed(why.to_owned()));
        }
        self.resolve_unconfirmed(&device)?;
        match action {
            ManualAction::Attach => self.attach(&device),
            ManualAction::Detach(until) => self.detach(&device, until),
            ManualAction::Move => self.move_device(&device),
        }
    }

    /// Finds out whether a guest has the device, if an earlier session left that unknown.
    fn resolve_unconfirmed(&self, device: &UsbDevice) -> Result<(), Report> {
        let Some(record) = self.load_record(device) else { return Ok(()) };
        let Some(unconfirmed) = &record.unconfirmed else { return Ok(()) };
        match unconfirmed::resolve(self.host, self.config, &record, unconfirmed) {
            Ok(_) => Ok(()),
            Err(why) => {
                let context = self.context(device).with_vm(&unconfirmed.vm);
                Err(Report::new(Some(context), Outcome::Unconfirmed(why)))
            }
        }
    }

    /// Attaches the device, unless another VM than the named one has it.
    fn attach(&self, device: &UsbDevice) -> Result<Report, Report> {
        match self.current_vm(device)? {
            Some(current) if self.vm.is_some_and(|vm| vm.name != current.name) => {
                let name = &current.name;
                let why = format!("not attached: `{name}` has it; `hotplugger move` moves it");
                Err(self.failed(device, &why))
            }
            Some(current) => Ok(self.attach_to(current, device)),
            None => self.attach_to_first(device),
        }
    }

    fn detach(&self, device: &UsbDevice, until: Until) -> Result<Report, Report> {
        let current = self.current_vm(device)?;
        if let Some((vm, current)) = self.vm.zip(current)
            && vm.name != current.name
        {
            let why = format!("not detached: `{}` has it, not `{}`", current.name, vm.name);
            return Err(self.failed(device, &why));
        }
        let mut context = self.context(device);
        context.vm = current.map(|vm| vm.name.clone());
        let deleted = match current {
            None => Vec::new(),
            Some(vm) => self.detach_from(vm, device).map_err(|error| {
                let outcome = self.not_detached(vm, device, &error, true);
                Report::new(Some(context.clone()), outcome)
            })?,
        };
        let outcome = Outcome::DetachedManually { ids: deleted, until };
        let mut report = Report::new(Some(context), outcome);
        let detached_for = self.vm.filter(|_| until == Until::VmRestarted).map(|vm| VmStart {
            monitor: vm.monitor.clone(),
            socket_file: self.host.socket_file(&vm.monitor),
        });
        let record = Record {
            attached: None,
            unconfirmed: None,
            unbound: false,
            detached_manual: true,
            detached_for,
            ..self.record(device)
        };
        // A device that was plugged in in the meantime keeps its record: `add` takes no port lock.
        let saved = self.host.update_record(self.port, &|stored| match stored {
            Some(stored) if stored.devnum != device.devnum => {
                let is_present = self.host.usb_device(self.devpath()).ok().flatten();
                let is_same = is_present.is_some_and(|one| one.devnum == device.devnum);
                Some(if is_same { record.clone() } else { stored })
            }
            _ => Some(record.clone()),
        });
        let not_saved = saved.err().map(|error| format!("record not saved: {error:#}"));
        report.warnings.extend(not_saved);
        if let Err(error) = self.host.probe_drivers(self.devpath()) {
            report.warnings.push(format!("not returned to the host's drivers: {error}"));
        }
        Ok(report)
    }

    /// The outcome of a session that did not detach the device. Without QEMU's reply, the guest may
    /// have it or not.
    fn not_detached(
        &self,
        vm: &VirtualMachine,
        device: &UsbDevice,
        error: &Error,
        detached_manual: bool,
    ) -> Outcome {
        if !error.is_without_reply() {
            return Outcome::Failed(format!("not detached: `{}` keeps it: {error}", vm.name));
        }
        let record = self.record(device);
        let id = DeviceId { port: self.port.clone(), devnum: device.devnum };
        let new = || self.host.attachment(vm, device, id);
        let attachment = record.attached.clone().unwrap_or_else(new);
        let record =
            Record { attached: None, unconfirmed: Some(attachment), detached_manual, ..record };
        let not_saved = self.host.save_record_or_warn(&record);
        Outcome::Unconfirmed(match not_saved {
            Some(warning) => format!("{error}; {warning}"),
            None => error.to_string(),
        })
    }

    fn move_device(&self, device: &UsbDevice) -> Result<Report, Report> {
        let Some(from) = self.current_vm(device)? else { return self.attach_to_first(device) };
        let to = match self.vm {
            Some(vm) => vm,
            None => self.next_running(from, device)?,
        };
        if to.name == from.name {
            let context = self.context(device).with_vm(&to.name);
            return Ok(Report::new(Some(context), Outcome::AlreadyAttached));
        }
        let not_moved = |why: String| self.failed(device, &format!("not moved: {why}"));
        if !self.host.is_running(&to.monitor) {
            let (to, from) = (&to.name, &from.name);
            return Err(not_moved(format!("`{to}` does not run; `{from}` keeps the device")));
        }
        let interfaces = self.host.interfaces(self.devpath());
        policy::check(self.host, self.assignment(to), device, &interfaces)
            .map_err(|why| not_moved(format!("it may not go to `{}`: {why}", to.name)))?;
        self.detach_from(from, device).map_err(|error| {
            let context = self.context(device).with_vm(&from.name);
            Report::new(Some(context), self.not_detached(from, device, &error, false))
        })?;
        let mut report = self.attach_to(to, device);
        if !report.outcome.is_attached() {
            let is_back = self.attach_to(from, device).outcome.is_attached();
            let result = if is_back { "attached again" } else { "not attached again" };
            report.warnings.push(format!("{result} to `{}`", from.name));
        }
        Ok(report)
    }

    /// The VM that has the device, whether it is recorded or not.
    fn current_vm(&self, device: &UsbDevice) -> Result<Option<&'a VirtualMachine>, Report> {
        let recorded = self.load_record(device).and_then(|record| record.holder().cloned());
        let is_recorded = |vm: &VirtualMachine| {
            recorded.as_ref().is_some_and(|attached| attached.monitor == vm.monitor)
        };
        let mut vms: Vec<&VirtualMachine> = self.config.virtual_machines.iter().collect();
        vms.sort_by_key(|vm| !is_recorded(vm));
        for vm in vms.into_iter().filter(|vm| self.host.is_running(&vm.monitor)) {
            match self.has_object(vm, device) {
                Ok(true) => return Ok(Some(vm)),
                Err(error) if is_recorded(vm) => {
                    let why = format!("`{}` has it and does not answer: {error}", vm.name);
                    return Err(self.failed(device, &why));
                }
                Ok(false) | Err(_) => {}
            }
        }
        Ok(None)
    }

    fn has_object(&self, vm: &VirtualMachine, device: &UsbDevice) -> Result<bool, Error> {
        let id = DeviceId { port: self.port.clone(), devnum: device.devnum };
        let mut session = self.host.connect(&vm.target())?;
        Ok(objects::list(session.as_mut())?.contains(&id))
    }

    /// Attaches the device to the named VM, else to the first that lists the port and runs.
    fn attach_to_first(&self, device: &UsbDevice) -> Result<Report, Report> {
        let candidates = candidates(self.config, self.location, None);
        let vm = match (self.vm, &candidates[..]) {
            (Some(vm), _) => vm,
            (None, []) => {
                if let Some(broken) = self.config.broken_at(self.location) {
                    return Err(self.failed(device, &format!("not attached: {broken}")));
                }
                let why = "not attached: no VM lists this port; name one with --vm";
                return Err(self.failed(device, why));
            }
            (None, candidates) => first_running(candidates, self.host).vm,
        };
        Ok(self.attach_to(vm, device))
    }

    fn next_running(
        &self,
        from: &VirtualMachine,
        device: &UsbDevice,
    ) -> Result<&'a VirtualMachine, Report> {
        let owners = self.config.owners(self.location);
        let start = owners.iter().position(|vm| vm.name == from.name).map_or(0, |at| at + 1);
        let others = owners[start..].iter().chain(&owners[..start]);
        let mut others = others.filter(|vm| vm.name != from.name);
        others.find(|vm| self.host.is_running(&vm.monitor)).copied().ok_or_else(|| {
            let why = format!(
                "not moved: `{}` has it, and no other VM that lists the port runs; name one with \
                 --vm",
                from.name
            );
            self.failed(device, &why)
        })
    }

    fn attach_to(&self, vm: &'a VirtualMachine, device: &UsbDevice) -> Report {
        let record = self.record(device);
        let mut report = attach::attach(&AttachJob {
            host: self.host,
            assignment: self.assignment(vm),
            port: self.port,
            devnum: Some(device.devnum),
            trigger: Trigger::Manual,
            record: Some(record.clone()),
        });
        if !report.outcome.is_attached() && !matches!(report.outcome, Outcome::Unconfirmed(_)) {
            // The config decides about the device again.
            let record =
                Record { detached_manual: false, attached: None, unconfirmed: None, ..record };
            report.warnings.extend(self.host.save_record_or_warn(&record));
        }
        report
    }

    fn detach_from(&self, vm: &VirtualMachine, device: &UsbDevice) -> Result<Vec<DeviceId>, Error> {
        detach_port(self.host, &vm.target(), self.port, self.devpath(), Some(device.devnum))
    }

    fn load_record(&self, device: &UsbDevice) -> Option<Record> {
        let record = self.host.load_record(self.port, self.devpath());
        record.filter(|record| record.devnum == device.devnum)
    }

    fn record(&self, device: &UsbDevice) -> Record {
        let new = || self.host.new_record(self.port, self.devpath(), device.devnum, None);
        self.load_record(device).unwrap_or_else(new)
    }

    fn assignment(&self, vm: &'a VirtualMachine) -> Assignment<'a> {
        Assignment { config: self.config, vm, location: self.location }
    }

    fn devpath(&self) -> &'a DevPath {
        &self.location.own.devpath
    }

    fn context(&self, device: &UsbDevice) -> EventContext {
        let context = EventContext::new(self.port, self.devpath(), Some(device.devnum));
        context.with_device(device.label())
    }

    fn failed(&self, device: &UsbDevice, why: &str) -> Report {
        Report::new(Some(self.context(device)), Outcome::Failed(why.to_owned()))
    }
}
