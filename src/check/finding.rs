//! Findings: how severe, where, what, and the fix. The report is all of them with a summary.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::config::Config;
use crate::text::sanitize_line;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// The kind of finding, the same in all versions: `port-missing`.
    pub code: &'static str,
    #[serde(rename = "where")]
    pub place: String,
    pub what: String,
    pub excerpt: Option<Excerpt>,
    /// The fix; `None` if nothing needs to be done.
    pub remedy: Option<Remedy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing, but correct.
    Note,
    /// It works, but not always, not completely, or not for long.
    Warning,
    /// It does not work, or gives access to other users.
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Remedy {
    Command {
        /// The command line, quoted for a shell.
        run: String,
    },
    Edit {
        file: PathBuf,
        /// The VM that has the line in its `ports:`. `None` in a file that is not the config.
        vm: Option<String>,
        remove: Option<String>,
        add: Option<String>,
    },
    Advice {
        text: String,
    },
}

impl Finding {
    fn new(
        level: Level,
        code: &'static str,
        place: impl fmt::Display,
        what: impl Into<String>,
    ) -> Self {
        let (place, what) = (place.to_string(), what.into());
        Self { level, code, place, what, excerpt: None, remedy: None }
    }

    pub fn ok(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, code, place, what)
    }

    pub fn note(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Note, code, place, what)
    }

    pub fn warning(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Warning, code, place, what)
    }

    pub fn error(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Error, code, place, what)
    }

    #[must_use]
    pub fn run(mut self, command: impl Into<String>) -> Self {
        self.remedy = Some(Remedy::Command { run: command.into() });
        self
    }

    #[must_use]
    pub fn advice(mut self, text: impl Into<String>) -> Self {
        self.remedy = Some(Remedy::Advice { text: text.into() });
        self
    }

    #[must_use]
    pub fn add_line(mut self, file: impl Into<PathBuf>, line: impl Into<String>) -> Self {
        let (file, add) = (file.into(), Some(line.into()));
        self.remedy = Some(Remedy::Edit { file, vm: None, remove: None, add });
        self
    }

    /// A change in the `ports:` of a VM fixes it.
    #[must_use]
    pub fn ports(
        mut self,
        file: &Path,
        vm: &str,
        remove: Option<&impl fmt::Display>,
        add: Option<&impl fmt::Display>,
    ) -> Self {
        self.remedy = Some(Remedy::Edit {
            file: file.to_path_buf(),
            vm: Some(vm.to_owned()),
            remove: remove.map(|port| format!("- {port}")),
            add: add.map(|port| format!("- {port}")),
        });
        self
    }

    #[must_use]
    pub fn showing(mut self, excerpt: Option<Excerpt>) -> Self {
        self.excerpt = excerpt;
        self
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { run } => write!(f, "run: {run}"),
            Self::Advice { text } => f.write_str(text),
            Self::Edit { file, vm, remove, add } => {
                write!(f, "in {}", file.display())?;
                if let Some(vm) = vm {
                    write!(f, ", below `ports:` of `{vm}`")?;
                }
                match (add, remove) {
                    (Some(add), Some(remove)) => write!(f, ", write `{add}` instead of `{remove}`"),
                    (Some(add), None) => write!(f, ", add: {add}"),
                    (None, Some(remove)) => write!(f, ", remove: {remove}"),
                    (None, None) => Ok(()),
                }
            }
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub ok: bool,
    pub summary: String,
    pub counts: Counts,
    pub findings: Vec<Finding>,
    /// What only root can read and was not read.
    pub skipped: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub ok: usize,
    pub note: usize,
    pub warning: usize,
    pub error: usize,
}

impl Report {
    pub fn add(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
    }

