//! The protobuf wire format, read in place: no copy, no recursion, every length checked against its frame.

/// Where the bytes stop being protobuf, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireError {
    /// Offset in the file.
    pub(super) at: usize,
    pub(super) problem: &'static str,
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed,
    Bytes(Reader<'a>),
}

/// A message, from where reading goes on to its end. Offsets are those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Reader { file, at: 0, end: file.len() }
    }

    /// Where reading goes on.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// What has not been read.
    pub(super) fn bytes(&self) -> &'a [u8] {
        &self.file[self.at..self.end]
    }

    /// Next field, with its number; `None` at the end of the message.
    pub(super) fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, WireError> {
        if self.at == self.end {
            return Ok(None);
        }
        let at = self.at;
        let tag = self.varint()?;
        let wire_type = tag & 7;
        let number = u32::try_from(tag >> 3)
            .ok()
            .filter(|number| (1..1 << 29).contains(number))
            .ok_or(WireError { at, problem: "a field number is out of range" })?;
        let value = match wire_type {
            0 => Value::Varint(self.varint()?),
            1 => self.skip(8)?,
            2 => Value::Bytes(self.message()?),
            5 => self.skip(4)?,
            3 | 4 => return Err(WireError { at, problem: "a field has the form of a group" }),
            _ => return Err(WireError { at, problem: "a field has an unknown wire type" }),
        };
        Ok(Some((number, value)))
    }

    /// Next varint, as tags, numbers and packed arrays have them.
    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(byte) = self.bytes().first().copied() else {
                return Err(WireError { at: start, problem: "a number is cut off" });
            };
            self.at += 1;
            // The tenth byte has room for one bit; what protobuf drops there, it drops silently.
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError { at: start, problem: "a number has more than ten bytes" })
    }

    fn message(&mut self) -> Result<Reader<'a>, WireError> {
        let start = self.at;
        let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if length > self.end - self.at {
            let problem = "a field is longer than what is left of the file or its message";
            return Err(WireError { at: start, problem });
        }
        let inner = Reader { file: self.file, at: self.at, end: self.at + length };
        self.at += length;
        Ok(inner)
    }

    fn skip(&mut self, length: usize) -> Result<Value<'a>, WireError> {
        if length > self.end - self.at {
            return Err(WireError { at: self.at, problem: "a number is cut off" });
        }
        self.at += length;
        Ok(Value::Fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_end() {
        let table: [(&[u8], Result<u64, usize>); 6] = [
            (&[0], Ok(0)),
            (&[0xac, 2], Ok(300)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Ok(u64::MAX)),
            (&[0x80], Err(0)),
            (&[], Err(0)),
            (&[0x80; 11], Err(0)),
        ];
        for (bytes, expected) in table {
            assert_eq!(Reader::new(bytes).varint().map_err(|error| error.at), expected);
        }
    }

    #[test]
    fn lengths_stay_in_their_frame() {
        // Field 1, three bytes long, with a message inside that claims four.
        let mut outer = Reader::new(&[0x0a, 3, 0x0a, 4, 0, 0x0a, 0]);
        let Ok(Some((1, Value::Bytes(mut inner)))) = outer.field() else { panic!() };
        assert_eq!(inner.field().unwrap_err().at, 3);
        assert!(matches!(outer.field(), Ok(Some((1, Value::Bytes(_))))));
        assert_eq!(outer.field(), Ok(None));
    }
}
