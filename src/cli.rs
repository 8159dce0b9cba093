//! The command line: types only, no I/O.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands::check::Check;
use crate::commands::guest_args::{LibvirtXml, QemuArgs};
use crate::commands::identify::Identify;
use crate::commands::install::{Install, Uninstall};
use crate::commands::manual::{Attach, Detach, Move};
use crate::commands::ports::Ports;
use crate::commands::simulate::Simulate;
use crate::commands::status::Status;
use crate::commands::sync::Sync;

/// Passes USB ports of this host through to virtual machines, whatever is plugged into them.
///
/// udev runs it on each event of a USB device; the rule 99-hotplugger.rules says how.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// The config file; else $HOTPLUGGER_CONFIG, else /etc/hotplugger/config.yaml, else
    /// config.yaml beside the program.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Tells more: `udev` what it decides, on standard error, also when there is nothing to do;
    /// `check` also what is as it should be.
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Handles the uevent that is in the environment, as udev's RUN has it; the same as no
    /// arguments at all where ACTION and DEVPATH are set.
    Udev {
        /// Prints what would be done and touches neither state nor QEMU.
        #[arg(long)]
        dry_run: bool,
    },

    /// Prints the host's USB ports as a tree: what is in each, and whose it is.
    Ports(Ports),

    /// Prints each virtual machine, what is in its ports and in its guest, and the last events.
    Status(Status),

    /// Attaches what is in a port to a virtual machine.
    ///
    /// To the first one of the config that lists the port and runs, or to the one that is named.
    Attach(Attach),

    /// Detaches what is in a port: it stays with the host until it is pulled or attached by hand.
    Detach(Detach),

    /// Moves what is in a port to another virtual machine.
    ///
    /// To the next one of the config that lists the port and runs, or to the one that is named.
    Move(Move),

    /// Attaches what is plugged in and not yet in its virtual machine, and deletes from it what is
    /// gone.
    ///
    /// For when a virtual machine has started, and whenever in doubt: what is as it should be is
    /// left alone.
    Sync(Sync),

    /// Prints what an event would do, and touches neither state nor QEMU.
    Simulate(Simulate),

    /// Puts the udev rule, an example config and what belongs to them in their places.
    ///
    /// With them go the units and hooks that run `sync` when a virtual machine starts and when the
    /// host wakes up: those that the machine has a use for, but for what the options say. Run it
    /// again when the config has another virtual machine or socket.
    Install(Install),

    /// Removes what `install` put; the config stays.
    Uninstall(Uninstall),

    /// Looks for what is wrong: config, rule, state, sockets, guests, permissions; tells what mends
    /// it. Exits with 1 if there is a fault.
    Check(Check),

    /// Shows which port a device is plugged into or pulled from, and gives the lines for the config.
    ///
    /// Plug or pull any device in the port you want: its name, the other half of the same
    /// connector and the virtual machine that has it are shown at once. Enter or Ctrl-C ends. Needs
    /// no root, but for --write.
    Identify(Identify),

    /// Prints the arguments that QEMU needs for a virtual machine's socket and hubs.
    QemuArgs(QemuArgs),

    /// Prints the element that libvirt's domain XML needs for a virtual machine's socket and hubs.
    LibvirtXml(LibvirtXml),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
