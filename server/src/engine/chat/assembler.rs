//! Assembler: the chunks of a chat completion into items.
//!
//! A chunk may add to the reasoning, the text and several calls at once; items come one at a
//! time. So what belongs to a later call waits until the call before it is complete.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, ItemStart, TokenLogprob, Usage,
};
use turnwire_protocol::tool::{Tool, ToolName};

use super::chunk::{CallDelta, Chunk, Delta, FunctionDelta};
use super::request::CUSTOM_INPUT;
use super::upstream::failure;

/// Bytes of calls that may wait for an earlier one to be complete.
const WAITING_BYTES: usize = 4 << 20;

/// Bytes of what one turn says: as many as a whole conversation may have by default. An upstream
/// that never ends would fill the memory otherwise.
const OUTPUT_BYTES: usize = 256 << 20;

/// What an item or the probability of a token takes besides its text, about. It bounds the number
/// of small ones.
const OVERHEAD_BYTES: usize = 256;

/// Calls of one turn.
const CALLS: usize = 256;

#[derive(Debug)]
pub(super) struct Assembler {
    /// The tools that were offered, by the names that the model knows them by.
    tools: HashMap<Arc<str>, Offered>,
    open: Open,
    /// Calls that have not been opened, by their index.
    waiting: BTreeMap<u64, Call>,
    waiting_bytes: usize,
    calls: usize,
    /// What it has said so far.
    output_bytes: usize,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    /// Pieces of output, which are a token each in most streams.
    pub(super) pieces: u64,
}

#[derive(Debug)]
struct Offered {
    name: ToolName,
    is_function: bool,
}

#[derive(Debug, Default)]
enum Open {
    #[default]
    Nothing,
    Reasoning,
    /// A message of text or of a refusal.
    Message,
    Call {
        index: u64,
        shape: Shape,
        /// For a custom tool: the arguments so far, which the input is taken from in the end.
        wrapped: Option<String>,
    },
}

/// A call whose turn has not come.
#[derive(Debug, Default)]
struct Call {
    name: String,
    arguments: String,
}

/// How far the JSON text of a call's arguments has come.
#[derive(Debug, Default)]
struct Shape {
    depth: u32,
    in_string: bool,
    escaped: bool,
    begun: bool,
}

type Out = VecDeque<EngineOutput>;

