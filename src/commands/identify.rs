//! `identify`: shows the port that a device is plugged into or pulled from.
//!
//! `watch` makes events of ports from uevents, `report` the lines about one of them and for the config.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use self::report::{Found, FoundPort, PortReport, Reporter};
use self::watch::{EndReason, Event, LiveSource, PortEvent, watch};
use super::{CommandStatus, Context, seconds};
use crate::clock::Monotonic;
use crate::config::edit::{self, EditError, NewPort};
use crate::config::file::ConfigFile;
use crate::config::port::PortName;
use crate::config::{Config, file};
use crate::devpath::DevPath;
use crate::host::topology::{HubPort, Topology, read_topology, usb_location};
use crate::journal;
use crate::output::{Line, Output, Style};

mod report;
mod watch;

#[derive(Debug, Args)]
pub struct Identify {
    /// Show the devices that are plugged in now, and do not wait
    #[arg(long, conflicts_with_all = ["count", "timeout"])]
    plugged: bool,
    /// With --plugged: only devices in this port (3-1.4), with these IDs (046d:c52b), or with this
    /// text in their name
    #[arg(value_name = "DEVICE", requires = "plugged")]
    devices: Vec<String>,
    /// End after this many connectors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    count: Option<u16>,
    /// End after this time; the exit status is 1 if there was no device, or fewer than --count
    #[arg(long, value_name = "SECONDS", value_parser = |text: &str| seconds(text, WEEK))]
    timeout: Option<Duration>,
    /// Add the ports to this VM in the config file. The old text is kept in config.yaml.bak
    #[arg(long, value_name = "VM")]
    write: Option<String>,
    /// Print a JSON object for each event, one a line
    #[arg(long)]
    json: bool,
}

/// The JSON objects besides those of ports.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Notice<'a> {
    /// From now on, nothing is missed.
    Listening,
    End {
        reason: EndReason,
        ports: Vec<&'a str>,
        yaml: String,
        written: Option<&'a Written>,
        error: Option<String>,
    },
}

/// In seconds.
const WEEK: u32 = 604_800;

