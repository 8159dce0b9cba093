//! The messages of QMP (QEMU's `docs/interop/qmp-spec.rst`).

use std::fmt;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Serialize)]
pub struct Command<'a> {
    pub execute: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
    /// QEMU repeats it in the reply.
    pub id: u64,
}

/// A message from QEMU.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// The first message of each connection.
    Greeting(Option<Version>),
    /// An event of any kind. It may come at any time.
    Event,
    /// The reply to the command with that ID. QEMU omits the ID if it could not read the command.
    Reply(Option<u64>, Result<Value, ErrorReply>),
}

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// The reply to a command that QEMU did not execute.
#[derive(Debug, PartialEq, Deserialize)]
pub struct ErrorReply {
    /// `GenericError`, `DeviceNotFound`, `CommandNotFound`, …
    pub class: String,
    pub desc: String,
}

#[derive(Deserialize)]
struct AnyMessage {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<IgnoredAny>,
    // The value may be null, which differs from an absent one.
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
    /// Reads one JSON object. The error says in words why it is not a message.
    pub fn parse(object: &[u8]) -> Result<Self, String> {
        let message: AnyMessage =
            serde_json::from_slice(object).map_err(|error| error.to_string())?;
        let id = message.id.as_u64();
        match message {
            // The version is optional information.
            AnyMessage { greeting: Some(greeting), .. } => Ok(Self::Greeting(
                greeting.pointer("/version/qemu").and_then(|qemu| Version::deserialize(qemu).ok()),
            )),
            AnyMessage { event: Some(_), .. } => Ok(Self::Event),
            AnyMessage { error: Some(reply), .. } => Ok(Self::Reply(id, Err(reply))),
            AnyMessage { value: Some(value), .. } => Ok(Self::Reply(id, Ok(value))),
            _ => Err("a message that is neither greeting, event nor reply".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
