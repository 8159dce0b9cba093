//! The units and hooks that run `sync`.

use std::env;

use crate::check::pieces::{PieceLook, PiecesLook};
use crate::check::rule::RulesLook;
use crate::config::Config;
use crate::host::topology::Topology;
use crate::install::disk::{Found, found, has_sign, in_use, path_units};
use crate::install::exact;
use crate::install::unit::PathUnit;
use crate::install::{Group, RULE, pieces};
use crate::root::Root;

pub(super) fn look(
    root: &Root,
    rules: &RulesLook,
    config: Option<&Config>,
    topology: &Topology,
) -> PiecesLook {
    // They start what the rule starts.
    let named = rules.programs().into_iter().find(|program| program.starts_with('/'));
    let this = || env::current_exe().map(|path| path.to_string_lossy().into_owned());
    let program = named.or_else(|| this().ok()).unwrap_or_default();
    let (base, pieces): (Vec<_>, Vec<_>) =
        pieces(&program, config).into_iter().partition(|piece| piece.group == Group::Base);
    let look =
        |piece| PieceLook { has_sign: has_sign(root, &piece), found: found(root, &piece), piece };
    let pieces: Vec<PieceLook> = pieces.iter().map(|piece| in_use(root, piece)).map(look).collect();
    let rule = base.into_iter().find(|piece| piece.path == RULE).and_then(|mut rule| {
        let is_exact = matches!(found(root, &rule), Found::Other(there) if exact::is_exact(&there));
        exact::narrow(&mut rule, config.filter(|_| is_exact)?, topology);
        Some(look(rule))
    });
    let machines = config.map_or(&[][..], |config| &config.virtual_machines);
    let unfit = machines.iter().filter_map(|vm| Some((vm.name.clone(), PathUnit::of(vm).err()?)));
    let mut left_over = if config.is_some() { path_units(root) } else { Vec::new() };
    left_over.retain(|path| !pieces.iter().any(|look| look.piece.path == *path));
    PiecesLook { unfit: unfit.collect(), left_over, pieces, rule }
}
