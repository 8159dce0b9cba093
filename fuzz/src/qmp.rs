//! The stream of bytes from a QMP server.

use hotplugger::qmp::message::{FrameError, Framer, Message};

/// Cuts it into objects, whole and in pieces, and reads them.
pub fn run(data: &[u8]) {
    let Some((step, stream)) = data.split_first() else { return };
    let whole = messages(stream, stream.len().max(1));
    let pieces = messages(stream, usize::from(*step).max(1));
    assert_eq!(whole, pieces, "it matters where the stream is cut");
}

fn messages(stream: &[u8], step: usize) -> (Vec<String>, Option<FrameError>) {
    let mut framer = Framer::default();
    let mut messages = Vec::new();
    for bytes in stream.chunks(step) {
        framer.push(bytes);
        loop {
            match framer.next_object() {
                Ok(Some(object)) => messages.push(format!("{:?}", Message::parse(object))),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}
