//! `check`: finds problems of the installation, and says how to fix them.

use std::io;

use anyhow::Result;
use clap::Args;

use super::{CommandStatus, Context};
use crate::check;
use crate::check::finding::{Excerpt, Finding, Level, Report, plural};
use crate::output::{Line, Output, Style};

#[derive(Debug, Args)]
pub struct Check {
    /// Print all findings as JSON
    #[arg(long)]
    json: bool,

    /// Print also the findings that need no action
    #[arg(short, long)]
    verbose: bool,
}

impl Check {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let report = check::check(context.root, context.config);
        if self.json {
            output.json(&report)?;
        } else {
            print(&report, self.verbose, output)?;
        }
        Ok(if report.ok { CommandStatus::Ok } else { CommandStatus::Problems })
    }
}

fn print(report: &Report, verbose: bool, output: &mut Output) -> io::Result<()> {
    for finding in report.shown(verbose) {
        print_finding(finding, output)?;
    }
    let style = match report.counts {
        counts if counts.error > 0 => Style::Bad,
        counts if counts.warning > 0 => Style::Warning,
        _ => Style::Good,
    };
    let mut last = Line::default().with(style, &report.summary);
    if report.counts.note > 0 && !verbose {
        let notes = plural(report.counts.note, "note");
        last = last.with(Style::Faint, format!(" ({notes} with -v)"));
    }
    output.line_untruncated(&last)?;
    if !report.skipped.is_empty() {
        let skipped = report.skipped.join(", ");
        output.line_untruncated(&Line::from(format!("skipped without root: {skipped}")))?;
    }
    Ok(())
}

fn print_finding(finding: &Finding, output: &mut Output) -> io::Result<()> {
    let style = match finding.level {
        Level::Ok => Style::Good,
        Level::Note => Style::Faint,
        Level::Warning => Style::Warning,
        Level::Error => Style::Bad,
    };
    let head = Line::default()
        .with(style, format!("{:<8}", finding.level))
        .with(Style::Strong, &finding.place)
        .plain(format!(": {}", finding.what));
    output.line_untruncated(&head)?;
    for line in finding.excerpt.iter().flat_map(Excerpt::lines) {
        output
            .line_untruncated(&Line::default().with(Style::Faint, format!("          {line}")))?;
    }
    match &finding.remedy {
        Some(remedy) => output.line_untruncated(&Line::from(format!("        → {remedy}"))),
        None => Ok(()),
    }
}
