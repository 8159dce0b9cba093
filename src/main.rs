//! The program: tells the udev call from all others and leaves the rest to the library.

use std::env;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use hotplugger::cli::{Cli, Command};
use hotplugger::hook::Hook;
use hotplugger::journal;
use hotplugger::root::Root;

fn main() -> ExitCode {
    // udev runs this for every USB device that comes or goes: decide before anything is parsed.
    if is_udev_call() {
        return udev(None, false);
    }
    let cli = Cli::parse();
    match cli.command {
        Command::Udev => udev(cli.config.as_deref(), cli.verbose),
    }
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
        variable: &|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()),
        variables: &|| {
            let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
            env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
        },
    };
    let outcome = hook.run();
    journal::report(&root, &outcome, verbose);
    if outcome.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
