//! Opening a USB device's node, so that the open descriptor can be of that device alone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, minor, openat};
use rustix::io::Errno;

use crate::devpath::DevPath;
use crate::host::sysfs;
use crate::root::Root;
use crate::usb_device::UsbDevice;

/// Opens the node of the device at `devpath` for reading and writing.
///
/// The path is made of the numbers in sysfs, and no part of it may be a link. The open file
/// then must have the device number of sysfs' `dev`, read after the opening. The kernel gives each
/// pair of bus and device number a device number of its own (`drivers/usb/core/hub.c`:
/// `usb_new_device`), and a descriptor stays with the device that it was opened for.
///
/// # Errors
///
/// The node is not there, is not to be opened, or is another device's.
pub fn open(root: &Root, devpath: &DevPath, device: &UsbDevice) -> io::Result<OwnedFd> {
    let path = sysfs::node(device.busnum, device.devnum);
    let with_path =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let node = open_unlinked(root, &path).map_err(|error| with_path(error.into()))?;
    let stat = fstat(&node).map_err(|error| with_path(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return Err(with_path(io::Error::other("it is not a device node")));
    }
    let number = sysfs::device_number(root, devpath).map_err(with_path)?;
    if number != Some((major(stat.st_rdev), minor(stat.st_rdev))) {
        return Err(with_path(io::Error::other("it is the node of another device")));
    }
    Ok(node)
}

/// Opens an absolute path below the root; a link on the way is an error.
fn open_unlinked(root: &Root, path: &Path) -> Result<OwnedFd, Errno> {
    let directories = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The root itself may be wherever who set it wants it.
    let start = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = openat(CWD, root.path("/"), start, Mode::empty())?;
    let mut names = path.iter().skip(1).peekable();
    while let Some(name) = names.next() {
        if names.peek().is_some() {
            directory = openat(&directory, name, directories, Mode::empty())?;
        } else {
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
            return openat(&directory, name, flags, Mode::empty());
        }
    }
    Err(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::{BusNum, DevNum};
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A host with a device that has the number of /dev/null, which can be opened everywhere.
    struct Host {
        _dir: tempfile::TempDir,
        root: Root,
        devpath: DevPath,
    }

    const DEVICE: UsbDevice = UsbDevice {
        busnum: BusNum(1),
        devnum: DevNum(16),
        class: 0,
        authorized: true,
        vendor_id: 0x0627,
        product_id: 1,
        speed: None,
        product: None,
        serial: None,
    };

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let devpath: DevPath = "/devices/x/usb1/1-3".parse().unwrap();
            let root = Root::at(dir.path());
            for directory in ["/dev/bus/usb/001".to_owned(), format!("/sys{devpath}")] {
                fs::create_dir_all(root.path(directory)).unwrap();
            }
            let host = Self { _dir: dir, root, devpath };
            host.say("1:3\n");
            host
        }

        fn say(&self, dev: &str) {
            fs::write(self.root.path(format!("/sys{}/dev", self.devpath)), dev).unwrap();
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.root.path(path)
        }

        fn open(&self) -> Result<OwnedFd, String> {
            open(&self.root, &self.devpath, &DEVICE).map_err(|error| error.to_string())
        }
    }

    /// Whether this user may make and open device nodes; who may not tests all but them.
    fn make_null(path: &Path) -> bool {
        let made = rustix::fs::mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            Mode::RUSR | Mode::WUSR,
            rustix::fs::makedev(1, 3),
        );
        made.is_ok() && std::fs::File::open(path).is_ok()
    }

    #[test]
    fn the_node_of_the_device_is_opened_and_no_other() {
        let host = Host::new();
        if !make_null(&host.path(NODE)) {
            return;
        }
        host.open().unwrap();
        for other in ["1:5\n", "189:3\n", "", "many\n"] {
            host.say(other);
            let said = host.open().unwrap_err();
            assert_eq!(said, "/dev/bus/usb/001/016: it is the node of another device");
        }
        fs::remove_file(host.root.path(format!("/sys{}/dev", host.devpath))).unwrap();
        assert!(host.open().is_err(), "it is gone");
    }

    const NODE: &str = "/dev/bus/usb/001/016";

    #[test]
    fn no_link_is_followed_on_the_way() {
        let host = Host::new();
        symlink("/dev/null", host.path(NODE)).unwrap();
        assert!(host.open().is_err());
        fs::remove_file(host.path(NODE)).unwrap();
        fs::create_dir(host.path("/elsewhere")).unwrap();
        make_null(&host.path("/elsewhere/016"));
        fs::remove_dir(host.path("/dev/bus/usb/001")).unwrap();
        symlink("../../../elsewhere", host.path("/dev/bus/usb/001")).unwrap();
        assert!(host.open().is_err());
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let host = Host::new();
        assert!(host.open().unwrap_err().starts_with("/dev/bus/usb/001/016: "), "nothing there");
        fs::write(host.path(NODE), "").unwrap();
        assert_eq!(host.open().unwrap_err(), "/dev/bus/usb/001/016: it is not a device node");
    }
}
