//! What is where a piece belongs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::unit::{self, FOLDERS};
use super::{Content, Piece, package};
use crate::root::Root;

/// What was found in a piece's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// The piece.
    Same,
    /// Something else: its text, or what the link points to.
    Other(String),
}

/// Looks what is in a piece's place.
pub fn found(root: &Root, piece: &Piece) -> Found {
    let path = root.path(&piece.path);
    if path.symlink_metadata().is_err() {
        return Found::Nothing;
    }
    match &piece.content {
        Content::Link(target) => {
            let there = fs::read_link(&path).unwrap_or_default();
            if there == Path::new(target) {
                return Found::Same;
            }
            Found::Other(there.to_string_lossy().into_owned())
        }
        Content::Example(_) => Found::Same,
        Content::File { text: wanted, mode } => {
            let there = fs::read(&path).unwrap_or_default();
            let there = String::from_utf8_lossy(&there).into_owned();
            // Whatever else an administrator did to the mode is his.
            let runs = |mode: u32| mode & 0o111 != 0;
            let as_it_runs =
                path.metadata().is_ok_and(|one| runs(one.permissions().mode()) == runs(*mode));
            if there == *wanted && as_it_runs {
                return Found::Same;
            }
            Found::Other(there)
        }
    }
}

/// The piece that is in use: the package's where it has the same one and nothing takes its place.
pub fn in_use(root: &Root, piece: &Piece) -> Piece {
    let packaged = piece.in_package().filter(|packaged| found(root, packaged) == Found::Same);
    match packaged {
        Some(packaged) if found(root, piece) == Found::Nothing => packaged,
        _ => piece.clone(),
    }
}

/// Whether a package put the piece where `install` would put it too.
pub fn is_of_package(root: &Root, piece: &Piece) -> bool {
    root.path(package::RULE).exists()
        && piece.in_package().is_some_and(|packaged| packaged.path == piece.path)
}

/// Whether the machine has the folder without which it has no use for the piece.
pub fn has_sign(root: &Root, piece: &Piece) -> bool {
    piece.sign.is_none_or(|folder| root.path(folder).is_dir())
}

/// The paths of all path units of ours, and of their links.
pub fn path_units(root: &Root) -> Vec<String> {
    let mut paths = Vec::new();
    for folder in FOLDERS {
        let entries = fs::read_dir(root.path(folder)).into_iter().flatten().filter_map(Result::ok);
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            if unit::is_path_unit(&name) {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.sort();
    paths
}
