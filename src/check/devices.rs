//! The devices in configured ports: whether the host lets the guest have them, and who has them.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, process};

use super::finding::Finding;
use super::process::file;
use super::vm::{Answer, VmFacts};
use crate::clock::Monotonic;
use crate::config::Config;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::host::drivers::{self, Interface};
use crate::host::sysfs::{self, attribute};
use crate::host::topology::{HubPort, Topology};
use crate::host::usbfs::{self, Program};
use crate::port::Port;
use crate::root::Root;
use crate::state::dir;
use crate::state::kept;
use crate::state::record::Record;
use crate::state::socket_file::SocketFile;
use crate::text::shell_word;
use crate::usb_device::UsbDevice;

/// A device in a configured port. Hubs are not among them.
#[derive(Debug)]
pub struct DeviceFacts {
    pub port: Port,
    pub devpath: DevPath,
    pub directory: PathBuf,
    pub device: UsbDevice,
    pub interfaces: Vec<Interface>,
    pub unauthorized: Option<String>,
    /// The processes that have its node open, if one of its interfaces is claimed.
    pub programs: Vec<Program>,
    pub record: Option<Record>,
    pub is_excluded: bool,
    /// Whether a person has detached it, or keeps its port with the host.
    pub stays_with_host: bool,
    /// The VMs that it may go to.
    pub vms: Vec<String>,
    pub hostdevs: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct RunningPrograms {
    /// udisks2, which desktops mount with.
    pub udisks: bool,
    pub usbguard: bool,
    pub claiming: Vec<&'static str>,
    /// Whether another hotplugger is at work.
    pub hotplugger: bool,
}

/// Daemons that claim devices by themselves: phones, smart cards, UPSs, firmware updates, debuggers.
const CLAIMING: [&str; 8] =
    ["usbmuxd", "pcscd", "usbhid-ups", "nutdrv_qx", "blazer_usb", "fwupd", "adb", "ipp-usb"];

/// How long a guest that runs may take to configure a device.
const UNUSED_AFTER: Duration = Duration::from_secs(60);

pub fn gather(root: &Root, config: &Config, topology: &Topology) -> Vec<DeviceFacts> {
    let records = dir::read_all_unlocked(root);
    let kept = kept::read_unlocked(root);
    let hostdevs = hostdevs(root);
    let facts = |(port, device): (&HubPort, &UsbDevice)| {
        let location = topology.usb_location(&port.devpath);
        let owners = config.owners(&location);
        let vm = owners.first()?;
        let interfaces = drivers::interfaces(root, &port.devpath);
        let classes: Vec<u8> = interfaces.iter().map(|interface| interface.class).collect();
        let mut without_driver = interfaces.iter().filter(|one| one.driver.is_none());
        let unauthorized =
            without_driver.find(|one| !drivers::is_authorized(root, &port.devpath, one));
        let is_claimed = interfaces.iter().any(Interface::is_claimed);
        let node = sysfs::node(device.busnum, device.devnum);
        let record = records.iter().find(|record| record.port == port.port);
        let record = record.filter(|record| record.devnum == device.devnum);
        Some(DeviceFacts {
            port: port.port.clone(),
            devpath: port.devpath.clone(),
            directory: sysfs::directory(root, &port.devpath),
            unauthorized: unauthorized.map(|interface| interface.name.clone()),
            programs: if is_claimed { usbfs::programs_with(root, &node) } else { Vec::new() },
            record: record.cloned(),
            stays_with_host: kept::includes(&kept, &port.devpath)
                || record.is_some_and(|record| {
                    record.is_detached(|of| SocketFile::at(root, &of.file()))
                }),
            is_excluded: config.refusal(vm, &location, device, &classes).is_some(),
            vms: owners.iter().map(|vm| vm.name.clone()).collect(),
            hostdevs: hostdevs
                .iter()
                .filter(|(_, hostdev)| hostdev.is_of(device))
                .map(|(domain, _)| domain.clone())
                .collect(),
            device: device.clone(),
            interfaces,
        })
    };
    topology.devices().filter_map(facts).collect()
}

pub fn running_programs(root: &Root) -> RunningPrograms {
    let mut running = RunningPrograms::default();
    for pid in usbfs::pids(root) {
        let Ok(name) = attribute(file(root, pid, "comm")) else { continue };
        match name.as_str() {
            "udisksd" => running.udisks = true,
            "usbguard-daemon" => running.usbguard = true,
            "hotplugger" => running.hotplugger |= pid != process::id(),
            name => running.claiming.extend(CLAIMING.iter().find(|known| **known == name)),
        }
    }
    running.claiming.sort_unstable();
    running.claiming.dedup();
    running
}

pub fn check(
    devices: &[DeviceFacts],
    running: &RunningPrograms,
    vms: &[VmFacts],
    now: Monotonic,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for facts in devices {
        findings.extend(facts.authorization(running));
        findings.extend(facts.user(running, vms, now));
        findings.extend(facts.overlaps(vms));
        if facts.interfaces.iter().any(|interface| interface.class == 8) && running.udisks {
            let what = format!(
                "udisks2 runs and may mount {} before it is attached",
                facts.device.label()
            );
            let port = &facts.devpath;
            findings.push(Finding::note("udisks", port, what).add_line(
                "/etc/udev/rules.d/70-hotplugger-udisks.rules",
                format!("DEVPATH==\"{port}/*\", SUBSYSTEM==\"block\", ENV{{UDISKS_IGNORE}}=\"1\""),
            ));
        }
    }
    if !devices.is_empty() && !running.claiming.is_empty() {
        let names = running.claiming.join(", ");
        let what = format!(
            "{names} runs and may claim devices in configured ports; an attach takes them from it"
        );
        findings.push(Finding::note("claiming-programs", names, what));
    }
    findings
}

impl DeviceFacts {
    fn authorization(&self, running: &RunningPrograms) -> Option<Finding> {
        let label = self.device.label();
        let (code, what, directory) = if self.device.authorized {
            let name = self.unauthorized.as_ref()?;
            let what =
                format!("interface {name} of {label} is not authorized, so it is not attached");
            ("interface-not-authorized", what, self.directory.join(name))
        } else {
            let what = format!("{label} is not authorized, so no program can use it");
            ("not-authorized", what, self.directory.clone())
        };
        let finding = Finding::warning(code, &self.devpath, what);
        Some(if running.usbguard {
            finding.advice(
                "USBGuard blocks it: `usbguard list-devices --blocked` prints its number, \
                 `usbguard allow-device NUMBER` allows it",
            )
        } else {
            let file = shell_word(&directory.join("authorized").to_string_lossy());
            finding.run(format!("echo 1 > {file}"))
        })
    }

