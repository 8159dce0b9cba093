//! A YAML text as lines: indentation, keys, and what belongs to a key. Pure.

use std::ops::Range;

/// A line of a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    /// Where it begins in the text.
    pub(super) start: usize,
    /// Without its end.
    pub(super) body: &'a str,
    /// `\n`, `\r\n`, or nothing at the end of the text.
    pub(super) end: &'a str,
}

/// A key with its colon, and the rest of its line.
pub(super) struct Key<'a> {
    /// Which line it is.
    pub(super) line: usize,
    /// Its value, unquoted.
    pub(super) name: String,
    /// What is behind the colon, without spaces around it and without a comment that is all.
    pub(super) rest: &'a str,
}

/// The lines of a text, without a byte order mark.
pub(super) fn lines(text: &str) -> Vec<Line<'_>> {
    let mut start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut lines = Vec::new();
    for whole in text[start..].split_inclusive('\n') {
        let body = whole.strip_suffix('\n').map_or(whole, |body| body.trim_end_matches('\r'));
        lines.push(Line { start, body, end: &whole[body.len()..] });
        start += whole.len();
    }
    lines
}

impl<'a> Line<'a> {
    /// How far it is indented.
    pub(super) fn indent(&self) -> usize {
        self.body.len() - self.content().len()
    }

    /// It without its indentation.
    pub(super) fn content(&self) -> &'a str {
        self.body.trim_start_matches(' ')
    }

    /// Whether it is more than space and a comment.
    pub(super) fn has_content(&self) -> bool {
        let content = self.content().trim_start();
        !content.is_empty() && !content.starts_with('#')
    }

    /// Where it ends in the text, its end included.
    pub(super) fn stop(&self) -> usize {
        self.start + self.body.len() + self.end.len()
    }
}

/// The next line at or behind `from` that is more than space and a comment.
pub(super) fn next_content(lines: &[Line<'_>], range: Range<usize>) -> Option<usize> {
    range.into_iter().find(|line| lines[*line].has_content())
}

/// The lines that belong to the key in `line`: all that are indented further.
pub(super) fn below(lines: &[Line<'_>], line: usize) -> Range<usize> {
    let indent = lines[line].indent();
    let end = (line + 1..lines.len())
        .find(|next| lines[*next].has_content() && lines[*next].indent() <= indent);
    line + 1..end.unwrap_or(lines.len())
}

/// The key of this name in the mapping that these lines are.
pub(super) fn find_key<'a>(lines: &[Line<'a>], range: Range<usize>, name: &str) -> Option<Key<'a>> {
    let indent = lines[next_content(lines, range.clone())?].indent();
    range
        .filter(|line| lines[*line].has_content() && lines[*line].indent() == indent)
        .filter_map(|line| key(line, lines[line].content()))
        .find(|key| key.name == name)
}

/// No key in one line with its colon is longer (YAML 1.2.2, 7.4.2).
const MAX_KEY: usize = 1024;

/// Reads a line as `key: rest`.
fn key(line: usize, content: &str) -> Option<Key<'_>> {
    let colons = content.match_indices(':').map(|(index, _)| index);
    let colon = colons.take_while(|index| *index <= MAX_KEY).find(|index| {
        let quoted = content.starts_with(['"', '\'']);
        content[index + 1..].chars().next().is_none_or(|next| matches!(next, ' ' | '\t'))
            && (!quoted || is_quoted(content[..*index].trim_end()))
    })?;
    let (written, rest) = (content[..colon].trim_end(), &content[colon + 1..]);
    // A comment, or a node with properties: no key that could be told by its text.
    if written.contains(" #") && !is_quoted(written) || written.starts_with(['&', '*', '!', '?']) {
        return None;
    }
    let name = serde_yaml::from_str(written).ok()?;
    let rest = rest.trim_matches([' ', '\t']);
    Some(Key { line, name, rest: if rest.starts_with('#') { "" } else { rest } })
}

/// Whether the text is one quoted scalar from its first to its last character.
fn is_quoted(text: &str) -> bool {
    quoted_length(text) == Some(text.len())
}

/// The length of the quoted scalar that the text begins with.
pub(super) fn quoted_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((index, character)) = characters.next() {
        let next_is_quote = characters.peek().is_some_and(|(_, next)| *next == quote);
        match character {
            '\\' if quote == '"' => _ = characters.next(),
            '\'' if quote == '\'' && next_is_quote => _ = characters.next(),
            _ if character == quote => return Some(index + 1),
            _ => {}
        }
    }
    None
}
