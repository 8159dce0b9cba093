//! The guest's USB controllers, wherever QEMU keeps them.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::qmp::{Error, Qmp};

/// A USB controller of the guest that has a bus of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Controller {
    /// Its id; none if it was given none.
    pub id: Option<String>,
    /// QEMU's name of the model: `qemu-xhci`.
    pub model: String,
    /// The name of its bus: `xhci0.0`.
    pub bus: String,
    /// The standard it follows.
    pub standard: Standard,
    /// How many ports it has of each speed, if it is one that says so.
    pub ports: Option<Ports>,
}

/// The controllers' standards, which tell the speeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standard {
    /// USB 3, and all that is slower.
    Xhci,
    /// USB 2's high speed.
    Ehci,
    /// USB 1.
    Uhci,
    /// USB 1.
    Ohci,
}

/// The numbers of ports of an xHCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ports {
    /// Ports for devices up to USB 2's high speed.
    pub usb2: u64,
    /// Ports for faster ones.
    pub usb3: u64,
}

/// With an id, without one, and part of the machine (`system/qdev-monitor.c`: `qdev_set_id`).
const PLACES: [&str; 3] =
    ["/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"];

/// The controllers.
pub fn list(qmp: &mut dyn Qmp) -> Result<Vec<Controller>, Error> {
    let mut controllers = Vec::new();
    for (index, place) in PLACES.iter().enumerate() {
        for child in children(qmp, place)? {
            let Some((model, standard)) = child.model() else { continue };
            let path = format!("{place}/{}", child.name);
            // UHCI companions of an EHCI have no bus of their own.
            let within = children(qmp, &path)?;
            let Some(bus) = within.iter().find(|child| child.kind == "child<usb-bus>") else {
                continue;
            };
            let ports = match (count(qmp, &path, "p2")?, count(qmp, &path, "p3")?) {
                (Some(usb2), Some(usb3)) => Some(Ports { usb2, usb3 }),
                _ => None,
            };
            controllers.push(Controller {
                id: (index == 0).then(|| child.name.clone()),
                model,
                bus: bus.name.clone(),
                standard,
                ports,
            });
        }
    }
    Ok(controllers)
}

#[derive(Deserialize)]
struct Child {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Child {
    /// The model and standard, if it is a USB controller.
    fn model(&self) -> Option<(String, Standard)> {
        let model = self.kind.strip_prefix("child<")?.strip_suffix('>')?;
        let known = [
            ("xhci", Standard::Xhci),
            ("ehci", Standard::Ehci),
            ("uhci", Standard::Uhci),
            ("ohci", Standard::Ohci),
        ];
        let (_, standard) = known.into_iter().find(|(part, _)| model.contains(part))?;
        Some((model.to_owned(), standard))
    }
}

fn children(qmp: &mut dyn Qmp, path: &str) -> Result<Vec<Child>, Error> {
    match qmp.execute("qom-list", json!({ "path": path })) {
        Ok(children) => Vec::deserialize(children)
            .map_err(|error| Error::Protocol(format!("qom-list: {error}"))),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A number; none if the controller has no such property.
fn count(qmp: &mut dyn Qmp, path: &str, property: &str) -> Result<Option<u64>, Error> {
    match qmp.execute("qom-get", json!({ "path": path, "property": property })) {
        Ok(value) => Ok(value.as_u64()),
        Err(Error::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use serde_json::Value;

    /// What QEMU 7.2 has with an xHCI `xhci0`, an EHCI without an id and a UHCI of the machine's.
    struct Machine;

    impl Qmp for Machine {
        fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
            let refuse = |class: &str| {
                let (class, desc) = (class.to_owned(), String::new());
                Err(Error::Command { command, class, desc })
            };
            let path = arguments["path"].as_str().unwrap();
            let bus = |name: &str| json!([{"name": name, "type": "child<usb-bus>"}]);
            match (command, path) {
                ("qom-list", "/machine/peripheral") => Ok(json!([
                    {"name": "type", "type": "string"},
                    {"name": "hotplugger-1-1-5", "type": "child<usb-host>"},
                    {"name": "xhci0", "type": "child<qemu-xhci>"}
                ])),
                ("qom-list", "/machine/peripheral-anon") => {
                    Ok(json!([{"name": "device[0]", "type": "child<usb-ehci>"}]))
                }
                ("qom-list", "/machine/unattached") => Ok(json!([
                    {"name": "device[3]", "type": "child<piix3-usb-uhci>"},
                    {"name": "device[4]", "type": "child<ich9-usb-uhci2>"}
                ])),
                ("qom-list", "/machine/peripheral/xhci0") => Ok(bus("xhci0.0")),
                ("qom-list", "/machine/unattached/device[4]") => Ok(json!([])),
                ("qom-list", _) => Ok(bus("usb-bus.0")),
                ("qom-get", "/machine/peripheral/xhci0") => Ok(json!(15)),
                _ => refuse("GenericError"),
            }
        }

        fn pause(&mut self, _: Duration) -> Result<(), Error> {
            Ok(())
        }
    }

    #[test]
    fn controllers_are_found_wherever_they_are() {
        let found = list(&mut Machine).unwrap();
        let short: Vec<_> =
            found.iter().map(|one| (one.id.as_deref(), one.bus.as_str(), one.standard)).collect();
        assert_eq!(
            short,
            [
                (Some("xhci0"), "xhci0.0", Standard::Xhci),
                (None, "usb-bus.0", Standard::Ehci),
                (None, "usb-bus.0", Standard::Uhci)
            ]
        );
        assert_eq!(found[0].ports, Some(Ports { usb2: 15, usb3: 15 }));
        assert_eq!(found[1].ports, None);
    }
}
