//! Adds the found ports to the config file.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::report::{Found, FoundPort};
use crate::commands::Context;
use crate::config::edit::{self, EditError, NewPort};
use crate::config::file::ConfigFile;
use crate::config::port::PortName;
use crate::config::{Config, file};
use crate::devpath::DevPath;

#[derive(Clone, Debug, Serialize)]
pub(super) struct Written {
    vm: String,
    file: PathBuf,
    /// The backup of the old text. `None` if nothing had to be written.
    backup: Option<PathBuf>,
    added: Vec<DevPath>,
    names: Vec<PortName>,
    had: Vec<DevPath>,
}

/// The config, if ports can be added to that VM: better reported before the user has
/// plugged and pulled.
pub(super) fn check(context: &Context<'_>, vm: &str) -> Result<Config> {
    let file = find(context)?;
    let config = file.parse()?;
    if !config.virtual_machines.iter().any(|known| known.name == vm) {
        let names = config.virtual_machines.into_iter().map(|vm| vm.name).collect();
        bail!("{}: {}", file.path.display(), EditError::NoSuchVm(vm.to_owned(), names));
    }
    file::refuse_if_not_writable(&file)?;
    Ok(config)
}

/// Adds the ports to the VM, except those that it has already.
pub(super) fn add(context: &Context<'_>, vm: &str, found: &Found) -> Result<Written> {
    // Read again, because it may have been edited while the user plugged devices.
    let file = find(context)?;
    let text = text(&file)?;
    let at = |error: EditError| match error {
        EditError::Config(error) => anyhow::anyhow!("{}:{error}", file.path.display()),
        error => anyhow::anyhow!("{}: {error}", file.path.display()),
    };
    let config = file.parse()?;
    let has = |port: &FoundPort| config.owners(&port.places).iter().any(|owner| owner.name == vm);
    let (had, found): (Vec<FoundPort>, Vec<FoundPort>) = found.ports().cloned().partition(has);
    let taken = found.iter().find_map(|port| Some((port, config.lists(&port.places.own)?)));
    if let Some((port, owner)) = taken {
        return Err(at(EditError::Taken(port.new.name.clone(), owner.name.clone())));
    }
    let devpaths = |ports: &[FoundPort]| ports.iter().map(|port| port.devpath().clone()).collect();
    let new: Vec<NewPort> = found.iter().map(|port| port.new.clone()).collect();
    let mut backup = None;
    if !new.is_empty() {
        let insertion = edit::add_ports(text, vm, &new).map_err(at)?;
        backup = Some(file::replace(&file, &insertion.apply(text))?);
    }
    let (had, added) = (devpaths(&had), devpaths(&found));
    let names = new.into_iter().map(|port| port.name).collect();
    Ok(Written { vm: vm.to_owned(), file: file.path.clone(), backup, added, names, had })
}

fn find(context: &Context<'_>) -> Result<ConfigFile> {
    ConfigFile::find(context.root, context.config)?
        .context("there is no config file to write to; `--config FILE` names one")
}

fn text(file: &ConfigFile) -> Result<&str> {
    std::str::from_utf8(&file.text)
        .with_context(|| format!("{}: not UTF-8 text", file.path.display()))
}

impl Written {
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.had.iter().map(|port| format!("{} has it already: {port}", self.vm)).collect();
        lines.extend(self.names.iter().map(|port| format!("added to {}: {port}", self.vm)));
        let backup = self.backup.as_ref().map(|path| format!("; the old text: {}", path.display()));
        let file = self.file.display();
        lines.push(match backup {
            Some(backup) => format!("config: {file}{backup}"),
            None => format!("config: {file}, unchanged"),
        });
        lines
    }
}
