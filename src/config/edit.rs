//! Adds ports to the text of a config and leaves every other byte of it as it is. Pure.
//!
//! The place is found line by line, which no YAML of any shape allows; so what would come out is
//! parsed, and if that is not exactly the old config and the new ports, nothing comes out.

use std::ops::Range;

use thiserror::Error;

use super::parse::{ConfigError, parse};
use super::port::PortName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPort {
    pub name: PortName,
    /// The comment behind it; empty for none.
    pub comment: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// The byte before which the text goes.
    pub at: usize,
    pub text: String,
}

/// Why ports cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EditError {
    #[error("{0}")]
    Config(ConfigError),
    /// The message of `Config::no_such_vm`.
    #[error("{0}")]
    NoSuchVm(String),
    #[error("port {0} is listed by `{1}` already")]
    Taken(PortName, String),
    /// The text has a layout that only a person can edit.
    #[error("cannot be edited safely: {0}")]
    Layout(String),
}

pub fn add_ports(text: &str, vm: &str, ports: &[NewPort]) -> Result<Insertion, EditError> {
    let mut wanted = parse(text).map_err(EditError::Config)?;
    for port in ports {
        let mut owners = wanted.virtual_machines.iter();
        if let Some(owner) = owners.find(|vm| vm.ports.contains(&port.name)) {
            return Err(EditError::Taken(port.name.clone(), owner.name.clone()));
        }
    }
    let no_such_vm = wanted.no_such_vm(vm);
    let mut owners = wanted.virtual_machines.iter_mut();
    let owner = owners.find(|known| known.name == vm).ok_or(EditError::NoSuchVm(no_such_vm))?;
    owner.ports.extend(ports.iter().map(|port| port.name.clone()));
    let insertion = List::find(text, vm).map_err(EditError::Layout)?.insertion(ports);
    match parse(&insertion.apply(text)) {
        Ok(config) if config == wanted => Ok(insertion),
        _ => Err(EditError::Layout(format!("`ports:` of {vm} is written in an unusual way"))),
    }
}

impl Insertion {
    pub fn apply(&self, text: &str) -> String {
        let (before, after) = text.split_at(self.at);
        [before, &self.text, after].concat()
    }
}

impl NewPort {
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

#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) start: usize,
    /// Without its end.
    body: &'a str,
    /// `\n`, `\r\n`, or nothing at the end of the text.
    end: &'a str,
}

pub(super) struct Key<'a> {
    pub(super) line: usize,
    pub(super) name: String,
    /// The text behind the colon, without spaces around it, and empty if it is only a comment.
    rest: &'a str,
}

/// The lines of a text, without a byte order mark.
pub(super) fn lines(text: &str) -> Vec<Line<'_>> {
    let mut start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut lines = Vec::new();
    for whole in text[start..].split_inclusive('\n') {
        let body = whole.strip_suffix('\n').map_or(whole, |body| body.trim_end_matches('\r'));
        lines.push(Line { start, body, end: &whole[body.len()..] });
        start += whole.len();
    }
    lines
}

impl<'a> Line<'a> {
    fn indent(&self) -> usize {
        self.body.len() - self.content().len()
    }

    fn is_at_most(&self, indent: usize) -> bool {
        self.indent() <= indent && !self.content().starts_with(char::is_whitespace)
    }

    /// Without its indentation.
    pub(super) fn content(&self) -> &'a str {
        self.body.trim_start_matches(' ')
    }

    /// Whether it is more than space and a comment.
    fn has_content(&self) -> bool {
        let content = self.content().trim_start();
        !content.is_empty() && !content.starts_with('#')
    }

    pub(super) fn stop(&self) -> usize {
        self.start + self.body.len() + self.end.len()
    }
}

