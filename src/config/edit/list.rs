//! The `ports:` list of a virtual machine in the text of a config: where it ends, how it is
//! written. Pure.

use super::lines::{Key, Line, below, find_key, lines, next_content, quoted_length};
use super::{Insertion, NewPort, scalar};

/// The list, as far as it must be known to add to it.
#[derive(Debug)]
pub(super) enum List {
    /// An entry a line.
    Block {
        /// The byte behind the last entry's line.
        at: usize,
        /// What stands before an entry in its line.
        prefix: String,
        /// The line end of this file.
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
    /// Finds the list; else says what is in the way.
    pub(super) fn find(text: &str, vm: &str) -> Result<Self, String> {
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
                return Err(format!("line {} is no entry of a list", first + 1));
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

    /// What adds the ports to it.
    pub(super) fn insertion(&self, ports: &[NewPort]) -> Insertion {
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
fn document(lines: &[Line<'_>]) -> usize {
    let mark = |line: &Line<'_>| line.body == "---" || line.body.starts_with("--- #");
    lines.iter().position(mark).map_or(0, |mark| mark + 1)
}

/// The key of that name, whose value stands in the lines below it.
fn plain_key<'a>(
    lines: &[Line<'a>],
    range: std::ops::Range<usize>,
    name: &str,
) -> Result<Key<'a>, String> {
    let key =
        find_key(lines, range, name).ok_or_else(|| format!("no line with the key `{name}`"))?;
    match key.rest {
        "" => Ok(key),
        _ => Err(format!("line {} has more than the key `{name}`", key.line + 1)),
    }
}
