//! What a session asks of an engine, and what comes back.
//!
//! An engine gets one [`TurnRequest`] and answers with a stream of [`EngineOutput`]:
//! [`EngineOutput::Started`] or [`EngineOutput::Failed`] first; then items, one at a time, each
//! opened by `ItemStarted` and closed by `ItemDone`; then `Finished` or `Failed`, and nothing
//! after it. An item still open at `Finished` was cut and ends `incomplete`.
//!
//! A turn whose purpose is to count ([`Purpose::Count`]) is answered by `Started` and `Finished`
//! with [`FinishReason::Stop`] alone, if the engine can tell so much without making output.
//!
//! An engine can be asked to wrap up ([`crate::action::Action::WrapUp`]), because the user has
//! something to say. It then ends the open message or reasoning soon, at the end of a sentence
//! say, lets an open call be completed, starts no other item, and finishes with
//! [`FinishReason::WrappedUp`]. One that cannot do so goes on to its ordinary end.

use std::sync::Arc;

use bytes::Bytes;

use crate::chain::{Chain, EngineState};
use crate::id::ResponseId;
use crate::item::Item;
use crate::tool::{Tool, ToolChoice, ToolName, Tools};

/// One turn: continue `parent` by `input`.
#[derive(Clone, Debug)]
pub struct TurnRequest {
    /// The id of the response being made.
    pub id: ResponseId,
    pub parent: Option<Chain>,
    /// New items only.
    pub input: Arc<[Item]>,
    pub model: Arc<str>,
    pub instructions: Option<Arc<str>>,
    pub tools: Tools,
    /// What `additional_tools` items of the chain and the input offer besides. A tool of the
    /// same name in `tools` takes their place. The items themselves are in the history, where an
    /// engine can show them, so that a change does not concern what it makes of `tools`.
    pub additional_tools: Arc<[Tool]>,
    pub tool_choice: ToolChoice,
    pub parallel_tool_calls: bool,
    /// 0 to 2.
    pub temperature: f32,
    /// 0 to 1.
    pub top_p: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub max_output_tokens: Option<u32>,
    /// Alternatives to report for each output token, 0 to 20.
    pub top_logprobs: u8,
    /// Whether text deltas carry log probabilities.
    pub logprobs: bool,
    pub format: TextFormat,
    /// `reasoning.effort` as sent.
    pub reasoning_effort: Option<Arc<str>>,
    /// `truncation: "auto"`: leave the oldest items out rather than refuse a prompt that is too
    /// long.
    pub truncate: bool,
    /// A prompt of this many tokens or more is not answered: the engine says
    /// [`EngineOutput::Started`] and then finishes with [`FinishReason::ContextThreshold`].
    pub compact_threshold: Option<u64>,
    /// False for a warm-up: prepare and prefill, but make no output.
    pub generate: bool,
    pub purpose: Purpose,
}

/// What becomes of a turn's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// The client sees it.
    #[default]
    Answer,
    /// It becomes part of a compaction item: the last item of the input asks for a summary.
    Summary,
    /// There is none: only `input_tokens` of [`Usage`] is wanted, of a prompt of any length.
    Count,
}

impl TurnRequest {
    /// A request without input and without a parent, with the defaults of the protocol.
    pub fn new(id: ResponseId, model: &str) -> Self {
        Self {
            id,
            parent: None,
            input: Arc::new([]),
            model: model.into(),
            instructions: None,
            tools: Tools::default(),
            additional_tools: Arc::default(),
            tool_choice: ToolChoice::default(),
            parallel_tool_calls: true,
            temperature: 1.0,
            top_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            max_output_tokens: None,
            top_logprobs: 0,
            logprobs: false,
            format: TextFormat::default(),
            reasoning_effort: None,
            truncate: false,
            compact_threshold: None,
            generate: true,
            purpose: Purpose::default(),
        }
    }
}

impl TurnRequest {
    /// Whether the engine is to make output.
    pub fn wants_output(&self) -> bool {
        self.generate && self.purpose != Purpose::Count
    }

    /// Every tool that the model may call, unless the choice among them forbids it.
    pub fn offered(&self) -> impl Iterator<Item = &Tool> {
        self.tools.offered.iter().chain(&*self.additional_tools)
    }
}

/// `text.format`.
#[derive(Clone, Debug, Default)]
pub enum TextFormat {
    #[default]
    Text,
    JsonObject,
    /// A JSON Schema as the client sent it.
    JsonSchema {
        schema: Bytes,
    },
}

#[derive(Clone, Debug)]
pub enum EngineOutput {
    /// The turn was admitted: it is well formed for this engine and fits its context.
    Started,
    ItemStarted(ItemStart),
    /// A piece of the open message's text.
    TextDelta {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    /// A piece of the open message's refusal; a message holds text or a refusal.
    RefusalDelta {
        text: String,
    },
    /// A piece of the open reasoning item's text.
    ReasoningDelta {
        text: String,
    },
    /// A piece of the open function call's `arguments`.
    ArgumentsDelta {
        text: String,
    },
    /// A piece of the open custom call's `input`.
    InputDelta {
        text: String,
    },
    /// The open item is complete.
    ItemDone,
    Finished {
        reason: FinishReason,
        usage: Usage,
        state: Option<EngineState>,
    },
    Failed(EngineFailure),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemStart {
    Message,
    Reasoning,
    FunctionCall { tool: ToolName },
    CustomToolCall { tool: ToolName },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn.
    Stop,
    MaxOutputTokens,
    ContentFilter,
    /// The engine was asked to wrap up, and ended the turn between two items.
    WrappedUp,
    /// The prompt has reached [`TurnRequest::compact_threshold`]; nothing was generated.
    ContextThreshold,
}

/// Tokens of one turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The whole prompt, inherited context included.
    pub input_tokens: u64,
    /// Those of `input_tokens` that were not prefilled because their state was still there.
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// Those of `output_tokens` spent on reasoning.
    pub reasoning_tokens: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
    pub top: Vec<TopLogprob>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TopLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// Why an engine cannot make or finish a turn. `message` is for the client: no addresses, no paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFailure {
    pub kind: EngineFailureKind,
    pub message: String,
    /// The request field at fault, if one is.
    pub param: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineFailureKind {
    ModelNotFound,
    /// The prompt does not fit: 400 `context_length_exceeded`.
    ContextLengthExceeded,
    /// The request asks for something this engine cannot do: 400 `unsupported_value`.
    Unsupported,
    /// A field is malformed in a way only the engine can see (a schema, say): 400 `invalid_value`.
    Invalid,
    /// 503 `server_is_overloaded`.
    Overloaded,
    /// 429 `rate_limit_exceeded`.
    RateLimited {
        retry_after_seconds: u32,
    },
    /// 500 `server_error`.
    Internal,
}
