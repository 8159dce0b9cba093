//! `sync`: attaches missing devices and deletes stale objects, in all VMs at the same time.

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::{CommandStatus, Context, seconds};
use crate::attach::upgraded;
use crate::config::{Config, VirtualMachine};
use crate::host::real::RealHost;
use crate::outcome::{Outcome, Report};
use crate::output::{Line, Output, Style};
use crate::qmp::{Error, UsbHostProblem};
use crate::sync::{SyncJob, delete_stale_records};

#[derive(Debug, Args)]
pub struct Sync {
    /// The VMs [default: all]
    #[arg(value_name = "VM")]
    vms: Vec<String>,

    /// Wait so many seconds, at most 600, for each VM to run and to answer
    #[arg(long, value_name = "SECS", value_parser = |text: &str| seconds(text, 600))]
    wait: Option<Duration>,

    /// Do not wait for a VM without a socket file: for hooks that also run when a VM ends
    #[arg(long, requires = "wait")]
    if_started: bool,
}

enum Message {
    Report(Box<Report>),
    /// The VM's last line, and whether all went well.
    Done(Line, bool),
}

/// Why a guest was not synced.
enum Failure {
    NotRunning(String),
    Error(String),
}

/// The pause between two attempts to reach a VM that does not run yet.
const PAUSE: Duration = Duration::from_millis(100);

impl Sync {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let config = context.trusted_config()?;
        let vms = self.chosen_vms(&config)?;
        let host = RealHost::open_with_state(context.root)?;
        delete_stale_records(&host);
        let (sender, receiver) = channel();
        let mut status = thread::scope(|scope| {
            for vm in &vms {
                let (sender, host, config) = (sender.clone(), &host, &config);
                scope.spawn(move || self.sync_vm(&SyncJob { host, config, vm }, &sender));
            }
            drop(sender);
            self.print_results(context, &receiver, vms.len(), output)
        })?;
        if self.vms.is_empty() {
            for section in &config.broken {
                let line = Line::from(format!("{}: ", section.vm));
                output.line_untruncated(&line.with(Style::Bad, section.to_string()))?;
                status = CommandStatus::Problems;
            }
        }
        Ok(status)
    }

    fn chosen_vms<'a>(&self, config: &'a Config) -> Result<Vec<&'a VirtualMachine>> {
        if self.vms.is_empty() {
            return Ok(config.virtual_machines.iter().collect());
        }
        self.vms.iter().map(|name| config.named(name)).collect()
    }

    fn sync_vm(&self, job: &SyncJob<'_>, sender: &Sender<Message>) {
        let SyncJob { host, vm, .. } = *job;
        let started = Instant::now();
        let left = || self.wait.and_then(|wait| wait.checked_sub(started.elapsed()));
        let mut count = Count::default();
        let mut report = |report: Report| {
            count.add(&report.outcome);
            // The receiver ends with the program.
            let _ = sender.send(Message::Report(Box::new(report)));
        };
        let mut is_first = true;
        let (result, has_ended) = loop {
            let file = host.socket_file(&vm.monitor);
            let result = if host.is_running(&vm.monitor) {
                let timeout = left().unwrap_or_default().max(vm.timeout);
                job.run(timeout, &mut report).map_err(|error| match error {
                    Error::NoUsbHost(UsbHostProblem::Upgraded) => {
                        Failure::Error(upgraded(&vm.name))
                    }
                    Error::NotRunning { .. } => Failure::NotRunning(error.to_string()),
                    error => Failure::Error(error.to_string()),
                })
            } else {
                if mem::take(&mut is_first) {
                    job.return_to_host(&mut report);
                }
                Err(Failure::NotRunning("not running".to_owned()))
            };
            let now = host.socket_file(&vm.monitor);
            let has_ended = self.if_started && now.is_none();
            // A VM that was started again in the meantime has none of the attached devices.
            let is_new = now.is_some() && now != file;
            if result.is_ok() && !is_new || has_ended || left().is_none() {
                break (result, has_ended);
            }
            thread::sleep(PAUSE);
        };
        let name = Line::from(format!("{}: ", vm.name));
        let (line, is_ok) = match (result, self.wait) {
            (Ok(good), _) => (name.with(Style::Good, count.summary(good)), count.failed == 0),
            // A VM that has ended may be off, and without `--wait` so may any.
            (Err(Failure::NotRunning(why) | Failure::Error(why)), _) if has_ended => {
                (name.with(Style::Faint, why), count.failed == 0)
            }
            (Err(Failure::NotRunning(why)), None) => {
                (name.with(Style::Faint, why), count.failed == 0)
            }
            (Err(Failure::Error(why)), None) => (name.with(Style::Bad, why), false),
            (Err(Failure::NotRunning(why) | Failure::Error(why)), Some(wait)) => {
                let waited = wait.as_secs_f64();
                (name.with(Style::Bad, format!("{why}; waited {waited} s")), false)
            }
        };
        let _ = sender.send(Message::Done(line, is_ok));
    }

    /// Prints the threads' messages, until all of them have ended.
    fn print_results(
        &self,
        context: &Context<'_>,
        receiver: &Receiver<Message>,
        mut running: usize,
        output: &mut Output,
    ) -> Result<CommandStatus> {
        let mut progress = Progress::new(self.wait.is_some());
        let mut status = CommandStatus::Ok;
        loop {
            let next = receiver.recv_timeout(Duration::from_secs(1));
            progress.clear();
            match next {
                Ok(Message::Report(report)) => {
                    let style = match &report.outcome {
                        outcome if is_failure(outcome) => Style::Bad,
                        Outcome::Rejected(_) => Style::Warning,
                        _ => Style::Plain,
                    };
                    context.report(&report, style, output)?;
                }
                Ok(Message::Done(line, is_ok)) => {
                    running -= 1;
                    output.line_untruncated(&line)?;
                    if !is_ok {
                        status = CommandStatus::Problems;
                    }
                }
                Err(RecvTimeoutError::Timeout) => progress.show(running),
                Err(RecvTimeoutError::Disconnected) => return Ok(status),
            }
        }
    }
}

