//! A USB device as the kernel has it now: the files in its sysfs directory, and its node.

use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, fstat, major, minor, open, openat};
use rustix::io::{Errno, retry_on_intr};

use crate::clock::Monotonic;
use crate::devpath::DevPath;
use crate::location::{ControllerName, is_numbered_at_probe};
use crate::port::{BusNum, DevNum};
use crate::root::Root;
use crate::text::sanitize;
use crate::usb_device::UsbDevice;

/// Reads the USB device at `devpath`. `None` if there is none, or it disappears while it is read.
///
/// # Errors
///
/// Its files cannot be read for another reason: then it is unknown whether it is there.
pub fn usb_device(root: &Root, devpath: &DevPath) -> io::Result<Option<UsbDevice>> {
    let directory = directory(root, devpath);
    let text = |name: &str| match attribute(directory.join(name)) {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => {
            Err(io::Error::new(error.kind(), format!("sysfs, {name} of {devpath}: {error}")))
        }
    };
    let hex = |name: &str| text(name).map(|value| u16::from_str_radix(&value?, 16).ok());
    let number = |name: &str| text(name).map(|value| value?.parse::<u8>().ok());
    let (busnum, devnum) = (number("busnum")?, number("devnum")?);
    let (class, vendor_id, product_id) =
        (hex("bDeviceClass")?, hex("idVendor")?, hex("idProduct")?);
    let (Some(busnum), Some(devnum), Some(class), Some(vendor_id), Some(product_id)) =
        (busnum, devnum, class.and_then(|class| u8::try_from(class).ok()), vendor_id, product_id)
    else {
        return Ok(None);
    };
    Ok(Some(UsbDevice {
        busnum: BusNum(busnum),
        devnum: DevNum(devnum),
        class,
        authorized: text("authorized")?.is_none_or(|value| value != "0"),
        vendor_id,
        product_id,
        speed: text("speed")?.and_then(|value| value.parse().ok()),
        product: text("product")?.map(|name| sanitize(&name, 64)).filter(|name| !name.is_empty()),
        serial: text("serial")?.map(|serial| serial.trim().to_owned()),
    }))
}

/// Whether the error is that of a file, or of a device behind it, that is not there (any more).
pub(crate) fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::NODEV, Errno::NXIO, Errno::NOTDIR];
    Errno::from_io_error(error).is_some_and(|errno| gone.contains(&errno))
}

/// The number of the newest uevent the kernel has sent, of any device.
pub fn uevent_seqnum(root: &Root) -> Option<u64> {
    attribute(root.path("/sys/kernel/uevent_seqnum")).ok()?.parse().ok()
}

/// When the kernel added the device: it makes the node before it sends `add`
/// (`drivers/base/core.c`: `device_add`), and until a program uses the device nothing touches the
/// node's modification time. Good to a clock tick.
pub fn plugged_at(root: &Root, busnum: BusNum, devnum: DevNum) -> Option<Monotonic> {
    let metadata = fs::metadata(root.path(node(busnum, devnum))).ok()?;
    let seconds = u64::try_from(metadata.mtime()).ok()?;
    let nanos = u64::try_from(metadata.mtime_nsec()).ok()?;
    // The node's owner can set it to the end of time.
    Monotonic::at_realtime(seconds.checked_mul(1_000_000)?.checked_add(nanos / 1000)?)
}

/// The device's node, `/dev/bus/usb/003/025`.
pub fn node(busnum: BusNum, devnum: DevNum) -> PathBuf {
    format!("/dev/bus/usb/{:03}/{:03}", busnum.0, devnum.0).into()
}

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
pub fn open_node(root: &Root, devpath: &DevPath, device: &UsbDevice) -> io::Result<OwnedFd> {
    let path = node(device.busnum, device.devnum);
    let with_path =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = open_unlinked(root, &path).map_err(|error| with_path(error.into()))?;
    let stat = fstat(&file).map_err(|error| with_path(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return Err(with_path(io::Error::other("it is not a device node")));
    }
    let number = device_number(root, devpath).map_err(with_path)?;
    if number != Some((major(stat.st_rdev), minor(stat.st_rdev))) {
        return Err(with_path(io::Error::other("it is the node of another device")));
    }
    Ok(file)
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

/// The device's number, major and minor, from `dev`. `None` if it was unplugged.
///
/// # Errors
///
/// Anything else that keeps the file from being read.
pub fn device_number(root: &Root, devpath: &DevPath) -> io::Result<Option<(u32, u32)>> {
    let number = match attribute(directory(root, devpath).join("dev")) {
        Ok(number) => number,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let numbers = number.split_once(':');
    Ok(numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))))
}

