//! The interfaces of a USB device, and the host's drivers of them: which they are, taking the device
//! from them and giving it back. All writes to sysfs are here.

use std::fs::{self, File};
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use crate::clock::Deadline;
use crate::devpath::DevPath;
use crate::host::sysfs::{attribute, directory, is_gone, names, read_up_to};
use crate::root::Root;

/// How long the kernel may need to make a device's interfaces. They come within milliseconds; what
/// takes longer is left to a later event.
const UNTIL_CONFIGURED: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// The kernel's name, `1-3:1.0`.
    pub name: String,
    /// `bInterfaceClass`.
    pub class: u8,
    pub driver: Option<String>,
}

impl Interface {
    /// Whether a driver of the host has it. `usbfs` is no such driver: it stands for a program
    /// that has claimed the interface, QEMU for one.
    pub fn has_kernel_driver(&self) -> bool {
        self.driver.as_ref().is_some_and(|driver| driver != USBFS)
    }

    /// Whether a driver of the host serves a disk by it.
    pub fn is_driven_storage(&self) -> bool {
        self.class == CLASS_STORAGE && self.has_kernel_driver()
    }

    /// Whether a program, such as a guest's QEMU, serves a disk by it.
    pub fn is_claimed_storage(&self) -> bool {
        self.class == CLASS_STORAGE && self.is_claimed()
    }

    /// Whether a program has claimed it.
    pub fn is_claimed(&self) -> bool {
        self.driver.as_ref().is_some_and(|driver| driver == USBFS)
    }
}

/// Mass storage (<https://www.usb.org/defined-class-codes>).
const CLASS_STORAGE: u8 = 0x08;

/// The driver of the interfaces that programs have claimed (`drivers/usb/core/devio.c`).
const USBFS: &str = "usbfs";

/// The interfaces of the device at `devpath`, by name; none of one that is not there.
pub fn interfaces(root: &Root, devpath: &DevPath) -> Vec<Interface> {
    let directory = directory(root, devpath);
    let prefix = format!("{}:", devpath.sysname());
    let interface = |name: String| {
        let path = name.starts_with(&prefix).then(|| directory.join(&name))?;
        let class = attribute(path.join("bInterfaceClass")).ok()?;
        let driver = fs::read_link(path.join("driver")).ok();
        let driver = driver.and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
        Some(Interface { name, class: u8::from_str_radix(&class, 16).ok()?, driver })
    };
    names(&directory).into_iter().filter_map(interface).collect()
}

