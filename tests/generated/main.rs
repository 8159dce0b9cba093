//! The man pages are made from the definition of the command line and from sections.md, and that of
//! the config from its document. They are checked in, and this test fails if they are outdated.
//! `GENERATED=overwrite cargo test --test generated` writes them again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by them, also in the helpers")]

mod page;
#[path = "../support/report.rs"]
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap_mangen::Man;
use hotplugger::cli::Cli;
use report::report;

const SECTIONS: &str = include_str!("sections.md");

/// The commands that keep or read records.
const WITH_STATE: [&str; 10] =
    ["hotplugger", "status", "watch", "ports", "attach", "detach", "move", "sync", "check", "udev"];

/// Every generated file and what it must hold.
fn generated() -> Vec<(PathBuf, Vec<u8>)> {
    let mut command = Cli::parser().disable_help_subcommand(true);
    command.build();
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut files: Vec<_> =
        commands.chain([command.clone()]).map(|command| page_of(&command)).collect();
    let name = "hotplugger.yaml";
    let about = "which USB ports of the host belong to which virtual machine";
    let document = include_str!("../../docs/configuration.md");
    files.push((format!("dist/man/{name}.5").into(), page::page(name, about, document).into()));
    files
}

fn page_of(command: &clap::Command) -> (PathBuf, Vec<u8>) {
    let name = command.get_display_name().unwrap_or("hotplugger").to_owned();
    let renamed =
        command.clone().subcommand_value_name("command").subcommand_help_heading("COMMANDS");
    let man = Man::new(renamed).title(&name).date(page::DATE).source(page::SOURCE);
    let mut text = Vec::new();
    man.render_title(&mut text).unwrap();
    man.render_name_section(&mut text).unwrap();
    man.render_synopsis_section(&mut text).unwrap();
    man.render_description_section(&mut text).unwrap();
    man.render_options_section(&mut text).unwrap();
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text).unwrap();
    }
    // Each section begins with the same definitions as the page.
    let text = String::from_utf8(text).unwrap();
    let (definitions, _) = text.split_once(".TH").unwrap();
    let mut page = definitions.to_owned() + &text.replace(definitions, "");
    let mut chapters = vec![command.get_name(), "all"];
    if WITH_STATE.contains(&command.get_name()) {
        chapters.push("state");
    }
    if command.has_subcommands() {
        page += &page::whole_section("Journal", include_str!("../../docs/json.md"));
    }
    page += &page::sections(SECTIONS, &chapters, &examples(command));
    (format!("dist/man/{name}.1").into(), page.into())
}

/// The examples of the help.
fn examples(command: &clap::Command) -> String {
    command.get_after_long_help().map(ToString::to_string).unwrap_or_default()
}

/// The lines of the examples in that page.
fn examples_in(page: &str) -> Vec<String> {
    let (_, text) = page.split_once(".SH EXAMPLES\n").unwrap();
    let text = text.split(".SH").next().unwrap().replace("\\-", "-");
    let lines = text.lines().filter(|line| !line.starts_with('.'));
    lines.map(|line| line.split(" #").next().unwrap().to_owned()).collect()
}

#[test]
fn examples_are_command_lines() {
    let mut count = 0;
    for (path, page) in generated() {
        let page = String::from_utf8(page).unwrap();
        for line in
            path.extension().filter(|end| *end == "1").iter().flat_map(|_| examples_in(&page))
        {
            let Some(start) = line.find("hotplugger ") else {
                assert!(line.contains("RUN+="), "{}: {line}", path.display());
                continue;
            };
            let words = line[start..].split_whitespace();
            if let Err(error) = Cli::parser().try_get_matches_from(words) {
                panic!("{}: {line}: {error}", path.display());
            }
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn five_commands_have_examples_in_their_help() {
    for name in ["identify", "attach", "move", "simulate", "sync"] {
        let mut command = Cli::parser();
        let command = command.find_subcommand_mut(name).unwrap();
        let help = command.render_long_help().to_string();
        let examples = help.split_once("\nExamples:\n").map(|(_, examples)| examples);
        let example = format!("hotplugger {name}");
        assert!(examples.is_some_and(|examples| examples.contains(&example)), "{help}");
    }
}

#[test]
fn man_pages_have_their_sections() {
    for (path, page) in generated() {
        let page = String::from_utf8(page).unwrap();
        let names = ["NAME", "DESCRIPTION", "SEE ALSO"].map(str::to_owned);
        let sections = page::SECTIONS.map(str::to_uppercase);
        let is_command = path.extension().is_some_and(|end| end == "1");
        for name in names.iter().chain(sections.iter().filter(|_| is_command)) {
            let headings = [format!("\n.SH {name}\n"), format!("\n.SH \"{name}\"\n")];
            assert!(
                headings.iter().any(|heading| page.contains(heading)),
                "{}: no {name}",
                path.display()
            );
        }
    }
}

/// The page is rendered by groff, through man, and by mandoc.
#[test]
fn man_pages_render_without_warnings() {
    for (program, arguments) in [
        ("man", &["--warnings=w", "-E", "UTF-8", "-l"][..]),
        ("mandoc", &["-T", "lint", "-W", "warning"]),
    ] {
        // mandoc has no option that only prints its version.
        if Command::new(program).arg("-h").output().is_err() {
            report(&format!("man pages with {program}: skipped, it is not installed"));
            continue;
        }
        for (path, _) in generated() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let mut command = Command::new(program);
            let command = command.args(arguments).arg(&path).env("MANWIDTH", "80");
            let done = command.env_remove("MANPAGER").env("PAGER", "cat").output().unwrap();
            let warnings = String::from_utf8_lossy(&done.stderr);
            let printed = String::from_utf8_lossy(&done.stdout);
            assert!(
                done.status.success() && warnings.is_empty(),
                "{command:?}: {warnings}{printed}"
            );
            // mandoc's lint goes to standard output.
            assert!(program == "man" || printed.is_empty(), "{command:?}: {printed}");
            assert!(program == "mandoc" || printed.contains("SEE ALSO"), "{command:?}: {printed}");
        }
    }
}

#[test]
fn man_pages_are_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let overwrite = std::env::var_os("GENERATED").is_some_and(|wish| wish == "overwrite");
    let files = generated();
    let mut stale = Vec::new();
    for (path, wanted) in &files {
        if fs::read(root.join(path)).is_ok_and(|there| there == *wanted) {
            continue;
        }
        if overwrite {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), wanted).unwrap();
        } else {
            stale.push(path.display().to_string());
        }
    }
    for entry in fs::read_dir(root.join("dist/man")).unwrap() {
        let path = Path::new("dist/man").join(entry.unwrap().file_name());
        if !files.iter().any(|(known, _)| *known == path) {
            stale.push(format!("{} is of no command", path.display()));
        }
    }
    assert!(stale.is_empty(), "{stale:?}; run GENERATED=overwrite cargo test --test generated");
}