fn is_failure(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(_) | Outcome::Unconfirmed(_) | Outcome::NotRunning(_))
}

#[derive(Default)]
struct Count {
    attached: usize,
    deleted: usize,
    skipped: usize,
    failed: usize,
}

impl Count {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Attached { .. } | Outcome::PendingResume => self.attached += 1,
            Outcome::Detached(ids) => self.deleted += ids.len(),
            outcome if is_failure(outcome) => self.failed += 1,
            _ => self.skipped += 1,
        }
    }

    /// `good`: devices that were attached before.
    fn summary(&self, good: usize) -> String {
        let parts = [
            (self.attached, "attached"),
            (self.deleted, "deleted"),
            (self.skipped, "skipped"),
            (self.failed, "failed"),
            (good, "as before"),
        ];
        let last = parts.len() - 1;
        let shown = parts.iter().enumerate().filter(|(at, (count, _))| *at == last || *count > 0);
        shown.map(|(_, (count, name))| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }
}

struct Progress {
    since: Option<Instant>,
    shown: bool,
}

impl Progress {
    fn new(wanted: bool) -> Self {
        let since = (wanted && io::stderr().is_terminal()).then(Instant::now);
        Self { since, shown: false }
    }

    fn show(&mut self, running: usize) {
        let Some(since) = self.since else { return };
        let seconds = since.elapsed().as_secs();
        let vms = if running == 1 { "a VM" } else { "VMs" };
        // A closed terminal needs no progress line.
        let _ = write!(io::stderr(), "waiting for {vms} … {seconds} s");
        self.shown = true;
    }

    fn clear(&mut self) {
        if mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}
