//! The processes that use a USB device through usbfs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::host::sysfs::names;
use crate::root::Root;
use crate::text::sanitize;

/// A process that has a device's node open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub pid: u32,
    /// `/proc/PID/comm`, sanitized.
    pub name: String,
    pub is_qemu: bool,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The IDs of all processes, in their order.
pub fn pids(root: &Root) -> Vec<u32> {
    let names = names(&root.path("/proc"));
    let mut pids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// The processes that have the node open, by process ID. Only root sees those of other users.
pub fn programs_with(root: &Root, node: &Path) -> Vec<Program> {
    let pids = pids(root).into_iter().filter(|pid| has_open(root, *pid, node) == Some(true));
    pids.map(|pid| program(root, pid)).collect()
}

/// Whether the process has the node open; `None` if this user may not know. A descriptor that was
/// passed to it has the path by which its sender opened it.
pub fn has_open(root: &Root, pid: u32, node: &Path) -> Option<bool> {
    Some(open_files(root, pid)?.any(|(_, target)| target == node))
}

/// The entries of the process's `/proc/PID/fd` with their targets; `None` if this user may not read
/// them.
pub fn open_files(root: &Root, pid: u32) -> Option<impl Iterator<Item = (PathBuf, PathBuf)>> {
    let entries = fs::read_dir(root.path(format!("/proc/{pid}/fd"))).ok()?;
    Some(entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = fs::read_link(&path).ok()?;
        Some((path, target))
    }))
}

pub fn program(root: &Root, pid: u32) -> Program {
    let name = fs::read_to_string(root.path(format!("/proc/{pid}/comm"))).unwrap_or_default();
    Program { pid, name: sanitize(&name, 32), is_qemu: is_qemu(root, pid) }
}

/// Whether the process runs a QEMU executable, by the names that distributions give it.
pub fn is_qemu(root: &Root, pid: u32) -> bool {
    let Ok(link) = fs::read_link(root.path(format!("/proc/{pid}/exe"))) else { return false };
    let name = link.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // NixOS wraps the program: `.qemu-system-x86_64-wrapped`.
    let name = name.trim_start_matches('.');
    ["qemu-system", "qemu-kvm", "kvm"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn programs_are_found_by_the_open_node_and_qemu_by_its_executable() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for (pid, name, executable, open) in [
            (9, "usbmuxd", "/usr/sbin/usbmuxd", "/dev/bus/usb/001/005"),
            (10, "CPU 0/KVM", "/usr/bin/qemu-system-x86_64 (deleted)", "/dev/bus/usb/001/005"),
            (11, "other", "/usr/bin/qemu-kvm", "/dev/bus/usb/001/006"),
        ] {
            let proc = root.path(format!("/proc/{pid}"));
            fs::create_dir_all(proc.join("fd")).unwrap();
            fs::write(proc.join("comm"), format!("{name}\n")).unwrap();
            symlink(executable, proc.join("exe")).unwrap();
            symlink("/dev/null", proc.join("fd/0")).unwrap();
            symlink(open, proc.join("fd/7")).unwrap();
        }
        let programs = programs_with(&root, Path::new("/dev/bus/usb/001/005"));
        let texts: Vec<String> = programs.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["usbmuxd (process 9)", "CPU 0/KVM (process 10)"]);
        assert_eq!(programs.iter().map(|one| one.is_qemu).collect::<Vec<_>>(), [false, true]);
    }
}
