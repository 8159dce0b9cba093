//! libvirt's machines: how the config's paths tell one from a QEMU with a socket of ours. Pure.
//!
//! A machine that is configured with `domain:` has, in the place of a socket, the file that libvirt
//! keeps while it runs: a new one with each start.

use std::path::{Path, PathBuf};

/// Where libvirt keeps those files (`src/qemu/qemu_process.c`: `virPidFileBuildPath`).
const FOLDER: &str = "/run/libvirt/qemu";

/// The file that is there while the machine of that name runs.
pub fn running(domain: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{domain}.pid"))
}

/// The machine whose file that is; none if it is a socket's path.
pub fn domain(path: &Path) -> Option<&str> {
    let name = path.strip_prefix(FOLDER).ok()?.to_str()?;
    name.strip_suffix(".pid").filter(|name| !name.is_empty() && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_its_file_and_a_socket_is_none() {
        for name in ["windows", "win 11", "a.pid", "-x"] {
            assert_eq!(domain(&running(name)), Some(name));
        }
        for socket in ["/run/windows.qmp", "/run/libvirt/qemu/x", "/run/libvirt/qemu/a/b.pid"] {
            assert_eq!(domain(Path::new(socket)), None);
        }
    }
}
