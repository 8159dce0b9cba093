//! The documents say what is so: each command line in them is run, each config in them read, and
//! what they link to is there.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by them, also in the helpers"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hotplugger::config::parse::parse;
use support::root::Root;
use support::udev::run_manual;

/// A document.
struct Document {
    path: PathBuf,
    text: String,
}

fn documents() -> Vec<Document> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dist/catalog/hotplugger.catalog"];
    let mut paths: Vec<PathBuf> = names.iter().map(|name| root.join(name)).collect();
    for folder in ["docs", "docs/developers", "tests/e2e", "fuzz"] {
        let entries = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    let read = |path: PathBuf| Document { text: fs::read_to_string(&path).unwrap(), path };
    paths.into_iter().map(read).collect()
}

impl Document {
    /// The lines of all code: in blocks, fenced or indented, and between backticks.
    fn code(&self) -> Vec<String> {
        let mut code = Vec::new();
        let mut fenced = false;
        for line in self.text.lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if fenced || line.starts_with("    ") {
                code.push(line.trim().to_owned());
            } else {
                code.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
            }
        }
        code
    }

    /// The fenced blocks in that language, without what all their lines begin with.
    fn blocks(&self, language: &str) -> Vec<String> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines();
        while let Some(fence) = lines.find(|line| line.trim() == format!("```{language}")) {
            let indent = fence.len() - fence.trim_start().len();
            let block = lines.by_ref().take_while(|line| line.trim() != "```");
            blocks.push(
                block
                    .map(|line| line.get(indent..).unwrap_or(""))
                    .fold(String::new(), |text, line| text + line + "\n"),
            );
        }
        blocks
    }

    /// What its links point to.
    fn links(&self) -> Vec<String> {
        let links = self.text.split("](").skip(1);
        links.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
    }

    /// The anchors of its headings, as forges make them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.text.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
                kept.map(|c| if c == ' ' { '-' } else { c }).collect()
            })
            .collect()
    }
}

/// The arguments of a line that starts hotplugger, as far as they are hotplugger's.
fn arguments(line: &str) -> Option<Vec<String>> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let line = line.strip_prefix("sudo ").unwrap_or(line);
    let line = line.strip_prefix("/usr/local/bin/").unwrap_or(line);
    let rest = line.strip_prefix("hotplugger ")?;
    let end = rest.find([' ']).map_or(rest, |_| rest);
    let words =
        end.split_whitespace().take_while(|word| !["#", "|", "&", "&&", ">"].contains(word));
    Some(words.map(str::to_owned).collect())
}

/// A host to which the documents' names fit.
fn host() -> Root {
    let mut root = Root::new();
    root.controller(8);
    let bus = "/sys/devices/pci0000:00/0000:00:15.0/usb3";
    root.write(&format!("{bus}/speed"), "480\n");
    symlink(root.path(bus), root.path("/sys/bus/usb/devices/usb3")).unwrap();
    root.write(&format!("{bus}/3-0:1.0/usb3-port3/connect_type"), "hotplug\n");
    root.plug("1-1", "keyboard", 5);
    let machine = |name: &str| {
        format!(
            "  {name}:\n    socket: /run/{name}.qmp\n    ports: [pci-0000:00:15.0/usb2:3, \
             pci-0000:00:14.0/usb2:1]\n"
        )
    };
    let machines = ["windows", "linux", "vm100"].map(machine).concat();
    root.config(&format!("virtual_machines:\n{machines}"));
    root
}

/// No virtual machine runs there and nobody plugs: what a command cannot do, it says in one line.
#[test]
fn each_command_line_runs() {
    let mut lines: BTreeSet<Vec<String>> = BTreeSet::new();
    for document in documents() {
        lines.extend(document.code().iter().filter_map(|line| arguments(line)));
    }
    assert!(lines.len() > 25, "{lines:?}");
    for mut words in lines {
        match words[0].as_str() {
            // It waits for a person, and here for none.
            "identify" if !words.iter().any(|word| word == "--plugged") => {
                words.extend(["--timeout".to_owned(), "1".to_owned()]);
            }
            // It has no end.
            "watch" => words.push("--help".to_owned()),
            // What the words are of, and no command line.
            "asks" | "is" => continue,
            _ => {}
        }
        for word in &mut words {
            if word == "30" {
                "1".clone_into(word);
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = run_manual(&host(), &words);
        // The name of a command, in a sentence.
        if words.len() == 1 && ended.stderr.contains("arguments were not provided") {
            continue;
        }
        assert!(
            ended.status != 2 && !ended.stderr.contains("Usage:"),
            "hotplugger {words:?}: {}{}",
            ended.stdout,
            ended.stderr
        );
    }
}

#[test]
fn each_config_is_one() {
    let mut count = 0;
    for document in documents() {
        for block in document.blocks("yaml") {
            count += 1;
            let text = if block.contains("virtual_machines:") {
                block.clone()
            } else {
                let indent = if block.starts_with("    ") { "" } else { "    " };
                let keys: Vec<String> =
                    block.lines().map(|line| format!("{indent}{line}\n")).collect();
                let keys = keys.concat();
                let socket = if block.contains("domain:") || block.contains("socket:") {
                    ""
                } else {
                    "    socket: /s\n"
                };
                let ports = if block.contains("\n    ports:")
                    || block.starts_with("ports:")
                    || block.contains("\nports:")
                    || block.starts_with("    ports:")
                {
                    ""
                } else {
                    "    ports: [pci-a/usb2:1]\n"
                };
                format!("virtual_machines:\n  w:\n{socket}{ports}{keys}")
            };
            if let Err(error) = parse(&text) {
                panic!("{}: {error}\n{block}", document.path.display());
            }
        }
        for block in document.blocks("json") {
            let read: Result<serde_json::Value, _> = serde_json::from_str(&block);
            assert!(read.is_ok(), "{}: {read:?}\n{block}", document.path.display());
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn what_is_linked_to_is_there() {
    let documents = documents();
    let mut missing = Vec::new();
    for document in &documents {
        for link in document.links() {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = document.path.parent().unwrap().join(file);
            let path = if file.is_empty() { document.path.clone() } else { path };
            let target = path.canonicalize().ok();
            let known = target.as_ref().and_then(|target| {
                documents
                    .iter()
                    .find(|one| one.path.canonicalize().is_ok_and(|path| path == *target))
            });
            let is_there = target.is_some()
                && (anchor.is_empty() || known.is_some_and(|one| one.anchors().contains(anchor)));
            if !is_there {
                missing.push(format!("{}: {link}", document.path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn each_target_of_make_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let makefile = fs::read_to_string(root.join("Makefile")).unwrap();
    let mut count = 0;
    for document in documents() {
        for line in document.code() {
            let line = line.strip_prefix("sudo ").unwrap_or(&line);
            let Some(rest) = line.strip_prefix("make ") else { continue };
            let words = rest.split_whitespace().take_while(|word| *word != "#");
            for target in words.filter(|word| !word.contains('=')) {
                count += 1;
                let is_it = |line: &str| {
                    let targets = line.split_once(':').filter(|_| !line.starts_with(['\t', '.']));
                    targets.is_some_and(|(targets, _)| targets.split(' ').any(|one| one == target))
                };
                assert!(makefile.lines().any(is_it), "{}: make {target}", document.path.display());
            }
        }
    }
    assert!(count > 5, "{count}");
}
