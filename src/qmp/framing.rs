//! Cuts a stream of bytes into JSON objects.
//!
//! QEMU's `pretty=on` spreads each over many lines, so line ends mean nothing; braces do. Pure.

/// Collects bytes until they hold whole JSON objects.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Where the object begins that is being looked at; what is before it is done with.
    start: usize,
    /// How much of the buffer has been looked at.
    scanned: usize,
    depth: usize,
    /// How many values the object may have so far.
    values: usize,
    in_string: bool,
    escaped: bool,
}

/// What no QMP server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// An object of more than [`Framer::MAX_BYTES`].
    TooLarge,
    /// An object of more than [`Framer::MAX_VALUES`].
    TooMany,
    /// Something else than an object, beginning with this byte.
    NoObject(u8),
}

impl Framer {
    /// The largest object that is taken. The largest reply that is asked for, `info qtree`, has
    /// about 1 KiB a device of the guest, and a guest may have hundreds.
    pub const MAX_BYTES: usize = 1024 * 1024;

    /// The most values that an object may have within it. One that is parsed takes up to 640 bytes,
    /// however few it is written with. A list of the guest's devices has three for each.
    pub const MAX_VALUES: usize = 8 * 1024;

    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole object; none until more bytes come.
    ///
    /// # Errors
    ///
    /// What comes is no QMP; there is nothing more to be had then.
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
                // Between objects nothing is kept.
                b' ' | b'\r' | b'\n' | b'\t' => self.start = self.scanned,
                other => return Err(FrameError::NoObject(other)),
            }
        }
        Ok(None)
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
                objects.push(String::from_utf8(object.to_vec()).unwrap());
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

    /// Counted as they are written, outside strings and for each object anew.
    #[test]
    fn an_object_of_too_many_values_is_refused() {
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