/// The next line at or behind `from` that is more than space and a comment.
pub(super) fn next_content(lines: &[Line<'_>], range: Range<usize>) -> Option<usize> {
    range.into_iter().find(|line| lines[*line].has_content())
}

/// The lines that belong to the key in `line`: all that are indented further, or with characters
/// other than plain spaces.
pub(super) fn below(lines: &[Line<'_>], line: usize) -> Range<usize> {
    let indent = lines[line].indent();
    let end = (line + 1..lines.len())
        .find(|next| lines[*next].has_content() && lines[*next].is_at_most(indent));
    line + 1..end.unwrap_or(lines.len())
}

fn find_key<'a>(lines: &[Line<'a>], range: Range<usize>, name: &str) -> Option<Key<'a>> {
    let indent = lines[next_content(lines, range.clone())?].indent();
    range
        .filter(|line| lines[*line].has_content() && lines[*line].indent() == indent)
        .filter_map(|line| key(line, lines[line].content()))
        .find(|key| key.name == name)
}

/// No key in one line with its colon is longer (YAML 1.2.2, 7.4.2).
const MAX_KEY: usize = 1024;

/// Reads a line as `key: rest`.
pub(super) fn key(line: usize, content: &str) -> Option<Key<'_>> {
    let colons = content.match_indices(':').map(|(index, _)| index);
    let colon = colons.take_while(|index| *index <= MAX_KEY).find(|index| {
        let quoted = content.starts_with(['"', '\'']);
        content[index + 1..].chars().next().is_none_or(|next| matches!(next, ' ' | '\t'))
            && (!quoted || is_quoted(content[..*index].trim_end()))
    })?;
    let (written, rest) = (content[..colon].trim_end(), &content[colon + 1..]);
    // A comment, or a node with properties: not a key that its text identifies.
    if written.contains(" #") && !is_quoted(written) || written.starts_with(['&', '*', '!', '?']) {
        return None;
    }
    let name = serde_yaml::from_str(written).ok()?;
    let rest = rest.trim_matches([' ', '\t']);
    Some(Key { line, name, rest: if rest.starts_with('#') { "" } else { rest } })
}

/// Whether the text is one quoted scalar from its first to its last character.
fn is_quoted(text: &str) -> bool {
    quoted_length(text) == Some(text.len())
}

fn quoted_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((index, character)) = characters.next() {
        let next_is_quote = characters.peek().is_some_and(|(_, next)| *next == quote);
        match character {
            '\\' if quote == '"' => _ = characters.next(),
            '\'' if quote == '\'' && next_is_quote => _ = characters.next(),
            _ if character == quote => return Some(index + 1),
            _ => {}
        }
    }
    None
}

/// The list, as far as it must be known to add to it.
#[derive(Debug)]
enum List {
    Block {
        /// The byte behind the last entry's line.
        at: usize,
        /// The part of a line before its entry.
        prefix: String,
        end: String,
        /// Whether the file ends here, without a line end.
        unended: bool,
    },
    /// `[a, b]`, in one line.
    Flow {
        /// The byte behind the last entry, or behind the comma after it.
        at: usize,
        /// What must stand between it and a new one.
        separator: &'static str,
    },
}

impl List {
    /// Finds the list, or says why it cannot be extended.
    fn find(text: &str, vm: &str) -> Result<Self, String> {
        let lines = lines(text);
        let whole = document(&lines)..lines.len();
        let vms = plain_key(&lines, whole, "virtual_machines")?;
        let machine = plain_key(&lines, below(&lines, vms.line), vm)?;
        let fields = below(&lines, machine.line);
        let ports = find_key(&lines, fields, "ports")
            .ok_or_else(|| format!("no line with the key `ports` of {vm}"))?;
        match ports.rest.chars().next() {
            None => Self::block(&lines, ports.line),
            Some('[') => Self::flow(&lines[ports.line]),
            Some(_) => Err(format!("line {} has more than a list", ports.line + 1)),
        }
    }

