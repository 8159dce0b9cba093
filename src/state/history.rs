//! The latest outcomes, for `status`: one JSON line each in the state directory.
//!
//! The journal has them too where there is one; this works everywhere and is as disposable as the
//! rest of the state.

use std::io::{Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::dir::StateDir;
use crate::outcome::{Outcome, Report};
use crate::root::Root;

/// An outcome and when it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub time: u64,
    /// The port.
    pub port: Option<String>,
    /// The VM.
    pub vm: Option<String>,
    /// The outcome's name.
    pub outcome: String,
    /// Its line.
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
        let kept = state.read_text(NAME).unwrap_or_default();
        let _ = state.replace(NAME, newer_half(&kept).as_bytes());
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
fn now() -> u64 {
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
    let Some(state) = StateDir::open_read_only(root) else { return Vec::new() };
    let text = state.read_text(NAME).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl StateDir {
    pub(super) fn read_text(&self, name: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = self.open_to_read(name).ok()?;
        file.take(2 * MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
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
    fn the_newer_half_is_whole_lines_wherever_the_middle_is() {
        assert_eq!(newer_half("1\n2\n3\n4\n"), "4\n");
        assert_eq!(newer_half("éé\n…\n"), "…\n");
        assert_eq!(newer_half("a…b"), "");
        assert_eq!(newer_half(""), "");
    }
}
