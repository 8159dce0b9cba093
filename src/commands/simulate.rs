//! `simulate`, and `udev --dry-run`: what an event would do.
//!
//! The event runs through the code of the udev call, on a host that changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use super::{CommandStatus, Context};
use crate::config::file::ConfigFile;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::event::{self, handle, may_concern_port};
use crate::host::Host;
use crate::host::dry_run::{DryRun, Step};
use crate::host::topology::devpath_of;
use crate::outcome::{Report, SkipReason};
use crate::output::{Line, Output, Style};
use crate::port::{BusNum, DevNum, Port};
use crate::root::Root;
use crate::text::sanitize;
use crate::uevent::Uevent;
use crate::usb_device::UsbDevice;

#[derive(Debug, Args)]
pub struct Simulate {
    /// A port (1-4), a sysfs path (/sys/bus/usb/devices/1-4), or a file recorded with
    /// `udevadm monitor -k -p`
    target: PathBuf,

    /// The action of the event; of a recording, simulate only the events with this action
    /// [default: bind, or all events of a recording]
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,

    /// Simulate the events that the Python original's two rules let through: add and remove of
    /// everything in usb
    #[arg(long)]
    original_rules: bool,

    /// Assume that the VMs run
    #[arg(long)]
    running: bool,

    /// Print a JSON array with an object for each event
    #[arg(long)]
    json: bool,
}

const MAX_BYTES: u64 = 16 << 20;

/// The variables of a uevent.
#[derive(Debug, PartialEq)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The property that the shipped rule gives to a device that is not authorized, and to the interfaces
/// that the device has once it is.
const UNAUTHORIZED: &str = "HOTPLUGGER_UNAUTHORIZED";

#[derive(Debug, Serialize)]
struct SimulatedEvent {
    action: String,
    devpath: String,
    devtype: String,
    steps: Vec<Step>,
    outcome: &'static str,
    line: String,
    exit_status: u8,
}

impl Simulate {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let is_recording = self.target.is_file();
        let action = self.action.as_deref();
        let events = if is_recording {
            read_recording(&self.target)?
                .into_iter()
                .filter(|event| self.rules_match(event))
                .filter(|event| action.is_none_or(|only| event.get("ACTION") == Some(only)))
                .collect()
        } else {
            vec![event_of_sysfs(context.root, &self.target, action.unwrap_or("bind"))?]
        };
        let host = dry_run_host(context, self.running);
        let mut simulated = Vec::new();
        for event in &events {
            if is_recording {
                assume_device(event, &host);
            }
            simulated.push(simulate(context, &|name| event.0.get(name).cloned(), &host));
        }
        print(&simulated, self.json, output)?;
        Ok(CommandStatus::Ok)
    }

    /// Whether udev's rules would run hotplugger for the event.
    fn rules_match(&self, event: &Variables) -> bool {
        let action = event.get("ACTION").unwrap_or_default();
        let is_matched = match event.get("DEVTYPE") {
            _ if self.original_rules => matches!(action, "add" | "remove"),
            Some("usb_device") => {
                matches!(action, "add" | "bind" | "remove")
                    && !event.get("TYPE").is_some_and(|kind| kind.starts_with("9/"))
            }
            Some("usb_interface") => action == "add" && event.get(UNAUTHORIZED) == Some("1"),
            _ => false,
        };
        is_matched && event.get("SUBSYSTEM") == Some("usb")
    }
}

/// `udev --dry-run`: simulates the event in the environment.
pub fn dry_run(context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
    let host = dry_run_host(context, false);
    print(&[simulate(context, &event::variable, &host)], false, output)?;
    Ok(CommandStatus::Ok)
}

/// A config that cannot be read is reported by the event.
fn dry_run_host<'a>(context: &Context<'a>, assume_running: bool) -> DryRun<'a> {
    let config = context.config().unwrap_or_default();
    DryRun::new(context.root, &config, assume_running)
}

fn simulate(
    context: &Context<'_>,
    variable: &dyn Fn(&str) -> Option<String>,
    host: &DryRun<'_>,
) -> SimulatedEvent {
    let text = |name| variable(name).unwrap_or_default();
    let file = ConfigFile::find(context.root, context.config);
    let report = if may_concern_port(context.root, &file, variable) {
        handle(variable, file, host)
    } else {
        Report::skipped(SkipReason::NotConfigured)
    };
    let decision = report.decision.clone().map(|decision| Step::Decide { decision });
    SimulatedEvent {
        action: text("ACTION"),
        devpath: text("DEVPATH"),
        devtype: text("DEVTYPE"),
        steps: decision.into_iter().chain(host.take_steps()).collect(),
        outcome: report.outcome.name(),
        line: report.to_string(),
        exit_status: u8::from(!report.is_success()),
    }
}