    /// Counts the findings and writes the summary. All other fields must be set.
    pub fn summarize(&mut self, config: &Config, off: usize) {
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        self.counts = Counts {
            ok: count(Level::Ok),
            note: count(Level::Note),
            warning: count(Level::Warning),
            error: count(Level::Error),
        };
        self.ok = self.counts.error == 0;
        self.summary = match self.counts {
            Counts { error: 0, warning: 0, .. } if !self.skipped.is_empty() => {
                "no problem in what could be read".to_owned()
            }
            Counts { error: 0, warning: 0, .. } => no_problem(config, off),
            Counts { error: 0, warning, .. } => {
                format!("no error, {}", plural(warning, "warning"))
            }
            Counts { error, warning: 0, .. } => plural(error, "error"),
            Counts { error, warning, .. } => {
                format!("{}, {}", plural(error, "error"), plural(warning, "warning"))
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

fn no_problem(config: &Config, off: usize) -> String {
    let vms = &config.virtual_machines;
    let ports = vms.iter().map(|vm| vm.ports.len()).sum();
    let off = if off == 0 { String::new() } else { format!(" ({off} not running)") };
    format!(
        "no problem found: {}{off}, {}, rule, state",
        plural(vms.len(), "VM"),
        plural(ports, "port")
    )
}

/// `1 port`, `2 ports`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub text: String,
}

impl Excerpt {
    /// The longest part of a line that is shown, in characters.
    const MAX_CHARS: usize = 200;

    /// `None` if the text has no such line.
    pub fn of(text: &str, line: usize, column: usize) -> Option<Self> {
        let found = text.lines().nth(line.checked_sub(1)?)?;
        let shown: String = found.chars().take(Self::MAX_CHARS).collect();
        let column = column.clamp(1, shown.chars().count() + 1);
        Some(Self { line, column, text: sanitize_line(&shown) })
    }

    pub fn lines(&self) -> [String; 2] {
        let number = self.line.to_string();
        let before: String = self.text.chars().take(self.column - 1).collect();
        let marked = self.text.chars().skip(self.column - 1);
        let marked = marked.take_while(|character| !character.is_whitespace()).count().max(1);
        let blanks = " ".repeat(before.width());
        let gutter = " ".repeat(number.len());
        [format!("{number} | {}", self.text), format!("{gutter} | {blanks}{}", "^".repeat(marked))]
    }
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;

    #[test]
    fn remedy_is_one_line() {
        let said = |finding: Finding| finding.remedy.unwrap().to_string();
        let finding = || Finding::error("code", "place", "what");
        assert_eq!(said(finding().run("chmod go-w /etc")), "run: chmod go-w /etc");
        assert_eq!(
            said(finding().ports(
                Path::new("/etc/c.yaml"),
                "windows",
                Some(&"/old"),
                Some(&"/new")
            )),
            "in /etc/c.yaml, below `ports:` of `windows`, write `- /new` instead of `- /old`"
        );
        assert_eq!(said(finding().add_line("/etc/r.rules", "LINE")), "in /etc/r.rules, add: LINE");
    }

    #[test]
    fn levels_are_ordered_by_severity() {
        assert!(Level::Error > Level::Warning && Level::Note > Level::Ok);
    }

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
    fn summary_counts_errors_and_warnings() {
        assert!(summary(&[Level::Ok, Level::Note]).starts_with("no problem found: 0 VMs, "));
        assert_eq!(summary(&[Level::Warning]), "no error, 1 warning");
        assert_eq!(summary(&[Level::Error, Level::Error]), "2 errors");
        assert_eq!(summary(&[Level::Warning, Level::Error]), "1 error, 1 warning");
    }
}

#[cfg(test)]
mod excerpt_tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_mark_stands_below_the_word() {
        let text = "virtual_machines:\n  windows:\n    dellay: 1\n";
        let excerpt = Excerpt::of(text, 3, 5).unwrap();
        assert_eq!(excerpt.lines(), ["3 |     dellay: 1", "  |     ^^^^^^^"]);
        assert_eq!(Excerpt::of("鍵盤: x", 1, 5).unwrap().lines(), ["1 | 鍵盤: x", "  |       ^"]);
        assert_eq!(Excerpt::of("\tx", 1, 2).unwrap().lines(), ["1 |  x", "  |  ^"]);
        assert_eq!(Excerpt::of(text, 9, 1), None);
    }

    proptest! {
        #[test]
        fn any_place_in_any_text_is_survived(text in "\\PC{0,300}", line in 0..3usize, column in 0..400usize) {
            if let Some(excerpt) = Excerpt::of(&text, line, column) {
                excerpt.lines();
            }
        }
    }
}
