//! Cuts a stream of bytes into JSON objects.
//!
//! QEMU's `pretty=on` spreads each over many lines, so line ends mean nothing; braces do. Pure.

/// Collects bytes until they hold whole JSON objects.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// How much of the buffer has been looked at.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// What no QMP server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// An object of more than [`Framer::MAX_BYTES`].
    TooLarge,
    /// Something else than an object, beginning with this byte.
    NoObject(u8),
}

impl Framer {
    /// The largest object that is taken. The largest reply that is asked for, `info qtree`, has
    /// about 1 KiB a device of the guest, and a guest may have hundreds.
    pub const MAX_BYTES: usize = 1024 * 1024;

    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole object; none until more bytes come.
    pub fn next_object(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' => self.depth += 1,
                b'}' if self.depth > 1 => self.depth -= 1,
                b'}' if self.depth == 1 => {
                    self.depth = 0;
                    let rest = self.buffer.split_off(self.scanned);
                    self.scanned = 0;
                    return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
                }
                _ if self.depth > 0 => self.in_string = byte == b'"',
                b' ' | b'\r' | b'\n' | b'\t' => {
                    // Between objects nothing is kept.
                    self.buffer.drain(..self.scanned);
                    self.scanned = 0;
                }
                other => return Err(FrameError::NoObject(other)),
            }
        }
        if self.buffer.len() > Self::MAX_BYTES { Err(FrameError::TooLarge) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(stream: &[u8], step: usize) -> Result<Vec<String>, FrameError> {
        let mut framer = Framer::default();
        let mut objects = Vec::new();
        for bytes in stream.chunks(step) {
            framer.push(bytes);
            while let Some(object) = framer.next_object()? {
                objects.push(String::from_utf8(object).unwrap());
            }
        }
        Ok(objects)
    }

    #[test]
    fn braces_count_and_lines_do_not() {
        let stream = b"\r\n{\r\n  \"a\": {\"b\": \"}\\\"{\"}\r\n}\r\n{\"c\":1}{\"d\":[2]}";
        for step in [1, 2, 3, 7, 100] {
            assert_eq!(
                frames(stream, step).unwrap(),
                ["{\r\n  \"a\": {\"b\": \"}\\\"{\"}\r\n}", "{\"c\":1}", "{\"d\":[2]}"]
            );
        }
    }

    #[test]
    fn what_is_no_object_is_refused_at_once() {
        assert_eq!(frames(b"HTTP/1.1 200", 100), Err(FrameError::NoObject(b'H')));
        assert_eq!(frames(b"{}}", 100), Err(FrameError::NoObject(b'}')));
        assert_eq!(frames(b"\x7fELF", 100), Err(FrameError::NoObject(0x7f)));
    }

    #[test]
    fn an_endless_object_is_refused_at_the_limit() {
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

    proptest! {
        #[test]
        fn cuts_are_where_the_objects_end(
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
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1..40usize) {
            let mut framer = Framer::default();
            for bytes in bytes.chunks(step) {
                framer.push(bytes);
                while let Ok(Some(_)) = framer.next_object() {}
            }
        }
    }
}
