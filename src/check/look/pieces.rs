//! The units and hooks that run `sync`.

use std::env;

use crate::check::pieces::{PieceLook, PiecesLook};
use crate::check::rule::RulesLook;
use crate::config::Config;
use crate::install::disk::{found, has_sign, in_use, path_units};
use crate::install::unit::PathUnit;
use crate::install::{Group, pieces};
use crate::root::Root;

pub(super) fn look(root: &Root, rules: &RulesLook, config: Option<&Config>) -> PiecesLook {
    // They start what the rule starts.
    let named = rules.programs().into_iter().find(|program| program.starts_with('/'));
    let this = || env::current_exe().map(|path| path.to_string_lossy().into_owned());
    let program = named.or_else(|| this().ok()).unwrap_or_default();
    let pieces: Vec<_> =
        pieces(&program, config).into_iter().filter(|piece| piece.group != Group::Base).collect();
    let look =
        |piece| PieceLook { has_sign: has_sign(root, &piece), found: found(root, &piece), piece };
    let pieces: Vec<PieceLook> = pieces.iter().map(|piece| in_use(root, piece)).map(look).collect();
    let machines = config.map_or(&[][..], |config| &config.virtual_machines);
    let unfit = machines.iter().filter_map(|vm| Some((vm.name.clone(), PathUnit::of(vm).err()?)));
    let mut left_over = if config.is_some() { path_units(root) } else { Vec::new() };
    left_over.retain(|path| !pieces.iter().any(|look| look.piece.path == *path));
    PiecesLook { unfit: unfit.collect(), left_over, pieces }
}
