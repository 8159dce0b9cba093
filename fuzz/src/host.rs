//! A host that is a folder in memory, as large as the parser at hand needs it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};

use hotplugger::root::Root;
use tempfile::TempDir;

/// The folder; gone when it is dropped.
pub struct Host {
    dir: TempDir,
    pub root: Root,
}

/// The tablet that is plugged into it.
pub const TABLET: &str = "/devices/pci0000:00/0000:00:14.0/usb1/1-3";

const CONFIG: &str = "virtual_machines:\n  w:\n    socket: /run/w.qmp\n    exclude: [{class: 08}]\n    \
                      ports: [/devices/pci0000:00/0000:00:14.0/usb1]\n";

impl Host {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("hotplugger-fuzz-");
        let dir = builder.tempdir_in(memory).or_else(|_| builder.tempdir()).expect("a folder");
        let root = Root::at(dir.path());
        let host = Self { dir, root };
        for folder in ["/tmp", "/run"] {
            fs::create_dir(host.root.path(folder)).expect("a folder");
        }
        let sticky = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(host.root.path("/tmp"), sticky).expect("its mode");
        host.write("/proc/sys/kernel/random/boot_id", "boot\n");
        host
    }

    /// With a tablet in a port that is configured.
    pub fn with_tablet() -> Self {
        let host = Self::new();
        host.write("/etc/hotplugger/config.yaml", CONFIG);
        for (name, value) in [
            ("busnum", "1\n"),
            ("devnum", "16\n"),
            ("bDeviceClass", "00\n"),
            ("idVendor", "0627\n"),
            ("idProduct", "0001\n"),
            ("speed", "480\n"),
            ("product", "Tablet\n"),
            ("1-3:1.0/bInterfaceClass", "03\n"),
        ] {
            host.write(&format!("/sys{TABLET}/{name}"), value);
        }
        host
    }

    /// Writes a file, and the folders on the way to it.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.root.path(path);
        let folder = path.parent().expect("a path in a folder");
        fs::create_dir_all(folder).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// Makes what the data names: entries with NUL between them, each the number of a place, then contents,
    /// or the target of a link behind `>`, or `/` for a folder.
    pub fn put_all(&self, places: &[String], data: &[u8]) {
        for entry in data.split(|byte| *byte == 0).take(64) {
            if let Some((place, what)) = entry.split_first() {
                put(self, &normal(&places[usize::from(*place) % places.len()]), what);
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// The path without `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

fn put(host: &Host, path: &str, what: &[u8]) {
    let path = host.root.path(path);
    let Some(folder) = path.parent() else { return };
    // A link that is on the way may lead anywhere, and what is in the way stays.
    let outside = fs::create_dir_all(folder).is_err()
        || !fs::canonicalize(folder).is_ok_and(|folder| folder.starts_with(host.path()));
    if outside {
        return;
    }
    let text = std::str::from_utf8(what).ok();
    match (what.first(), text) {
        (Some(b'/'), _) => drop(fs::create_dir(path)),
        (Some(b'>'), Some(text)) if stays_within(host, folder, Path::new(&text[1..])) => {
            let _ = symlink(&text[1..], path);
        }
        _ => {
            if !path.is_symlink() {
                let _ = fs::write(path, what);
            }
        }
    }
}

/// Whether a link's target is below the host's folder.
fn stays_within(host: &Host, folder: &Path, target: &Path) -> bool {
    let depth = folder.components().count() - host.path().components().count();
    let up = target.components().filter(|part| *part == Component::ParentDir).count();
    target.is_relative() && up <= depth && !target.as_os_str().is_empty()
}
