use super::*;
use proptest::prelude::*;

const PCI: &str = "/devices/pci0000:00/0000:00:14.0";

fn port(number: u8) -> PortName {
    format!("{PCI}/usb1/1-{number}").parse().unwrap()
}

fn new(number: u8, comment: &str) -> NewPort {
    NewPort { name: port(number), comment: comment.to_owned() }
}

fn added(text: &str, vm: &str) -> Result<String, EditError> {
    add_ports(text, vm, &[new(9, "new")]).map(|insertion| insertion.apply(text))
}

/// Adds port 9 to `w` and expects the text to be as it was except for `|`, which stands for the
/// added line.
#[track_caller]
fn expect(marked: &str, addition: &str) {
    let text = marked.replace('|', "");
    let edited = added(&text, "w").unwrap_or_else(|error| panic!("{error}:\n{text}"));
    assert_eq!(edited, marked.replace('|', addition));
}

fn config(ports: &str) -> String {
    format!("virtual_machines:\n  w:\n    socket: /s\n    ports:{ports}")
}

#[test]
fn entries_are_added_where_the_others_are_and_as_they_are() {
    let nine = format!("{PCI}/usb1/1-9");
    for (ports, addition) in [
        // indented, with a comment behind the last entry and below it
        (
            "\n      - /devices/x/usb1/1-1 # one\n|      # - /devices/old\n    delay: 2\n",
            "      - @ # new\n",
        ),
        // not indented, another key behind
        (
            "\n    - /devices/x/usb1/1-1\n\n    # two\n    - /devices/x/usb1/1-2\n|    delay: 2\n",
            "    - @ # new\n",
        ),
        // a wide gap
        ("\n      -   /devices/x/usb1/1-1\n|", "      -   @ # new\n"),
        // an entry over two lines
        ("\n      - >-\n        /devices/x/usb1/1-1\n|\n# end\n", "      - @ # new\n"),
        // no line end at the end
        ("\n      - '/devices/x/usb1/1-1'|", "\n      - @ # new"),
        // an entry with keys of its own
        (
            "\n      - port: /devices/x/usb1/1-1\n        only: [class: hid]\n|    delay: 2\n",
            "      - @ # new\n",
        ),
        // an anchor that is an entry's own
        ("\n      - &one /devices/x/usb1/1-1\n|", "      - @ # new\n"),
        // in brackets
        (" [/devices/x/usb1/1-1|] # [one]\n", ", @"),
        (" [ \"/devices/x/usb1/1-1\"| ]\n", ", @"),
        ("   [/devices/x/usb1/1-1,|]\n", " @"),
        // still empty
        ("\n|    delay: 2\n", "      - @ # new\n"),
        (" # none yet\n|      # - /devices/old\n", "      - @ # new\n"),
        (" [|]\n", "@"),
    ] {
        let addition = addition.replace('@', &nine);
        expect(&config(ports), &addition);
        let text = config(ports).replace('\n', "\r\n");
        expect(&text, &addition.replace('\n', "\r\n"));
        expect(&format!("\u{feff}# mine\n---\n{}", config(ports)), &addition);
    }
}

#[test]
fn the_right_machine_is_found_however_it_is_written() {
    let others = "  a: {socket: /a, ports: [/devices/x/usb2/2-1]}\n\
                  \x20 ports:\n    ports:\n    - /devices/x/usb2/2-2\n    socket: /b\n";
    for key in ["w", "'w'", "\"w\"", "\"\\x77\"", "w ", "\"w\"  "] {
        let text = format!(
            "'virtual_machines': # all\n{others}  {key}:\n      \"ports\" :\n      - /devices/x/usb1/1-1\n|      socket: /s\n"
        );
        expect(&text, &format!("      - {PCI}/usb1/1-9 # new\n"));
    }
    for key in ["a: b", "it's", "#1", "no", "12", "ports", "virtual_machines", "- x"] {
        let quoted = format!("'{}'", key.replace('\'', "''"));
        let text = format!(
            "virtual_machines:\n  {quoted}:\n    socket: /s\n    ports:\n      - /devices/x/usb1/1-1\n"
        );
        assert!(added(&text, key).unwrap().starts_with(&text), "{key}");
    }
}

#[test]
fn what_only_a_person_can_edit_is_left_alone() {
    for text in [
        "virtual_machines: {w: {socket: /s, ports: [/devices/x/usb1/1-1]}}\n".to_owned(),
        "virtual_machines:\n  w: {socket: /s, ports: [/devices/x/usb1/1-1]}\n".to_owned(),
        "virtual_machines:\n  w: &w\n    socket: /s\n    ports:\n    - /devices/x/usb1/1-1\n"
            .to_owned(),
        "virtual_machines:\n  &a w:\n    socket: /s\n    ports:\n    - /devices/x/usb1/1-1\n"
            .to_owned(),
        config(" &p\n      - /devices/x/usb1/1-1\n"),
        config(" !!seq\n      - /devices/x/usb1/1-1\n"),
        config(" [\n      /devices/x/usb1/1-1]\n"),
        config("\n      [/devices/x/usb1/1-1]\n"),
        config(" [&a /devices/x/usb1/1-1]\n"),
    ] {
        assert!(matches!(added(&text, "w"), Err(EditError::Layout(_))), "{text}");
    }
}