impl Identify {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        if self.plugged && self.write.is_some() && self.devices.is_empty() {
            bail!(
                "--plugged --write would give away every device there is: name those you mean, by \
                 port (3-1.4), ids (046d:c52b) or a part of their name"
            );
        }
        let config = self.config(context)?;
        let location_of = |devpath: &_| usb_location(context.root, devpath);
        let reporter = Reporter { config: &config, location_of: &location_of };
        let mut found = Found::default();
        let mut on_event = |event: &PortEvent, output: &mut Output| -> Result<usize> {
            let report = reporter.report(event);
            self.print_report(&report, output)?;
            found.add(&report);
            Ok(found.count())
        };
        let end = if self.plugged {
            for event in plugged(&read_topology(context.root), &self.devices) {
                on_event(&event, output)?;
            }
            EndReason::Listed
        } else {
            self.watch(context, output, &mut on_event)?
        };
        self.finish(context, output, &config, &found, end)?;
        let wanted = self.count.map_or(1, usize::from);
        let short = matches!(end, EndReason::Timeout | EndReason::Listed) && found.count() < wanted;
        Ok(if short { CommandStatus::Problems } else { CommandStatus::Ok })
    }

    /// A config that ports are not written to only names the VMs of ports, so it may be broken.
    fn config(&self, context: &Context<'_>) -> Result<Config> {
        match &self.write {
            Some(vm) => check_config(context, vm),
            None => Ok(context.config().unwrap_or_else(|error| {
                journal::write_stderr(&format!("{error:#}; so no port is shown with its VM"));
                Config::default()
            })),
        }
    }

    fn watch(
        &self,
        context: &Context<'_>,
        output: &mut Output,
        on_event: &mut impl FnMut(&PortEvent, &mut Output) -> Result<usize>,
    ) -> Result<EndReason> {
        let mut source =
            LiveSource::open(context.root, self.count.is_none() && self.timeout.is_none())?;
        let before = read_topology(context.root);
        self.print_prompt(output, source.has_terminal())?;
        let until = self.timeout.map(|time| Monotonic::now().after(time));
        watch(&mut source, &before, until, |event| {
            let count = on_event(&event, output)?;
            Ok(self.count.is_some_and(|wanted| count >= usize::from(wanted)))
        })
    }

    fn print_prompt(&self, output: &mut Output, has_terminal: bool) -> Result<()> {
        if self.json {
            return Ok(output.json_line(&Notice::Listening)?);
        }
        let key = if has_terminal { "Enter" } else { "Ctrl-C" };
        let then = match &self.write {
            Some(vm) => format!("ends, and adds the ports to {vm}"),
            None => "ends".to_owned(),
        };
        let line = Line::default()
            .with(Style::Strong, "Plug or pull a device in the port you want.")
            .plain(format!(" {key} {then}."));
        Ok(output.line(&line)?)
    }

    fn print_report(&self, report: &PortReport, output: &mut Output) -> Result<()> {
        if self.json {
            return Ok(output.json_line(report)?);
        }
        Ok(report.lines().iter().try_for_each(|line| output.line(line))?)
    }

    /// Writes the ports into the config, or prints the lines for it, also if it fails.
    fn finish(
        &self,
        context: &Context<'_>,
        output: &mut Output,
        config: &Config,
        found: &Found,
        end: EndReason,
    ) -> Result<()> {
        let written = match &self.write {
            Some(vm) if found.count() > 0 => add_ports(context, vm, found).map(Some),
            _ => Ok(None),
        };
        let yaml = found.yaml(config);
        if self.json {
            let (written, error) = match &written {
                Ok(written) => (written.as_ref(), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            output.json_line(&Notice::End {
                reason: end,
                ports: found.ports().map(|port| port.devpath().as_str()).collect(),
                yaml: if found.count() > 0 { yaml.join("\n") + "\n" } else { String::new() },
                written,
                error,
            })?;
        } else if found.count() == 0 {
            output.line(&"No port was seen.".into())?;
        } else if let Ok(Some(written)) = &written {
            written.lines().iter().try_for_each(|line| output.text(line))?;
        } else {
            output.line(&Line::default())?;
            output
                .line(&"For the config, below the virtual machine that is to have them:".into())?;
            yaml.iter().try_for_each(|line| output.text(line))?;
        }
        written.map(drop)
    }
}

/// The occupied ports that one of the words names; without words all but those behind hubs, which
/// are reported with their hub.
fn plugged(topology: &Topology, words: &[String]) -> Vec<PortEvent> {
    let meant = |port: &&HubPort| match words {
        [] => port.port.parent().is_none(),
        words => words.iter().any(|word| is_meant(port, word)),
    };
    let is_occupied = |port: &&HubPort| port.plugged.is_some();
    let event = |port: &HubPort| PortEvent {
        event: Event::Plugged,
        port: port.clone(),
        behind: port.behind().into_iter().filter(is_occupied).cloned().collect(),
    };
    topology.ports().into_iter().filter(is_occupied).filter(meant).map(event).collect()
}

fn is_meant(port: &HubPort, word: &str) -> bool {
    let word = word.to_lowercase();
    port.port.to_string() == word
        || port.devpath.as_str().to_lowercase() == word
        || port.device().is_some_and(|device| {
            let ids = format!("{:04x}:{:04x}", device.vendor_id, device.product_id);
            let name = device.product.as_deref().unwrap_or_default().to_lowercase();
            ids == word || name.contains(&word) && !word.is_empty()
        })
}

#[derive(Debug, Serialize)]
struct Written {
    vm: String,
    file: PathBuf,
    /// The backup of the old text. `None` if nothing had to be written.
    backup: Option<PathBuf>,
    added: Vec<DevPath>,
    names: Vec<PortName>,
    had: Vec<DevPath>,
}

/// Fails if ports cannot be added to that VM, before the user plugs and pulls devices.
fn check_config(context: &Context<'_>, vm: &str) -> Result<Config> {
    let file = find_config(context)?;
    let config = file.parse()?.whole()?;
    config.named(vm).with_context(|| file.path.display().to_string())?;
    file::refuse_if_not_writable(&file)?;
    Ok(config)
}

/// Adds the ports to the VM, except those that it has already.
fn add_ports(context: &Context<'_>, vm: &str, found: &Found) -> Result<Written> {
    // Read again, because it may have been edited while the user plugged devices.
    let file = find_config(context)?;
    let text = std::str::from_utf8(&file.text)
        .with_context(|| format!("{}: not UTF-8 text", file.path.display()))?;
    let at = |error: EditError| match error {
        EditError::Config(error) => anyhow::anyhow!("{}:{error}", file.path.display()),
        error => anyhow::anyhow!("{}: {error}", file.path.display()),
    };
    let config = file.parse()?;
    let has = |port: &FoundPort| config.owners(&port.location).iter().any(|owner| owner.name == vm);
    let (had, found): (Vec<FoundPort>, Vec<FoundPort>) = found.ports().cloned().partition(has);
    let taken = found.iter().find_map(|port| Some((port, config.lists(&port.location.own)?)));
    if let Some((port, owner)) = taken {
        return Err(at(EditError::Taken(port.new.name.clone(), owner.name.clone())));
    }
    let devpaths = |ports: &[FoundPort]| ports.iter().map(|port| port.devpath().clone()).collect();
    let new: Vec<NewPort> = found.iter().map(|port| port.new.clone()).collect();
    let mut backup = None;
    if !new.is_empty() {
        let insertion = edit::add_ports(text, vm, &new).map_err(at)?;
        backup = Some(file::replace(&file, &insertion.apply(text))?);
    }
    let (had, added) = (devpaths(&had), devpaths(&found));
    let names = new.into_iter().map(|port| port.name).collect();
    Ok(Written { vm: vm.to_owned(), file: file.path.clone(), backup, added, names, had })
}

fn find_config(context: &Context<'_>) -> Result<ConfigFile> {
    ConfigFile::find(context.root, context.config)?
        .context("there is no config file to write to; `--config FILE` names one")
}

impl Written {
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.had.iter().map(|port| format!("{} has it already: {port}", self.vm)).collect();
        lines.extend(self.names.iter().map(|port| format!("added to {}: {port}", self.vm)));
        let backup = self.backup.as_ref().map(|path| format!("; the old text: {}", path.display()));
        let file = self.file.display();
        lines.push(match backup {
            Some(backup) => format!("config: {file}{backup}"),
            None => format!("config: {file}, unchanged"),
        });
        lines
    }
}
