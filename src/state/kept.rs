//! The ports that a person keeps with the host (`detach --keep`), until `attach` or the next boot.
//!
//! One file of JSON lines. A port is named by its DEVPATH, which another boot may give to another
//! port.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::dir::{Records, StateDir};
use crate::devpath::DevPath;
use crate::root::Root;

const NAME: &str = "kept-ports.jsonl";

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    boot_id: String,
    devpath: DevPath,
}

/// The ports of this boot.
pub fn read(state: &StateDir) -> Vec<DevPath> {
    let lines = state.read_lines::<Line>(NAME).into_iter();
    lines.filter(|line| line.boot_id == state.boot_id()).map(|line| line.devpath).collect()
}

/// The ports of this boot, read without changing or waiting for anything.
pub fn read_unlocked(root: &Root) -> Vec<DevPath> {
    StateDir::open_read_only(root).as_ref().map(read).unwrap_or_default()
}

/// Whether the device is in one of the kept ports, or behind a hub there.
pub fn includes(kept: &[DevPath], device: &DevPath) -> bool {
    kept.iter().any(|port| device.is_at_or_below(port))
}

/// Keeps `kept`, and no longer the ports at or below `released`.
pub fn save(records: &Records<'_>, kept: &[DevPath], released: &[DevPath]) -> Result<()> {
    let state = records.dir();
    let before = read(state);
    let mut after = before.clone();
    after.retain(|port| !released.iter().any(|released| port.is_at_or_below(released)));
    after.extend(kept.iter().cloned());
    after.sort();
    after.dedup();
    if after == before {
        return Ok(());
    }
    let line = |devpath| Line { boot_id: state.boot_id().to_owned(), devpath };
    records.replace_lines(NAME, &after.into_iter().map(line).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Deadline;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn port_is_kept_until_it_or_one_above_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        fs::create_dir(root.path("/tmp")).unwrap();
        fs::set_permissions(root.path("/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let state = StateDir::open(&root).unwrap();
        let path = |port: &str| -> DevPath { format!("/devices/x/usb1/{port}").parse().unwrap() };
        let save = |kept: &[DevPath], released: &[DevPath]| {
            let records = state.records(&Deadline::after(Duration::from_secs(5))).unwrap();
            super::save(&records, kept, released).unwrap();
            read(&state)
        };
        assert_eq!(read(&state), []);
        assert_eq!(save(&[path("1-1"), path("1-2/1-2.4")], &[]), [path("1-1"), path("1-2/1-2.4")]);
        assert_eq!(save(&[path("1-1")], &[]).len(), 2, "once each");
        assert_eq!(save(&[], &[path("1-2/1-2.4/1-2.4.1")]).len(), 2, "one below it");
        assert_eq!(save(&[], &[path("1-2")]), [path("1-1")]);
        let file = root.path("/tmp/hotplugger/kept-ports.jsonl");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{{\n{text}[]\n")).unwrap();
        assert_eq!(read(&state), [path("1-1")]);
        fs::write(&file, text.replace("\"boot_id\":\"", "\"boot_id\":\"other")).unwrap();
        assert_eq!(read(&state), [], "of another boot");
    }
}