    fn block(lines: &[Line<'_>], key: usize) -> Result<Self, String> {
        let indent = lines[key].indent();
        let is_entry = |line: usize| {
            let content = lines[line].content();
            content == "-" || content.starts_with("- ")
        };
        let first = next_content(lines, key + 1..lines.len()).filter(|first| {
            lines[*first].indent() > indent || lines[*first].indent() == indent && is_entry(*first)
        });
        let (mut last, mut prefix) = (key, format!("{}- ", " ".repeat(indent + 2)));
        if let Some(first) = first {
            if !is_entry(first) {
                return Err(format!("line {} is not an entry of a list", first + 1));
            }
            let indent = lines[first].indent();
            let belongs = |line: &usize| {
                lines[*line].indent() > indent || lines[*line].indent() == indent && is_entry(*line)
            };
            last = (first..lines.len())
                .filter(|line| lines[*line].has_content())
                .take_while(belongs)
                .last()
                .unwrap_or(first);
            let dash = &lines[first].content()[1..];
            let gap = dash.len() - dash.trim_start_matches(' ').len();
            prefix = format!("{}-{}", " ".repeat(indent), " ".repeat(gap.max(1)));
        }
        let end = lines.iter().map(|line| line.end).find(|end| !end.is_empty()).unwrap_or("\n");
        Ok(Self::Block {
            at: lines[last].stop(),
            prefix,
            end: end.to_owned(),
            unended: lines[last].end.is_empty(),
        })
    }

    fn flow(line: &Line<'_>) -> Result<Self, String> {
        let several = || "the list in brackets is more than a line of plain entries".to_owned();
        let open = line.body.find('[').ok_or_else(several)?;
        let (mut at, mut index) = (open + 1, open + 1);
        let (mut entry_may_begin, mut separator) = (true, "");
        while let Some(character) = line.body[index..].chars().next() {
            let length = match character {
                ']' => return Ok(Self::Flow { at: line.start + at, separator }),
                '\'' | '"' if entry_may_begin => {
                    quoted_length(&line.body[index..]).ok_or_else(several)?
                }
                '{' | '}' | '[' | '&' | '*' | '!' => return Err(several()),
                '#' if line.body[..index].ends_with([' ', '\t']) => return Err(several()),
                _ => character.len_utf8(),
            };
            index += length;
            if !matches!(character, ' ' | '\t') {
                entry_may_begin = character == ',';
                separator = if entry_may_begin { " " } else { ", " };
                at = index;
            }
        }
        Err(several())
    }

    fn insertion(&self, ports: &[NewPort]) -> Insertion {
        match self {
            Self::Block { at, prefix, end, unended, .. } => {
                let entries = ports.iter().map(|port| {
                    let entry = format!("{prefix}{}", port.entry());
                    if *unended { format!("{end}{entry}") } else { format!("{entry}{end}") }
                });
                Insertion { at: *at, text: entries.collect() }
            }
            Self::Flow { at, separator, .. } => {
                let entries: Vec<String> = ports.iter().map(|port| scalar(&port.name)).collect();
                let separator = if ports.is_empty() { "" } else { separator };
                Insertion { at: *at, text: format!("{separator}{}", entries.join(", ")) }
            }
        }
    }
}

/// The first line behind directives and the mark of a document's beginning.
pub(super) fn document(lines: &[Line<'_>]) -> usize {
    let mark = |line: &Line<'_>| line.body == "---" || line.body.starts_with("--- #");
    lines.iter().position(mark).map_or(0, |mark| mark + 1)
}

pub(super) fn plain_key<'a>(
    lines: &[Line<'a>],
    range: Range<usize>,
    name: &str,
) -> Result<Key<'a>, String> {
    let key =
        find_key(lines, range, name).ok_or_else(|| format!("no line with the key `{name}`"))?;
    match key.rest {
        "" => Ok(key),
        _ => Err(format!("line {} has more than the key `{name}`", key.line + 1)),
    }
}

#[cfg(test)]
mod tests;
