//! The latest outcomes, for `status` and `watch`: one JSON line each in the state directory.
//!
//! The journal has them too where there is one; this works everywhere and is as disposable as the
//! rest of the state.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::inotify;
use serde::{Deserialize, Serialize};

use super::dir::{StateDir, parse_lines};
use crate::outcome::{Outcome, Report};
use crate::root::Root;

/// An outcome and when it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub time: u64,
    pub port: Option<String>,
    pub vm: Option<String>,
    pub outcome: String,
    pub line: String,
}

/// Of a larger file the older half is dropped.
const MAX_BYTES: u64 = 64 * 1024;

/// The third unplug of a port within this time gets no line in the journal.
const REPEATED: Duration = Duration::from_secs(10);

const NAME: &str = "history.jsonl";

/// Adds an outcome. Losing one is not worth a word.
pub fn append(root: &Root, outcome: &Report) {
    let Ok(state) = StateDir::open(root) else { return };
    let context = outcome.context.as_ref();
    let entry = Entry {
        time: now(),
        port: context.map(|context| context.port.to_string()),
        vm: context.and_then(|context| context.vm.clone()),
        outcome: outcome.outcome.name().to_owned(),
        line: outcome.to_string(),
    };
    let Ok(mut line) = serde_json::to_vec(&entry) else { return };
    line.push(b'\n');
    let Ok(mut file) = state.append_to(NAME) else { return };
    let large = file.metadata().is_ok_and(|data| data.len() > MAX_BYTES);
    let _ = file.write_all(&line);
    if large {
        let _ = state.replace(NAME, newer_half(&state.read_text(NAME)).as_bytes());
    }
}

/// Whether the report is about an unplug that follows two others of the port: the device resets again
/// and again, and the line of each attach says enough.
pub fn is_repeated_unplug(root: &Root, report: &Report) -> bool {
    let (Outcome::Detached(_), Some(context)) = (&report.outcome, &report.context) else {
        return false;
    };
    let (port, now) = (context.port.to_string(), now());
    let is_recent = |entry: &Entry| {
        entry.outcome == report.outcome.name()
            && entry.port.as_ref() == Some(&port)
            && Duration::from_millis(now.abs_diff(entry.time)) < REPEATED
    };
    report.warnings.is_empty()
        && read(root).iter().rev().filter(|entry| is_recent(entry)).nth(1).is_some()
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The lines behind the one that the middle is in. Its first byte may be within a character: products have
/// names of all kinds.
fn newer_half(text: &str) -> &str {
    let middle = text.len() / 2;
    let end = text.bytes().skip(middle).position(|byte| byte == b'\n');
    end.map_or("", |end| &text[middle + end + 1..])
}

/// The entries, oldest first. Empty if this user may not read them.
pub fn read(root: &Root) -> Vec<Entry> {
    StateDir::open_read_only(root).map(|state| state.read_lines(NAME)).unwrap_or_default()
}

/// The entries that other processes add.
///
/// Its descriptor becomes readable when a file in the state directory changes. Another directory may
/// take its place, so [`Follower::take`] has to be called from time to time in any case.
#[derive(Debug)]
pub struct Follower<'a> {
    root: &'a Root,
    inotify: OwnedFd,
    /// The text of the file at the last call.
    text: String,
    /// The last entries that were returned.
    seen: Vec<Entry>,
}

impl<'a> Follower<'a> {
    pub fn new(root: &'a Root) -> io::Result<Self> {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let inotify = inotify::init(flags)?;
        Ok(Self { root, inotify, text: String::new(), seen: Vec::new() })
    }

    /// The entries that are new since the last call: at the first call all of them, oldest first.
    pub fn take(&mut self) -> Vec<Entry> {
        while matches!(rustix::io::read(&self.inotify, &mut [0; 4096]), Ok(1..)) {}
        let Some(state) = StateDir::open_read_only(self.root) else { return Vec::new() };
        // Before the file is read, so that no later change is missed.
        state.watch(&self.inotify);
        let text = state.read_text(NAME);
        if text == self.text {
            return Vec::new();
        }
        let entries: Vec<Entry> = parse_lines(&text);
        self.text = text;
        let new = unseen(&self.seen, &entries).to_vec();
        self.seen.extend_from_slice(&new);
        self.seen.drain(..self.seen.len().saturating_sub(MAX_SEEN));
        new
    }
}

