//! The man pages and completions are made from the definition of the command line, and that of the
//! config from its document. They are checked in; this keeps them fresh. `GENERATED=overwrite cargo test --test generated` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod page;

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;
use hotplugger::cli::Cli;

/// What each page of a command ends with.
const SEE_ALSO: &str = ".SH \"SEE ALSO\"\n\\fBhotplugger\\fR(1), \\fBhotplugger.yaml\\fR(5)\n";

/// Every generated file and what it must hold.
fn generated() -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let pages = command.get_subcommands().cloned().chain([command.clone()]);
    for command in pages {
        let mut page = Vec::new();
        let name = command.get_display_name().unwrap_or("hotplugger").to_owned();
        clap_mangen::Man::new(command).render(&mut page).unwrap();
        if name == "hotplugger" {
            let document = include_str!("../../docs/json.md");
            page.extend_from_slice(page::section("Journal", document).as_bytes());
        }
        page.extend_from_slice(SEE_ALSO.as_bytes());
        files.push((format!("dist/man/{name}.1").into(), page));
    }
    let name = "hotplugger.yaml";
    let about = "which USB ports of the host belong to which virtual machine";
    let document = include_str!("../../docs/configuration.md");
    files.push((format!("dist/man/{name}.5").into(), page::page(name, about, document).into()));
    for (shell, name) in [
        (Shell::Bash, "hotplugger.bash"),
        (Shell::Zsh, "_hotplugger"),
        (Shell::Fish, "hotplugger.fish"),
    ] {
        let mut completion = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "hotplugger", &mut completion);
        files.push((format!("dist/completions/{name}").into(), completion));
    }
    files
}

#[test]
fn man_pages_and_completions_are_fresh() {
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
    for folder in ["dist/man", "dist/completions"] {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten() {
            let path = Path::new(folder).join(entry.unwrap().file_name());
            if !files.iter().any(|(known, _)| *known == path) {
                stale.push(format!("{} is of no command", path.display()));
            }
        }
    }
    assert!(stale.is_empty(), "{stale:?}; run GENERATED=overwrite cargo test --test generated");
}
