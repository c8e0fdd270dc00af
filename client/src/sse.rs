//! Server-sent events: reading a stream of them.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

/// Reads a stream of server-sent events that comes in any pieces.
///
/// Follows the rules of the HTML standard for lines, comments and data of several lines. Fields
/// other than `event` and `data` are passed over: nothing here reconnects.
#[derive(Debug)]
pub struct Decoder {
    /// Bytes that the lines of one message may have together.
    limit: usize,
    /// Those of the lines read so far.
    size: usize,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// A line ended with a carriage return, so a line feed right behind it belongs to it.
    after_return: bool,
    /// Whether the first line has been read, which may begin with a byte order mark.
    begun: bool,
    name: String,
    data: Vec<u8>,
    has_data: bool,
    ready: VecDeque<Message>,
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its `event` field; empty if it has none.
    pub name: String,
    pub data: Bytes,
}

/// A message is larger than the decoder's limit. The stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is larger than {limit} bytes")]
pub struct TooLarge {
    pub limit: usize,
}

impl Decoder {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            size: 0,
            line: Vec::new(),
            after_return: false,
            begun: false,
            name: String::new(),
            data: Vec::new(),
            has_data: false,
            ready: VecDeque::new(),
        }
    }

    /// Takes the next piece of the stream. Then take the messages that are complete.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), TooLarge> {
        while let Some(end) = piece.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (start, terminator) = (&piece[..end], piece[end]);
            piece = &piece[end + 1..];
            let after_return = mem::replace(&mut self.after_return, terminator == b'\r');
            if after_return && terminator == b'\n' && start.is_empty() && self.line.is_empty() {
                continue;
            }
            self.extend_line(start)?;
            let mut line = mem::take(&mut self.line);
            self.read_line(&line);
            line.clear();
            self.line = line;
        }
        if !piece.is_empty() {
            self.after_return = false;
        }
        self.extend_line(piece)
    }

    /// The next message that is complete.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.ready.pop_front()
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        self.size += bytes.len();
        if self.size > self.limit {
            return Err(TooLarge { limit: self.limit });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn read_line(&mut self, line: &[u8]) {
        let line = match mem::replace(&mut self.begun, true) {
            true => line,
            false => line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line),
        };
        if line.is_empty() {
            return self.end_message();
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            _ => {}
        }
    }

    /// An empty line ends a message. One without data is none.
    fn end_message(&mut self) {
        self.size = 0;
        let name = mem::take(&mut self.name);
        let data = mem::take(&mut self.data);
        if mem::take(&mut self.has_data) {
            let data = data.into();
            self.ready.push_back(Message { name, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &str, pieces: usize) -> Vec<(String, String)> {
        let mut decoder = Decoder::new(100);
        let mut messages = Vec::new();
        for piece in stream.as_bytes().chunks(pieces) {
            decoder.feed(piece).unwrap();
            while let Some(Message { name, data }) = decoder.poll_message() {
                messages.push((name, String::from_utf8(data.to_vec()).unwrap()));
            }
        }
        messages
    }

    #[test]
    fn a_stream_reads_the_same_in_any_pieces() {
        let stream = "\u{feff}event: a\r\ndata: {\"é\":1}\r\n\r\n\
                      : a comment\n\n\
                      data:one\rdata:  two\rdata\r\r\
                      event: nothing\nid: 7\n\n\
                      data: [DONE]\n\n\
                      data: never ended\n";
        let expected = [("a", "{\"é\":1}"), ("", "one\n two\n"), ("", "[DONE]")];
        for pieces in 1..stream.len() {
            let messages = read(stream, pieces);
            let messages: Vec<_> = messages
                .iter()
                .map(|(n, d)| (n.as_str(), d.as_str()))
                .collect();
            assert_eq!(messages, expected, "in pieces of {pieces}");
        }
    }

    #[test]
    fn an_empty_data_field_is_a_message() {
        assert_eq!(read("data\n\n", 1), [(String::new(), String::new())]);
    }

    #[test]
    fn nothing_grows_beyond_the_limit() {
        let too_large = Err(TooLarge { limit: 10 });
        let fed = |stream: &str| Decoder::new(10).feed(stream.as_bytes());
        assert_eq!(fed("data: 6789\n\n"), Ok(()));
        assert_eq!(fed("data: 6789a\n\n"), too_large);
        assert_eq!(fed("data:5\ndata:\n\n"), too_large);
        assert_eq!(fed(": a line without an end"), too_large);
        assert_eq!(fed("data: 6789\n\ndata: 6789\n\n"), Ok(()));
    }
}