#[test]
fn what_is_there_already_and_who_is_not_is_told() {
    let text = config(&format!("\n      - {PCI}/usb1/1-9\n"))
        + "  v:\n    socket: /v\n    ports: [/devices/x/usb1/1-1]\n";
    let said = |vm: &str| added(&text, vm).unwrap_err().to_string();
    assert_eq!(said("w"), format!("port {PCI}/usb1/1-9 is listed by `w` already"));
    assert_eq!(said("v"), format!("port {PCI}/usb1/1-9 is listed by `w` already"));
    let text = config(" [/devices/x/usb1/1-1]\n");
    assert_eq!(
        added(&text, "v").unwrap_err().to_string(),
        "no virtual machine `v`: the config has w"
    );
    assert!(matches!(added("virtual_machines: 3\n", "w"), Err(EditError::Config(_))));
    assert!(matches!(added("", "w"), Err(EditError::NoSuchVm(..))));
}

/// Space, comments and line ends that may stand between two lines.
fn filler() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(String::new()),
        1 => Just("\n".to_owned()),
        1 => Just("    # ports: [a, 'b\n".to_owned()),
        1 => "[ ]{0,8}#[ -~é]{0,20}\n",
    ]
}

/// One VM's lines; its ports are on the bus of its number.
fn machine(number: usize) -> impl Strategy<Value = String> {
    let ports = 1..4usize;
    let shape = (0..4usize, 1..5usize, any::<bool>(), any::<bool>(), 0..3usize);
    let fillers = prop::collection::vec(filler(), 12);
    (ports, shape, fillers).prop_map(move |(ports, (style, indent, first, delay, quotes), fill)| {
        let mut fill = fill.into_iter();
        let mut next = || fill.next().unwrap_or_default();
        let pad = " ".repeat(2 + indent);
        let quote = ["", "'", "\""][quotes];
        let paths: Vec<String> = (1..=ports)
            .map(|port| format!("{quote}{PCI}/usb{0}/{0}-{port}{quote}", number + 2))
            .collect();
        let mut list = match style {
            0 => format!("{pad}ports: [{}] # flow\n", paths.join(", ")),
            1 => format!("{pad}{quote}ports{quote}:   [ {} ]\n", paths.join(" , ")),
            _ => {
                let inner = if style == 2 { pad.clone() } else { format!("{pad}   ") };
                let entries = paths.iter().map(|path| format!("{inner}- {path} # it's\n"));
                let entries: Vec<String> = entries.map(|entry| next() + &entry).collect();
                format!("{pad}ports:\n{}", entries.concat())
            }
        };
        let socket = format!("{pad}socket: /run/{number}\n");
        let delay = if delay { format!("{pad}delay: 2 # s\n") } else { String::new() };
        list = if first { list + &next() + &socket } else { socket + &next() + &list };
        format!("  {quote}vm{number}{quote}: # mine\n{}{list}{}{delay}{}", next(), next(), next())
    })
}

prop_compose! {
    fn commented_config()(
        machines in (machine(0), machine(1), machine(2)),
        head in filler(),
        crlf in any::<bool>(),
        ended in any::<bool>(),
    ) -> String {
        let (one, two, three) = machines;
        let mut text = format!("{head}virtual_machines:\n{one}{two}{three}");
        if crlf {
            text = text.replace('\n', "\r\n");
        }
        if ended { text } else { text.trim_end().to_owned() }
    }
}

/// A key ends within 1024 characters; longer lines are not searched colon by colon.
#[test]
fn a_line_of_many_colons_is_no_key() {
    let long = format!("virtual_machines:\n  \"{}\n", "a: ".repeat(300_000));
    assert!(matches!(add_ports(&long, "w", &[new(9, "")]), Err(EditError::Config(_))));
}

proptest! {
    #[test]
    fn all_but_the_added_lines_stays_and_the_config_is_the_old_one_and_the_ports(
        text in commented_config(),
        vm in 0..3usize,
        count in 1..4u8,
        comment in "\\PC{0,20}",
    ) {
        let name = format!("vm{vm}");
        let ports: Vec<NewPort> = (1..=count).map(|number| new(number, &comment)).collect();
        let insertion = add_ports(&text, &name, &ports)
            .unwrap_or_else(|error| panic!("{error}:\n{text}"));
        let edited = insertion.apply(&text);
        prop_assert_eq!(edited.len(), text.len() + insertion.text.len());
        let mut back = edited.clone();
        back.replace_range(insertion.at..insertion.at + insertion.text.len(), "");
        prop_assert_eq!(&back, &text);
        let mut wanted = parse(&text).unwrap();
        wanted.virtual_machines[vm].ports.extend(ports.into_iter().map(|port| port.name));
        prop_assert_eq!(parse(&edited).unwrap(), wanted);
        // Block lists: whole lines are added, and none is changed.
        if insertion.text.contains("- /") {
            let mut old = text.lines();
            let mut next = old.next();
            for line in edited.lines() {
                if next == Some(line) {
                    next = old.next();
                } else {
                    prop_assert!(insertion.text.contains(line), "{:?} changed", line);
                }
            }
            prop_assert_eq!(next, None);
        }
    }

    #[test]
    fn no_text_is_made_worse(text in "\\PC{0,60}", lines in prop::collection::vec("[ ]{0,6}(w:|ports:|- /devices/x/usb1/1-1|virtual_machines:|socket: /s|#.{0,5}|['\"\\[\\]&|>-]{1,3})", 0..8)) {
        for text in [text, lines.join("\n")] {
            if let Ok(insertion) = add_ports(&text, "w", &[new(9, "\u{85}\r\nevil: \u{fffe}")]) {
                let edited = parse(&insertion.apply(&text)).unwrap();
                prop_assert!(edited.virtual_machines[0].ports.contains(&port(9)));
            }
        }
    }
}
