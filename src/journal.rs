//! Where the line about an event goes: the journal, else syslog, else standard error.
//!
//! Under udev, standard error is a pipe that udevd shows only when it debugs, and that no process may
//! be emptying: writing there never waits and never fails.

use std::io::{IsTerminal, stderr};
use std::os::unix::net::UnixDatagram;
use std::process;

use log::{Level, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use systemd_journal_logger::JournalLog;

use crate::outcome::Report;
use crate::root::Root;
use crate::text::{sanitize_line, sanitize_lines};

/// The name in the journal and in syslog.
const IDENTIFIER: &str = "hotplugger";

/// Writes the outcome's line, if it is worth one (or `verbose`, which wants all of them on standard
/// error too).
pub fn report(root: &Root, outcome: &Report, verbose: bool) {
    let level = outcome.level();
    if verbose || level < Level::Debug && stderr().is_terminal() {
        write_stderr(&outcome.to_string());
    }
    if level == Level::Debug {
        return;
    }
    match system_log(root, outcome) {
        Some(logger) => write(&*logger, outcome),
        None if verbose || stderr().is_terminal() => {}
        None => write(&Stderr, outcome),
    }
}

/// Writes the line of what a person, or something that stands for one, had done.
pub fn report_manual(root: &Root, outcome: &Report) {
    if outcome.level() < Level::Debug
        && let Some(logger) = system_log(root, outcome)
    {
        write(&*logger, outcome);
    }
}

fn write(logger: &dyn Log, outcome: &Report) {
    let mut record = Record::builder();
    let record = record.level(outcome.level()).target(IDENTIFIER);
    let line = sanitize_line(&outcome.to_string());
    logger.log(&record.args(format_args!("{line}")).build());
}

/// A program below another root does not write to the system's logs.
fn system_log(root: &Root, outcome: &Report) -> Option<Box<dyn Log>> {
    if root.is_moved() {
        return None;
    }
    if let Ok(journal) = JournalLog::empty() {
        let fields =
            outcome.fields().into_iter().map(|(name, value)| (name, sanitize_line(&value)));
        let fields: Vec<_> = fields.collect();
        let journal = journal.with_syslog_identifier(IDENTIFIER.to_owned());
        return Some(Box::new(journal.with_extra_fields(fields)));
    }
    let syslog = UnixDatagram::unbound().ok()?;
    syslog.connect("/dev/log").ok()?;
    syslog.set_nonblocking(true).ok()?;
    Some(Box::new(Syslog(syslog)))
}

/// The syslog socket of a system without the journal.
struct Syslog(UnixDatagram);

impl Log for Syslog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // Facility daemon (3) and the severity (syslog(3)).
        let priority = 3 * 8
            + match record.level() {
                Level::Error => 3,
                Level::Warn => 4,
                _ => 6,
            };
        let line = format!("<{priority}>{IDENTIFIER}[{}]: {}", process::id(), record.args());
        let _ = self.0.send(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Standard error.
struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        write_stderr(&record.args().to_string());
    }

    fn flush(&self) {}
}

/// Writes a line to standard error, with the program's name before it. A line that cannot be written is lost.
pub fn write_stderr(line: &str) {
    let stderr = stderr();
    // A pipe that poll(2) calls writable takes a page at once (pipe(7)), be it blocking or not.
    let mut line = format!("{IDENTIFIER}: {}", sanitize_lines(line)).into_bytes();
    line.truncate(4095);
    line.push(b'\n');
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1)) {
        let _ = rustix::io::write(&stderr, &line);
    }
}
