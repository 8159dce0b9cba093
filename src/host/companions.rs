//! An EHCI and its companions, whose ports are the same connectors.
//!
//! An EHCI takes only devices of 480 Mb/s. Slower ones in the same connector appear in a port of a UHCI or
//! OHCI, its companion. No file of sysfs says which. On PCI the companions are functions of the same
//! device; their ports, in the order of the functions, are those of the EHCI in their order (EHCI 1.0
//! specification, 4.2). In a device tree both have the same phy, or one names the other (Linux,
//! `Documentation/devicetree/bindings/usb/generic-ehci.yaml`: `companion`). Where ACPI gives the ports of one
//! connector the same location, that decides. If the numbers of ports do not add up, or nothing shows which
//! controllers belong together, the ports are not known.

use std::fs;

use super::sysfs::{attribute, directory, names};
use super::topology::{devpath_of, port_directory};
use crate::devpath::{DevPath, is_root_hub};
use crate::root::Root;
use crate::speed::Speed;

/// The root hub of a controller that has only one, as each EHCI, UHCI and OHCI.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RootHub {
    devpath: DevPath,
    speed: Speed,
    ports: u8,
}

/// Where the slower devices in the port of an EHCI appear, and the faster ones in a port of its companion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Companion {
    pub port: Option<DevPath>,
    /// Whether it is only guessed from the numbers of ports.
    pub guessed: bool,
    /// The controllers of the other speed, if it is not known which of their ports it is.
    pub controllers: Vec<DevPath>,
}

/// Reads the companion of a root hub's port, which needs the sysfs of the controllers only.
pub fn companion(root: &Root, port: &DevPath) -> Companion {
    let place = || {
        let hub = port.parent().filter(|hub| is_root_hub(hub.sysname()))?;
        Some((root_hubs(root, &hub.parent()?), hub, port.port()?.number()))
    };
    let Some(((hubs, belong_together), hub, number)) = place() else { return Companion::default() };
    match at_same_location(root, &hubs, port) {
        Some(port) => Companion { port: Some(port), ..Companion::default() },
        None => pair(&hubs, &hub, belong_together.then_some(number)),
    }
}

/// The port of another root hub for which the firmware gives the same location
/// (`drivers/usb/core/usb-acpi.c`: `usb_acpi_get_connect_type`; 0 if it gives none).
fn at_same_location(root: &Root, hubs: &[RootHub], own: &DevPath) -> Option<DevPath> {
    let location = |port: &DevPath| {
        let location = attribute(port_directory(root, port)?.join("location")).ok()?;
        location.bytes().any(|digit| !b"0x".contains(&digit)).then_some(location)
    };
    let own_location = location(own)?;
    let others = hubs.iter().filter(|hub| !own.is_at_or_below(&hub.devpath));
    let mut ports =
        others.flat_map(|hub| (1..=hub.ports).filter_map(|number| hub.devpath.port_of_hub(number)));
    ports.find(|port| location(port).as_ref() == Some(&own_location))
}

/// The root hubs of the controllers that may be companions of this one, by DEVPATH, and whether they
/// belong together: those of its PCI device, and off PCI those that the device tree names, else all.
fn root_hubs(root: &Root, controller: &DevPath) -> (Vec<RootHub>, bool) {
    if !may_have_companion(root, controller) {
        return (Vec::new(), false);
    }
    let (mut controllers, belong_together) = if let Some(device) = pci_device(controller.sysname())
    {
        (functions(root, controller, device), true)
    } else {
        let all = controllers_off_pci(root);
        let related = all.iter().filter(|other| are_related(root, controller, other));
        let related: Vec<DevPath> = related.cloned().collect();
        if related.len() > 1 { (related, true) } else { (all, false) }
    };
    controllers.sort();
    let hubs = controllers.iter().filter_map(|controller| root_hub(root, controller));
    (hubs.collect(), belong_together)
}

/// Whether its driver is of an EHCI, OHCI or UHCI. Most ports are on an xHCI, which takes all speeds.
fn may_have_companion(root: &Root, controller: &DevPath) -> bool {
    let driver = fs::read_link(directory(root, controller).join("driver"));
    let driver = driver.as_ref().ok().and_then(|link| link.file_name()?.to_str());
    driver.is_none_or(|driver| ["ehci", "ohci", "uhci"].iter().any(|kind| driver.contains(kind)))
}

/// The functions of the controller's PCI device.
fn functions(root: &Root, controller: &DevPath, device: &str) -> Vec<DevPath> {
    let Some(bus) = controller.parent() else { return Vec::new() };
    let names = names(&directory(root, &bus)).into_iter();
    let functions = names.filter(|name| name.starts_with(device));
    functions.filter_map(|name| format!("{bus}/{name}").parse().ok()).collect()
}

