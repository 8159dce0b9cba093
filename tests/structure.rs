//! The modules of the program have no cycles: each may use those below it, and none above.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by them, also in the helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
}

/// The modules at the top that each module at the top uses, except in its tests.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files {
        let module = path.strip_prefix(&src).unwrap().iter().next().unwrap().to_str().unwrap();
        let module = module.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let others = uses.entry(module.clone()).or_default();
        for rest in code.split("crate::").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(0);
            assert!(end > 0, "{}: import modules one by one", path.display());
            others.extend((rest[..end] != module).then(|| rest[..end].to_owned()));
        }
    }
    uses
}

#[test]
fn modules_have_no_cycles() {
    let mut uses = uses();
    assert!(uses.len() > 20, "{uses:?}");
    // Take away what uses nothing that is left, until nothing changes.
    loop {
        let done: BTreeSet<String> =
            uses.iter().filter(|(_, used)| used.is_empty()).map(|(name, _)| name.clone()).collect();
        if done.is_empty() {
            break;
        }
        uses.retain(|name, _| !done.contains(name));
        for used in uses.values_mut() {
            used.retain(|name| !done.contains(name));
        }
    }
    assert!(uses.is_empty(), "modules in cycles, or above one: {uses:#?}");
}
