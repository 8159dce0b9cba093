//! Adds ports to the text of a config and leaves every other byte of it as it is. Pure.
//!
//! The place is found line by line, which no YAML of any shape allows; so what would come out is
//! parsed, and if that is not exactly the old config and the new ports, nothing comes out.

mod lines;
mod list;

use std::fmt;

use super::parse::{ConfigError, parse};
use super::port::PortName;
use list::List;

/// A port to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPort {
    /// Its name.
    pub name: PortName,
    /// What is written behind it, for people; empty for nothing.
    pub comment: String,
}

/// A change of a text: something is put in, nothing taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// The byte before which the text goes.
    pub at: usize,
    /// What goes in.
    pub text: String,
}

/// Why ports cannot be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditError {
    /// The config is wrong as it is.
    Config(ConfigError),
    /// There is no such virtual machine, but these.
    NoSuchVm(String, Vec<String>),
    /// This port is already listed by this virtual machine.
    Taken(PortName, String),
    /// The text has a layout that only a person can edit.
    Layout(String),
}

/// Where and how to put the ports behind those that the virtual machine has.
pub fn add_ports(text: &str, vm: &str, ports: &[NewPort]) -> Result<Insertion, EditError> {
    let mut wanted = parse(text).map_err(EditError::Config)?;
    for port in ports {
        let mut owners = wanted.virtual_machines.iter();
        if let Some(owner) = owners.find(|vm| vm.ports.contains(&port.name)) {
            return Err(EditError::Taken(port.name.clone(), owner.name.clone()));
        }
    }
    let names = wanted.virtual_machines.iter().map(|vm| vm.name.clone()).collect();
    let Some(owner) = wanted.virtual_machines.iter_mut().find(|known| known.name == vm) else {
        return Err(EditError::NoSuchVm(vm.to_owned(), names));
    };
    owner.ports.extend(ports.iter().map(|port| port.name.clone()));
    let insertion = List::find(text, vm).map_err(EditError::Layout)?.insertion(ports);
    match parse(&insertion.apply(text)) {
        Ok(config) if config == wanted => Ok(insertion),
        _ => Err(EditError::Layout(format!("`ports:` of {vm} is written in an unusual way"))),
    }
}

impl Insertion {
    /// The text with this put in.
    pub fn apply(&self, text: &str) -> String {
        let (before, after) = text.split_at(self.at);
        [before, &self.text, after].concat()
    }
}

impl NewPort {
    /// The entry as a block list has it, from the name on.
    pub fn entry(&self) -> String {
        let port = scalar(&self.name);
        if self.comment.is_empty() { port } else { format!("{port} # {}", comment(&self.comment)) }
    }
}

/// The name as YAML reads it back, in block and flow lists.
fn scalar(name: &PortName) -> String {
    let text = name.to_string();
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "/.:-_@+".contains(character);
    let begins = |character: char| character.is_ascii_alphabetic() || character == '/';
    if text.starts_with(begins) && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// The comment without what YAML takes for a line's end or does not allow at all (YAML 1.1, 5.1).
fn comment(text: &str) -> String {
    let bad = |character: char| {
        character.is_control()
            || matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    text.replace(bad, "\u{fffd}")
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::NoSuchVm(name, known) if known.is_empty() => {
                write!(f, "no virtual machine `{name}`: the config has none")
            }
            Self::NoSuchVm(name, known) => {
                write!(f, "no virtual machine `{name}`: the config has {}", known.join(", "))
            }
            Self::Taken(port, vm) => write!(f, "port {port} is listed by `{vm}` already"),
            Self::Layout(problem) => write!(f, "cannot be edited safely: {problem}"),
        }
    }
}

impl std::error::Error for EditError {}

#[cfg(test)]
mod tests;
