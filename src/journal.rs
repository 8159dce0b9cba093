//! Where the line about an event goes: the journal, else syslog, else standard error.
//!
//! Under udev, standard error is a pipe that udevd shows only when it debugs, and that no process may
//! be emptying: writing there never waits and never fails.

use std::io::{self, IsTerminal, stderr};
use std::os::unix::net::UnixDatagram;
use std::process;
use std::time::Duration;

use log::{Level, Log, Record};
use rustix::event::{PollFd, PollFlags};
use systemd_journal_logger::JournalLog;

use crate::clock::wait_for;
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
    if !write_to_system_log(root, outcome) && !verbose && !stderr().is_terminal() {
        write_stderr(&sanitize_line(&outcome.to_string()));
    }
}

/// Writes the line of what a person, or something that stands for one, had done.
pub fn report_manual(root: &Root, outcome: &Report) {
    if outcome.level() < Level::Debug {
        write_to_system_log(root, outcome);
    }
}

/// Writes the line to the journal or to syslog. Returns `false` if the system has neither, or if the
/// program runs below another root.
fn write_to_system_log(root: &Root, outcome: &Report) -> bool {
    if root.is_moved() {
        return false;
    }
    let (level, line) = (outcome.level(), sanitize_line(&outcome.to_string()));
    if let Ok(journal) = JournalLog::empty() {
        let fields = outcome.fields().into_iter();
        let fields = fields.map(|(name, value)| (name, sanitize_line(&value))).collect::<Vec<_>>();
        let journal =
            journal.with_syslog_identifier(IDENTIFIER.to_owned()).with_extra_fields(fields);
        let mut record = Record::builder();
        let record = record.level(level).target(IDENTIFIER);
        journal.log(&record.args(format_args!("{line}")).build());
        return true;
    }
    let Ok(syslog) = connect_syslog() else { return false };
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        _ => 6,
    };
    // Facility daemon (3) and the severity (syslog(3)).
    let priority = 3 * 8 + severity;
    let _ = syslog.send(format!("<{priority}>{IDENTIFIER}[{}]: {line}", process::id()).as_bytes());
    true
}

fn connect_syslog() -> io::Result<UnixDatagram> {
    let syslog = UnixDatagram::unbound()?;
    syslog.connect("/dev/log")?;
    syslog.set_nonblocking(true)?;
    Ok(syslog)
}

/// Writes a line to standard error, with the program's name before it. A line that cannot be written is lost.
pub fn write_stderr(line: &str) {
    let stderr = stderr();
    // A pipe that poll(2) calls writable takes a page at once (pipe(7)), be it blocking or not.
    let mut line = format!("{IDENTIFIER}: {}", sanitize_lines(line)).into_bytes();
    line.truncate(4095);
    line.push(b'\n');
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if matches!(wait_for(&mut fds, Duration::ZERO), Ok(true)) {
        let _ = rustix::io::write(&stderr, &line);
    }
}
