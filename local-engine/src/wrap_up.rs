//! Wrapping up: where a message may end when the user has something to say.

/// Tokens that a message may still take to come to the end of its sentence. About a line: a few
/// hundred milliseconds of a fast model, and of a slow one no more than one would listen to.
pub(crate) const LAST_TOKENS: u32 = 24;

/// Reads a message as it is made, to know where its sentences end: at a line's end, or at white
/// space behind `.`, `!` or `?`.
#[derive(Debug, Default)]
pub(crate) struct Sentence {
    last: u8,
    ended: bool,
}

impl Sentence {
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.ended = match byte {
                b'\n' => true,
                _ if byte.is_ascii_whitespace() => self.ended || self.is_closed(),
                _ => false,
            };
            self.last = byte;
        }
    }

    /// Whether what was read ends with a sentence and the white space behind it.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether a sentence ends in front of `bytes`. Most tokens bring the blank before their word
    /// along.
    pub(crate) fn ends_before(&self, bytes: &[u8]) -> bool {
        let white = bytes.first().is_some_and(u8::is_ascii_whitespace);
        self.ended || (white && self.is_closed())
    }

    fn is_closed(&self) -> bool {
        matches!(self.last, b'.' | b'!' | b'?')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_at_white_space_behind_their_mark_or_at_a_line_end() {
        let ends = |text: &str| {
            let mut sentence = Sentence::default();
            sentence.read(text.as_bytes());
            sentence.ended()
        };
        for text in ["It rains. ", "Does it?  ", "A list:\n", "Yes!\n\n"] {
            assert!(ends(text), "{text:?}");
        }
        for text in ["", "It rains", "It rains.", "3.5 mm of ", "It. Rains "] {
            assert!(!ends(text), "{text:?}");
        }
        let mut sentence = Sentence::default();
        sentence.read(b"It is 3.");
        assert!(!sentence.ends_before(b"5"));
        assert!(sentence.ends_before(b" It"));
        sentence.read(b"5 mm");
        assert!(!sentence.ends_before(b" of"));
    }
}
