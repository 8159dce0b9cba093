//! Standard output for people: lines with colours, cut to the terminal's width, and JSON.
//!
//! With `--color auto`, colours appear on a terminal only, and not if NO_COLOR is set.

use std::fmt;
use std::io::{self, IsTerminal, Stdout, Write};

use crate::text::{sanitize_line, sanitize_lines};
use anstream::{AutoStream, ColorChoice};
use anstyle::AnsiColor;
use serde::Serialize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub struct Output {
    stream: AutoStream<Stdout>,
    width: Option<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<(Style, String)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// A heading, or what matters most in a line.
    Strong,
    Faint,
    Good,
    Warning,
    Bad,
}

impl Output {
    pub fn stdout(color: clap::ColorChoice) -> Self {
        let width = rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0 && io::stdout().is_terminal());
        let color = match color {
            clap::ColorChoice::Auto => ColorChoice::Auto,
            clap::ColorChoice::Always => ColorChoice::Always,
            clap::ColorChoice::Never => ColorChoice::Never,
        };
        Self { stream: AutoStream::new(io::stdout(), color), width }
    }

    pub fn is_terminal(&self) -> bool {
        self.stream.is_terminal()
    }

    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        let line = &line.sanitized();
        let mut left = self.width.unwrap_or(usize::MAX);
        let cut = line.width() > left;
        left -= usize::from(cut);
        for (style, text) in &line.0 {
            let fits = prefix(text, left);
            left -= fits.width();
            let style = style.ansi();
            write!(self.stream, "{style}{fits}{style:#}")?;
            if fits.len() < text.len() {
                break;
            }
        }
        writeln!(self.stream, "{}", if cut { "…" } else { "" })
    }

    /// For a line that is not part of a listing.
    pub fn line_untruncated(&mut self, line: &Line) -> io::Result<()> {
        let line = &line.sanitized();
        for (style, text) in &line.0 {
            let style = style.ansi();
            write!(self.stream, "{style}{text}{style:#}")?;
        }
        writeln!(self.stream)
    }

    /// Writes lines of plain text, so that they can be copied.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.stream, "{}", sanitize_lines(text))
    }

    /// Writes lines as columns: each cell is padded to the widest of its column.
    pub fn table(&mut self, rows: &[Vec<Line>]) -> io::Result<()> {
        columns(rows).iter().try_for_each(|line| self.line(line))
    }

    pub fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        writeln!(self.stream, "{text}")
    }

    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        writeln!(self.stream, "{text}")
    }
}

/// Joins the cells of rows with two spaces between columns; the last column is not padded.
fn columns(rows: &[Vec<Line>]) -> Vec<Line> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(Line::width).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(widest).collect();
    rows.iter()
        .map(|row| {
            let mut line = Line::default();
            let used = row.iter().rposition(|cell| cell.width() > 0).map_or(0, |last| last + 1);
            for (column, cell) in row[..used].iter().enumerate() {
                let padding = widths[column] - cell.width();
                line.0.extend(cell.0.iter().cloned());
                if column + 1 < used {
                    line = line.plain(" ".repeat(padding + 2));
                }
            }
            line
        })
        .collect()
}

impl Line {
    #[must_use]
    pub fn with(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    #[must_use]
    pub fn plain(self, text: impl Into<String>) -> Self {
        self.with(Style::Plain, text)
    }

    /// The line without what could move the cursor or end the line: it may quote devices, guests and
    /// file names.
    fn sanitized(&self) -> Self {
        Self(self.0.iter().map(|(style, text)| (*style, sanitize_line(text))).collect())
    }

    /// The columns it takes on a terminal.
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.width()).sum()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(_, text)| f.write_str(text))
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Self::default().plain(text)
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        Self::default().plain(text)
    }
}

impl<T: Into<String>> From<(Style, T)> for Line {
    fn from((style, text): (Style, T)) -> Self {
        Self::default().with(style, text)
    }
}

impl Style {
    fn ansi(self) -> anstyle::Style {
        let colour = |colour: AnsiColor| anstyle::Style::new().fg_color(Some(colour.into()));
        match self {
            Self::Plain => anstyle::Style::new(),
            Self::Strong => anstyle::Style::new().bold(),
            Self::Faint => anstyle::Style::new().dimmed(),
            Self::Good => colour(AnsiColor::Green),
            Self::Warning => colour(AnsiColor::Yellow),
            Self::Bad => colour(AnsiColor::Red).bold(),
        }
    }
}

/// The longest beginning of the text that takes at most `width` columns.
fn prefix(text: &str, width: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, character)| {
        used += character.width().unwrap_or(0);
        used > width
    });
    end.map_or(text, |(index, _)| &text[..index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec![Line::from("port"), Line::from("device"), Line::from("")],
            vec![Line::from("1-1.4"), Line::from("鍵盤"), Line::from((Style::Good, "attached"))],
            vec![Line::from("1-2")],
        ];
        let lines: Vec<String> = columns(&rows).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["port   device", "1-1.4  鍵盤    attached", "1-2"]);
    }

    #[test]
    fn line_is_sanitized_in_all_its_parts() {
        let line = Line::from("a\u{1b}[2J").with(Style::Bad, "b\nc\u{202e}");
        assert_eq!(line.sanitized().to_string(), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
    }

    #[test]
    fn cutting_counts_columns_and_not_bytes() {
        assert_eq!(prefix("Größe", 3), "Grö");
        assert_eq!(prefix("鍵盤", 3), "鍵");
        assert_eq!(prefix("abc", 3), "abc");
        assert_eq!(prefix("abc", 0), "");
    }
}
