//! `sync`: brings what virtual machines have in line with what is plugged in.

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::{CommandStatus, Context};
use crate::config::{Config, VirtualMachine};
use crate::host::real::RealHost;
use crate::host::topology::read::topology;
use crate::outcome::{Outcome, Report};
use crate::output::{Line, Output, Style};
use crate::state::dir;
use crate::sync;

/// Arguments of `sync`.
#[derive(Debug, Args)]
pub struct Sync {
    /// The virtual machines [default: all].
    #[arg(value_name = "VM")]
    vms: Vec<String>,

    /// Waits so many seconds, 600 at most, for each of them to run and to answer.
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    wait: Option<Duration>,

    /// Does not wait for one whose socket is not there: for hooks that are also run when it ends.
    #[arg(long, requires = "wait")]
    if_started: bool,
}

/// What a thread tells.
enum Told {
    /// Something was done, or not.
    Report(Box<Report>),
    /// The virtual machine is done with, well or not, and this is to be said.
    Done(Line, bool),
}

/// How long between two looks at a virtual machine that does not run yet.
const PAUSE: Duration = Duration::from_millis(100);

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|secs| Duration::try_from_secs_f64(secs).ok());
    seconds
        .filter(|time| *time <= Duration::from_secs(600))
        .ok_or_else(|| "a number of seconds from 0 to 600".to_owned())
}

impl Sync {
    /// Attaches what is missing and deletes what is stale, in all of them at the same time.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let config = context.trusted_config()?;
        let vms = self.chosen(&config)?;
        let world = RealHost::open_with_state(context.root)?;
        let records = dir::peek_all(context.root);
        let look = || topology(context.root);
        sync::forget_the_gone(&world, &records, &look());
        let (teller, told) = channel();
        thread::scope(|scope| {
            for vm in &vms {
                let teller = teller.clone();
                let (world, config, look) = (&world, &config, &look);
                scope.spawn(move || {
                    self.bring(&sync::Sync { world, config, vm, look }, &teller);
                });
            }
            drop(teller);
            self.listen(context, &told, vms.len(), output)
        })
    }

    fn chosen<'a>(&self, config: &'a Config) -> Result<Vec<&'a VirtualMachine>> {
        if self.vms.is_empty() {
            return Ok(config.virtual_machines.iter().collect());
        }
        Ok(self.vms.iter().map(|name| config.named(name)).collect::<Result<_, _>>()?)
    }

    /// Brings one in line, as soon as it runs.
    fn bring(&self, sync: &sync::Sync<'_>, teller: &Sender<Told>) {
        let vm = sync.vm;
        let started = Instant::now();
        let left = || self.wait.and_then(|wait| wait.checked_sub(started.elapsed()));
        let mut count = Count::default();
        let mut tell = |outcome: Report| {
            count.add(&outcome.end);
            // Who hears it is gone only when the program is.
            let _ = teller.send(Told::Report(Box::new(outcome)));
        };
        let mut reclaim = vm.return_to_host;
        let ended = loop {
            let file = sync.world.socket_file(&vm.socket);
            let ended = if sync.world.runs(&vm.socket) {
                let timeout = left().unwrap_or_default().max(vm.timeout);
                sync.run(timeout, &mut tell).map_err(|error| error.to_string())
            } else {
                if mem::take(&mut reclaim) {
                    sync.reclaim(&mut tell);
                }
                Err("not running".to_owned())
            };
            let now = sync.world.socket_file(&vm.socket);
            let gone = self.if_started && now.is_none();
            // Started anew meanwhile, it may have nothing of what was attached.
            let anew = now.is_some() && now != file;
            if ended.is_ok() && !anew || gone || left().is_none() {
                break ended.map_err(|why| (why, gone || self.wait.is_none()));
            }
            thread::sleep(PAUSE);
        };
        let name = Line::from(format!("{}: ", vm.name));
        let (line, well) = match ended {
            Ok(good) => (name.with(Style::Good, count.summary(good)), count.failed == 0),
            Err((why, true)) => (name.with(Style::Faint, why), count.failed == 0),
            Err((why, false)) => {
                let waited = self.wait.unwrap_or_default().as_secs_f64();
                (name.with(Style::Bad, format!("{why}; waited for {waited} s")), false)
            }
        };
        let _ = teller.send(Told::Done(line, well));
    }

    /// Prints what the threads tell, until all of them are done.
    fn listen(
        &self,
        context: &Context<'_>,
        told: &Receiver<Told>,
        mut open: usize,
        output: &mut Output,
    ) -> Result<CommandStatus> {
        let mut progress = Progress::new(self.wait.is_some());
        let mut verdict = CommandStatus::Ok;
        loop {
            let next = told.recv_timeout(Duration::from_secs(1));
            progress.clear();
            match next {
                Ok(Told::Report(outcome)) => {
                    let tone = match outcome.end {
                        Outcome::Failed(_) | Outcome::NotRunning(_) => Style::Bad,
                        Outcome::Rejected(_) => Style::Warning,
                        _ => Style::Plain,
                    };
                    context.tell(&outcome, tone, output)?;
                }
                Ok(Told::Done(line, well)) => {
                    open -= 1;
                    output.whole_line(&line)?;
                    if !well {
                        verdict = CommandStatus::Problems;
                    }
                }
                Err(RecvTimeoutError::Timeout) => progress.show(open),
                Err(RecvTimeoutError::Disconnected) => return Ok(verdict),
            }
        }
    }
}

/// How many devices came to what.
#[derive(Default)]
struct Count {
    attached: usize,
    deleted: usize,
    left_alone: usize,
    failed: usize,
}

impl Count {
    fn add(&mut self, end: &Outcome) {
        match end {
            Outcome::Attached { .. } | Outcome::PendingResume => self.attached += 1,
            Outcome::Detached(ids) => self.deleted += ids.len(),
            Outcome::Failed(_) | Outcome::NotRunning(_) => self.failed += 1,
            _ => self.left_alone += 1,
        }
    }

    fn summary(&self, good: usize) -> String {
        let parts = [
            (self.attached, "attached"),
            (self.deleted, "deleted"),
            (self.left_alone, "left alone"),
            (self.failed, "failed"),
            (good, "as before"),
        ];
        let last = parts.len() - 1;
        let said = parts.iter().enumerate().filter(|(at, (count, _))| *at == last || *count > 0);
        said.map(|(_, (count, what))| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }
}

/// The line on a terminal that says how long it has been waited.
struct Progress {
    since: Option<Instant>,
    shown: bool,
}

impl Progress {
    fn new(wanted: bool) -> Self {
        let since = (wanted && io::stderr().is_terminal()).then(Instant::now);
        Self { since, shown: false }
    }

    fn show(&mut self, open: usize) {
        let Some(since) = self.since else { return };
        let seconds = since.elapsed().as_secs();
        let machines = if open == 1 { "a virtual machine" } else { "virtual machines" };
        // A terminal that is gone needs no progress.
        let _ = write!(io::stderr(), "waiting for {machines} … {seconds} s");
        self.shown = true;
    }

    fn clear(&mut self) {
        if mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}
