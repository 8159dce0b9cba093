//! `simulate`, and `udev --dry-run`: what would an event do?
//!
//! The event goes through the very code of the udev call, in a world that is only rehearsed in.

pub mod event;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use self::event::{Event, recorded};
use super::{CommandStatus, Context};
use crate::event::Hook;
use crate::host::dry_run::{DryRun, Step};
use crate::outcome::Report;
use crate::output::{Line, Output, Style};

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// A port (1-4), a sysfs path (/sys/bus/usb/devices/1-4), or a file recorded with
    /// `udevadm monitor -k -p`, all of whose events are played.
    target: PathBuf,

    /// The action of the event; for a recorded file, plays the events of this action only.
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,

    /// Plays what the Python original's two rules let through (add and remove of everything in
    /// usb) instead of what ours does.
    #[arg(long)]
    original_rules: bool,

    /// Supposes that the virtual machines run.
    #[arg(long)]
    running: bool,

    /// Prints a JSON array with an object for each event.
    #[arg(long)]
    json: bool,
}

/// One event and what came of it; the form is documented in docs/json.md.
#[derive(Debug, Serialize)]
struct Played {
    action: String,
    devpath: String,
    devtype: String,
    steps: Vec<Step>,
    outcome: &'static str,
    line: String,
    exit_status: u8,
}

impl Simulate {
    /// Plays the events and prints what they would do.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let rehearsal = DryRun::new(context.root, self.running);
        let recording = self.target.is_file().then_some(&self.target);
        let events = match recording {
            Some(file) => recorded(file)?
                .into_iter()
                .filter(|event| self.lets_through(event))
                .filter(|event| self.action.as_deref().is_none_or(|only| only == event.action()))
                .collect(),
            None => vec![Event::of_sysfs(
                context.root,
                &self.target,
                self.action.as_deref().unwrap_or("bind"),
            )?],
        };
        let mut played = Vec::new();
        for event in &events {
            if recording.is_some() {
                event.suppose(&rehearsal);
            }
            played.push(play(context, event, &rehearsal));
        }
        show(&played, self.json, output)?;
        Ok(CommandStatus::Ok)
    }

    /// Whether udev's rules would run hotplugger for it.
    fn lets_through(&self, event: &Event) -> bool {
        let action = event.action();
        if self.original_rules {
            return matches!(action, "add" | "remove") && event.get("SUBSYSTEM") == Some("usb");
        }
        matches!(action, "add" | "bind" | "remove")
            && event.get("SUBSYSTEM") == Some("usb")
            && event.get("DEVTYPE") == Some("usb_device")
            && !event.get("TYPE").is_some_and(|kind| kind.starts_with("9/"))
    }
}

/// Plays the event that is in the environment.
pub fn dry_run(context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
    let event = Event::of_environment();
    let rehearsal = DryRun::new(context.root, false);
    show(&[play(context, &event, &rehearsal)], false, output)?;
    Ok(CommandStatus::Ok)
}

fn play(context: &Context<'_>, event: &Event, rehearsal: &DryRun<'_>) -> Played {
    let hook = Hook {
        root: context.root,
        config: context.config,
        variable: &|name| event.get(name).map(str::to_owned),
        variables: &|| event.variables(),
        world: Some(rehearsal),
    };
    let outcome: Report = hook.run();
    let text = |name| event.get(name).unwrap_or_default().to_owned();
    Played {
        action: text("ACTION"),
        devpath: text("DEVPATH"),
        devtype: text("DEVTYPE"),
        steps: rehearsal.steps(),
        outcome: outcome.end.name(),
        line: outcome.to_string(),
        exit_status: u8::from(!outcome.is_success()),
    }
}

fn show(played: &[Played], json: bool, output: &mut Output) -> Result<()> {
    if json {
        return output.json(&played).context("standard output");
    }
    for event in played {
        let head = Line::default().with(Style::Strong, &event.action);
        output.line(&head.plain(format!(" {} ({})", event.devpath, event.devtype)))?;
        for step in &event.steps {
            let (what, text) = words(step);
            // Not cut: commands are there to be copied.
            output.text(&format!("    {what:9} {text}"))?;
        }
        let tone = if event.exit_status == 0 { Style::Good } else { Style::Bad };
        output.text(&format!("    {:9} {}", "end", event.line))?;
        let status = format!("exit status {}", event.exit_status);
        output.line(&Line::from("              ").with(tone, status))?;
    }
    Ok(())
}

fn words(step: &Step) -> (&'static str, String) {
    match step {
        Step::Decide { decision } => ("decide", decision.clone()),
        Step::Unbind { interface, driver } => ("unbind", format!("{driver} from {interface}")),
        Step::Probe { interface } => ("probe", format!("{interface}, for a driver of the host")),
        Step::Settle { seconds } => ("settle", format!("{seconds} s, if it stays quiet")),
        Step::Connect { socket } => ("connect", display(socket)),
        Step::Qmp(sent) => ("QMP", serde_json::to_string(sent).unwrap_or_default()),
        Step::Remember { port } => ("remember", format!("port {port}")),
        Step::Forget { port } => ("forget", format!("port {port}")),
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
