//! All findings together: what is shown, the line at the end, the verdict.

use serde::Serialize;

use super::finding::{Finding, Level};
use crate::config::Config;

/// What the check found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether there is no fault.
    pub sound: bool,
    /// All of it in a line.
    pub summary: String,
    /// How many findings of each level there are.
    pub counts: Counts,
    /// What was found, also what is as it should be.
    pub findings: Vec<Finding>,
    /// What only root can look at and was not.
    pub unseen: Vec<String>,
}

/// How many findings of each level there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// As it should be.
    pub ok: usize,
    /// Worth knowing.
    pub note: usize,
    /// Not fully working.
    pub warning: usize,
    /// Not working, or letting others in.
    pub fault: usize,
}

impl Report {
    /// Adds findings.
    pub fn add(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
    }

    /// Counts, and makes the line at the end; all else must be there.
    pub fn summarize(&mut self, config: &Config, off: usize) {
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        self.counts = Counts {
            ok: count(Level::Ok),
            note: count(Level::Note),
            warning: count(Level::Warning),
            fault: count(Level::Fault),
        };
        self.sound = self.counts.fault == 0;
        self.summary = match self.counts {
            Counts { fault: 0, warning: 0, .. } if !self.unseen.is_empty() => {
                "nothing wrong in what can be seen".to_owned()
            }
            Counts { fault: 0, warning: 0, .. } => all_is_well(config, off),
            Counts { fault: 0, warning, .. } => {
                format!("no fault, {}", several(warning, "warning"))
            }
            Counts { fault, warning: 0, .. } => several(fault, "fault"),
            Counts { fault, warning, .. } => {
                format!("{}, {}", several(fault, "fault"), several(warning, "warning"))
            }
        };
    }

    /// The findings that are shown: the worst last, next to the summary; without `verbose` only
    /// what needs care.
    pub fn shown(&self, verbose: bool) -> Vec<&Finding> {
        let shown = |finding: &&Finding| verbose || finding.level >= Level::Warning;
        let mut findings: Vec<&Finding> = self.findings.iter().filter(shown).collect();
        findings.sort_by_key(|finding| finding.level);
        findings
    }
}

fn all_is_well(config: &Config, off: usize) -> String {
    let machines = &config.virtual_machines;
    let ports = machines.iter().map(|vm| vm.ports.len()).sum();
    let off = if off == 0 { String::new() } else { format!(" ({off} off)") };
    format!(
        "all is well: {}{off}, {}, rule, state",
        several(machines.len(), "virtual machine"),
        several(ports, "port")
    )
}

/// `1 port`, `2 ports`.
pub(crate) fn several(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(levels: &[Level]) -> String {
        let mut report = Report::default();
        report.add(
            levels
                .iter()
                .map(|level| Finding { level: *level, ..Finding::ok("c", "p", "w") })
                .collect(),
        );
        report.summarize(&Config::default(), 0);
        report.summary
    }

    #[test]
    fn a_line_says_how_it_is() {
        assert!(
            summary(&[Level::Ok, Level::Note]).starts_with("all is well: 0 virtual machines, ")
        );
        assert_eq!(summary(&[Level::Warning]), "no fault, 1 warning");
        assert_eq!(summary(&[Level::Fault, Level::Fault]), "2 faults");
        assert_eq!(summary(&[Level::Warning, Level::Fault]), "1 fault, 1 warning");
    }
}
