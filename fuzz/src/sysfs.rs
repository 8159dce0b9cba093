//! What is in sysfs and proc: a folder made by the input.

use hotplugger::devpath::DevPath;
use hotplugger::host::disks::claim;
use hotplugger::host::topology;
use hotplugger::host::{drivers, sysfs};
use hotplugger::port::{BusNum, DevNum};

use super::host::{Host, TABLET};

const HUB: &str = "/sys/devices/pci0000:00/0000:00:14.0/usb1";

/// Where an entry may stand; below a hub or a device.
const PLACES: [&str; 40] = [
    "/speed",
    "/busnum",
    "/devnum",
    "/bDeviceClass",
    "/idVendor",
    "/idProduct",
    "/product",
    "/serial",
    "/authorized",
    "/1-0:1.0/usb1-port3/peer",
    "/1-0:1.0/usb1-port3/connect_type",
    "/1-0:1.0/usb1-port3/location",
    "/1-0:1.0/usb1-port3/physical_location/panel",
    "/1-0:1.0/usb1-port255/peer",
    "/1-0:1.0",
    "/1-3",
    "/1-3/speed",
    "/1-3/busnum",
    "/1-3/devnum",
    "/1-3/bDeviceClass",
    "/1-3/idVendor",
    "/1-3/idProduct",
    "/1-3/product",
    "/1-3/serial",
    "/1-3/authorized",
    "/1-3/1-3:1.0",
    "/1-3/1-3:1.0/bInterfaceClass",
    "/1-3/1-3:1.0/driver",
    "/1-3/1-3:1.0/1-3-port1/peer",
    "/1-3/1-3:1.0/block/sda/dev",
    "/1-3/1-3.1",
    "/../usb2",
    "/../usb2/speed",
    "/../usb2/2-0:1.0/usb2-port3/peer",
    "/../subsystem",
    "/../../../../bus/usb/devices/usb1",
    "/../../../../bus/usb/devices/usb2",
    "/../../../../class/block/sda",
    "/../../../../../proc/self/mountinfo",
    "/../../../../../proc/swaps",
];

/// Makes the folder (entries with NUL between them: the number of a place, then contents, or the
/// target of a link behind `>`, or `/` for a folder) and reads all there is to read.
pub fn run(data: &[u8]) {
    let host = Host::new();
    host.put_all(&PLACES.map(|place| format!("{HUB}{place}")), data);
    let root = &host.root;
    for devpath in [TABLET, "/devices/pci0000:00/0000:00:14.0/usb1/1-3/1-3.1"] {
        let devpath: DevPath = devpath.parse().expect("a DEVPATH");
        if let Ok(Some(device)) = sysfs::usb_device(root, &devpath) {
            assert!(!device.label().chars().any(char::is_control));
            sysfs::plugged_at(root, device.busnum, device.devnum);
        }
        for interface in drivers::interfaces(root, &devpath) {
            assert!(interface.name.starts_with(devpath.sysname()));
        }
        let places = topology::usb_location(root, &devpath);
        assert!(places.peers.len() <= 6);
        topology::peers(root, &devpath);
        drop(claim(root, &devpath, false).map_err(|used| used.to_string()));
        topology::port(root, &devpath);
    }
    sysfs::plugged_at(root, BusNum(1), DevNum(16));
    let topology = topology::read_topology(root);
    topology.port_locations();
}