impl AsFd for Follower<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// More entries than a file has.
const MAX_SEEN: usize = 2048;

/// The entries after those that were seen.
///
/// The file may have lost its older half, or may be another file. It may also have lost an entry that
/// was seen: one that was added while another process replaced the file.
fn unseen<'a>(seen: &[Entry], entries: &'a [Entry]) -> &'a [Entry] {
    let overlap = (1..=entries.len()).rev().find(|&count| seen.ends_with(&entries[..count]));
    let after_last_seen = || {
        let is_in = |entry| entries.iter().rposition(|other| other == entry);
        seen.iter().rev().find_map(is_in).map(|index| index + 1)
    };
    &entries[overlap.or_else(after_last_seen).unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::EventContext;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn third_unplug_of_a_port_in_a_row_is_a_repeated_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        fs::create_dir(root.path("/tmp")).unwrap();
        fs::set_permissions(root.path("/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let unplugged = |port: &str, warnings: &[&str]| {
            let devpath = format!("/devices/x/usb1/{port}").parse().unwrap();
            let context = EventContext::new(&port.parse().unwrap(), &devpath, None);
            let warnings = warnings.iter().map(|&warning| warning.to_owned()).collect();
            Report { warnings, ..Report::new(Some(context), Outcome::Detached(Vec::new())) }
        };
        for expected in [false, false, true, true] {
            let report = unplugged("1-1", &[]);
            assert_eq!(is_repeated_unplug(&root, &report), expected);
            append(&root, &report);
        }
        assert!(!is_repeated_unplug(&root, &unplugged("1-2", &[])));
        assert!(!is_repeated_unplug(&root, &unplugged("1-1", &["record not deleted"])));
    }

    #[test]
    fn unseen_entries_are_those_after_the_last_seen_one_whatever_the_file_lost() {
        let entries = |times: &[u64]| -> Vec<Entry> {
            let entry = |&time| Entry {
                time,
                port: None,
                vm: None,
                outcome: "failed".to_owned(),
                line: String::new(),
            };
            times.iter().map(entry).collect()
        };
        for (seen, file, new) in [
            (&[][..], &[1, 2][..], &[1, 2][..]),
            (&[1, 2], &[1, 2], &[]),
            (&[1, 2], &[1, 2, 3], &[3]),
            (&[1, 2], &[], &[]),
            // Two events in the same millisecond.
            (&[1, 2], &[1, 2, 2], &[2]),
            (&[1, 2, 2], &[1, 2, 2, 3], &[3]),
            // The older half was dropped, with entries that were not seen.
            (&[1, 2, 3, 4], &[3, 4, 5], &[5]),
            (&[1, 2], &[5, 6], &[5, 6]),
            // An entry was lost, the last one or another.
            (&[1, 2, 3, 4], &[2, 3, 5], &[5]),
            (&[1, 2, 3, 4], &[2, 4, 5], &[5]),
            // Another file, and the first one again.
            (&[1, 2, 7], &[1, 2, 3], &[3]),
            // The clock was set back.
            (&[8, 9], &[8, 9, 1], &[1]),
        ] {
            let (seen, file) = (entries(seen), entries(file));
            assert_eq!(unseen(&seen, &file), entries(new), "{seen:?} {file:?}");
        }
    }

    #[test]
    fn the_newer_half_is_whole_lines_wherever_the_middle_is() {
        assert_eq!(newer_half("1\n2\n3\n4\n"), "4\n");
        assert_eq!(newer_half("éé\n…\n"), "…\n");
        assert_eq!(newer_half("a…b"), "");
        assert_eq!(newer_half(""), "");
    }
}
