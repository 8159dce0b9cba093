//! The units and hooks that run `sync`: are they there, and are they as this config wants them.

use super::finding::Finding;
use crate::install::disk::Found;
use crate::install::unit::{self, Unfit};
use crate::install::{Content, Group, Piece};
use crate::text::shell_word;

/// What was found of the pieces of `install` but for the rule and what belongs to it.
#[derive(Debug, Default)]
pub struct PiecesLook {
    /// The pieces for this config, and what is in their places.
    pub pieces: Vec<PieceLook>,
    /// Path units and links that no virtual machine of the config has; none if the config cannot
    /// be read.
    pub left_over: Vec<String>,
    /// The virtual machines that can have no unit, and why.
    pub unfit: Vec<(String, Unfit)>,
}

/// A piece and what is in its place.
#[derive(Debug)]
pub struct PieceLook {
    /// The piece.
    pub piece: Piece,
    /// Whether the machine has a use for it.
    pub has_sign: bool,
    /// What is there.
    pub found: Found,
}

/// Judges them, group by group.
pub fn judge(look: &PiecesLook) -> Vec<Finding> {
    let mut findings = Vec::new();
    for group in [Group::Systemd, Group::Sleep, Group::Libvirt] {
        let pieces: Vec<&PieceLook> = look
            .pieces
            .iter()
            .filter(|one| one.piece.group == group)
            .filter(|one| one.has_sign || one.found != Found::Nothing)
            .collect();
        let Some(first) = pieces.first() else { continue };
        if pieces.iter().all(|one| one.found == Found::Nothing) {
            findings.push(none(group, first));
            continue;
        }
        let wrong: Vec<Finding> = pieces.iter().filter_map(|one| judge_one(one)).collect();
        if wrong.is_empty() {
            let what = format!("`sync` runs {}", when(group));
            findings.push(Finding::ok("piece-installed", &first.piece.path, what));
        }
        findings.extend(wrong);
        if group == Group::Systemd {
            findings.extend(look.unfit.iter().map(|(vm, why)| unfit(vm, *why)));
        }
    }
    findings.extend(look.left_over.iter().map(|path| {
        Finding::warning(
            "piece-left-over",
            path,
            "it is of a virtual machine that the config has no more",
        )
        .run(INSTALL)
    }));
    findings
}

const INSTALL: &str = "hotplugger install";

/// When the pieces of a group run `sync`.
fn when(group: Group) -> &'static str {
    match group {
        Group::Sleep => "when the host wakes up",
        Group::Libvirt => "when a guest of libvirt's has started or ended",
        Group::Base | Group::Systemd => "when a virtual machine's socket appears or goes away",
    }
}

/// That may be on purpose: there are other ways to start a virtual machine.
fn none(group: Group, first: &PieceLook) -> Finding {
    let what = format!("it is not there: `sync` is not run {}", when(group));
    Finding::note("piece-none", &first.piece.path, what).run(INSTALL)
}

fn judge_one(look: &PieceLook) -> Option<Finding> {
    let path = &look.piece.path;
    let there = match &look.found {
        Found::Same => return None,
        Found::Nothing => {
            let what =
                "it is not there, and what belongs to it is: `sync` is not run when it should be";
            return Some(Finding::warning("piece-missing", path, what).run(INSTALL));
        }
        Found::Other(there) => there,
    };
    let wanted = match &look.piece.content {
        Content::File { text, .. } => unit::watched(text),
        _ => None,
    };
    let what = match (unit::watched(there), wanted) {
        (Some(there), Some(wanted)) if there != wanted => {
            format!("it watches {there}, and the config says {wanted}")
        }
        _ => "it is not as this version of hotplugger writes it".to_owned(),
    };
    Some(Finding::warning("piece-stale", path, what).run(INSTALL))
}

fn unfit(vm: &str, why: Unfit) -> Finding {
    let what = format!("{why}: `sync` is not run when it starts");
    Finding::warning("unit-impossible", vm, what)
        .advice(format!("start `hotplugger sync {} --wait 30` together with it", shell_word(vm)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;
    use crate::install::pieces;

    /// Those of a machine with systemd and two virtual machines; `change` plants a fault.
    fn codes(change: impl Fn(&mut PieceLook)) -> Vec<&'static str> {
        let text = "virtual_machines:\n  a: {socket: /run/a, ports: [/devices/usb1/1-1]}\n  \
                    b: {socket: /run/b, ports: [/devices/usb1/1-2]}\n";
        let config = parse(text).unwrap();
        let looks = pieces("/usr/bin/hotplugger", Some(&config)).into_iter().map(|piece| {
            let has_sign = piece.group == Group::Systemd;
            let found = if has_sign { Found::Same } else { Found::Nothing };
            let mut look = PieceLook { piece, has_sign, found };
            change(&mut look);
            look
        });
        let look = PiecesLook { pieces: looks.collect(), ..PiecesLook::default() };
        judge(&look).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_group_is_whole_absent_or_broken() {
        assert_eq!(codes(|_| {}), ["piece-installed"]);
        assert_eq!(codes(|look| look.found = Found::Nothing), ["piece-none"]);
        assert!(codes(|look| (look.found, look.has_sign) = (Found::Nothing, false)).is_empty());
        let lose = |end: &'static str| {
            move |look: &mut PieceLook| {
                if look.piece.path.ends_with(end) {
                    look.found = Found::Nothing;
                }
            }
        };
        assert_eq!(codes(lose("system/hotplugger-sync@b.path")), ["piece-missing"]);
        assert_eq!(codes(lose("wants/hotplugger-sync@b.path")), ["piece-missing"]);
    }

    #[test]
    fn a_unit_with_another_socket_says_which() {
        let text = "virtual_machines:\n  a: {socket: /run/a, ports: [/devices/usb1/1-1]}\n";
        let pieces = pieces("/usr/bin/hotplugger", Some(&parse(text).unwrap()));
        let piece = pieces.into_iter().find(|piece| piece.path.ends_with("@a.path")).unwrap();
        let found = Found::Other("[Path]\nPathChanged=/run/old\n".to_owned());
        let finding = judge_one(&PieceLook { piece, has_sign: true, found }).unwrap();
        assert_eq!(finding.what, "it watches /run/old, and the config says /run/a");
        assert_eq!(finding.code, "piece-stale");
    }
}