/// Whether the device has all its interfaces. The kernel makes them right after it has sent the
/// device's `add`, and is waited for a moment.
pub fn has_interfaces(root: &Root, devpath: &DevPath) -> bool {
    let deadline = Deadline::after(UNTIL_CONFIGURED);
    loop {
        let wanted = attribute(directory(root, devpath).join("bNumInterfaces")).unwrap_or_default();
        // Empty until the device has a configuration (`drivers/usb/core/sysfs.c`).
        let wanted = wanted.trim().parse().ok();
        if wanted.is_some_and(|wanted: usize| interfaces(root, devpath).len() >= wanted) {
            return true;
        }
        if deadline.remaining().is_none() {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the host lets drivers and programs use the interface. A kernel without the attribute
/// authorizes all interfaces.
pub fn is_authorized(root: &Root, devpath: &DevPath, interface: &Interface) -> bool {
    let directory = directory(root, devpath).join(&interface.name);
    attribute(directory.join("authorized")).map_or(true, |value| value != "0")
}

pub fn unbind_programs(root: &Root, devpath: &DevPath) -> io::Result<()> {
    unbind(root, devpath, Interface::is_claimed).map(drop)
}

/// Takes the device from the host's drivers; returns which lost an interface.
pub fn unbind_drivers(root: &Root, devpath: &DevPath) -> io::Result<Vec<Interface>> {
    unbind(root, devpath, Interface::has_kernel_driver)
}

/// Unbinds those of the interfaces; returns which lost their driver.
///
/// One that disappears in the meantime does not count. A driver may release several interfaces at once.
///
/// # Errors
///
/// The first of a driver that stays; the others are unbound all the same.
fn unbind(
    root: &Root,
    devpath: &DevPath,
    which: fn(&Interface) -> bool,
) -> io::Result<Vec<Interface>> {
    let mut unbound = Vec::new();
    let mut failed = Ok(());
    for interface in interfaces(root, devpath).into_iter().filter(which) {
        let file = directory(root, devpath).join(&interface.name).join("driver/unbind");
        match write(&file, &interface.name) {
            Ok(()) => unbound.push(interface),
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                let of = interface.driver.unwrap_or_default();
                let message = format!("{of} keeps {}: {error}", interface.name);
                failed = failed.and(Err(io::Error::new(error.kind(), message)));
            }
        }
    }
    failed.map(|()| unbound)
}

/// Lets the kernel find drivers for the interfaces that have none.
///
/// # Errors
///
/// The kernel was not to be asked. That it found no driver is no error.
pub fn probe(root: &Root, devpath: &DevPath) -> io::Result<()> {
    let idle = interfaces(root, devpath);
    for interface in idle.iter().filter(|interface| interface.driver.is_none()) {
        // `drivers/base/bus.c`: `drivers_probe_store` answers EINVAL for a device that is gone.
        match write(&root.path("/sys/bus/usb/drivers_probe"), &interface.name) {
            Err(error) if !is_gone(&error) && error.kind() != io::ErrorKind::InvalidInput => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

fn write(file: &std::path::Path, text: &str) -> io::Result<()> {
    File::options().append(true).open(file)?.write_all(format!("{text}\n").as_bytes())
}

/// As many configurations as the kernel reads (`drivers/usb/core/config.c`: `USB_MAXCONFIG`), each of
/// the largest length.
const MAX_DESCRIPTORS: u64 = 18 + 8 * 0xffff;

const CONFIGURATION: u8 = 2;
const INTERFACE: u8 = 4;

/// The classes of all interfaces of all configurations, and of their alternate settings. Empty if the
/// `descriptors` file cannot be read.
pub fn interface_classes(root: &Root, devpath: &DevPath) -> Vec<u8> {
    let file = directory(root, devpath).join("descriptors");
    read_up_to(file, MAX_DESCRIPTORS).map(|bytes| parse_descriptors(&bytes)).unwrap_or_default()
}

/// Reads the device descriptor and the configurations behind it. The kernel writes each configuration
/// with its `wTotalLength` (`drivers/usb/core/sysfs.c`: `descriptors_read`), so a device that lies
/// about a length inside of one does not hide the next one.
fn parse_descriptors(bytes: &[u8]) -> Vec<u8> {
    let mut classes = Vec::new();
    let mut rest = bytes.get(18..).unwrap_or_default();
    while let [length, CONFIGURATION, low, high, ..] = *rest {
        let total = usize::from(u16::from_le_bytes([low, high])).max(usize::from(length)).max(4);
        let (configuration, others) = rest.split_at(total.min(rest.len()));
        rest = others;
        let mut descriptors = configuration;
        while let [length, kind, ..] = *descriptors {
            // USB 2.0, 9.6.5: bInterfaceClass.
            if let (INTERFACE, Some(class)) = (kind, descriptors.get(5)) {
                classes.push(*class);
            }
            match descriptors.get(usize::from(length)..) {
                Some(next) if length >= 2 => descriptors = next,
                _ => break,
            }
        }
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    /// A headset: two interfaces with drivers, one without, one that a program has.
    fn host() -> (tempfile::TempDir, Root, DevPath) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let devpath: DevPath = "/devices/x/usb1/1-3".parse().unwrap();
        let drivers = root.path("/sys/bus/usb/drivers");
        for (interface, class, driver) in [
            ("1-3:1.0", "01", "snd-usb-audio"),
            ("1-3:1.1", "03", "usbhid"),
            ("1-3:1.2", "ff", ""),
            ("1-3:1.3", "ff", "usbfs"),
            ("ep_00", "08", "none"),
        ] {
            let directory = directory(&root, &devpath).join(interface);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("bInterfaceClass"), format!("{class}\n")).unwrap();
            if !driver.is_empty() {
                fs::create_dir_all(drivers.join(driver)).unwrap();
                fs::write(drivers.join(driver).join("unbind"), "").unwrap();
                symlink(drivers.join(driver), directory.join("driver")).unwrap();
            }
        }
        fs::write(root.path("/sys/bus/usb/drivers_probe"), "").unwrap();
        (dir, root, devpath)
    }

    #[test]
    fn the_hosts_drivers_lose_their_interfaces_and_programs_keep_theirs() {
        let (_dir, root, devpath) = host();
        assert_eq!(interfaces(&root, &devpath).len(), 4);
        let unbound = unbind_drivers(&root, &devpath).unwrap();
        let names: Vec<&str> = unbound.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["1-3:1.0", "1-3:1.1"]);
        let written = |driver: &str| {
            fs::read_to_string(root.path(format!("/sys/bus/usb/drivers/{driver}/unbind"))).unwrap()
        };
        assert_eq!(written("snd-usb-audio"), "1-3:1.0\n");
        assert_eq!(written("usbhid"), "1-3:1.1\n");
        assert_eq!(written("usbfs"), "");
    }

    #[test]
    fn only_interfaces_without_a_driver_are_given_back() {
        let (_dir, root, devpath) = host();
        probe(&root, &devpath).unwrap();
        let probed = fs::read_to_string(root.path("/sys/bus/usb/drivers_probe")).unwrap();
        assert_eq!(probed, "1-3:1.2\n");
    }

    #[test]
    fn a_device_that_is_gone_has_nothing_to_take_or_give() {
        let (_dir, root, _) = host();
        let gone = "/devices/x/usb1/1-4".parse().unwrap();
        assert_eq!(unbind_drivers(&root, &gone).unwrap(), []);
        probe(&root, &gone).unwrap();
        // A driver's module that is unloaded this very moment.
        let devpath = "/devices/x/usb1/1-3".parse().unwrap();
        fs::remove_file(root.path("/sys/bus/usb/drivers/usbhid/unbind")).unwrap();
        assert_eq!(unbind_drivers(&root, &devpath).unwrap().len(), 1);
    }

    fn configuration(body: &[u8]) -> Vec<u8> {
        let total = u16::try_from(9 + body.len()).unwrap().to_le_bytes();
        let mut bytes = vec![9, CONFIGURATION, total[0], total[1], 1, 1, 0, 0x80, 50];
        bytes.extend(body);
        bytes
    }

    fn interface(class: u8, alternate: u8) -> Vec<u8> {
        vec![9, INTERFACE, 0, alternate, 0, class, 0, 0, 0]
    }

    #[test]
    fn classes_of_all_configurations_and_alternate_settings_are_found() {
        let mut bytes = vec![18; 18];
        let endpoint = [7, 5, 0x81, 3, 8, 0, 10];
        bytes.extend(configuration(
            &[interface(3, 0), endpoint.to_vec(), interface(0xff, 1)].concat(),
        ));
        bytes.extend(configuration(&interface(8, 0)));
        assert_eq!(parse_descriptors(&bytes), [3, 0xff, 8]);
    }

    #[test]
    fn descriptor_without_length_does_not_hide_the_next_configuration() {
        let mut bytes = vec![18; 18];
        bytes.extend(configuration(&[&interface(3, 0)[..], &[0, 5, 0]].concat()));
        bytes.extend(configuration(&interface(8, 0)));
        assert_eq!(parse_descriptors(&bytes), [3, 8]);
        assert_eq!(parse_descriptors(&bytes[..10]), [0; 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_descriptors(&bytes);
        }

        #[test]
        fn any_configuration_is_survived(body in prop::collection::vec(0..12u8, 0..200)) {
            let _ = parse_descriptors(&[vec![18; 18], configuration(&body)].concat());
        }
    }
}
