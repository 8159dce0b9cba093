//! The patterns of udev's rules.

/// Whether a text matches one of the patterns, which are parted by `|`.
pub(crate) fn matches(patterns: &str, text: &str) -> bool {
    patterns.split('|').any(|pattern| glob(pattern.as_bytes(), text.as_bytes()))
}

/// fnmatch(3) with `*`, `?` and `[…]`.
fn glob(mut pattern: &[u8], text: &[u8]) -> bool {
    // Whether what was read of the pattern matches so many bytes of the text: with many stars there
    // are more ways than could be tried one after the other.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    while let Some((&first, mut rest)) = pattern.split_first() {
        if first == b'*' {
            let from = reached.iter().position(|reached| *reached).unwrap_or(reached.len());
            reached[from..].fill(true);
        } else {
            let takes: &dyn Fn(u8) -> bool = match first {
                b'?' => &|_| true,
                b'[' => {
                    let Some((class, after)) = class(rest) else { return false };
                    rest = after;
                    &move |byte| is_in(class, byte)
                }
                _ => &move |byte| byte == first,
            };
            for end in (1..reached.len()).rev() {
                reached[end] = reached[end - 1] && takes(text[end - 1]);
            }
            reached[0] = false;
        }
        pattern = rest;
    }
    reached[text.len()]
}

/// What is between brackets, and what comes after; none if they are not closed.
fn class(pattern: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = 1 + usize::from(pattern.first() == Some(&b'!'));
    let end = first + pattern.get(first..)?.iter().position(|byte| *byte == b']')?;
    Some((&pattern[..end], &pattern[end + 1..]))
}

fn is_in(class: &[u8], byte: u8) -> bool {
    let (negated, set) = match class {
        [b'!', set @ ..] => (true, set),
        set => (false, set),
    };
    let ranged = set.windows(3).any(|range| match range {
        [low, b'-', high] => (low..=high).contains(&&byte),
        _ => false,
    });
    (ranged || set.contains(&byte)) != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_fnmatch_has_it() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("b?nd", "bind", true),
            ("b?nd", "bnd", false),
            ("a*d", "add", true),
            ("a*c*d", "add", false),
            ("[!b-d]dd", "add", true),
            ("[!a-d]dd", "add", false),
            ("[]a]dd", "]dd", true),
            ("[add", "[add", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), matches, "{pattern} {text}");
        }
        // Tried one after the other, the ways to match would not end.
        let text = "a".repeat(60);
        assert!(glob("*a".repeat(30).as_bytes(), text.as_bytes()));
        assert!(!glob(format!("{}b", "*a".repeat(30)).as_bytes(), text.as_bytes()));
    }
}
