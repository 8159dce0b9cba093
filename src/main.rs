//! The program: tells the udev call from all others and leaves the rest to the library.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use dlmalloc::GlobalDlmalloc;
use hotplugger::cli::{Cli, Command};
use hotplugger::commands::{CommandStatus, Context, simulate};
use hotplugger::event::Hook;
use hotplugger::journal;
use hotplugger::output::Output;
use hotplugger::root::Root;
use hotplugger::state::history;
use log::Level;

#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    // udev runs this for every USB device that comes or goes: decide before anything is parsed.
    if is_udev_call() {
        return udev(None, false);
    }
    run(&Cli::parse())
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
    let hook = Hook {
        root: &root,
        config,
        variable: &|name| env::var_os(name).map(text),
        variables: &|| env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
        world: None,
    };
    let outcome = hook.run();
    journal::report(&root, &outcome, verbose);
    if outcome.level() < Level::Debug {
        history::append(&root, &outcome);
    }
    if outcome.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn text(value: OsString) -> String {
    value.into_string().unwrap_or_else(|value| value.to_string_lossy().into_owned())
}

fn run(cli: &Cli) -> ExitCode {
    let root = Root::from_env();
    let context = Context { root: &root, config: cli.config.as_deref() };
    let output = &mut Output::stdout();
    let ended = match &cli.command {
        Command::Identify(command) => command.run(&context, output),
        Command::Udev { dry_run: false } => return udev(cli.config.as_deref(), cli.verbose),
        Command::Udev { dry_run: true } => simulate::dry_run(&context, output),
        Command::Ports(command) => command.run(&context, output),
        Command::Status(command) => command.run(&context, output),
        Command::Attach(command) => command.run(&context, output),
        Command::Detach(command) => command.run(&context, output),
        Command::Move(command) => command.run(&context, output),
        Command::Sync(command) => command.run(&context, output),
        Command::Simulate(command) => command.run(&context, output),
        Command::Install(command) => command.run(&context, output),
        Command::Uninstall(command) => command.run(&context, output),
        Command::Check(command) => command.run(&context, cli.verbose, output),
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

/// Whoever reads our output has had enough of it.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
