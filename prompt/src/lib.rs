//! Items to text, and a model's output back to items.
//!
//! What lies between the protocol and a model that speaks tokens: chat templates rendered in
//! two parts (a head and segments, see docs/decisions/0001), a grammar that keeps the output
//! well formed, and a streaming parser that turns it into items. It knows no tokenizer and no
//! model: text in, text out, so every engine that takes raw tokens can use it.
//!
//! An engine makes one [`format::ChatFormat`] per model. For a turn it tokenises the head and
//! the segment behind the recorded ones, samples under the plan's grammar (if that cannot be
//! compiled, [`format::ChatFormat::blame`] says whose fault it is), and pushes the bytes of every token but the one that ends the turn into the plan's
//! parser. Of control tokens it pushes the text only of [`format::MARKERS`], and nothing of
//! the others.

pub mod format;
pub mod grammar;
pub mod parser;
mod plan;

use turnwire_protocol::engine::EngineFailure;

/// Text to be tokenised. Each piece is tokenised on its own, control tokens recognised;
/// it is cut in two wherever a user's text spells a control token, so that it forges none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    pub pieces: Vec<String>,
}

/// What stands right before a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The head, or a segment without generated text (a warm-up): all messages are closed.
    Closed,
    /// Generated text whose end-of-turn token is missing.
    Open,
    /// Generated text and its end-of-turn token, but not what the template puts behind that.
    Ended,
}

/// What the model is to do behind a segment.
#[derive(Debug)]
pub struct Plan {
    /// Text after the generation prompt that the model does not get to choose (the marker of
    /// a forced call, say). Part of the prompt, not of the output; the parser knows of it.
    pub opening: String,
    /// What the output obeys, or none for free text.
    pub grammar: Option<grammar::Grammar>,
    pub parser: parser::OutputParser,
}

/// The texts of a model's special tokens.
#[derive(Clone, Debug, Default)]
pub struct SpecialTokens {
    /// Put before everything else if the model wants it and the template does not write it.
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// The token with which the model ends its turn, `<|im_end|>` for ChatML.
    pub end_of_turn: String,
    /// All texts that tokenise to one control token.
    pub control: Vec<String>,
    /// All other texts that tokenise to one token wherever they stand. To a grammar such a token
    /// is the characters of its text; Qwen's `<tool_call>` is one.
    pub user_defined: Vec<String>,
}

/// Limits for what a schema leaves unlimited. They bind the model's output only; the client's
/// schema stays as it is. A small model may otherwise never end a string or a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Characters in a string.
    pub string_chars: u32,
    /// Items in an array, and members of an object that names none.
    pub array_items: u32,
    /// Calls in one turn, where several are allowed.
    pub calls: u32,
}

impl Default for Bounds {
    /// More than a sensible call needs.
    fn default() -> Self {
        Self {
            string_chars: 100_000,
            array_items: 1_000,
            calls: 32,
        }
    }
}

impl Bounds {
    /// For models too small to know when to stop.
    pub const TIGHT: Self = Self {
        string_chars: 80,
        array_items: 5,
        calls: 4,
    };
}

/// A request this format cannot express; becomes a failure of the turn.
pub type Refusal = EngineFailure;
