//! Which QEMU processes have no usb-host device model. A second try would abort such a QEMU.
//!
//! One file a socket, with the identity of the socket's file: a QEMU that is started again creates
//! another one.

use std::path::Path;

use anyhow::{Context, Result};

use super::dir::{StateDir, name_of_socket};
use super::socket_file::SocketFile;
use crate::root::Root;

/// Whether the QEMU that listens at the socket now was noted.
pub fn is_noted(root: &Root, socket: &Path) -> bool {
    read(root, socket).is_some_and(|noted| SocketFile::at(root, socket) == Some(noted))
}

/// Notes that the QEMU that listens at the socket has no usb-host.
pub fn note(root: &Root, socket: &Path) {
    // Without a state directory the next event tries again. Nothing else can be done about it.
    let _ = write(root, socket);
}

fn read(root: &Root, socket: &Path) -> Option<SocketFile> {
    StateDir::open_read_only(root)?.read_json(&file_name(socket))
}

fn write(root: &Root, socket: &Path) -> Result<()> {
    let file = SocketFile::at(root, socket).context("no socket")?;
    StateDir::open(root)?.replace(&file_name(socket), &serde_json::to_vec(&file)?)?;
    Ok(())
}

fn file_name(socket: &Path) -> String {
    format!("no-usb-host-{}.json", name_of_socket(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn note_holds_for_one_start_of_qemu() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for directory in ["/tmp", "/run"] {
            fs::create_dir(root.path(directory)).unwrap();
        }
        fs::set_permissions(root.path("/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let socket = Path::new("/run/vm.qmp");
        let first = UnixListener::bind(root.path(socket)).unwrap();
        assert!(!is_noted(&root, socket));
        note(&root, socket);
        assert!(is_noted(&root, socket));
        assert!(!is_noted(&root, Path::new("/run/other.qmp")));
        fs::rename(root.path(socket), root.path("/run/old")).unwrap();
        let second = UnixListener::bind(root.path(socket)).unwrap();
        assert!(!is_noted(&root, socket), "another QEMU");
        drop((first, second));
    }
}
