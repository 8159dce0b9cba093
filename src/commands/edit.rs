//! `edit`: opens a copy of the config in an editor, and replaces the config only by one that can be
//! read.

use std::env;
use std::fs;
use std::io::{IsTerminal, stdin};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{CommandStatus, Context, ask};
use crate::config::file::{self, ConfigFile};
use crate::config::parse::parse;
use crate::output::Output;

/// After a mistake it asks on a terminal whether to go on editing.
pub fn run(context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
    let config = ConfigFile::find(context.root, context.config)?.context(
        "there is no config file; `hotplugger install` makes one, `--config FILE` names one",
    )?;
    file::refuse_if_not_writable(&config)?;
    let path = config.path.display();
    let directory = tempfile::tempdir().context("no directory for a copy of the config")?;
    let copy = directory.path().join("config.yaml");
    fs::write(&copy, &config.text).with_context(|| copy.display().to_string())?;
    loop {
        open_editor(&copy)?;
        let text = fs::read(&copy).with_context(|| copy.display().to_string())?;
        if text == config.text {
            output.text(&format!("{path}: unchanged"))?;
            return Ok(CommandStatus::Ok);
        }
        let problem = match std::str::from_utf8(&text) {
            Ok(text) => match parse(text) {
                Ok(_) => {
                    let backup = file::replace(&config, text)?;
                    output
                        .text(&format!("{path}: written; the old text: {}\n", backup.display()))?;
                    return Ok(CommandStatus::Ok);
                }
                Err(error) => error.to_string(),
            },
            Err(_) => "not UTF-8 text".to_owned(),
        };
        output.text(&format!("{path}:{problem}"))?;
        if !stdin().is_terminal() || !edits_again(output)? {
            bail!("{path}: unchanged, because of that mistake");
        }
    }
}

/// Opens the file in $VISUAL, $EDITOR or, on a terminal, vi. Each may have arguments.
fn open_editor(file: &Path) -> Result<()> {
    let named = ["VISUAL", "EDITOR"].into_iter().filter_map(|variable| env::var(variable).ok());
    let editor = named.into_iter().find(|name| !name.trim().is_empty());
    let editor = match editor {
        Some(editor) => editor,
        None if stdin().is_terminal() => "vi".to_owned(),
        None => bail!("no terminal to run vi on; name an editor in $EDITOR"),
    };
    let script = format!("exec {editor} \"$1\"");
    let status = Command::new("sh").args(["-c", &script, "sh"]).arg(file).status();
    let status = status.with_context(|| format!("the editor `{editor}` does not start"))?;
    if !status.success() {
        bail!("the editor `{editor}` failed ({status}); the config is unchanged");
    }
    Ok(())
}

fn edits_again(output: &mut Output) -> Result<bool> {
    let answer = ask(output, "Edit again? [Y/n]")?;
    Ok(answer.is_some_and(|answer| !matches!(&answer[..], "n" | "N" | "no")))
}
