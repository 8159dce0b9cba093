//! Where a package has the pieces: in the folders for packages, beside those of the administrator's,
//! and only what is the same on all machines. Pure.

use std::path::Path;

use super::{Content, Piece, unit};

/// Folders of the administrator's, and those for packages that are read after them: udev(7),
/// tmpfiles.d(5), systemd.unit(5).
const FOLDERS: [(&str, &str); 3] = [
    ("/etc/udev/rules.d", "/usr/lib/udev/rules.d"),
    ("/etc/tmpfiles.d", "/usr/lib/tmpfiles.d"),
    ("/etc/systemd/system", "/usr/lib/systemd/system"),
];

/// The rule of a package, which tells that there is one.
pub const RULE: &str = "/usr/lib/udev/rules.d/99-hotplugger.rules";

impl Piece {
    /// The piece as a package has it; none if it depends on the machine or its config.
    pub fn in_package(&self) -> Option<Self> {
        let name = Path::new(&self.path).file_name()?.to_str()?;
        let is_file = matches!(self.content, Content::File { .. });
        if !is_file || self.needs_sign || unit::is_path_unit(name) {
            return None;
        }
        let folder = Path::new(&self.path).parent()?.to_str()?;
        let path = FOLDERS.iter().find(|(own, _)| *own == folder).map_or_else(
            // The hooks, which are looked for in one folder only.
            || self.path.clone(),
            |(_, packages)| format!("{packages}/{name}"),
        );
        Some(Self { path, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;
    use crate::install::{PACKAGED_PROGRAM, pieces};

    #[test]
    fn a_package_has_what_is_the_same_everywhere() {
        let config = "virtual_machines:\n  a: {socket: /run/a, ports: [/devices/usb1/1-1]}\n";
        let pieces = pieces(PACKAGED_PROGRAM, Some(&parse(config).unwrap()));
        let packaged: Vec<_> =
            pieces.iter().filter_map(Piece::in_package).map(|one| one.path).collect();
        assert_eq!(
            packaged,
            [
                RULE,
                "/usr/lib/tmpfiles.d/hotplugger.conf",
                "/usr/lib/systemd/system/hotplugger-sync@.service",
                "/usr/lib/systemd/system-sleep/hotplugger",
                "/etc/libvirt/hooks/qemu.d/hotplugger",
            ]
        );
    }
}