    fn user(&self, running: &RunningPrograms, vms: &[VmFacts], now: Monotonic) -> Option<Finding> {
        let label = self.device.label();
        let warning = |code, what: String| Finding::warning(code, &self.devpath, what);
        let record = self.record.as_ref();
        if let Some(unconfirmed) = record.and_then(|record| record.unconfirmed.as_ref()) {
            let what = format!(
                "it is unknown whether `{}` has {label}: its QEMU did not reply",
                unconfirmed.vm
            );
            return Some(warning("device-unconfirmed", what).run("hotplugger sync"));
        }
        let id = DeviceId { port: self.port.clone(), devnum: self.device.devnum };
        let answers = vms.iter().filter_map(|vm| Some((vm, vm.answer.as_ref().ok()?)));
        let has = |answer: &Answer| answer.attached.contains(&id) || answer.pending.contains(&id);
        let guest = answers.clone().find(|(_, answer)| has(answer));
        let is_claimed = self.interfaces.iter().any(Interface::is_claimed);
        if let Some((vm, answer)) = guest {
            let name = &vm.vm.name;
            let is_qemu = |program: &Program| Some(program.pid) == answer.pid;
            if is_claimed && !self.programs.is_empty() && !self.programs.iter().any(is_qemu) {
                let what = format!("{} uses {label}, so `{name}` cannot", self.program_names());
                return Some(warning("device-claimed", what).advice("stop that program"));
            }
            let attached = record.and_then(|record| record.attached.as_ref())?;
            if !is_claimed && answer.running && now.since(attached.at) > UNUSED_AFTER {
                let what = format!(
                    "{label} is attached to `{name}`, and the guest does not use it; it may have no \
                     driver for it"
                );
                return Some(warning("device-not-used", what));
            }
            return None;
        }
        if running.hotplugger || self.is_excluded || !self.device.authorized {
            return None;
        }
        if is_claimed {
            let what = format!("{} uses {label}", self.program_names());
            let advice = "a QEMU keeps it: remove it from that VM's arguments; any other program loses \
                          it when it is attached";
            return Some(warning("device-claimed", what).advice(advice));
        }
        let has_driver = self.interfaces.iter().any(|interface| interface.driver.is_some());
        if record.is_some_and(|record| record.unbound) && !has_driver {
            let what = format!(
                "{label} is neither attached nor used by the host: a hotplugger was killed before it \
                 attached or returned it"
            );
            return Some(warning("device-left", what).run("hotplugger sync"));
        }
        let mut running_vms = answers.filter(|(vm, _)| self.vms.contains(&vm.vm.name));
        let (vm, _) = running_vms.next().filter(|_| !self.stays_with_host)?;
        let what = format!("{label} is not attached to `{}`, which runs", vm.vm.name);
        let finding = Finding::note("device-not-attached", &self.devpath, what);
        Some(finding.run("hotplugger sync"))
    }

