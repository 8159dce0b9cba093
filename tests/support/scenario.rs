//! Scenarios: transcripts of what was done and what came of it.
//!
//! ```text
//! # The first line says what the scenario tells; lines like this one tell more.
//!
//! $ a step
//!     its input, indented
//! what came of it
//! ```
//!
//! This file reads, writes and compares them; what the steps mean is not its matter.

use std::fmt::Write;

/// A scenario.
pub(crate) struct Scenario {
    parts: Vec<Part>,
}

enum Part {
    /// A line that is only told: a comment, or an empty one.
    Text(String),
    Step(Step),
}

/// One thing that is done.
pub(crate) struct Step {
    /// Where it stands.
    line: usize,
    /// What is done.
    pub(crate) command: String,
    /// The indented lines after it.
    pub(crate) input: String,
    /// What should come of it.
    expected: Vec<String>,
    /// What came of it.
    actual: Vec<String>,
}

const INDENT: &str = "    ";

impl Scenario {
    /// Reads a scenario.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with("# ") {
            return Err("line 1: a scenario begins with `# ` and its title".to_owned());
        }
        let mut parts = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            if let Some(command) = text.strip_prefix("$ ") {
                parts.push(Part::Step(Step {
                    line,
                    command: command.trim_end().to_owned(),
                    input: String::new(),
                    expected: Vec::new(),
                    actual: Vec::new(),
                }));
            } else if text.is_empty() || text.starts_with('#') {
                parts.push(Part::Text(text.to_owned()));
            } else if let Some(Part::Step(step)) = parts.last_mut() {
                match text.strip_prefix(INDENT) {
                    Some(input) if step.expected.is_empty() => {
                        step.input.push_str(input);
                        step.input.push('\n');
                    }
                    _ => step.expected.push(text.to_owned()),
                }
            } else {
                return Err(format!("line {line}: this is after no step; is it a `# ` comment?"));
            }
        }
        Ok(Self { parts })
    }

    /// Does all steps; `run` does one and returns what came of it.
    pub(crate) fn play(&mut self, mut run: impl FnMut(&Step) -> Vec<String>) {
        for part in &mut self.parts {
            if let Part::Step(step) = part {
                step.actual = run(step);
            }
        }
    }

    /// What came otherwise than the scenario tells; none if all came as told.
    pub(crate) fn differences(&self) -> Option<String> {
        let mut text = String::new();
        for part in &self.parts {
            if let Part::Step(step) = part
                && step.actual != step.expected
            {
                writeln!(text, "  line {}: $ {}", step.line, step.command).unwrap();
                for (sign, lines) in [('-', &step.expected), ('+', &step.actual)] {
                    for line in lines {
                        writeln!(text, "  {sign} {line}").unwrap();
                    }
                }
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// The scenario as it came.
    pub(crate) fn as_it_came(&self) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(line) => writeln!(text, "{line}").unwrap(),
                Part::Step(step) => {
                    writeln!(text, "$ {}", step.command).unwrap();
                    step.input.lines().for_each(|line| writeln!(text, "{INDENT}{line}").unwrap());
                    step.actual.iter().for_each(|line| writeln!(text, "{line}").unwrap());
                }
            }
        }
        text
    }
}

impl Step {
    /// Its command, cut at the spaces.
    pub(crate) fn words(&self) -> Vec<&str> {
        self.command.split_whitespace().collect()
    }
}
