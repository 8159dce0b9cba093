//! Text that devices and guests chose, made fit for a log and a terminal. Pure.

/// Replaces what could move a cursor, end a line or turn text around, and cuts the text to `max`
/// characters.
///
/// USB product names are the device's own: they may hold escape sequences, line ends and
/// bidirectional controls.
pub fn sanitize(text: &str, max: usize) -> String {
    let mut sanitize: String = text.trim().chars().take(max).map(harmless).collect();
    if text.trim().chars().count() > max {
        sanitize.pop();
        sanitize.push('…');
    }
    sanitize
}

/// Replaces the same characters as [`sanitize`] in a line and leaves its blanks and length alone; a
/// tab becomes one blank, so that columns stay where they are.
pub fn sanitize_line(line: &str) -> String {
    line.chars()
        .map(|character| if character == '\t' { ' ' } else { harmless(character) })
        .collect()
}

/// Sanitizes each line of a text of several lines, such as an error with an excerpt of the config.
pub fn sanitize_lines(text: &str) -> String {
    text.split('\n').map(sanitize_line).collect::<Vec<_>>().join("\n")
}

/// The word as a shell takes it for one.
pub fn shell_word(word: &str) -> String {
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "-_=,./:".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn harmless(character: char) -> char {
    let unsafe_here = character.is_control()
        || matches!(
            character,
            // Unicode's bidirectional controls, line ends and invisible joiners
            // (Unicode Standard Annex 9, 2; Annex 14).
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        );
    if unsafe_here { '\u{fffd}' } else { character }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_survives() {
        let hostile = "\u{1b}[2JKeyboard\r\n\u{202e}evil\u{7}";
        let cleaned = sanitize(hostile, 100);
        assert_eq!(cleaned, "\u{fffd}[2JKeyboard\u{fffd}\u{fffd}\u{fffd}evil\u{fffd}");
        assert_eq!(sanitize("  plain Name é ", 100), "plain Name é");
    }

    #[test]
    fn a_line_keeps_its_columns() {
        assert_eq!(sanitize_line("\t a\u{1b}[2J "), "  a\u{fffd}[2J ");
    }

    #[test]
    fn strange_words_survive_the_shell() {
        assert_eq!(shell_word("/run/my vm's"), r"'/run/my vm'\''s'");
        assert_eq!(shell_word("path=/run/q,server=on"), "path=/run/q,server=on");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn long_text_is_cut_with_a_sign() {
        assert_eq!(sanitize(&"x".repeat(4096), 5), "xxxx…");
        assert_eq!(sanitize("xxxxx", 5), "xxxxx");
    }
}