    fn program_names(&self) -> String {
        let names: Vec<String> = self.programs.iter().map(ToString::to_string).collect();
        if names.is_empty() { "a program".to_owned() } else { names.join(" and ") }
    }

    fn overlaps(&self, vms: &[VmFacts]) -> Vec<Finding> {
        let label = &self.device.label();
        let warning = |what| Finding::warning("device-passed-twice", &self.devpath, what);
        let of_libvirt = self.hostdevs.iter().map(|domain| {
            let what = format!("the libvirt domain {domain} passes {label} through by `<hostdev>`");
            warning(what).run(format!("virsh edit {}", shell_word(domain)))
        });
        let objects = vms.iter().flat_map(|vm| {
            let objects = vm.answer.iter().flat_map(|answer| &answer.foreign);
            objects.filter(|object| object.is_of(&self.port, &self.device)).map(move |object| {
                warning(format!("`{}` passes {label} through by {object}", vm.vm.name))
                    .advice("remove that usb-host device from QEMU's arguments")
            })
        });
        of_libvirt.chain(objects).collect()
    }
}

/// The `<source>` of a `<hostdev type='usb'>`.
#[derive(Debug, Default, PartialEq, Eq)]
struct HostDev {
    vendor_id: Option<u32>,
    product_id: Option<u32>,
    bus: Option<u32>,
    device: Option<u32>,
}

impl HostDev {
    fn is_of(&self, device: &UsbDevice) -> bool {
        let is = |wanted: Option<u32>, actual: u32| wanted.is_none_or(|wanted| wanted == actual);
        *self != Self::default()
            && is(self.vendor_id, device.vendor_id.into())
            && is(self.product_id, device.product_id.into())
            && is(self.bus, device.busnum.0.into())
            && is(self.device, device.devnum.0.into())
    }
}

fn hostdevs(root: &Root) -> Vec<(String, HostDev)> {
    let of_domain = |(name, text): (String, String)| {
        parse_hostdevs(&text).into_iter().map(move |hostdev| (name.clone(), hostdev))
    };
    domains(root).into_iter().flat_map(of_domain).collect()
}

/// The domains that libvirt has, running or not: the name and the XML of each, by name.
pub fn domains(root: &Root) -> Vec<(String, String)> {
    let entries = fs::read_dir(root.path("/etc/libvirt/qemu")).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut domains: Vec<(String, String)> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "xml"))
        .filter_map(|path| {
            Some((path.file_stem()?.to_str()?.to_owned(), fs::read_to_string(&path).ok()?))
        })
        .collect();
    domains.sort();
    domains
}

