//! What ARCHITECTURE.md says of the code is so: its layers, its files, its crates. And no file
//! outgrows a few pages.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by them, also in the helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file has no more lines, unless its top says why.
const MOST_LINES: usize = 300;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap()
}

/// All files of the program, and their texts.
fn sources() -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, files: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(top().join("src")).unwrap().to_owned(), text));
            }
        }
    }
    let mut files = Vec::new();
    collect(&top().join("src"), &mut files);
    files.sort();
    files
}

/// The words between backticks.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table in a document below a line that begins so.
fn rows<'a>(document: &'a str, header: &str) -> Vec<&'a str> {
    let lines = document.lines().skip_while(|line| !line.starts_with(header));
    lines.skip(2).take_while(|line| line.starts_with('|')).collect()
}

#[test]
fn no_file_outgrows_a_few_pages() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            let head = text.lines().take_while(|line| line.starts_with("//!"));
            !path.ends_with("tests.rs")
                && text.lines().count() > MOST_LINES
                && !head.into_iter().any(|line| line.contains("long because"))
        })
        .map(|(path, text)| (path, text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

/// The modules that each module uses, but for its tests.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let module = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if path.ends_with("tests.rs") || matches!(module, "main" | "lib") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        let used = arrows.entry(module.to_owned()).or_default();
        for rest in code.split("crate::").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(0);
            let name = &rest[..end];
            assert!(!name.is_empty(), "{}: name modules one by one", path.display());
            if name != module {
                used.insert(name.to_owned());
            }
        }
    }
    arrows
}

#[test]
fn arrows_go_down_the_layers() {
    let document = read("ARCHITECTURE.md");
    let order: Vec<&str> = rows(&document, "| layer |").into_iter().flat_map(names).collect();
    let arrows = arrows();
    let known: BTreeSet<&str> = order.iter().copied().collect();
    assert_eq!(known.len(), order.len(), "a module stands twice in the layers");
    let there: BTreeSet<&str> = arrows.keys().map(String::as_str).collect();
    assert_eq!(known, there, "the layers and the modules");
    let place = |name: &str| order.iter().position(|known| *known == name);
    let mut up = Vec::new();
    for (module, used) in &arrows {
        for other in used {
            if place(other) <= place(module) {
                up.push(format!("{module} -> {other}"));
            }
        }
    }
    assert!(up.is_empty(), "arrows that go up: {up:?}");
}

#[test]
fn the_map_names_every_module_and_only_what_is_there() {
    let document = read("ARCHITECTURE.md");
    let map: BTreeSet<&str> = rows(&document, "| file |")
        .iter()
        .flat_map(|row| names(row.split('|').nth(1).unwrap()))
        .collect();
    for name in &map {
        assert!(top().join("src").join(name).exists(), "src/{name} is not there");
    }
    for entry in fs::read_dir(top().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        let named =
            map.iter().any(|one| one.trim_end_matches('/').trim_end_matches(".rs") == module);
        assert!(named || name == "lib.rs", "src/{name} is not on the map");
    }
    for row in rows(&document, "| what | where |") {
        for path in names(row).filter(|name| name.starts_with("tests/") && !name.contains('*')) {
            assert!(top().join(path).exists(), "{path} is not there");
        }
    }
}

#[test]
fn each_crate_has_its_reason() {
    let document = read("ARCHITECTURE.md");
    let reasons: BTreeSet<&str> = rows(&document, "| crate |")
        .iter()
        .flat_map(|row| names(row.split('|').nth(1).unwrap()))
        .filter(|name| *name != "yaml_serde")
        .collect();
    let manifest = read("Cargo.toml");
    let mut crates = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| inside) {
            crates.insert(name);
        }
    }
    assert_eq!(crates, reasons);
}
