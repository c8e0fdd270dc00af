//! Chunk: one piece of a streamed chat completion, as upstreams write it.
//!
//! Members that one upstream or another leaves out, or sets to null, are optional.

use serde::Deserialize;
use turnwire_protocol::engine::{TokenLogprob, TopLogprob, Usage};

/// Tokens that are believed. Clients read numbers of 32 bits, and add them up.
const TOKENS: u64 = i32::MAX as u64;

#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    #[serde(default)]
    pub(super) usage: Option<ChunkUsage>,
    #[serde(default)]
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) delta: Option<Delta>,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
    #[serde(default)]
    pub(super) logprobs: Option<Logprobs>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Delta {
    #[serde(default)]
    pub(super) content: Option<String>,
    #[serde(default)]
    pub(super) refusal: Option<String>,
    /// Two names are about for the same thing.
    #[serde(default)]
    pub(super) reasoning_content: Option<String>,
    #[serde(default)]
    pub(super) reasoning: Option<String>,
    #[serde(default)]
    pub(super) tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CallDelta {
    #[serde(default)]
    pub(super) index: u64,
    #[serde(default)]
    pub(super) function: Option<FunctionDelta>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FunctionDelta {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) arguments: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Logprobs {
    #[serde(default)]
    pub(super) content: Option<Vec<Logprob>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Logprob {
    pub(super) token: String,
    pub(super) logprob: f32,
    #[serde(default)]
    pub(super) bytes: Option<Vec<u8>>,
    #[serde(default)]
    pub(super) top_logprobs: Vec<TopCandidate>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TopCandidate {
    pub(super) token: String,
    pub(super) logprob: f32,
    #[serde(default)]
    pub(super) bytes: Option<Vec<u8>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ChunkUsage {
    #[serde(default)]
    pub(super) prompt_tokens: u64,
    #[serde(default)]
    pub(super) completion_tokens: u64,
    #[serde(default)]
    pub(super) prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    pub(super) completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PromptDetails {
    #[serde(default)]
    pub(super) cached_tokens: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CompletionDetails {
    #[serde(default)]
    pub(super) reasoning_tokens: Option<u64>,
}

impl From<ChunkUsage> for Usage {
    fn from(usage: ChunkUsage) -> Self {
        let prompt = usage.prompt_tokens_details;
        let cached = prompt.and_then(|details| details.cached_tokens);
        let completion = usage.completion_tokens_details;
        let reasoning = completion.and_then(|details| details.reasoning_tokens);
        Self {
            input_tokens: usage.prompt_tokens.min(TOKENS),
            cached_tokens: cached.unwrap_or(0).min(TOKENS),
            output_tokens: usage.completion_tokens.min(TOKENS),
            reasoning_tokens: reasoning.unwrap_or(0).min(TOKENS),
        }
    }
}

impl From<Logprob> for TokenLogprob {
    fn from(token: Logprob) -> Self {
        let bytes = |token: &str, bytes: Option<Vec<u8>>| {
            bytes.unwrap_or_else(|| token.as_bytes().to_owned())
        };
        let top = token.top_logprobs.into_iter().map(|other| TopLogprob {
            bytes: bytes(&other.token, other.bytes),
            token: other.token,
            logprob: other.logprob,
        });
        Self {
            bytes: bytes(&token.token, token.bytes),
            logprob: token.logprob,
            top: top.collect(),
            token: token.token,
        }
    }
}