fn controllers_off_pci(root: &Root) -> Vec<DevPath> {
    let sys = root.path("/sys");
    let devices = sys.join("bus/usb/devices");
    let hubs = names(&devices).into_iter().filter(|name| is_root_hub(name));
    let controllers = hubs.filter_map(|hub| devpath_of(&sys, &devices.join(hub))?.parent());
    let mut controllers: Vec<DevPath> = controllers
        .filter(|other| pci_device(other.sysname()).is_none() && may_have_companion(root, other))
        .collect();
    controllers.sort();
    controllers.dedup();
    controllers
}

/// Whether it is the same controller, or the device tree gives both the same phy or names one as
/// the companion of the other.
fn are_related(root: &Root, one: &DevPath, other: &DevPath) -> bool {
    let read = |controller: &DevPath, property: &str| {
        let file = directory(root, controller).join("of_node").join(property);
        fs::read(file).ok().filter(|value| !value.is_empty())
    };
    let same = |of_one: &str, of_other: &str| {
        let value = read(one, of_one);
        value.is_some() && value == read(other, of_other)
    };
    one == other
        || same("phys", "phys")
        || same("companion", "phandle")
        || same("phandle", "companion")
}

/// The part of a PCI address that all functions of a device have: `0000:00:1d.`.
fn pci_device(sysname: &str) -> Option<&str> {
    crate::location::is_pci_address(sysname).then(|| &sysname[..=sysname.rfind('.').unwrap_or(0)])
}

fn root_hub(root: &Root, controller: &DevPath) -> Option<RootHub> {
    let names = names(&directory(root, controller)).into_iter();
    let hubs: Vec<String> = names.filter(|name| is_root_hub(name)).collect();
    let [hub] = &hubs[..] else { return None };
    let devpath: DevPath = format!("{controller}/{hub}").parse().ok()?;
    let read = |name: &str| attribute(directory(root, &devpath).join(name)).ok();
    let (speed, ports) = (read("speed")?.parse().ok()?, read("maxchild")?.parse().ok()?);
    Some(RootHub { devpath, speed, ports })
}

