//! What `check` reads of a host: config, udev rules, units, domains, processes.

use hotplugger::check::check;

use super::host::Host;

/// Where a file may be; see `sysfs` for what is below a root hub.
const PLACES: [&str; 32] = [
    "/etc/hotplugger/config.yaml",
    "/etc/udev/rules.d/90-hotplugger.rules",
    "/run/udev/rules.d/10-a.rules",
    "/usr/lib/udev/rules.d/99-b.rules",
    "/run/udev/control",
    "/usr/bin/hotplugger",
    "/etc/systemd/system/hotplugger-sync.service",
    "/etc/systemd/system/hotplugger-sync.path",
    "/etc/systemd/system/multi-user.target.wants/hotplugger-sync.path",
    "/etc/default/libvirt-guests",
    "/etc/libvirt/hooks/qemu",
    "/etc/libvirt/qemu/w.xml",
    "/run/libvirt/qemu/w.xml",
    "/etc/apparmor.d/abstractions/libvirt-qemu",
    "/etc/passwd",
    "/run/systemd/system",
    "/proc/9/comm",
    "/proc/9/status",
    "/proc/9/cmdline",
    "/proc/9/exe",
    "/proc/9/fd/7",
    "/proc/9/attr/current",
    "/proc/self/mountinfo",
    "/proc/swaps",
    "/tmp/hotplugger/port-1-3.json",
    "/tmp/hotplugger/kept.json",
    "/tmp/hotplugger/history.jsonl",
    "/tmp/hotplugger/guest-ports.jsonl",
    "/run/w.qmp",
    "/sys/devices/pci0000:00/0000:00:14.0/usb1/1-3/product",
    "/sys/devices/pci0000:00/0000:00:14.0/usb1/1-3/1-3:1.0/driver",
    "/sys/bus/usb/devices/usb1",
];

/// Makes the files (`Host::put_all`) on a host with a tablet, and checks it.
pub fn run(data: &[u8]) {
    let host = Host::with_tablet();
    host.put_all(&PLACES.map(str::to_owned), data);
    let report = check(&host.root, None);
    serde_json::to_string(&report).expect("it is JSON");
}
