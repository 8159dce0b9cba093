//! `install` and `uninstall`: the rule, the example config, units and hooks on this machine, or
//! below another root for packagers.
//!
//! What there is to put is in [`pieces`](crate::install).

mod machine;
mod program;

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use self::machine::Machine;
use super::{CommandStatus, Context};
use crate::config::Config;
use crate::install::disk::{Found, found, has_sign, is_of_package, path_units};
use crate::install::unit::PathUnit;
use crate::install::{CONFIG, Group, PACKAGED_PROGRAM, Piece, SYSTEMD_RUNS, pieces};
use crate::output::Output;

/// Arguments of `install`.
#[derive(Debug, Args)]
pub struct Install {
    /// The program that the rule starts, as an absolute path [default: this program].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,

    /// Puts what a package has, where packages have it: below /usr/lib, and neither a config nor
    /// what depends on one.
    #[arg(long, requires = "root")]
    package: bool,

    #[command(flatten)]
    options: Options,

    #[command(flatten)]
    choices: Choices,
}

/// What is put beside the rule. Without a choice: what the machine has a use for, and what is
/// there already.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "they are flags of the command line")]
struct Choices {
    /// Puts systemd's units: `sync` for each virtual machine of the config when its socket appears
    /// or goes away [default: where systemd runs].
    #[arg(long, conflicts_with = "no_systemd")]
    systemd: bool,

    /// Leaves them out, and removes them if they are there.
    #[arg(long)]
    no_systemd: bool,

    /// Puts the hook that runs `sync` when the host wakes up, for systemd and, where it is, elogind
    /// [default: where they are].
    #[arg(long, conflicts_with = "no_sleep")]
    sleep: bool,

    /// Leaves it out, and removes it if it is there.
    #[arg(long)]
    no_sleep: bool,

    /// Puts libvirt's hook: `sync` when a guest has started or ended; libvirt 6.5 or later
    /// [default: where /etc/libvirt is].
    #[arg(long, conflicts_with = "no_libvirt")]
    libvirt: bool,

    /// Leaves it out, and removes it if it is there.
    #[arg(long)]
    no_libvirt: bool,
}

/// Arguments of `uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// Puts everything below this folder and touches nothing that runs: for packagers.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Says what would be done and does nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Whether a group is put.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Yes,
    No,
    /// Where there is a use for it.
    Fit,
}

impl Choices {
    fn of(&self, group: Group) -> Choice {
        let (yes, no) = match group {
            Group::Base => (false, false),
            Group::Systemd => (self.systemd, self.no_systemd),
            Group::Sleep => (self.sleep, self.no_sleep),
            Group::Libvirt => (self.libvirt, self.no_libvirt),
        };
        match (yes, no) {
            (true, _) => Choice::Yes,
            (_, true) => Choice::No,
            _ => Choice::Fit,
        }
    }
}

impl Install {
    /// Installs, and says each thing it does.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let program = match (&self.program, &self.options.root) {
            (Some(program), _) => program.clone(),
            (None, Some(_)) => PACKAGED_PROGRAM.into(),
            (None, None) => env::current_exe().context("where this program is")?,
        };
        let program = program::usable(&program, self.options.root.is_none())?;
        let mut machine = Machine::new(context.root, &self.options, output);
        if self.package {
            return self.fill_package(&mut machine, &program);
        }
        let config = Context { root: &machine.root, config: context.config }.config();
        let pieces = pieces(&program, config.as_ref().ok());
        let mut skipped = None;
        let (put, left): (Vec<_>, Vec<_>) =
            pieces.iter().partition(|piece| self.is_put(&machine, piece));
        self.clear(&mut machine, &put, config.is_ok())?;
        for piece in put {
            machine.put(piece, self.choices.of(piece.group) == Choice::Fit)?;
        }
        for piece in left {
            if self.choices.of(piece.group) == Choice::Fit
                && !piece.needs_sign
                && skipped.replace(piece.group) != Some(piece.group)
            {
                let why = format!("this system has no {}", piece.sign.unwrap_or("use for it"));
                machine.say("skip", &piece.path, &why)?;
            }
        }
        self.tell_of_the_unfit(&mut machine, config.as_ref().ok())?;
        machine.reload()?;
        config.context(
            "the virtual machines' units are left as they are: mend the config and install again",
        )?;
        Ok(CommandStatus::Ok)
    }

    fn fill_package(&self, machine: &mut Machine<'_>, program: &str) -> Result<CommandStatus> {
        for piece in pieces(program, None).iter().filter_map(Piece::in_package) {
            if self.choices.of(piece.group) != Choice::No {
                machine.put(&piece, false)?;
            }
        }
        Ok(CommandStatus::Ok)
    }

    fn is_put(&self, machine: &Machine<'_>, piece: &Piece) -> bool {
        let has_sign = has_sign(&machine.root, piece);
        match self.choices.of(piece.group) {
            Choice::No => false,
            Choice::Yes => has_sign || !piece.needs_sign,
            // Packagers get all that hotplugger itself needs.
            Choice::Fit if piece.group == Group::Base => has_sign || self.options.root.is_some(),
            Choice::Fit => has_sign || found(&machine.root, piece) != Found::Nothing,
        }
    }

    /// Removes what is not wanted, and the units of virtual machines that the config has no more.
    fn clear(&self, machine: &mut Machine<'_>, put: &[&Piece], knows_units: bool) -> Result<()> {
        let unwanted = |path: &String| !put.iter().any(|piece| piece.path == *path);
        let units_go = knows_units || self.choices.no_systemd;
        let mut units = if units_go { path_units(&machine.root) } else { Vec::new() };
        units.retain(unwanted);
        machine.remove_units(&units)?;
        for piece in pieces("", None) {
            if self.choices.of(piece.group) == Choice::No
                && found(&machine.root, &piece) != Found::Nothing
            {
                machine.remove(&piece.path)?;
            }
        }
        Ok(())
    }

    fn tell_of_the_unfit(&self, machine: &mut Machine<'_>, config: Option<&Config>) -> Result<()> {
        let wanted = match self.choices.of(Group::Systemd) {
            Choice::Yes => true,
            Choice::No => false,
            Choice::Fit => machine.root.path(SYSTEMD_RUNS).is_dir(),
        };
        let machines = config.filter(|_| wanted).map_or(&[][..], |config| &config.virtual_machines);
        for vm in machines {
            if let Err(why) = PathUnit::of(vm) {
                machine.say("skip", &format!("the unit of `{}`", vm.name), &why.to_string())?;
            }
        }
        Ok(())
    }
}

impl Uninstall {
    /// Removes what `install` put, but for the config, and says each thing it does.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let mut machine = Machine::new(context.root, &self.options, output);
        let units = path_units(&machine.root);
        machine.remove_units(&units)?;
        for piece in pieces("", None) {
            let is_there = found(&machine.root, &piece) != Found::Nothing;
            if piece.path == CONFIG {
                continue;
            }
            if is_there && is_of_package(&machine.root, &piece) {
                machine.say("keep", &piece.path, "the package's")?;
            } else if is_there {
                machine.remove(&piece.path)?;
            } else if piece.group == Group::Base {
                machine.say("skip", &piece.path, "it is not there")?;
            }
        }
        if machine.root.path(CONFIG).exists() {
            machine.say("keep", CONFIG, "your config; delete it yourself if you like")?;
        }
        machine.reload()?;
        Ok(CommandStatus::Ok)
    }
}