impl Assembler {
    pub(super) fn new<'t>(tools: impl Iterator<Item = &'t Tool>) -> Self {
        let offered = |tool: &Tool| {
            let offered = Offered {
                name: tool.name.clone(),
                is_function: tool.is_function(),
            };
            (tool.name.qualified(), offered)
        };
        Self {
            tools: tools.map(offered).collect(),
            open: Open::Nothing,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            calls: 0,
            output_bytes: 0,
            finish: None,
            usage: None,
            pieces: 0,
        }
    }

    /// Takes one chunk, as it came.
    pub(super) fn take(&mut self, json: &[u8], out: &mut Out) -> Result<(), EngineFailure> {
        let chunk: Chunk = serde_json::from_slice(json)
            .map_err(|_| broken("sent something that is no chat completion"))?;
        if chunk.error.is_some() {
            return Err(broken("failed in the middle of its answer"));
        }
        if let Some(usage) = chunk.usage {
            self.usage = Some(usage.into());
        }
        // One choice was asked for.
        let Some(choice) = chunk.choices.into_iter().next() else {
            return Ok(());
        };
        let logprobs = choice.logprobs.and_then(|logprobs| logprobs.content);
        let logprobs = logprobs.into_iter().flatten().map(Into::into).collect();
        if let Some(delta) = choice.delta {
            let from = out.len();
            self.add(delta, logprobs, out)?;
            self.output_bytes += out.range(from..).map(size).sum::<usize>();
            if self.output_bytes > OUTPUT_BYTES {
                return Err(broken("said more than can be kept"));
            }
        }
        if let Some(reason) = choice.finish_reason {
            self.finish = Some(match &*reason {
                "length" => FinishReason::MaxOutputTokens,
                "content_filter" => FinishReason::ContentFilter,
                _ => FinishReason::Stop,
            });
        }
        Ok(())
    }

    fn add(
        &mut self,
        delta: Delta,
        logprobs: Vec<TokenLogprob>,
        out: &mut Out,
    ) -> Result<(), EngineFailure> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(text) = given(delta.reasoning_content).or_else(|| given(delta.reasoning)) {
            if !matches!(self.open, Open::Reasoning) {
                self.open(Open::Reasoning, ItemStart::Reasoning, out);
            }
            self.pieces += 1;
            out.push_back(EngineOutput::ReasoningDelta { text });
        }
        if let Some(text) = given(delta.content) {
            self.message(out);
            self.pieces += 1;
            out.push_back(EngineOutput::TextDelta { text, logprobs });
        }
        if let Some(text) = given(delta.refusal) {
            self.message(out);
            self.pieces += 1;
            out.push_back(EngineOutput::RefusalDelta { text });
        }
        for call in delta.tool_calls.into_iter().flatten() {
            self.pieces += 1;
            self.call(call, out)?;
        }
        Ok(())
    }

    fn message(&mut self, out: &mut Out) {
        if !matches!(self.open, Open::Message) {
            self.open(Open::Message, ItemStart::Message, out);
        }
    }

    fn call(&mut self, delta: CallDelta, out: &mut Out) -> Result<(), EngineFailure> {
        let function = delta.function.unwrap_or(FunctionDelta {
            name: None,
            arguments: None,
        });
        let arguments = function.arguments.unwrap_or_default();
        if let Open::Call { index, .. } = &self.open
            && *index == delta.index
        {
            return self.continue_call(arguments, out);
        }
        let name = function.name.unwrap_or_default();
        if !self.waiting.contains_key(&delta.index) {
            // Some end a call that is complete with a piece of nothing.
            if name.is_empty() && arguments.is_empty() {
                return Ok(());
            }
            self.calls += 1;
        }
        let waiting = self.waiting.entry(delta.index).or_default();
        // Most send the name once, some with every piece.
        if waiting.name.is_empty() {
            self.waiting_bytes += name.len();
            waiting.name = name;
        }
        waiting.arguments.push_str(&arguments);
        self.waiting_bytes += arguments.len();
        if self.waiting_bytes > WAITING_BYTES || self.calls > CALLS {
            return Err(broken("made more calls at once than can be kept"));
        }
        let blocked = match &self.open {
            Open::Call { shape, .. } => !shape.is_complete(),
            Open::Nothing | Open::Reasoning | Open::Message => false,
        };
        if !blocked {
            self.open_next_call(out)?;
        }
        Ok(())
    }

    /// Takes more arguments of the open call.
    fn continue_call(&mut self, arguments: String, out: &mut Out) -> Result<(), EngineFailure> {
        if let Open::Call { shape, wrapped, .. } = &mut self.open {
            shape.follow(&arguments);
            match wrapped {
                Some(wrapped) if wrapped.len() + arguments.len() > WAITING_BYTES => {
                    return Err(broken("made a call that is larger than can be kept"));
                }
                Some(wrapped) => wrapped.push_str(&arguments),
                None if arguments.is_empty() => {}
                None => out.push_back(EngineOutput::ArgumentsDelta { text: arguments }),
            }
        }
        Ok(())
    }

    /// Opens the first call that waits, if its name has come. False if there is none.
    fn open_next_call(&mut self, out: &mut Out) -> Result<bool, EngineFailure> {
        let named = |(_, call): &(&u64, &Call)| !call.name.is_empty();
        let Some((&index, _)) = self.waiting.iter().next().filter(named) else {
            return Ok(false);
        };
        let Some(call) = self.waiting.remove(&index) else {
            return Ok(false);
        };
        self.waiting_bytes -= call.name.len() + call.arguments.len();
        let (start, wrapped) = match self.tools.get(&*call.name) {
            Some(Offered {
                name,
                is_function: false,
            }) => (
                ItemStart::CustomToolCall { tool: name.clone() },
                Some(String::new()),
            ),
            Some(Offered { name, .. }) => (ItemStart::FunctionCall { tool: name.clone() }, None),
            // Models make names up. What to do about it is for the client to say.
            None => {
                let tool = ToolName::from(&*call.name);
                (ItemStart::FunctionCall { tool }, None)
            }
        };
        let shape = Shape::default();
        let open = Open::Call {
            index,
            shape,
            wrapped,
        };
        self.open(open, start, out);
        self.continue_call(call.arguments, out)?;
        Ok(true)
    }

    fn open(&mut self, open: Open, start: ItemStart, out: &mut Out) {
        self.close(out);
        self.open = open;
        out.push_back(EngineOutput::ItemStarted(start));
    }

    fn close(&mut self, out: &mut Out) {
        match std::mem::take(&mut self.open) {
            Open::Nothing => return,
            Open::Call {
                wrapped: Some(wrapped),
                ..
            } => out.push_back(EngineOutput::InputDelta {
                text: unwrapped(wrapped),
            }),
            Open::Reasoning | Open::Message | Open::Call { .. } => {}
        }
        out.push_back(EngineOutput::ItemDone);
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Where a turn that is to wrap up stands.
    pub(super) fn boundary(&self) -> Boundary {
        match &self.open {
            Open::Nothing | Open::Reasoning => Boundary::Here,
            Open::Message => Boundary::Sentence,
            Open::Call { shape, .. } if shape.is_complete() => Boundary::Here,
            Open::Call { .. } => Boundary::Call,
        }
    }

    /// Ends the turn where it is, with the open item complete if it is `whole`.
    pub(super) fn wrap_up(&mut self, whole: bool, out: &mut Out) {
        if whole {
            self.close(out);
        }
    }

    /// The upstream is done. What is open is complete, unless the answer was cut.
    pub(super) fn finish(&mut self, out: &mut Out) -> Result<FinishReason, EngineFailure> {
        let reason = self
            .finish
            .ok_or_else(|| broken("ended its answer in the middle"))?;
        while self.open_next_call(out)? {}
        if !self.waiting.is_empty() {
            return Err(broken("made a call without a name"));
        }
        if reason == FinishReason::Stop {
            self.close(out);
        }
        Ok(reason)
    }
}

