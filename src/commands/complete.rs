//! `complete`: the words that may stand at the end of a command line. The scripts in
//! dist/completions run it on each Tab, and know no command or option themselves.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::Result;
use clap::{Arg, Args, Command};

use super::{CommandStatus, Context};
use crate::host::topology::read_topology;
use crate::state::dir;
use crate::text::sanitize_line;

#[derive(Debug, Args)]
pub struct Complete {
    /// The words after the program's name; the last is the one to complete, and may be empty
    #[arg(last = true)]
    words: Vec<String>,
}

/// The candidates, one a line, each with its description after a tab.
#[derive(Default)]
struct Candidates<'a> {
    lines: String,
    /// Whether file names are candidates too.
    files: bool,
    /// The words before. No candidate repeats one.
    before: &'a [String],
    /// The part of the word that is not completed: `--vm=`.
    prefix: &'a str,
}

impl Complete {
    /// Prints the candidates, whatever the word begins with: each shell has its own way to compare
    /// them. The exit status is 1 if file names are candidates too. Errors are not reported, because
    /// the user is typing.
    pub fn run(&self, context: &Context<'_>, mut program: Command) -> Result<CommandStatus> {
        let Some((word, before)) = self.words.split_last() else { return Ok(CommandStatus::Ok) };
        program.build();
        let (mut command, mut option, mut position) = (&program, None, 0);
        let mut config = context.config;
        for word in before {
            if word == "=" {
                // bash takes `--vm=NAME` apart into three words.
            } else if let Some(option) = option.take() {
                if value_name(option) == Some("FILE") {
                    config = Some(Path::new(word));
                }
            } else if let Some(file) = word.strip_prefix("--config=") {
                config = Some(Path::new(file));
            } else if word.starts_with('-') {
                option = option_named(command, word);
            } else if let Some(subcommand) = command.find_subcommand(word) {
                command = subcommand;
            } else {
                position += 1;
            }
        }
        let context = &Context { config, ..*context };
        let mut candidates = Candidates { before, ..Candidates::default() };
        if option.is_none()
            && let Some((name, value)) = word.split_once('=')
        {
            option = option_named(command, name);
            candidates.prefix =
                word.strip_suffix(value).filter(|_| option.is_some()).unwrap_or_default();
        }
        let is_next = |(index, argument): &(usize, &Arg)| {
            let repeats = argument.get_num_args().is_some_and(|count| count.max_values() > 1);
            *index == position || repeats
        };
        let argument = || Some(command.get_positionals().enumerate().find(is_next)?.1);
        let is_option = word.starts_with('-');
        if let Some(argument) = option.or_else(|| argument().filter(|_| !is_option)) {
            candidates.add_values(argument, command, context);
        } else if command.has_subcommands() && !is_option {
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let about = command.get_about().map(ToString::to_string);
                candidates.add(command.get_name(), &about.unwrap_or_default());
            }
        } else {
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                if let Some(name) = option.get_long() {
                    let help = option.get_help().map(ToString::to_string);
                    candidates.add(&["--", name].concat(), &help.unwrap_or_default());
                }
            }
        }
        stdout().write_all(candidates.lines.as_bytes())?;
        Ok(if candidates.files { CommandStatus::Problems } else { CommandStatus::Ok })
    }
}

/// The option of that name, if it takes a value.
fn option_named<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let name = name.strip_prefix("--")?;
    let option = command.get_arguments().find(|option| option.get_long() == Some(name))?;
    option.get_num_args()?.takes_values().then_some(option)
}

/// The name of the value in the help.
fn value_name(argument: &Arg) -> Option<&str> {
    argument.get_value_names()?.first().map(clap::builder::Str::as_str)
}

impl Candidates<'_> {
    fn add(&mut self, word: &str, description: &str) {
        if !self.before.iter().any(|before| before == word) {
            for part in [self.prefix, word, "\t", &sanitize_line(description), "\n"] {
                self.lines.push_str(part);
            }
        }
    }

    fn add_values(&mut self, argument: &Arg, command: &Command, context: &Context<'_>) {
        match value_name(argument).unwrap_or_default() {
            "VM" => {
                for vm in &context.config().unwrap_or_default().virtual_machines {
                    self.add(&vm.name, &vm.monitor.to_string());
                }
            }
            "PORT" => self.add_devices(context, command.get_name() == "detach"),
            "DEVICE" => self.add_devices(context, false),
            "TARGET" => {
                self.add_devices(context, false);
                self.files = true;
            }
            "FILE" | "PATH" | "DIR" => self.files = true,
            _ => {
                for value in argument.get_possible_values() {
                    self.add(value.get_name(), "");
                }
            }
        }
    }

    /// The ports with a device in them, or only those with an attached one. Only root can read which
    /// are attached.
    fn add_devices(&mut self, context: &Context<'_>, only_attached: bool) {
        let records = dir::read_all_unlocked(context.root);
        let only_attached = only_attached && !dir::is_unreadable(context.root);
        for port in read_topology(context.root).ports() {
            let Some(device) = port.device() else { continue };
            let mut description = device.label();
            let record = records.iter().find(|record| record.devpath == port.devpath);
            let record = record.filter(|record| record.has_attached(device.devnum));
            match record.and_then(|record| record.attached.as_ref()) {
                Some(attached) => description += &[", attached to ", &attached.vm].concat(),
                None if only_attached => continue,
                None => {}
            }
            self.add(&port.port.to_string(), &description);
        }
    }
}
