//! Text that devices and guests chose, made fit for a log and a terminal. Pure.

/// Replaces what could move a cursor, end a line or turn text around, and cuts the text to `max`
/// characters.
///
/// USB product names are the device's own: they may hold escape sequences, line ends and
/// bidirectional controls.
pub fn clean(text: &str, max: usize) -> String {
    let mut clean: String = text.trim().chars().take(max).map(harmless).collect();
    if text.trim().chars().count() > max {
        clean.pop();
        clean.push('…');
    }
    clean
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
        let cleaned = clean(hostile, 100);
        assert_eq!(cleaned, "\u{fffd}[2JKeyboard\u{fffd}\u{fffd}\u{fffd}evil\u{fffd}");
        assert_eq!(clean("  plain Name é ", 100), "plain Name é");
    }

    #[test]
    fn long_text_is_cut_with_a_sign() {
        assert_eq!(clean(&"x".repeat(4096), 5), "xxxx…");
        assert_eq!(clean("xxxxx", 5), "xxxxx");
    }
}
