//! Tape: bytes that a model wrote and nobody has read yet, with the tokens they came in.

use std::collections::VecDeque;

use turnwire_protocol::engine::TokenLogprob;

#[derive(Debug, Default)]
pub(super) struct Tape {
    bytes: Vec<u8>,
    /// Where the unread bytes begin, counted from the very first one.
    position: usize,
    /// Log probabilities of tokens that begin at or behind `position`.
    tokens: VecDeque<(usize, TokenLogprob)>,
    /// How many bytes from the start stood in the prompt and so are no output.
    assumed: usize,
}

impl Tape {
    pub(super) fn push(&mut self, bytes: &[u8], logprob: Option<TokenLogprob>) {
        if let Some(logprob) = logprob
            && !bytes.is_empty()
        {
            let start = self.position + self.bytes.len();
            self.tokens.push_back((start, logprob));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes to be read like output, but never given out.
    pub(super) fn assume(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.assumed = self.position + self.bytes.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes up to `length` bytes as text, and the tokens that begin in them. The start of a
    /// character whose end is beyond them stays, unless the end will never come (`last`).
    pub(super) fn take(&mut self, length: usize, last: bool) -> (String, Vec<TokenLogprob>) {
        let length = if last {
            length
        } else {
            length - unfinished(&self.bytes[..length])
        };
        let from = self.assumed.saturating_sub(self.position).min(length);
        let text = String::from_utf8_lossy(&self.bytes[from..length]).into_owned();
        (text, self.advance(length))
    }

    pub(super) fn skip(&mut self, length: usize) {
        self.advance(length);
    }

    fn advance(&mut self, length: usize) -> Vec<TokenLogprob> {
        self.bytes.drain(..length);
        self.position += length;
        let gone = self
            .tokens
            .partition_point(|(start, _)| *start < self.position);
        self.tokens
            .drain(..gone)
            .map(|(_, logprob)| logprob)
            .collect()
    }
}

/// Length of the unfinished character at the end of `bytes`, 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    match std::str::from_utf8(&bytes[bytes.len().saturating_sub(3)..]) {
        Ok(_) => 0,
        Err(_) => (1..=bytes.len().min(3))
            .find(|&n| {
                let lead = bytes[bytes.len() - n];
                let length = match lead {
                    0xC2..=0xDF => 2,
                    0xE0..=0xEF => 3,
                    0xF0..=0xF4 => 4,
                    _ => 0,
                };
                length > n
            })
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_and_their_tokens_stay_whole() {
        let logprob = |token: &str| TokenLogprob {
            token: token.to_owned(),
            bytes: Vec::new(),
            logprob: 0.0,
            top: Vec::new(),
        };
        let mut tape = Tape::default();
        tape.push("ä".as_bytes(), Some(logprob("a")));
        tape.push(&"😀".as_bytes()[..3], Some(logprob("b")));
        assert_eq!(tape.take(5, false), ("ä".to_owned(), vec![logprob("a")]));
        tape.push(&"😀".as_bytes()[3..], Some(logprob("c")));
        let (text, tokens) = tape.take(4, false);
        assert_eq!(text, "😀");
        assert_eq!(tokens, vec![logprob("b"), logprob("c")]);
        assert!(tape.bytes().is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_never_held_for_long() {
        let mut tape = Tape::default();
        tape.push(&[b'a', 0xFF, 0xF0], None);
        assert_eq!(tape.take(3, false).0, "a\u{FFFD}");
        assert_eq!(tape.take(1, true).0, "\u{FFFD}");
    }
}
