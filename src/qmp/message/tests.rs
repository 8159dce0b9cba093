use super::*;
use proptest::prelude::*;
use serde_json::json;

#[test]
fn message_kinds_are_distinguished() {
    let parse = |text: &str| Message::parse(text.as_bytes());
    assert_eq!(
        parse(r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#),
        Ok(Message::Greeting(None))
    );
    let version = Version { major: 7, minor: 2, micro: 22 };
    assert_eq!(
        parse(
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}}}"#
        ),
        Ok(Message::Greeting(Some(version)))
    );
    assert_eq!(version.to_string(), "7.2.22");
    assert_eq!(
        parse(r#"{"timestamp": {"seconds": 1}, "event": "STOP", "data": {}}"#),
        Ok(Message::Event)
    );
    assert_eq!(parse(r#"{"return": {}, "id": 3}"#), Ok(Message::Reply(Some(3), Ok(json!({})))));
    assert_eq!(parse(r#"{"return": null}"#), Ok(Message::Reply(None, Ok(Value::Null))));
    let reply =
        ErrorReply { class: "DeviceNotFound".to_owned(), desc: "Device 'x' not found".to_owned() };
    assert_eq!(
        parse(r#"{"id": 4, "error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}"#),
        Ok(Message::Reply(Some(4), Err(reply)))
    );
    for strange in ["{}", r#"{"id": 1}"#, r#"{"error": 5}"#, "[]", "\u{fffd}"] {
        assert!(parse(strange).is_err(), "{strange}");
    }
}

#[test]
fn deep_nesting_is_an_error_not_an_overflow() {
    let deep = format!("{{\"return\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Message::parse(deep.as_bytes()).is_err());
}

fn frames(stream: &[u8], step: usize) -> Result<Vec<String>, FrameError> {
    let mut framer = Framer::default();
    let mut objects = Vec::new();
    for bytes in stream.chunks(step) {
        framer.push(bytes);
        while let Some(object) = framer.next_object()? {
            objects.push(String::from_utf8(object.to_vec()).unwrap());
        }
    }
    Ok(objects)
}

#[test]
fn framer_counts_braces_not_lines() {
    let stream = b"\r\n{\r\n  \"a\": {\"b\": \"}\\\"{\"}\r\n}\r\n{\"c\":1}{\"d\":[2]}";
    for step in [1, 2, 3, 7, 100] {
        assert_eq!(
            frames(stream, step).unwrap(),
            ["{\r\n  \"a\": {\"b\": \"}\\\"{\"}\r\n}", "{\"c\":1}", "{\"d\":[2]}"]
        );
    }
}

#[test]
fn framer_rejects_non_objects() {
    assert_eq!(frames(b"HTTP/1.1 200", 100), Err(FrameError::NotAnObject(b'H')));
    assert_eq!(frames(b"{}}", 100), Err(FrameError::NotAnObject(b'}')));
    assert_eq!(frames(b"\x7fELF", 100), Err(FrameError::NotAnObject(0x7f)));
}

#[test]
fn framer_rejects_an_endless_object_at_the_limit() {
    let mut framer = Framer::default();
    framer.push(b"{\"QMP\":\"");
    let mut pushed = 0;
    let error = loop {
        framer.push(&[b'x'; 4096]);
        pushed += 4096;
        if let Err(error) = framer.next_object() {
            break error;
        }
    };
    assert_eq!(error, FrameError::TooLarge);
    assert!(pushed <= Framer::MAX_BYTES + 4096);
}

/// Values are counted outside strings, and separately for each object.
#[test]
fn framer_rejects_an_object_of_too_many_values() {
    let object = |values: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(values - 2));
    let most = object(Framer::MAX_VALUES);
    assert_eq!(frames([&*most, &most].concat().as_bytes(), 4096).unwrap(), [&*most, &most]);
    let error = frames(object(Framer::MAX_VALUES + 1).as_bytes(), 4096);
    assert_eq!(error, Err(FrameError::TooMany));
    let text = format!("{{\"a\":\"{}\"}}", ",[{".repeat(Framer::MAX_VALUES));
    assert_eq!(frames(text.as_bytes(), 4096).unwrap(), [text]);
}

proptest! {
    #[test]
    fn framer_returns_whole_objects_however_the_stream_is_cut(
        texts in prop::collection::vec("\\PC{0,20}", 1..5),
        step in 1..40usize,
    ) {
        let objects: Vec<String> = texts
            .iter()
            .map(|text| serde_json::to_string_pretty(&serde_json::json!({"t": text, "o": {}})).unwrap())
            .collect();
        prop_assert_eq!(frames(objects.join("\r\n").as_bytes(), step).unwrap(), objects);
    }

    #[test]
    fn framer_survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1..40usize) {
        let mut framer = Framer::default();
        for bytes in bytes.chunks(step) {
            framer.push(bytes);
            while let Ok(Some(_)) = framer.next_object() {}
        }
    }
}
