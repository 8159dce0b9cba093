//! `status`: each virtual machine, what is in its ports and in its guest, and what happened last.

mod gather;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{CommandStatus, Context};
use crate::output::{Line, Output, Style};
use crate::state::{dir, history};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,

    /// How many of the last events are shown.
    #[arg(long, value_name = "N", default_value_t = 10)]
    events: usize,
}

/// What is printed; the form is documented in docs/json.md.
#[derive(Debug, Serialize)]
struct Report {
    virtual_machines: Vec<Machine>,
    events: Vec<history::Entry>,
}

/// A virtual machine.
#[derive(Debug, Serialize)]
struct Machine {
    name: String,
    socket: String,
    /// `running`, `paused`, `not-running` or `unreachable`.
    state: &'static str,
    /// Why it could not be asked.
    problem: Option<String>,
    buses: Vec<Bus>,
    attached: Vec<Object>,
    ports: Vec<Port>,
}

/// A USB bus of the guest.
#[derive(Debug, Serialize)]
struct Bus {
    name: String,
    controller: String,
    free_usb2: usize,
    free_usb3: usize,
}

/// A device of ours in the guest.
#[derive(Debug, Serialize)]
struct Object {
    id: String,
    bus: String,
    port: String,
    product: String,
    speed: Option<String>,
    /// Whether the guest really has it; false while the guest is paused or the device is gone.
    attached: bool,
    /// For how many seconds, if it is remembered.
    seconds: Option<u64>,
}

/// A configured port.
#[derive(Debug, Serialize)]
struct Port {
    /// None if it is named otherwise and the host has no such port now.
    devpath: Option<String>,
    /// As the config names it.
    name: String,
    exists: bool,
    /// What is in it or behind it.
    devices: Vec<String>,
}

impl Status {
    /// Prints the state of all that is configured.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let config = context.config()?;
        let mut events = history::read(context.root);
        events.drain(..events.len().saturating_sub(self.events));
        let report = Report { virtual_machines: gather::machines(context.root, &config), events };
        if self.json {
            output.json(&report)?;
            return Ok(CommandStatus::Ok);
        }
        if report.virtual_machines.is_empty() {
            output.line(&Line::from("No virtual machine is configured."))?;
        }
        for machine in &report.virtual_machines {
            machine_lines(machine, output)?;
        }
        event_lines(&report.events, output)?;
        if dir::hidden(context.root) {
            let note = "Events and times only root can see: sudo hotplugger status";
            output.line(&Line::from((Style::Faint, note)))?;
        }
        Ok(CommandStatus::Ok)
    }
}

fn machine_lines(machine: &Machine, output: &mut Output) -> Result<()> {
    let tone = match machine.state {
        "running" => Style::Good,
        "unreachable" => Style::Bad,
        _ => Style::Warning,
    };
    let head = Line::default().with(Style::Strong, machine.name.as_str()).plain("  ");
    let head = head.with(tone, machine.state).with(Style::Faint, format!("  {}", machine.socket));
    output.line(&head)?;
    if let Some(problem) = &machine.problem {
        output.line(&Line::from("  ").with(tone, problem.as_str()))?;
    }
    let mut rows = Vec::new();
    for bus in &machine.buses {
        rows.push(vec![
            Line::from("  bus"),
            Line::from(bus.name.as_str()),
            Line::from(bus.controller.as_str()),
            Line::from(format!("free: {} USB 2, {} USB 3", bus.free_usb2, bus.free_usb3)),
        ]);
    }
    output.table(&rows)?;
    rows.clear();
    for device in &machine.attached {
        let speed = device.speed.as_ref().map(|speed| format!("{speed} Mb/s"));
        let (tone, state) =
            if device.attached { (Style::Good, "attached") } else { (Style::Warning, "not open") };
        rows.push(vec![
            Line::from("  has"),
            Line::from(device.id.as_str()),
            Line::from(device.product.as_str()),
            Line::from(format!("{} {}", device.bus, device.port)),
            Line::from(speed.unwrap_or_default()),
            Line::from((tone, state)),
            Line::from(
                device.seconds.map(|age| format!("for {}", duration(age))).unwrap_or_default(),
            ),
        ]);
    }
    output.table(&rows)?;
    rows.clear();
    for port in &machine.ports {
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

fn event_lines(events: &[history::Entry], output: &mut Output) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    output.line(&Line::from((Style::Strong, "last events")))?;
    let now = gather::now();
    for event in events {
        let age = duration(now.saturating_sub(event.time) / 1000);
        let tone = match event.outcome.as_str() {
            "failed" => Style::Bad,
            "rejected" => Style::Warning,
            _ => Style::Plain,
        };
        let line = Line::default().with(Style::Faint, format!("  {age:>6} ago  "));
        output.line(&line.with(tone, event.line.as_str()))?;
    }
    Ok(())
}

/// A time in the greatest unit that it fills.
fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_greatest_unit() {
        let told: Vec<String> = [5, 119, 120, 7200, 200_000].into_iter().map(duration).collect();
        assert_eq!(told, ["5 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