/// Reads the elements as libvirt writes them (`src/conf/domain_conf.c`:
/// `virDomainHostdevSubsysUSBDefFormat`).
fn parse_hostdevs(text: &str) -> Vec<HostDev> {
    let elements =
        text.split("<hostdev ").skip(1).filter_map(|rest| rest.split("</hostdev>").next());
    let of_usb = elements.filter(|element| {
        element.split('>').next().is_some_and(|attributes| attributes.contains("type='usb'"))
    });
    let read = |element: &str| {
        let source = element.split("<source").nth(1)?.split("</source>").next()?;
        let number = |tag: &str, name: &str| {
            let attributes = source.split(tag).nth(1)?.split("/>").next()?;
            let value = attributes.split(&format!("{name}='")).nth(1)?.split('\'').next()?;
            match value.strip_prefix("0x") {
                Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok(),
                None => value.parse().ok(),
            }
        };
        Some(HostDev {
            vendor_id: number("<vendor ", "id"),
            product_id: number("<product ", "id"),
            bus: number("<address ", "bus"),
            device: number("<address ", "device"),
        })
    };
    of_usb.filter_map(read).collect()
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::super::vm::tests::facts as vm_facts;
    use super::*;
    use crate::guest::objects::OtherUsbHost;
    use crate::port::{BusNum, DevNum};
    use crate::state::record::Attachment;
    use crate::state::record::tests::record;

    fn interface(class: u8, driver: Option<&str>) -> Interface {
        Interface { name: "1-1:1.0".to_owned(), class, driver: driver.map(str::to_owned) }
    }

    fn facts(interface: Interface) -> DeviceFacts {
        DeviceFacts {
            port: "1-1".parse().unwrap(),
            devpath: "/devices/x/usb1/1-1".parse().unwrap(),
            directory: "/sys/devices/x/usb1/1-1".into(),
            device: UsbDevice {
                busnum: BusNum(1),
                devnum: DevNum(5),
                class: 0,
                authorized: true,
                vendor_id: 1,
                product_id: 2,
                speed: None,
                product: None,
                serial: None,
            },
            interfaces: vec![interface],
            unauthorized: None,
            programs: Vec::new(),
            record: None,
            is_excluded: false,
            stays_with_host: false,
            vms: vec!["windows".to_owned()],
            hostdevs: Vec::new(),
        }
    }

    /// The VM, which has the device or not.
    fn vm(has_device: bool) -> VmFacts {
        let id = "hotplugger-1-1-5".parse().unwrap();
        vm_facts(Ok(Answer {
            running: true,
            attached: if has_device { vec![id] } else { Vec::new() },
            pid: Some(7),
            ..Answer::default()
        }))
    }

    const NOW: Monotonic = Monotonic(100_000_000);

    fn codes(facts: DeviceFacts, running: &RunningPrograms, vms: &[VmFacts]) -> Vec<&'static str> {
        check(&[facts], running, vms, NOW).iter().map(|finding| finding.code).collect()
    }

    fn attachment(at: Monotonic) -> Attachment {
        Attachment {
            vm: "windows".to_owned(),
            monitor: crate::monitor::Monitor::Socket("/run/q".into()),
            socket_file: None,
            id: "hotplugger-1-1-5".parse().unwrap(),
            device: "a device".to_owned(),
            at,
        }
    }

    #[test]
    fn authorization_and_udisks_are_reported() {
        let none = RunningPrograms::default();
        let udisks = RunningPrograms { udisks: true, ..RunningPrograms::default() };
        assert!(codes(facts(interface(3, Some("usbhid"))), &udisks, &[]).is_empty());
        assert!(codes(facts(interface(8, Some("usb-storage"))), &none, &[]).is_empty());
        assert_eq!(codes(facts(interface(8, None)), &udisks, &[]), ["udisks"]);
        let mut blocked = facts(interface(3, None));
        blocked.unauthorized = Some("1-1:1.0".to_owned());
        assert_eq!(codes(blocked, &none, &[]), ["interface-not-authorized"]);
        let mut blocked = facts(interface(3, None));
        blocked.device.authorized = false;
        assert_eq!(codes(blocked, &none, &[]), ["not-authorized"]);
        let pcscd = RunningPrograms { claiming: vec!["pcscd"], ..RunningPrograms::default() };
        assert_eq!(codes(facts(interface(3, None)), &pcscd, &[]), ["claiming-programs"]);
    }

    #[test]
    fn device_that_no_guest_has_is_reported_unless_that_is_right() {
        let none = RunningPrograms::default();
        let hid = || facts(interface(3, Some("usbhid")));
        assert_eq!(codes(hid(), &none, &[vm(false)]), ["device-not-attached"]);
        assert!(codes(hid(), &none, &[]).is_empty(), "the VM does not run");
        let excluded = DeviceFacts { is_excluded: true, ..hid() };
        assert!(codes(excluded, &none, &[vm(false)]).is_empty());
        let manual = DeviceFacts { stays_with_host: true, ..hid() };
        assert!(codes(manual, &none, &[vm(false)]).is_empty());
        let busy = RunningPrograms { hotplugger: true, ..RunningPrograms::default() };
        assert!(codes(hid(), &busy, &[vm(false)]).is_empty());
        let unbound = || Some(Record { unbound: true, ..record("1-1", 5) });
        let left = DeviceFacts { record: unbound(), ..facts(interface(3, None)) };
        assert_eq!(codes(left, &none, &[]), ["device-left"]);
        let settling = DeviceFacts { record: unbound(), ..facts(interface(3, None)) };
        assert!(codes(settling, &busy, &[]).is_empty());
    }

    #[test]
    fn device_that_is_not_used_by_its_guest_is_reported() {
        let none = RunningPrograms::default();
        let with = |driver, at| {
            let attached = Some(attachment(at));
            let record = Some(Record { attached, ..record("1-1", 5) });
            DeviceFacts { record, ..facts(interface(3, driver)) }
        };
        let long_ago = Monotonic(1);
        assert!(codes(with(Some("usbfs"), long_ago), &none, &[vm(true)]).is_empty());
        assert!(codes(with(None, NOW), &none, &[vm(true)]).is_empty(), "just attached");
        assert_eq!(codes(with(None, long_ago), &none, &[vm(true)]), ["device-not-used"]);
        let program = |pid| Program { pid, name: "pcscd".to_owned(), is_qemu: false };
        let mut claimed = with(Some("usbfs"), long_ago);
        claimed.programs = vec![program(8)];
        assert_eq!(codes(claimed, &none, &[vm(true)]), ["device-claimed"]);
        let mut used = with(Some("usbfs"), long_ago);
        used.programs = vec![program(7), program(8)];
        assert!(codes(used, &none, &[vm(true)]).is_empty());
        let unconfirmed = Record { unconfirmed: Some(attachment(NOW)), ..record("1-1", 5) };
        let unknown = DeviceFacts { record: Some(unconfirmed), ..facts(interface(3, None)) };
        assert_eq!(codes(unknown, &none, &[vm(true)]), ["device-unconfirmed"]);
    }

    #[test]
    fn other_definitions_that_pass_the_device_through_are_reported() {
        let none = RunningPrograms { hotplugger: true, ..RunningPrograms::default() };
        let text = "<domain><!-- x --><devices>
            <hostdev mode='subsystem' type='pci' managed='yes'><source>
              <address domain='0x0000' bus='0x01' slot='0x00'/></source></hostdev>
            <hostdev mode='subsystem' type='usb' managed='yes'>
              <source startupPolicy='optional'><vendor id='0x0001'/><product id='0x0002'/></source>
              <address type='usb' bus='9' port='1'/>
            </hostdev>
            <hostdev mode='subsystem' type='usb'><source><address bus='1' device='6'/></source>
            </hostdev></devices></domain>";
        let hostdevs = parse_hostdevs(text);
        let device = facts(interface(3, None)).device;
        assert_eq!(
            hostdevs.iter().map(|one| one.is_of(&device)).collect::<Vec<_>>(),
            [true, false]
        );
        let mut twice = facts(interface(3, None));
        twice.hostdevs = vec!["other".to_owned()];
        assert_eq!(codes(twice, &none, &[]), ["device-passed-twice"]);
        let with = |object| {
            let answer = Answer { foreign: vec![object], ..Answer::default() };
            codes(facts(interface(3, None)), &none, &[vm_facts(Ok(answer))])
        };
        let object = OtherUsbHost { id: Some("usb0".to_owned()), ..OtherUsbHost::default() };
        let bus = OtherUsbHost { bus: 1, port: Some("1".to_owned()), ..object.clone() };
        assert_eq!(with(bus), ["device-passed-twice"]);
        let other = OtherUsbHost { bus: 1, port: Some("2".to_owned()), ..object.clone() };
        assert!(with(other).is_empty());
        assert!(with(object).is_empty(), "it matches no device");
    }
}
