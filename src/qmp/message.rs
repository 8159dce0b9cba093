//! The messages of QMP (QEMU's `docs/interop/qmp-spec.rst`), and how the stream of bytes is cut into
//! them.

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

#[derive(Debug, PartialEq)]
pub enum Message {
    /// The first message of each connection.
    Greeting(Option<Version>),
    /// An event of any kind. It may come at any time.
    Event,
    /// The reply to the command with that ID. QEMU omits the ID if it could not read the command.
    Reply(Option<u64>, Result<Value, ErrorReply>),
}

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

/// Cuts a stream of bytes into JSON objects.
///
/// With `pretty=on` QEMU spreads an object over many lines, so braces are counted, not lines.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Where the current object begins. Earlier bytes are done.
    start: usize,
    scanned: usize,
    depth: usize,
    /// The most values that the object can have so far.
    values: usize,
    in_string: bool,
    escaped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a message without end")]
    TooLarge,
    #[error("a message of too many values")]
    TooMany,
    /// The message begins with this byte instead of a brace.
    #[error("a message that begins with `{}`", .0.escape_ascii())]
    NotAnObject(u8),
}

impl Framer {
    /// The largest object that is accepted. The largest reply that hotplugger reads, `info qtree`,
    /// has about 1 KiB for each device of the guest, and a guest may have hundreds.
    pub const MAX_BYTES: usize = 1024 * 1024;

    /// The most values that an object may contain. A parsed value takes up to 640 bytes, however
    /// short its text is. A list of devices has three values for each.
    pub const MAX_VALUES: usize = 8 * 1024;

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next whole object, or `None` until more bytes come. After an error the stream
    /// cannot be used.
    pub fn next_object(&mut self) -> Result<Option<&[u8]>, FrameError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.scanned - self.start > Self::MAX_BYTES {
                return Err(FrameError::TooLarge);
            }
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            if matches!(byte, b'{' | b'[' | b',') {
                self.values += 1;
                if self.values > Self::MAX_VALUES {
                    return Err(FrameError::TooMany);
                }
            }
            match byte {
                b'{' => self.depth += 1,
                b'}' if self.depth > 1 => self.depth -= 1,
                b'}' if self.depth == 1 => {
                    (self.depth, self.values) = (0, 0);
                    let object = self.start..self.scanned;
                    self.start = self.scanned;
                    return Ok(Some(&self.buffer[object]));
                }
                _ if self.depth > 0 => self.in_string = byte == b'"',
                // Nothing between objects is kept.
                b' ' | b'\r' | b'\n' | b'\t' => self.start = self.scanned,
                other => return Err(FrameError::NotAnObject(other)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
