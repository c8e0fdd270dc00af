//! OutputParser: a model's text, piece by piece, into items.

use turnwire_protocol::engine::{EngineOutput, TokenLogprob};

#[derive(Debug)]
pub struct OutputParser {}

impl OutputParser {
    /// Takes the bytes of one token (possibly part of a character) and appends what is certain to `out`.
    pub fn push(
        &mut self,
        _bytes: &[u8],
        _logprob: Option<TokenLogprob>,
        _out: &mut Vec<EngineOutput>,
    ) {
        unimplemented!()
    }

    /// Whether the last pushed token belongs to reasoning.
    pub fn in_reasoning(&self) -> bool {
        unimplemented!()
    }

    /// The model stopped. Gives out what was held back and, if `complete`, closes the open
    /// item; an item that was cut stays open and so ends `incomplete`.
    pub fn finish(&mut self, _complete: bool, _out: &mut Vec<EngineOutput>) {
        unimplemented!()
    }
}
