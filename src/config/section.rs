//! The sections of the VMs in the text of a config: a mistake in one of them stops that VM alone.
//!
//! A section is found line by line, which no YAML of any shape allows. So it counts as the place of the
//! mistake only if the mistake is there and the rest can be parsed without it. Pure.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::Config;
use super::edit::{below, document, key, lines, next_content, plain_key};
use super::parse::{ConfigError, MAX_ENTRIES, parse};
use super::prefilter;
use crate::location::UsbLocation;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenSection {
    pub vm: String,
    /// Its text, in which ports can still be searched for.
    pub text: String,
    pub error: ConfigError,
    /// The file.
    pub path: PathBuf,
}

impl BrokenSection {
    /// Whether it may list the port of that device. It may say yes in vain, never no.
    pub fn may_list(&self, location: &UsbLocation) -> bool {
        let device = &location.own.devpath;
        prefilter::may_match(self.text.as_bytes(), device, |_| location.peer_ports())
    }
}

impl fmt::Display for BrokenSection {
    /// `PATH:LINE:COLUMN: MESSAGE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.error)
    }
}

/// The most sections with mistakes. Each one costs parsing the text twice more.
const MAX_BROKEN: usize = 16;

/// Parses the config without the sections that have mistakes, which are in `Config::broken` then.
///
/// # Errors
///
/// A mistake outside the sections, or no VM is left without them.
pub fn parse_sections(text: &str) -> Result<Config, ConfigError> {
    let first = match parse(text) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    let (mut rest, mut error, mut broken) = (text.to_owned(), first.clone(), Vec::new());
    while broken.len() < MAX_BROKEN {
        let Some((section, parsed)) = blame(&rest, &error) else { break };
        let text = rest[section.bytes.clone()].to_owned();
        rest = section.blank(&rest);
        broken.push(BrokenSection { vm: section.vm, text, error, path: PathBuf::new() });
        match parsed {
            Ok(config) if config.virtual_machines.is_empty() => break,
            Ok(config) => return Ok(Config { broken, ..config }),
            Err(next) => error = next,
        }
    }
    // Nothing goes on: the first mistake says it best.
    Err(first)
}

/// The section that has the mistake, and the config without it.
fn blame(text: &str, error: &ConfigError) -> Option<(Section, Result<Config, ConfigError>)> {
    let sections = sections(text);
    let mut blamed = None;
    // The line where something was begun and not ended, then the line with the error.
    for line in [error.begun, error.line].into_iter().flatten() {
        let at_line = sections.iter().find(|section| section.lines.contains(&line));
        let Some(section) = at_line else { continue };
        let config = parse(&section.blank(text));
        if config.is_ok() {
            return Some((section.clone(), config));
        }
        blamed = Some((section.clone(), config));
    }
    blamed
}

#[derive(Clone)]
struct Section {
    vm: String,
    /// Its lines, from 1.
    lines: Range<usize>,
    bytes: Range<usize>,
}

impl Section {
    /// The text with empty lines in place of the section's.
    fn blank(&self, text: &str) -> String {
        let ends: String = text[self.bytes.clone()].chars().filter(|char| *char == '\n').collect();
        [&text[..self.bytes.start], &ends, &text[self.bytes.end..]].concat()
    }
}