/// What stands between a turn and its next item boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    Here,
    /// The end of a sentence.
    Sentence,
    /// The end of a call.
    Call,
}

impl Shape {
    fn follow(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => {
                    self.begun = true;
                    self.depth += 1;
                }
                b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.begun && self.depth == 0
    }
}

/// The input of a custom tool, out of the arguments of the function that stands for it.
fn unwrapped(arguments: String) -> String {
    let parsed = serde_json::from_str::<serde_json::Value>(&arguments);
    let input = parsed.ok().and_then(|value| {
        let input = value.get(CUSTOM_INPUT)?.as_str()?;
        Some(input.to_owned())
    });
    input.unwrap_or(arguments)
}

/// Bytes that an output takes until the end of its turn, about.
fn size(output: &EngineOutput) -> usize {
    match output {
        EngineOutput::ItemStarted(_) => OVERHEAD_BYTES,
        EngineOutput::TextDelta { text, logprobs } => {
            let tokens: usize = logprobs.iter().map(|token| 1 + token.top.len()).sum();
            text.len() + OVERHEAD_BYTES * tokens
        }
        EngineOutput::ReasoningDelta { text }
        | EngineOutput::RefusalDelta { text }
        | EngineOutput::ArgumentsDelta { text }
        | EngineOutput::InputDelta { text } => text.len(),
        _ => 0,
    }
}

fn broken(what: &str) -> EngineFailure {
    let message = format!("The model's server {what}.");
    failure(EngineFailureKind::Internal, &message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What comes of chunks with these deltas, behind so much output that only `room` bytes more
    /// are taken.
    fn assemble_within(
        room: usize,
        deltas: impl IntoIterator<Item = Value>,
    ) -> Result<Out, EngineFailure> {
        let mut assembler = Assembler::new(std::iter::empty());
        assembler.output_bytes = OUTPUT_BYTES - room;
        let mut out = Out::new();
        for delta in deltas {
            let chunk = json!({"choices": [{"delta": delta}]}).to_string();
            assembler.take(chunk.as_bytes(), &mut out)?;
        }
        let end = json!({"choices": [{"finish_reason": "stop"}]}).to_string();
        assembler.take(end.as_bytes(), &mut out)?;
        assembler.finish(&mut out)?;
        Ok(out)
    }

    fn assemble(deltas: impl IntoIterator<Item = Value>) -> Result<Out, EngineFailure> {
        assemble_within(OUTPUT_BYTES, deltas)
    }

    fn call(index: u64, function: &Value) -> Value {
        json!({"tool_calls": [{"index": index, "function": function}]})
    }

    #[test]
    fn an_answer_without_an_end_is_broken_off() {
        let begun = call(0, &json!({"name": "f"}));
        let arguments = call(0, &json!({"arguments": "x"}));
        let says = json!({"content": "x"});
        // Small items count for more than their text.
        let thinks = json!({"reasoning": "x"});
        for (deltas, bytes) in [
            (
                [says.clone(), says.clone(), says.clone()],
                OVERHEAD_BYTES + 3,
            ),
            ([begun, arguments.clone(), arguments], OVERHEAD_BYTES + 2),
            ([says.clone(), thinks, says], 3 * OVERHEAD_BYTES + 3),
        ] {
            assert!(assemble_within(bytes, deltas.clone()).is_ok());
            let failure = assemble_within(bytes - 1, deltas).unwrap_err();
            assert!(failure.message.contains("more than can be kept"));
        }
    }

    #[test]
    fn names_of_calls_that_wait_count_as_well() {
        let name = "x".repeat(1 << 20);
        let waiting = (1..=5).map(|index| call(index, &json!({"name": name})));
        let blocking = call(0, &json!({"name": "f", "arguments": "{"}));
        assert!(assemble(std::iter::once(blocking).chain(waiting)).is_err());
    }

    #[test]
    fn an_empty_piece_of_a_call_that_is_complete_changes_nothing() {
        let whole = json!({"name": "f", "arguments": "{}"});
        let calls = [call(0, &whole), call(1, &whole)];
        let expected = assemble(calls.clone()).unwrap();
        let nothing = json!({"tool_calls": [{"index": 0}]});
        let empty = [call(0, &json!({"arguments": ""})), nothing];
        let out = assemble(calls.into_iter().chain(empty)).unwrap();
        assert_eq!(format!("{out:?}"), format!("{expected:?}"));
    }
}
