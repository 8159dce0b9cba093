//! A line of a file with a mark below the error. Pure.

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::text::sanitize_line;

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
mod tests {
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
