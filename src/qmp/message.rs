//! The messages of QMP (QEMU's `docs/interop/qmp-spec.rst`). Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A command, as it is sent.
#[derive(Debug, Serialize)]
pub struct Command<'a> {
    /// Its name.
    pub execute: &'a str,
    /// Its arguments; left out when there are none.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
    /// Comes back with the reply.
    pub id: u64,
}

/// A message from QEMU.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// The first one on each connection, with QEMU's version.
    Greeting(Option<Version>),
    /// Something happened, of whatever kind; may come at any time.
    Event,
    /// The reply to the command with that id; none if QEMU could not tell which it was.
    Reply(Option<u64>, Result<Value, ErrorReply>),
}

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// 7 of 7.2.22.
    pub major: u32,
    /// 2 of 7.2.22.
    pub minor: u32,
    /// 22 of 7.2.22.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Why QEMU did not execute a command.
#[derive(Debug, PartialEq, Deserialize)]
pub struct ErrorReply {
    /// `GenericError`, `DeviceNotFound`, `CommandNotFound`, …
    pub class: String,
    /// QEMU's words.
    pub desc: String,
}

/// Any of QEMU's messages.
#[derive(Deserialize)]
struct AnyMessage {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<serde::de::IgnoredAny>,
    // A value may well be null, so its absence must be told apart.
    #[serde(default, rename = "return", deserialize_with = "present")]
    value: Option<Value>,
    error: Option<ErrorReply>,
    #[serde(default)]
    id: Value,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Message {
    /// Reads one JSON object.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words.
    pub fn parse(object: &[u8]) -> Result<Self, String> {
        let message: AnyMessage =
            serde_json::from_slice(object).map_err(|error| error.to_string())?;
        let id = message.id.as_u64();
        match message {
            // A greeting without a version, or with another form of it, is as good.
            AnyMessage { greeting: Some(greeting), .. } => Ok(Self::Greeting(
                greeting.pointer("/version/qemu").and_then(|qemu| Version::deserialize(qemu).ok()),
            )),
            AnyMessage { event: Some(_), .. } => Ok(Self::Event),
            AnyMessage { error: Some(refusal), .. } => Ok(Self::Reply(id, Err(refusal))),
            AnyMessage { value: Some(value), .. } => Ok(Self::Reply(id, Ok(value))),
            _ => Err("a message that is neither greeting, event nor reply".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_is_told_apart() {
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
        let refusal = ErrorReply {
            class: "DeviceNotFound".to_owned(),
            desc: "Device 'x' not found".to_owned(),
        };
        assert_eq!(
            parse(
                r#"{"id": 4, "error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}"#
            ),
            Ok(Message::Reply(Some(4), Err(refusal)))
        );
        for strange in ["{}", r#"{"id": 1}"#, r#"{"error": 5}"#, "[]", "\u{fffd}"] {
            assert!(parse(strange).is_err(), "{strange}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let deep = format!("{{\"return\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Message::parse(deep.as_bytes()).is_err());
    }
}