fn print(simulated: &[SimulatedEvent], json: bool, output: &mut Output) -> Result<()> {
    if json {
        return output.json(&simulated).context("standard output");
    }
    for event in simulated {
        let head = Line::default().with(Style::Strong, &event.action);
        output.line(&head.plain(format!(" {} ({})", event.devpath, event.devtype)))?;
        for step in &event.steps {
            let (name, text) = words(step);
            // Not truncated, so that commands can be copied.
            output.text(&format!("    {name:9} {text}"))?;
        }
        let style = if event.exit_status == 0 { Style::Good } else { Style::Bad };
        output.text(&format!("    {:9} {}", "end", event.line))?;
        let status = format!("exit status {}", event.exit_status);
        output.line(&Line::from("              ").with(style, status))?;
    }
    Ok(())
}

fn words(step: &Step) -> (&'static str, String) {
    match step {
        Step::Decide { decision } => ("decide", decision.clone()),
        Step::Unbind { interface, driver } => ("unbind", format!("{driver} from {interface}")),
        Step::Probe { interface } => ("probe", format!("{interface}, for a host driver")),
        Step::Settle { seconds } => ("settle", format!("{seconds} s, if it stays quiet")),
        Step::Connect { socket } => ("connect", socket.display().to_string()),
        Step::Qmp(command) => ("QMP", serde_json::to_string(command).unwrap_or_default()),
        Step::SaveRecord { port } => ("save", format!("the record of port {port}")),
        Step::DeleteRecord { port } => ("delete", format!("the record of port {port}")),
    }
}

/// The event that the kernel would send for the device at `target`, a port or a path below /sys.
fn event_of_sysfs(root: &Root, target: &Path, action: &str) -> Result<Variables> {
    let port = target.to_str().and_then(|name| name.parse::<Port>().ok());
    let path = match port {
        Some(port) => root.path(format!("/sys/bus/usb/devices/{port}")),
        None => root.path(target),
    };
    let shown = target.display();
    let Some(devpath) = devpath_of(&root.path("/sys"), &path) else {
        bail!("{shown}: nothing is plugged in there, or it is not a path below /sys");
    };
    let uevent = fs::read_to_string(path.join("uevent"))
        .with_context(|| format!("{shown}: not a device, it has no `uevent` file"))?;
    let mut event = variables(&uevent);
    for (name, value) in
        [("ACTION", action), ("DEVPATH", devpath.as_str()), ("SUBSYSTEM", "usb"), ("SEQNUM", "0")]
    {
        event.0.insert(name.to_owned(), value.to_owned());
    }
    Ok(event)
}

/// Assumes that the device of a recorded event is plugged in, authorized, or unplugged.
fn assume_device(event: &Variables, host: &DryRun<'_>) {
    let Ok(uevent) = Uevent::from_variables(|name| event.0.get(name).cloned()) else { return };
    if event.get("DEVTYPE") != Some("usb_device") {
        if event.get(UNAUTHORIZED) == Some("1")
            && let Some(devpath) = uevent.devpath.parent()
            && let Ok(Some(device)) = host.usb_device(&devpath)
        {
            host.with_device(&devpath, UsbDevice { authorized: true, ..device });
        }
    } else if event.get("ACTION") == Some("remove") {
        let id = uevent.devpath.port().zip(uevent.devnum);
        let id = id.map(|(port, devnum)| DeviceId { port, devnum });
        host.without_device(&uevent.devpath, id);
    } else if let Some(device) = recorded_device(event, &uevent) {
        host.with_device(&uevent.devpath, device);
    }
}

fn recorded_device(event: &Variables, uevent: &Uevent) -> Option<UsbDevice> {
    let mut ids = event.get("PRODUCT").unwrap_or_default().split('/');
    let mut id = || ids.next().and_then(|id| u16::from_str_radix(id, 16).ok()).unwrap_or(0);
    Some(UsbDevice {
        busnum: uevent.busnum.unwrap_or(BusNum(uevent.devpath.port()?.bus().0)),
        devnum: uevent.devnum.unwrap_or(DevNum(0)),
        class: uevent.class.unwrap_or(0),
        authorized: event.get(UNAUTHORIZED) != Some("1"),
        vendor_id: id(),
        product_id: id(),
        speed: None,
        product: event.get("ID_MODEL").map(|model| sanitize(&model.replace('_', " "), 64)),
        serial: event.get("ID_SERIAL_SHORT").map(str::to_owned),
    })
}