/// The sections that stand below `virtual_machines:`, each a key with lines that are indented further.
fn sections(text: &str) -> Vec<Section> {
    let lines = lines(text);
    let whole = document(&lines)..lines.len();
    let Ok(vms) = plain_key(&lines, whole, "virtual_machines") else { return Vec::new() };
    let within = below(&lines, vms.line);
    let mut sections = Vec::new();
    let mut at = within.start;
    while let Some(first) = next_content(&lines, at..within.end) {
        // With more of them the config is refused as a whole, and at once.
        if sections.len() == MAX_ENTRIES {
            return Vec::new();
        }
        let own = below(&lines, first);
        at = own.end;
        let Some(key) = key(first, lines[first].content()) else { continue };
        sections.push(Section {
            vm: key.name,
            lines: first + 1..own.end + 1,
            bytes: lines[first].start..lines[own.end - 1].stop(),
        });
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::PortLocation;

    const A: &str = "  a:\n    socket: /run/a\n    ports: [/devices/x/usb1/1-1]\n";
    const C: &str = "  c:\n    socket: /run/c\n    ports: [/devices/x/usb1/1-3]\n";

    fn text(b: &str) -> String {
        format!("virtual_machines:\n{A}{b}{C}exclude: [class: 08]\n")
    }

    #[test]
    fn mistake_in_a_section_stops_that_vm_alone() {
        let ports = "    ports: [/devices/x/usb1/1-2]\n";
        for (b, place) in [
            (format!("  b:\n    sokcet: /run/b\n{ports}"), "6:5"),
            (format!("  b: # of Bob\n{ports}"), "6:5"),
            (format!("  b:\n    socket: /run/b\n    delay: soon\n\n{ports}"), "7:12"),
            ("  b:\n    socket: /run/b\n    ports: [/devices/x/usb1/1-2\n".to_owned(), "7:13"),
            ("  b:\n    socket: \"/run/b\n    ports: [/devices/x/usb1/1-2]\n".to_owned(), "12:1"),
            ("  b: {socket: /run/b, ports: [/devices/x/usb1/1-2]\n".to_owned(), "6:3"),
            (format!("  b:\n    socket: /run/b\n   delay: 1\n{ports}"), "6:5"),
            (format!("  b:\n    socket: /run/b\n\tdelay: 1\n{ports}"), "7:1"),
            (format!("  b:\n    socket: /run/b\n\u{a0} delay: 1\n{ports}"), "7:1"),
            (format!("  b:\n    socket: /run/b\n    hubs: *hubs\n{ports}"), "7:11"),
            (format!("  b:\n  # none\n    socket: /run/b{ports}"), "7:28"),
            (format!("  'b':\n    socket: /run/b\n    x: \u{1}\n{ports}"), "7:8"),
        ] {
            let config = parse_sections(&text(&b)).unwrap_or_else(|error| panic!("{b}{error}"));
            let names: Vec<&str> =
                config.virtual_machines.iter().map(|vm| vm.name.as_str()).collect();
            assert_eq!((names, config.exclude.len()), (vec!["a", "c"], 1), "{b}");
            let [broken] = &config.broken[..] else { panic!("{b}") };
            assert_eq!(broken.vm, "b");
            assert!(broken.error.to_string().starts_with(&format!("{place}: ")), "{b}{broken}");
            for (port, expected) in [("1-1", Some("a")), ("1-2", None), ("1-3", Some("c"))] {
                let path = format!("/devices/x/usb1/{port}").parse().unwrap();
                let location = UsbLocation::of(PortLocation::of(path));
                assert_eq!(broken.may_list(&location), port == "1-2", "{b}{port}");
                assert_eq!(config.owners(&location).first().map(|vm| vm.name.as_str()), expected);
            }
        }
    }

    #[test]
    fn each_broken_section_keeps_its_mistake() {
        let broken = |name| format!("  {name}:\n    ports: [/devices/x/usb1/1-2]\n");
        let config = parse_sections(&text(&[broken("b"), broken("d")].concat())).unwrap();
        let errors: Vec<String> =
            config.broken.iter().map(|broken| broken.error.to_string()).collect();
        assert!(errors[0].starts_with("6:5: virtual_machines.b: missing field"), "{errors:?}");
        assert!(errors[1].starts_with("8:5: virtual_machines.d: missing field"), "{errors:?}");
        let twice = parse_sections(&text(A)).unwrap();
        assert!(twice.broken[0].error.to_string().contains("defined twice"), "{:?}", twice.broken);
    }

    #[test]
    fn other_mistakes_stop_all_vms() {
        let without_ports = "  b:\n    socket: /run/b\n";
        let many = |count: u8| {
            (0..count).map(|number| format!("  v{number}: 1\n")).collect::<Vec<_>>().concat()
        };
        for (text, place) in [
            (format!("{}excluude: []\n", text("")), "9:1"),
            (text("").replace("08", "8"), "8:18"),
            (format!("virtual_machines:\n{without_ports}"), "3:5"),
            ("virtual_machines: {b: 1, c: {socket: /run/c, ports: []}}\n".to_owned(), "1:23"),
            (text(&many(17)), "5:7"),
            (format!("virtual_machines:\n{}", many(255)), "2:7"),
        ] {
            let error = parse_sections(&text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{place}: ")), "{text}{error}");
        }
        assert_eq!(parse_sections(&text(&many(15))).unwrap().broken.len(), 15);
    }
}
