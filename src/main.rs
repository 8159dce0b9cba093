//! The program: handles the udev call, or runs a command.

use std::env;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;
use hotplugger::cli::{Cli, Command};
use hotplugger::commands::manual::ManualAction;
use hotplugger::commands::{CommandStatus, Context, edit, simulate};
use hotplugger::config::file::ConfigFile;
use hotplugger::event;
use hotplugger::host::real::RealHost;
use hotplugger::journal;
use hotplugger::outcome::{Report, SkipReason};
use hotplugger::output::Output;
use hotplugger::root::Root;
use hotplugger::state::history;
use log::Level;

#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    // udev runs this for every USB device that is plugged in or out, so nothing is parsed before.
    if is_udev_call() {
        return udev(None, false);
    }
    run(&Cli::of_this_program())
}

/// Whether the arguments are `udev` alone, or there are none and udev's variables are set.
fn is_udev_call() -> bool {
    let mut arguments = env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (None, _) => env::var_os("ACTION").is_some() && env::var_os("DEVPATH").is_some(),
        (Some(command), None) => command == "udev",
        _ => false,
    }
}

fn udev(config: Option<&Path>, verbose: bool) -> ExitCode {
    let root = Root::from_env();
    let config = ConfigFile::find(&root, config);
    let report = if event::may_concern_port(&root, &config, &event::variable) {
        event::handle(&event::variable, config, &RealHost::for_event(&root))
    } else {
        Report::skipped(SkipReason::NotConfigured)
    };
    if verbose || !history::is_repeated_unplug(&root, &report) {
        journal::report(&root, &report, verbose);
    }
    if report.level() < Level::Debug {
        history::append(&root, &report);
    }
    if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(cli: &Cli) -> ExitCode {
    let root = Root::from_env();
    let context = Context { root: &root, config: cli.config.as_deref() };
    let output = &mut Output::stdout(cli.color);
    let ended = match &cli.command {
        Command::Identify(command) => command.run(&context, output),
        Command::Complete(command) => command.run(&context, Cli::parser()),
        Command::Udev { dry_run: false, verbose } => return udev(cli.config.as_deref(), *verbose),
        Command::Udev { dry_run: true, .. } => simulate::dry_run(&context, output),
        Command::Ports(command) => command.run(&context, output),
        Command::Status(command) => command.run(&context, output),
        Command::Watch(command) => command.run(&context, output),
        Command::Attach(command) => command.run(&context, output, ManualAction::Attach),
        Command::Detach(command) => command.run(&context, output),
        Command::Move(command) => command.run(&context, output, ManualAction::Move),
        Command::Edit => edit::run(&context, output),
        Command::Replug(command) => command.run(&context, output),
        Command::Sync(command) => command.run(&context, output),
        Command::Simulate(command) => command.run(&context, output),
        Command::Install(command) => command.run(&context, output),
        Command::Uninstall(command) => command.run(&context, output),
        Command::Check(command) => command.run(&context, output),
        Command::QemuArgs(command) => command.run(&context, output),
        Command::LibvirtXml(command) => command.run(&context, output),
    };
    match ended {
        Ok(CommandStatus::Ok) => ExitCode::SUCCESS,
        Ok(CommandStatus::Problems) => ExitCode::FAILURE,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            journal::write_stderr(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The reader of the output has closed it.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
