//! The programs that udev's rules run for an event: a small reader of udev(7)'s language. Pure.
//!
//! Keys that depend on more than the kind of event (a product ID, an attribute of a parent) count as
//! matching where they guard a RUN, and as not matching where they guard a jump.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub action: &'static str,
    pub devtype: &'static str,
}

/// One key of a rule: `ENV{DEVTYPE}!="usb_device"`.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    key: String,
    attribute: String,
    operator: String,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The number of the line it stands in, from 1; the first, if the line is continued.
    pub line: usize,
    pub text: String,
}

pub fn commands(text: &str, kind: Kind) -> Vec<Command> {
    let rules: Vec<(usize, Vec<Token>)> =
        logical_lines(text).into_iter().map(|(number, line)| (number, tokens(&line))).collect();
    let mut commands: Vec<Command> = Vec::new();
    let mut next = 0;
    while let Some((line, rule)) = rules.get(next) {
        next += 1;
        let jump = rule.iter().find(|token| token.key == "GOTO").map(|token| &token.value);
        if !rule.iter().all(|token| token.matches(kind).unwrap_or(jump.is_none())) {
            continue;
        }
        for token in rule.iter().filter(|token| token.is_run()) {
            if token.operator != "+=" {
                commands.clear();
            }
            let text = &token.value;
            if !text.is_empty() && !commands.iter().any(|known| known.text == *text) {
                commands.push(Command { line: *line, text: text.clone() });
            }
        }
        if let Some(label) = jump {
            let is_label = |token: &Token| token.key == "LABEL" && token.value == *label;
            let found = rules[next..].iter().position(|(_, rule)| rule.iter().any(is_label));
            next += found.unwrap_or(0);
        }
    }
    commands
}

/// The words of a command line, as udev splits them: at blanks, single quotes keeping together.
pub fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = command.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').unwrap_or((quoted, "")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

/// Lines, with those that end in a backslash joined to the next, without comments; each with the
/// number of its first.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim_start();
        if line.starts_with('#') {
            continue;
        }
        let begun = line.strip_suffix('\\');
        let part = begun.unwrap_or(line);
        match lines.last_mut().filter(|_| goes_on) {
            Some((_, joined)) => joined.push_str(part),
            None => lines.push((number, part.to_owned())),
        }
        goes_on = begun.is_some();
    }
    lines
}

/// The keys of a line; none of a line that udev would not understand either.
fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return tokens;
        }
        let Some((token, after)) = token(rest) else { return Vec::new() };
        tokens.push(token);
        rest = after;
    }
}

fn token(text: &str) -> Option<(Token, &str)> {
    let end = text.find(|character: char| !character.is_ascii_uppercase() && character != '_')?;
    let (key, rest) = text.split_at(end);
    let (attribute, rest) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_once('}')?,
        None => ("", rest),
    };
    let rest = rest.trim_start();
    let operator = ["==", "!=", "+=", "-=", ":=", "="].into_iter().find(|o| rest.starts_with(o))?;
    let rest = rest[operator.len()..].trim_start();
    let rest = rest.strip_prefix(['i', 'e']).unwrap_or(rest).strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = rest.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => {
                let token = Token {
                    key: key.to_owned(),
                    attribute: attribute.to_owned(),
                    operator: operator.to_owned(),
                    value,
                };
                return Some((token, &rest[index + 1..]));
            }
            '\\' if rest[index + 1..].starts_with('"') => {
                value.push('"');
                characters.next();
            }
            other => value.push(other),
        }
    }
    None
}

impl Token {
    fn is_run(&self) -> bool {
        self.key == "RUN" && matches!(self.attribute.as_str(), "" | "program")
    }

    /// Whether the key lets the event pass. `None` if that depends on more than its kind.
    fn matches(&self, kind: Kind) -> Option<bool> {
        let negated = match self.operator.as_str() {
            "==" => false,
            "!=" => true,
            _ => return Some(true),
        };
        let value = match (self.key.as_str(), self.attribute.as_str()) {
            ("ACTION", "") | ("ENV", "ACTION") => kind.action,
            ("SUBSYSTEM", "") | ("ENV", "SUBSYSTEM") => "usb",
            ("ENV", "DEVTYPE") => kind.devtype,
            // No hub.
            ("ENV", "TYPE") => "0/0/0",
            _ => return None,
        };
        Some(matches(&self.value, value) != negated)
    }
}

pub(crate) fn matches(patterns: &str, text: &str) -> bool {
    patterns.split('|').any(|pattern| glob(pattern.as_bytes(), text.as_bytes()))
}

/// fnmatch(3) with `*`, `?` and `[…]`.
fn glob(mut pattern: &[u8], text: &[u8]) -> bool {
    // Whether the pattern so far matches so many bytes of the text: with many stars there
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

/// The text between brackets and the text after them. `None` if they are not closed.
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
pub(in crate::check) mod tests {
    use super::*;
    use proptest::prelude::*;

    const BIND: Kind = Kind { action: "bind", devtype: "usb_device" };
    const INTERFACE: Kind = Kind { action: "add", devtype: "usb_interface" };

    fn texts(rules: &str, kind: Kind) -> Vec<String> {
        commands(rules, kind).into_iter().map(|command| command.text).collect()
    }

    #[test]
    fn our_own_rule_runs_on_the_three_events_of_devices() {
        let ours = include_str!("../../rules/99-hotplugger.rules");
        for action in ["add", "bind", "remove"] {
            let kind = Kind { action, devtype: "usb_device" };
            assert_eq!(texts(ours, kind), ["/usr/bin/hotplugger udev"], "{action}");
        }
        assert!(commands(ours, Kind { action: "change", ..BIND }).is_empty());
        assert!(commands(ours, INTERFACE).is_empty());
    }

    #[test]
    fn the_originals_rules_have_no_bind() {
        let rules = "SUBSYSTEM==\"usb\", ACTION==\"add\", RUN+=\"/usr/bin/hotplugger\"\n\
            SUBSYSTEM==\"usb\", ACTION==\"remove\", RUN+=\"/usr/bin/hotplugger\"\n";
        assert!(commands(rules, BIND).is_empty());
        assert_eq!(texts(rules, INTERFACE), ["/usr/bin/hotplugger"]);
    }

    #[test]
    fn the_language_is_read_as_udev_reads_it() {
        let rules = "# RUN+=\"/no\"\n\
            ACTION==\"b?nd|x\", SUBSYSTEM==\"[a-z]sb\", \\\n  RUN+=\"/one \\\"x\\\"\"\n\
            ATTR{idVendor}!=\"1234\", GOTO=\"end\"\n\
            KERNEL==\"1-1\", RUN{program}+=\"/two\"\n\
            RUN{builtin}+=\"kmod\"\n\
            SUBSYSTEM==\"block\", RUN+=\"/three\"\n\
            this is no rule, RUN+=\"/four\"\n\
            LABEL=\"end\"\n";
        assert_eq!(texts(rules, BIND), ["/one \"x\"", "/two"]);
        assert_eq!(
            commands(rules, BIND).iter().map(|command| command.line).collect::<Vec<_>>(),
            [2, 5]
        );
        assert_eq!(texts("RUN+=\"/a\"\nRUN=\"/b\"\n", BIND), ["/b"]);
        assert_eq!(words("'/opt/my hotplugger' udev  x"), ["/opt/my hotplugger", "udev", "x"]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(ACTION|RUN|GOTO|LABEL|==|!=|\\+=|\"|[*?\\[\\]|{}a-z\\\\, \n]|\\PC){0,60}") {
            commands(&text, BIND);
            words(&text);
        }
    }

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
