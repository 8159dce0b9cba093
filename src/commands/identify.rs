//! `identify`: which port is this? Plug or pull a device in it and see.
//!
//! The core is pure: `watch` makes sightings of events, `report` formats one, `found` makes the
//! lines for the config of all. `live` is this machine, `write` its config file.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use live::LiveSource;
use report::{Found, Report, Reporter};
use serde::Serialize;
use write::Written;

use self::watch::{EndReason, Event, PortEvent, watch};
use super::{CommandStatus, Context};
use crate::clock::Monotonic;
use crate::config::Config;
use crate::host::topology::{HubPort, Topology, location, read_topology};
use crate::journal;
use crate::output::{Line, Output, Style};

mod live;
mod report;
mod watch;
mod write;

#[derive(Debug, Args)]
pub struct Identify {
    /// Shows the devices that are plugged now, and does not wait.
    #[arg(long, conflicts_with_all = ["count", "timeout"])]
    plugged: bool,
    /// With --plugged: only devices in this port (3-1.4), with these ids (046d:c52b), or with this
    /// in their name.
    #[arg(value_name = "DEVICE", requires = "plugged")]
    devices: Vec<String>,
    /// Ends when this many connectors were seen.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    count: Option<u16>,
    /// Ends after this time; with exit status 1 if nothing was seen, or less than --count.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Adds the ports to this VM in the config file. The old text is kept in
    /// config.yaml.bak.
    #[arg(long, value_name = "VM")]
    write: Option<String>,
    /// Prints a JSON object a line.
    #[arg(long)]
    json: bool,
}

/// What `--json` says besides ports.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Notice<'a> {
    /// From now on, nothing is missed.
    Listening,
    End {
        reason: EndReason,
        ports: Vec<&'a str>,
        yaml: String,
        written: Option<Box<Written>>,
        error: Option<String>,
    },
}

/// The longest that can be waited: a week.
const MAX_TIMEOUT: f64 = 604_800.0;

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_TIMEOUT).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("a number of seconds from 0 to {MAX_TIMEOUT}")),
    }
}

impl Identify {
    /// Shows ports until it has shown enough, then the lines for the config.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        if self.plugged && self.write.is_some() && self.devices.is_empty() {
            bail!(
                "--plugged --write would give away every device there is: name those you mean, by \
                 port (3-1.4), ids (046d:c52b) or a part of their name"
            );
        }
        let config = self.config(context)?;
        let places = |devpath: &_| location::places(context.root, devpath);
        let reporter = Reporter { config: &config, places: &places };
        let mut found = Found::default();
        let mut see = |sighting: &PortEvent, output: &mut Output| -> Result<usize> {
            let report = reporter.report(sighting);
            self.show(&report, output)?;
            found.add(&report);
            Ok(found.count())
        };
        let end = if self.plugged {
            for sighting in plugged(&read_topology(context.root), &self.devices) {
                see(&sighting, output)?;
            }
            EndReason::Listed
        } else {
            self.watch(context, output, &mut see)?
        };
        self.finish(context, output, &config, &found, end)?;
        let wanted = self.count.map_or(1, usize::from);
        let short = matches!(end, EndReason::Timeout | EndReason::Listed) && found.count() < wanted;
        Ok(if short { CommandStatus::Problems } else { CommandStatus::Ok })
    }

    /// The config. It must be there and parse if ports are written to it; otherwise it only names owners.
    fn config(&self, context: &Context<'_>) -> Result<Config> {
        match &self.write {
            Some(vm) => write::check(context, vm),
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
        see: &mut impl FnMut(&PortEvent, &mut Output) -> Result<usize>,
    ) -> Result<EndReason> {
        let mut source =
            LiveSource::open(context.root, self.count.is_none() && self.timeout.is_none())?;
        let before = read_topology(context.root);
        self.print_prompt(output, source.has_terminal())?;
        let until = self.timeout.map(|time| Monotonic::now().after(time));
        watch(&mut source, &before, until, |sighting| {
            let count = see(&sighting, output)?;
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

    fn show(&self, report: &Report, output: &mut Output) -> Result<()> {
        if self.json {
            return Ok(output.json_line(report)?);
        }
        Ok(report.lines().iter().try_for_each(|line| output.line(line))?)
    }

    /// Writes the ports into the config, or gives the lines to paste; these too if it fails.
    fn finish(
        &self,
        context: &Context<'_>,
        output: &mut Output,
        config: &Config,
        found: &Found,
        end: EndReason,
    ) -> Result<()> {
        let written = match &self.write {
            Some(vm) if found.count() > 0 => write::add(context, vm, found).map(Some),
            _ => Ok(None),
        };
        let yaml = found.yaml(config);
        if self.json {
            let (written, error) = match &written {
                Ok(written) => (written.clone().map(Box::new), None),
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
    let sighting = |port: &HubPort| PortEvent {
        event: Event::Plugged,
        port: port.clone(),
        behind: port.behind().into_iter().filter(is_occupied).cloned().collect(),
    };
    topology.ports().into_iter().filter(is_occupied).filter(meant).map(sighting).collect()
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
