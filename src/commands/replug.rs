//! `replug`: switches a port off and on, as if its device were pulled and plugged in again.

use std::fs::File;
use std::io::{IsTerminal, Write as _, stdin};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::manual::{PORT_HELP, named_ports, port_name};
use super::{CommandStatus, Context, ask};
use crate::devpath::DevPath;
use crate::host::topology::{self, HubPort, Plugged, Topology, read_topology};
use crate::output::Output;

#[derive(Debug, Args)]
pub struct Replug {
    #[arg(help = PORT_HELP)]
    port: String,
}

/// How long the port is off, so that a device loses its charge.
const OFF: Duration = Duration::from_secs(1);

/// How long the device may take to come back.
const TIMEOUT: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(100);

impl Replug {
    /// Switches the port and its peer ports off and on (`drivers/usb/core/port.c`: `disable_store`).
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let root = context.root;
        if !rustix::process::geteuid().is_root() && !root.is_moved() {
            bail!("only root may switch ports: run it with sudo");
        }
        let topology = read_topology(root);
        let name = port_name(root, &topology, &self.port)?;
        let ports = named_ports(&topology, &name);
        let switches: Vec<PathBuf> = ports
            .iter()
            .filter_map(|port| topology::port_directory(root, port))
            .map(|directory| directory.join("disable"))
            .collect();
        if let Some(missing) = switches.iter().find(|switch| !switch.exists()) {
            bail!(
                "{}: there is no {}; switching ports takes Linux 6.0 or later. Pull the device and plug it in",
                self.port,
                missing.display()
            );
        }
        if switches.is_empty() {
            bail!("{}: a root hub cannot be switched; name one of its ports", self.port);
        }
        let before = plugged(&topology, &ports);
        let what = if before.is_empty() { "nothing".to_owned() } else { before.join(", ") };
        output.text(&format!("{}: switching the port off and on, with {what} in it", self.port))?;
        if stdin().is_terminal() && !confirmed(output)? {
            return Ok(CommandStatus::Ok);
        }
        let off = switches.iter().try_for_each(|switch| set(switch, "1"));
        thread::sleep(OFF);
        // All of them, also after an error.
        let on: Vec<Result<()>> = switches.iter().map(|switch| set(switch, "0")).collect();
        off.and(on.into_iter().collect::<Result<()>>())?;
        let end = Instant::now() + TIMEOUT;
        while !before.is_empty() && Instant::now() < end {
            thread::sleep(POLL);
            let now = plugged(&read_topology(root), &ports);
            if !now.is_empty() {
                output.text(&format!("{}: {} is back", self.port, now.join(", ")))?;
                return Ok(CommandStatus::Ok);
            }
        }
        if before.is_empty() {
            return Ok(CommandStatus::Ok);
        }
        output.text(&format!(
            "{}: nothing has come back within {} s; pull the device and plug it in",
            self.port,
            TIMEOUT.as_secs()
        ))?;
        Ok(CommandStatus::Problems)
    }
}

fn plugged(topology: &Topology, ports: &[DevPath]) -> Vec<String> {
    let label = |port: &HubPort| match &port.plugged {
        Some(Plugged::Device(device)) => Some(device.label()),
        Some(Plugged::Hub(hub, _)) => Some(format!("the hub {}", hub.label())),
        None => None,
    };
    ports.iter().filter_map(|port| topology.port(port)).filter_map(label).collect()
}

fn confirmed(output: &mut Output) -> Result<bool> {
    let answer = ask(output, "Go on? [y/N]")?;
    Ok(answer.is_some_and(|answer| matches!(&answer[..], "y" | "Y" | "yes")))
}

fn set(switch: &PathBuf, value: &str) -> Result<()> {
    let mut file = File::options().append(true).open(switch)?;
    file.write_all(format!("{value}\n").as_bytes()).with_context(|| switch.display().to_string())
}