/// The controller's name, by the subsystem that its device is in.
pub fn controller_name(root: &Root, controller: &DevPath) -> Option<ControllerName> {
    let mut device = controller.clone();
    while is_numbered_at_probe(device.sysname()) {
        device = device.parent()?;
    }
    let link = fs::read_link(directory(root, &device).join("subsystem")).ok();
    let subsystem = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    ControllerName::new(subsystem, device.sysname())
}

pub(crate) fn directory(root: &Root, devpath: &DevPath) -> PathBuf {
    root.path(format!("/sys{devpath}"))
}

/// Reads an attribute, without the line end. An attribute has at most a page, and is read as a whole or
/// not at all (`fs/sysfs/file.c`: `sysfs_kf_seq_show`), so one read is sufficient.
pub(crate) fn attribute(path: PathBuf) -> io::Result<String> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut page = [0; 4096];
    let length = retry_on_intr(|| rustix::io::read(&file, &mut page))?;
    Ok(String::from_utf8_lossy(&page[..length]).trim_end_matches('\n').to_owned())
}

pub(crate) fn read_up_to(path: PathBuf, bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes).read_to_end(&mut content)?;
    Ok(content)
}

/// The names in a directory, sorted. Empty if it cannot be read.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = open(directory, flags, Mode::empty()) else { return Vec::new() };
    // musl's opendir(3) would map memory for each directory.
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(Ok(entry)) = entries.next() {
        match entry.file_name().to_str() {
            Ok(name) if !matches!(name, "." | "..") => names.push(name.to_owned()),
            _ => {}
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_device_is_read_and_its_name_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let devpath: DevPath = "/devices/pci0000:00/0000:00:14.0/usb1/1-3".parse().unwrap();
        assert_eq!(usb_device(&root, &devpath).unwrap(), None);
        let directory = directory(&root, &devpath);
        fs::create_dir_all(&directory).unwrap();
        for (name, value) in [
            ("busnum", "1\n"),
            ("devnum", "16\n"),
            ("bDeviceClass", "00\n"),
            ("authorized", "1\n"),
            ("idVendor", "0627\n"),
            ("idProduct", "0001\n"),
            ("speed", "480\n"),
            ("product", "Evil\u{1b}[2J\n"),
        ] {
            fs::write(directory.join(name), value).unwrap();
        }
        let device = usb_device(&root, &devpath).unwrap().unwrap();
        assert_eq!(device.label(), "Evil\u{fffd}[2J (0627:0001)");
        assert!(device.authorized && !device.is_hub());
        fs::write(directory.join("authorized"), "0\n").unwrap();
        assert!(!usb_device(&root, &devpath).unwrap().unwrap().authorized);
        fs::write(directory.join("devnum"), "many\n").unwrap();
        assert_eq!(usb_device(&root, &devpath).unwrap(), None);
    }

    /// A file system that keeps 64 bits of seconds, as /dev is, keeps every value.
    #[test]
    fn a_node_of_the_end_of_time_says_nothing() {
        use rustix::fs::{Timespec, Timestamps, futimens};

        let memory = std::path::Path::new("/dev/shm");
        let dir = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap();
        let root = Root::at(dir.path());
        fs::create_dir_all(root.path("/dev/bus/usb/001")).unwrap();
        let node = fs::File::create(root.path(node(BusNum(1), DevNum(2)))).unwrap();
        for seconds in [i64::MIN, -1, i64::MAX / 1_000_000 + 1, i64::MAX] {
            let time = Timespec { tv_sec: seconds, tv_nsec: 999_999_999 };
            futimens(&node, &Timestamps { last_access: time, last_modification: time }).unwrap();
            assert_eq!(plugged_at(&root, BusNum(1), DevNum(2)), None, "{seconds}");
        }
    }

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
            open_node(&self.root, &self.devpath, &DEVICE).map_err(|error| error.to_string())
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
