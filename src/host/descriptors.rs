//! The interfaces of all configurations of a USB device, from the `descriptors` file in sysfs.

use std::fs::File;
use std::io::Read;

use crate::devpath::DevPath;
use crate::host::sysfs::directory;
use crate::root::Root;

/// As many configurations as the kernel reads (`drivers/usb/core/config.c`: `USB_MAXCONFIG`), each of
/// the largest length.
const MAX_BYTES: u64 = 18 + 8 * 0xffff;

const CONFIGURATION: u8 = 2;
const INTERFACE: u8 = 4;

/// The classes of all interfaces and their alternate settings. Empty if the file cannot be read.
pub fn interface_classes(root: &Root, devpath: &DevPath) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = File::open(directory(root, devpath).join("descriptors"));
    match file.and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => parse(&bytes),
        Err(_) => Vec::new(),
    }
}

/// Reads the device descriptor and the configurations behind it. The kernel writes each configuration
/// with its `wTotalLength` (`drivers/usb/core/sysfs.c`: `descriptors_read`), so a device that lies
/// about a length inside of one does not hide the next one.
fn parse(bytes: &[u8]) -> Vec<u8> {
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
        assert_eq!(parse(&bytes), [3, 0xff, 8]);
    }

    #[test]
    fn descriptor_without_length_does_not_hide_the_next_configuration() {
        let mut bytes = vec![18; 18];
        bytes.extend(configuration(&[&interface(3, 0)[..], &[0, 5, 0]].concat()));
        bytes.extend(configuration(&interface(8, 0)));
        assert_eq!(parse(&bytes), [3, 8]);
        assert_eq!(parse(&bytes[..10]), [0; 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_configuration_is_survived(body in prop::collection::vec(0..12u8, 0..200)) {
            let _ = parse(&[vec![18; 18], configuration(&body)].concat());
        }
    }
}
