//! The command line: types only, no I/O.

use std::path::PathBuf;

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::check::Check;
use crate::commands::complete::Complete;
use crate::commands::guest_args::{LibvirtXml, QemuArgs};
use crate::commands::identify::Identify;
use crate::commands::install::{Install, Uninstall};
use crate::commands::manual::{Detach, PortAndVm};
use crate::commands::ports::Ports;
use crate::commands::replug::Replug;
use crate::commands::simulate::Simulate;
use crate::commands::status::Status;
use crate::commands::sync::Sync;
use crate::commands::watch::Watch;

/// Pass USB ports of this host through to virtual machines, whatever is plugged into them
///
/// udev runs the program on each event of a USB device; the rule 99-hotplugger.rules says how.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// The config file [default: $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else
    /// config.yaml beside the program]
    #[arg(long, value_name = "FILE", global = true, help_heading = GLOBAL)]
    pub config: Option<PathBuf>,

    /// When to print in colors: always, never, or auto, on a terminal unless NO_COLOR is set
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        global = true,
        help_heading = GLOBAL
    )]
    pub color: ColorChoice,

    #[command(subcommand)]
    pub command: Command,
}

const GLOBAL: &str = "Global options";

/// Commands that read no config, and those that print nothing in colors.
const WITHOUT_CONFIG: [&str; 3] = ["watch", "replug", "uninstall"];
const WITHOUT_COLOR: [&str; 5] = ["edit", "replug", "qemu-args", "libvirt-xml", "udev"];

impl Cli {
    /// The parser. Global options are accepted everywhere, and shown where they do something.
    pub fn parser() -> clap::Command {
        let mut parser = Self::command();
        let hidden = [("config", &WITHOUT_CONFIG[..]), ("color", &WITHOUT_COLOR[..])];
        for (name, commands) in hidden {
            let global = parser.get_arguments().find(|option| option.get_id() == name);
            let option = global.map(|global| global.clone().hide(true));
            for command in commands {
                let option = option.clone();
                // clap gives a global option to the commands that do not have it already.
                parser = parser.mut_subcommand(command, |command| command.args(option));
            }
        }
        parser
    }

    /// The arguments of this program. Help and mistakes end it.
    pub fn of_this_program() -> Self {
        let parsed = Self::from_arg_matches(&Self::parser().get_matches());
        parsed.unwrap_or_else(|error| error.format(&mut Self::parser()).exit())
    }
}

/// In the order in which people need them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print each VM, the devices in its ports and in its guest, and the last events
    Status(Status),

    /// Print the host's USB ports as a tree, with their devices and VMs
    Ports(Ports),

    /// Show which port a device is plugged into or unplugged from, with the lines for the config
    ///
    /// Plug any device into the port, or unplug it: the name of the port, its peer port and its VM
    /// are shown at once. Press Enter or Ctrl-C to end. This needs no root, except for --write.
    #[command(after_long_help = IDENTIFY_EXAMPLES)]
    Identify(Identify),

    /// Print events as they happen
    ///
    /// The last events of `status` are printed first. Only root can read events. Ctrl-C ends it.
    Watch(Watch),

    /// Attach the devices in a port to a VM
    ///
    /// The VM is the named one, or the first in the config that lists the port and runs.
    #[command(after_long_help = ATTACH_EXAMPLES)]
    Attach(PortAndVm),

    /// Detach the devices in a port; they stay with the host until they are unplugged or attached
    /// manually
    Detach(Detach),

    /// Move the devices in a port to another VM
    ///
    /// The VM is the named one, or the next in the config that lists the port and runs.
    #[command(after_long_help = MOVE_EXAMPLES)]
    Move(PortAndVm),

    /// Attach devices that are plugged in but not attached, and delete stale objects
    ///
    /// Run this when a VM has started, or at any time: devices that are attached correctly are not
    /// touched.
    #[command(after_long_help = SYNC_EXAMPLES)]
    Sync(Sync),

    /// Check the config, rule, state, sockets, guests and permissions, and print how to fix
    /// problems
    ///
    /// The exit status is 1 if there is an error.
    Check(Check),

    /// Edit the config, and replace it only by one that can be read
    ///
    /// The editor is $VISUAL, $EDITOR or vi.
    Edit,

    /// Switch a port off and on, as if its device were pulled and plugged in again
    ///
    /// For a device that hangs. It takes Linux 6.0 or later, and asks first on a terminal.
    Replug(Replug),

    /// Print what an event would do, without touching the records or QEMU
    #[command(after_long_help = SIMULATE_EXAMPLES)]
    Simulate(Simulate),

    /// Print the QEMU arguments for the socket and the controllers of a VM
    QemuArgs(QemuArgs),

    /// Print the libvirt domain XML for the socket and the controllers of a VM
    LibvirtXml(LibvirtXml),

    /// Install the udev rule, an example config and the units and hooks that run `sync`
    ///
    /// `sync` runs when a VM starts and when the host wakes up. Units and hooks are installed where
    /// this host can use them, unless the options say otherwise. Run it again when the config has a
    /// new VM or socket.
    Install(Install),

    /// Remove what `install` installed, except the config
    Uninstall(Uninstall),

    /// Handle the uevent in the environment, as udev's RUN does
    ///
    /// This is the same as no arguments at all if ACTION and DEVPATH are set.
    Udev {
        /// Print what would be done, without touching the records or QEMU
        #[arg(long)]
        dry_run: bool,

        /// Print the decision on standard error, even if nothing is done
        #[arg(short, long)]
        verbose: bool,
    },

    /// Print the words that may stand at the end of a command line, for the completion of a shell
    #[command(hide = true)]
    Complete(Complete),
}

// The man pages have these too. A test parses each line.
const IDENTIFY_EXAMPLES: &str = "\
Examples:
    hotplugger identify                        # until you press Enter
    sudo hotplugger identify --count 1 --write windows
    hotplugger identify --plugged 046d:c52b    # where is this device?";

const ATTACH_EXAMPLES: &str = "\
Examples:
    sudo hotplugger attach 1-4                 # to the first VM that runs
    sudo hotplugger attach 1-4 --vm windows
    sudo hotplugger attach pci-0000:00:14.0/usb2:4";

const MOVE_EXAMPLES: &str = "\
Examples:
    sudo hotplugger move 1-4                   # to the next VM that runs
    sudo hotplugger move 1-4 --vm linux";

const SYNC_EXAMPLES: &str = "\
Examples:
    sudo hotplugger sync                       # all VMs
    sudo hotplugger sync windows --wait 30     # after the start of QEMU";

const SIMULATE_EXAMPLES: &str = "\
Examples:
    sudo hotplugger simulate 1-4 --running     # would it be attached?
    sudo hotplugger simulate 1-4 --action remove
    udevadm monitor -k -p > recording.txt; hotplugger simulate recording.txt";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_valid() {
        Cli::command().debug_assert();
    }
}