/// The events in a file: blocks of `NAME=VALUE` lines with blank lines between them, as
/// `udevadm monitor -p` prints them. If the kernel's events are among them, only those: udev's
/// events repeat them.
fn read_recording(file: &Path) -> Result<Vec<Variables>> {
    let shown = file.display();
    let size = fs::metadata(file).with_context(|| format!("{shown}"))?.len();
    if size > MAX_BYTES {
        bail!("{shown}: larger than 16 MiB; this is not a recording of uevents");
    }
    let text = fs::read(file).with_context(|| format!("{shown}"))?;
    let mut events = parse_recording(&String::from_utf8_lossy(&text));
    if events.is_empty() {
        bail!("{shown}: no event with ACTION and DEVPATH; record with `udevadm monitor -k -p`");
    }
    mark_unauthorized(&mut events);
    Ok(events)
}

/// Adds the rule's property, which the kernel's events do not have. A device that is not authorized is
/// bound before it has interfaces (`drivers/usb/core/generic.c`: `usb_generic_driver_probe`).
fn mark_unauthorized(events: &mut [Variables]) {
    // The `add` and then the `bind` of each device that had no interfaces at the time.
    let mut without_interfaces: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for index in 0..events.len() {
        let event = &events[index];
        let devpath = event.get("DEVPATH").unwrap_or_default().to_owned();
        match (event.get("DEVTYPE"), event.get("ACTION")) {
            (Some("usb_device"), Some("add")) => {
                without_interfaces.insert(devpath, vec![index]);
            }
            (Some("usb_device"), Some("bind")) => {
                without_interfaces.entry(devpath).and_modify(|known| known.push(index));
            }
            (Some("usb_device"), Some("remove")) => {
                without_interfaces.remove(&devpath);
            }
            (Some("usb_interface"), Some("add")) => {
                let device = devpath.rsplit_once('/').map_or("", |(device, _)| device);
                match without_interfaces.get(device) {
                    Some(known) if known.len() > 1 => {
                        for &index in known.iter().chain([&index]) {
                            events[index].0.insert(UNAUTHORIZED.to_owned(), "1".to_owned());
                        }
                    }
                    _ => {
                        without_interfaces.remove(device);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Reads it also indented or quoted, as people paste it from an issue or a mail.
fn parse_recording(text: &str) -> Vec<Variables> {
    let unquoted = |line: &str| line.trim_start_matches([' ', '\t', '>']).trim_end().to_owned();
    let text = text.lines().map(unquoted).collect::<Vec<_>>().join("\n");
    let has_kernel_events = text.contains("\nKERNEL[") || text.starts_with("KERNEL[");
    text.split("\n\n")
        .filter(|block| !has_kernel_events || block.trim_start().starts_with("KERNEL["))
        .map(variables)
        .filter(|event| {
            event.get("ACTION").is_some()
                && event.get("DEVPATH").is_some_and(|path| path.parse::<DevPath>().is_ok())
        })
        .collect()
}

fn variables(text: &str) -> Variables {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let named = pairs.filter(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    Variables(named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MONITOR: &str = "monitor will print the received events for:\nUDEV - the event which udev \
        sends out after rule processing\nKERNEL - the kernel uevent\n\nKERNEL[300.565910] add      \
        /devices/x/usb1/1-3 (usb)\nACTION=add\nDEVPATH=/devices/x/usb1/1-3\nSUBSYSTEM=usb\n\nUDEV  \
        [300.6] add      /devices/x/usb1/1-3 (usb)\nACTION=add\nDEVPATH=/devices/x/usb1/1-3\nA=b=c\n\n";

    #[test]
    fn udev_events_are_simulated_only_if_the_recording_has_no_kernel_events() {
        let events = parse_recording(MONITOR);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].get("SUBSYSTEM"), Some("usb"));
        let events = parse_recording(&MONITOR[MONITOR.find("UDEV  [").unwrap()..]);
        assert_eq!(events[0].get("A"), Some("b=c"));
        assert_eq!(parse_recording("ACTION=add\nDEVPATH=/devices/x\n").len(), 1);
    }

    #[test]
    fn recording_may_be_indented_or_quoted() {
        let expected = parse_recording(MONITOR);
        for mark in ["    ", "> ", ">", "> > ", "\t"] {
            let lines = MONITOR.lines().map(|line| format!("{mark}{line}\r\n"));
            assert_eq!(parse_recording(&lines.collect::<String>()), expected, "{mark:?}");
        }
    }

    proptest! {
        #[test]
        fn parser_accepts_any_text(text in "(ACTION=|DEVPATH=|/devices/|KERNEL\\[|\n|=|\\PC){0,40}") {
            parse_recording(&text);
        }
    }
}
