//! `qemu-args` and `libvirt-xml`: the arguments that give a VM its socket and controllers.

use anyhow::{Result, bail};
use clap::Args;

use super::{CommandStatus, Context};
use crate::config::VirtualMachine;
use crate::monitor::Monitor;
use crate::output::Output;
use crate::text::{sanitize_line, shell_word};

#[derive(Debug, Args)]
pub struct QemuArgs {
    /// The VM's name in the config
    vm: String,
    /// Print a JSON array of the arguments
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct LibvirtXml {
    /// The VM's name in the config
    vm: String,
}

impl QemuArgs {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let arguments = arguments(context.config()?.named(&self.vm)?)?;
        if self.json {
            output.json(&arguments)?;
            return Ok(CommandStatus::Ok);
        }
        let options: Vec<String> = arguments
            .chunks(2)
            .map(|option| option.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" "))
            .collect();
        output.text(&options.join(" \\\n"))?;
        Ok(CommandStatus::Ok)
    }
}

impl LibvirtXml {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let arguments = arguments(context.config()?.named(&self.vm)?)?;
        output.text("<!-- into the domain, whose first line must read")?;
        output.text(
            "     <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'> -->",
        )?;
        output.text("<qemu:commandline>")?;
        for argument in &arguments {
            output.text(&format!("  <qemu:arg value='{}'/>", escape(argument)))?;
        }
        output.text("</qemu:commandline>")?;
        Ok(CommandStatus::Ok)
    }
}

/// Each option is followed by its value.
fn arguments(vm: &VirtualMachine) -> Result<Vec<String>> {
    let Monitor::Socket(socket) = &vm.monitor else {
        bail!(
            "`{}` is {} and needs no socket; give it ports in its XML: \
             <controller type='usb' model='qemu-xhci' ports='15'/>",
            vm.name,
            vm.monitor
        );
    };
    let Some(socket) = socket.to_str() else { bail!("the socket's path is not UTF-8") };
    if sanitize_line(socket) != socket {
        bail!("the socket's path has control characters; choose another path");
    }
    let mut arguments = vec![
        "-qmp".to_owned(),
        // A comma in a value is written twice (qemu(1)).
        format!("unix:{},server=on,wait=off", socket.replace(',', ",,")),
    ];
    let controllers = match vm.hubs.as_slice() {
        [] => vec!["xhci0".to_owned()],
        hubs => hubs.iter().map(|hub| controller(hub)).collect::<Result<_>>()?,
    };
    for id in controllers {
        // The most that QEMU has, of each speed. It would put a slow hub into the last of its default
        // four.
        arguments.extend(["-device".to_owned(), format!("qemu-xhci,id={id},p2=15,p3=15")]);
    }
    Ok(arguments)
}

/// The controller of this bus: QEMU names the bus after its id, with `.0`.
fn controller(hub: &str) -> Result<String> {
    match hub.strip_suffix(".0") {
        Some(id) if !id.is_empty() => Ok(id.to_owned()),
        _ => bail!(
            "`hubs:` has {hub}, which is not a controller's bus; write its id and `.0`, as in xhci0.0"
        ),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn vm(socket: &str, hubs: &[&str]) -> VirtualMachine {
        VirtualMachine {
            monitor: Monitor::Socket(socket.into()),
            hubs: hubs.iter().map(|hub| (*hub).to_owned()).collect(),
            ..config::tests::vm("windows", &[])
        }
    }

    #[test]
    fn each_hub_gets_a_controller_with_ports_enough() {
        let arguments = arguments(&vm("/run/a,b.qmp", &["xhci0.0", "usb.0"])).unwrap();
        assert_eq!(
            arguments,
            [
                "-qmp",
                "unix:/run/a,,b.qmp,server=on,wait=off",
                "-device",
                "qemu-xhci,id=xhci0,p2=15,p3=15",
                "-device",
                "qemu-xhci,id=usb,p2=15,p3=15"
            ]
        );
    }

    #[test]
    fn socket_path_with_control_characters_is_refused() {
        for path in ["/run/a\nb", "/run/a\u{1b}[2J", "/run/\u{202e}a"] {
            let error = arguments(&vm(path, &[])).unwrap_err().to_string();
            assert!(error.contains("control characters"), "{error}");
        }
    }

    #[test]
    fn what_is_no_bus_of_a_controllers_is_told() {
        let said = arguments(&vm("/run/q", &["xhci0"])).unwrap_err().to_string();
        assert!(said.contains("xhci0.0"), "{said}");
    }

    #[test]
    fn strange_paths_survive_xml() {
        assert_eq!(escape("a<b>&'c'"), "a&lt;b>&amp;&apos;c&apos;");
    }
}