/// Pairs the ports of hubs that belong together; without a port's number, only names the controllers of
/// the other speed.
fn pair(hubs: &[RootHub], own: &DevPath, number: Option<u8>) -> Companion {
    let (fast, slow): (Vec<&RootHub>, Vec<&RootHub>) =
        hubs.iter().partition(|hub| hub.speed >= Speed::HIGH);
    let (false, Some(hub)) =
        (fast.is_empty() || slow.is_empty(), hubs.iter().find(|hub| hub.devpath == *own))
    else {
        return Companion::default();
    };
    let mut port = None;
    if let ([ehci], Some(number)) = (&fast[..], number)
        && slow.iter().map(|hub| u32::from(hub.ports)).sum::<u32>() == u32::from(ehci.ports)
    {
        let mut first = 0;
        for companion in &slow {
            if hub == *ehci && (first + 1..=first + companion.ports).contains(&number) {
                port = companion.devpath.port_of_hub(number - first);
            } else if hub == *companion {
                port = ehci.devpath.port_of_hub(first + number);
            }
            first += companion.ports;
        }
    }
    let others = if fast.contains(&hub) { slow } else { fast };
    let controllers = others.iter().filter(|_| port.is_none());
    let controllers = controllers.filter_map(|hub| hub.devpath.parent()).collect();
    Companion { controllers, guessed: port.is_some(), port }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(function: u8, bus: u8, speed: &str, ports: u8) -> RootHub {
        let devpath = format!("/devices/pci0000:00/0000:00:1d.{function}/usb{bus}");
        RootHub { devpath: devpath.parse().unwrap(), speed: speed.parse().unwrap(), ports }
    }

    fn port_of(hubs: &[RootHub], bus: u8, number: u8) -> Option<String> {
        let own = hubs.iter().find(|hub| hub.devpath.sysname() == format!("usb{bus}")).unwrap();
        pair(hubs, &own.devpath, Some(number)).port.map(|port| port.sysname().to_owned())
    }

    #[test]
    fn ports_of_companions_are_those_of_the_ehci_in_order() {
        let ich9 =
            [hub(0, 3, "12", 2), hub(1, 4, "12", 2), hub(2, 5, "12", 2), hub(7, 1, "480", 6)];
        for (fast, slow) in
            [("1-1", "3-1"), ("1-2", "3-2"), ("1-3", "4-1"), ("1-5", "5-1"), ("1-6", "5-2")]
        {
            let number = |port: &str| port[2..].parse().unwrap();
            assert_eq!(port_of(&ich9, 1, number(fast)).as_deref(), Some(slow));
            let bus = slow[..1].parse().unwrap();
            assert_eq!(port_of(&ich9, bus, number(slow)).as_deref(), Some(fast));
        }
        assert_eq!(port_of(&ich9, 1, 7), None, "there is no such port");
    }

    #[test]
    fn controllers_are_named_where_the_port_is_not_known() {
        let names = |hubs: &[RootHub], bus: &str| {
            let own = hubs.iter().find(|hub| hub.devpath.sysname() == bus).unwrap();
            let companion = pair(hubs, &own.devpath, Some(1));
            assert_eq!(companion.port, None);
            let names = companion.controllers.iter().map(|path| path.sysname().to_owned());
            names.collect::<Vec<_>>()
        };
        // Two EHCIs, and one with more ports than its companion.
        let two = [hub(0, 3, "12", 2), hub(1, 1, "480", 2), hub(2, 2, "480", 2)];
        assert_eq!(names(&two, "usb1"), ["0000:00:1d.0"]);
        assert_eq!(names(&two, "usb3"), ["0000:00:1d.1", "0000:00:1d.2"]);
        let more = [hub(0, 3, "12", 2), hub(7, 1, "480", 6)];
        assert_eq!(names(&more, "usb3"), ["0000:00:1d.7"]);
        assert!(names(&[hub(7, 1, "480", 6)], "usb1").is_empty(), "no companion at all");
    }

    /// An EHCI of two ports and two companions of one, on PCI or with one phy.
    fn host(controllers: [&str; 3], phy: &str, locations: [&str; 4]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        fs::create_dir_all(root.path("/sys/bus/usb/devices")).unwrap();
        let mut locations = locations.into_iter();
        for (bus, (controller, ports)) in controllers.into_iter().zip([2, 1, 1]).enumerate() {
            let controller = root.path(format!("/sys/devices/{controller}"));
            let hub = controller.join(format!("usb{}", bus + 1));
            fs::create_dir_all(&hub).unwrap();
            fs::create_dir_all(controller.join("of_node")).unwrap();
            fs::write(controller.join("of_node/phys"), phy).unwrap();
            fs::write(hub.join("speed"), if bus == 0 { "480\n" } else { "12\n" }).unwrap();
            fs::write(hub.join("maxchild"), format!("{ports}\n")).unwrap();
            for port in 1..=ports {
                let bus = bus + 1;
                let folder = hub.join(format!("{bus}-0:1.0/usb{bus}-port{port}"));
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("location"), locations.next().unwrap()).unwrap();
            }
            let link = root.path(format!("/sys/bus/usb/devices/usb{}", bus + 1));
            std::os::unix::fs::symlink(&hub, link).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn companion_is_read_by_pci_device_phy_or_location() {
        let pci = ["p/0000:00:1d.7", "p/0000:00:1d.0", "p/0000:00:1d.1"];
        let soc = ["soc/fe.usb", "soc/fa.usb", "soc/fb.usb"];
        let unknown = ["0x00000000"; 4];
        let located = ["0x80000002", "0x80000001", "0x80000001", "0x80000002"];
        for (controllers, locations, wanted, guessed) in [
            (pci, unknown, "usb2/2-1", true),
            (soc, unknown, "usb2/2-1", true),
            (pci, located, "usb3/3-1", false),
        ] {
            let (_dir, root) = host(controllers, "phy", locations);
            let port = format!("/devices/{}/usb1/1-1", controllers[0]).parse().unwrap();
            let companion = companion(&root, &port);
            assert!(companion.port.unwrap().as_str().ends_with(wanted), "{controllers:?}");
            assert_eq!((companion.guessed, companion.controllers), (guessed, vec![]));
        }
        let (_dir, root) = host(soc, "", unknown);
        let of_node =
            |controller: &str| root.path(format!("/sys/devices/soc/{controller}.usb/of_node"));
        let port = "/devices/soc/fe.usb/usb1/1-1".parse().unwrap();
        let names = |companion: &Companion| {
            let names = companion.controllers.iter().map(|path| path.sysname().to_owned());
            names.collect::<Vec<_>>()
        };
        // Nothing shows which belong together, so it may be each that takes slower devices.
        let unknown = companion(&root, &port);
        assert_eq!(
            (&unknown.port, names(&unknown)),
            (&None, vec!["fa.usb".into(), "fb.usb".into()])
        );
        for (controller, driver) in
            [("fa", "ohci-platform"), ("fb", "dwc2"), ("fe", "ehci-platform")]
        {
            let link = of_node(controller).with_file_name("driver");
            std::os::unix::fs::symlink(format!("../../bus/platform/drivers/{driver}"), link)
                .unwrap();
        }
        assert_eq!(names(&companion(&root, &port)), ["fa.usb"]);
        // The EHCI names its companion.
        fs::write(of_node("fe").join("companion"), [0, 0, 0, 7]).unwrap();
        fs::write(of_node("fa").join("phandle"), [0, 0, 0, 7]).unwrap();
        fs::write(of_node("fe").with_file_name("usb1/maxchild"), "1\n").unwrap();
        let paired = companion(&root, &port);
        assert!(paired.port.unwrap().as_str().ends_with("fa.usb/usb2/2-1"));
        let back = companion(&root, &"/devices/soc/fa.usb/usb2/2-1".parse().unwrap());
        assert!(back.port.unwrap().as_str().ends_with("fe.usb/usb1/1-1"));
    }
}
