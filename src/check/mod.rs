//! The doctor: what is wrong with an installation, where, and what mends it.
//!
//! [`look`] gathers what there is and judges nothing; the other files judge what was gathered, one
//! noun each, and touch nothing. Nothing is changed anywhere, the state folder is not even made.

pub mod access;
pub mod config;
pub mod excerpt;
pub mod finding;
pub mod grabbers;
pub mod guest;
pub mod look;
pub mod machine;
pub mod pieces;
pub mod ports;
pub mod process;
pub mod program;
pub mod report;
pub mod rule;
pub mod state;
pub mod udev_rules;

use self::look::Scene;
use self::report::Report;

/// Judges all that was gathered.
pub fn judge(scene: &Scene) -> Report {
    let mut report = Report::default();
    report.add(config::judge(&scene.config));
    let (config, path) = (scene.config.config(), scene.config.path());
    report.add(config::judge_sockets(config, path));
    report.add(ports::judge(config, path, &scene.topology));
    report.add(rule::judge(&scene.rules));
    report.add(program::judge(&scene.programs));
    report.add(pieces::judge(&scene.pieces));
    report.add(state::judge(&scene.state));
    for machine in &scene.machines {
        report.add(machine::judge(machine));
        report.add(guest::judge(machine));
        report.add(access::judge(machine));
    }
    report.add(grabbers::judge(&scene.devices, &scene.daemons));
    report.unseen = scene.unseen();
    report.summarize(config, scene.machines.iter().filter(|machine| machine.is_off()).count());
    report
}
