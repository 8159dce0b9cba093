//! `attach`, `detach` and `move`: what a person does to the device in a port.
//!
//! What may go to a guest is the same as on a plug; what is remembered is kept the same way.

mod named;
mod passage;

use anyhow::Result;
use clap::Args;

use self::passage::{Deed, Passage};
use super::{CommandStatus, Context};
use crate::host::real::RealHost;
use crate::host::topology::read::topology;
use crate::output::{Output, Style};

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    #[command(flatten)]
    target: Target,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    #[command(flatten)]
    target: Target,
}

/// Arguments of `move`.
#[derive(Debug, Args)]
pub struct Move {
    #[command(flatten)]
    target: Target,
}

/// What all of them have.
#[derive(Debug, Args)]
struct Target {
    /// The port, as `hotplugger ports` shows it (1-4), by its name
    /// (pci-0000:00:14.0/usb2:4), DEVPATH or path below /sys; what is behind a hub in it is meant
    /// too.
    port: String,

    /// The virtual machine; it need not list the port.
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
}

impl Attach {
    /// Attaches what is in the port: to the virtual machine that is named, else to the first that
    /// lists the port and runs.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        self.target.each(context, output, Deed::Attach)
    }
}

impl Detach {
    /// Detaches what is in the port; it stays with the host until it is pulled or attached by hand.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        self.target.each(context, output, Deed::Detach)
    }
}

impl Move {
    /// Moves what is in the port from the virtual machine that has it to the one that is named,
    /// else to the next that lists the port and runs.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        self.target.each(context, output, Deed::Move)
    }
}

impl Target {
    /// Does it to each device that is meant.
    fn each(
        &self,
        context: &Context<'_>,
        output: &mut Output,
        deed: Deed,
    ) -> Result<CommandStatus> {
        let config = context.trusted_config()?;
        let vm = self.vm.as_deref().map(|name| config.named(name)).transpose()?;
        let topology = topology(context.root);
        let devices = named::devices(context.root, &topology, &self.port)?;
        let world = RealHost::open_with_state(context.root)?;
        let mut verdict = CommandStatus::Ok;
        for device in devices {
            let places = topology.places(&device.devpath);
            let passage = Passage::new(&world, &config, &places, &device.port, vm);
            let outcome = passage.take(deed);
            let is_good = outcome.is_as_wished();
            let tone = if is_good { Style::Plain } else { Style::Bad };
            context.tell(&outcome, tone, output)?;
            if !is_good {
                verdict = CommandStatus::Problems;
            }
        }
        Ok(verdict)
    }
}
