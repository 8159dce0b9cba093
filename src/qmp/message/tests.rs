use super::*;
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
