//! Script: the file that tells the scripted engine what to answer. Its format is documented in
//! docs/scripted.md.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use turnwire_protocol::engine::{EngineFailureKind, FinishReason, Usage};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    #[serde(default = "default_model")]
    pub model: String,
    /// Tokens that fit into a prompt; none = no limit.
    pub context_tokens: Option<u64>,
    /// Characters of one delta, which counts as one token.
    #[serde(default = "default_chunk_chars")]
    pub chunk_chars: NonZeroUsize,
    /// Tried in order; the first that applies is played.
    #[serde(default, rename = "reply")]
    pub(super) replies: Vec<Reply>,
}

/// An answer and when to give it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reply {
    /// The last user message contains this text.
    pub(super) user_contains: Option<String>,
    /// Which response of its chain, counted from 1.
    pub(super) turn: Option<u64>,
    /// At most the nth response of its chain.
    pub(super) until_turn: Option<u64>,
    /// Whether the new input holds the output of a tool.
    pub(super) after_tool: Option<bool>,
    /// Whether a summary is asked for, for a compaction. Other replies are for answers only.
    #[serde(default)]
    pub(super) summary: bool,
    /// Whether there are tools that the model may call.
    pub(super) has_tools: Option<bool>,
    #[serde(default)]
    pub(super) steps: Vec<Step>,
    #[serde(default)]
    pub(super) finish: Finish,
    /// Reported instead of what was counted.
    pub(super) usage: Option<ExactUsage>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "StepTable")]
pub(super) enum Step {
    Say {
        kind: Speech,
        text: String,
        /// How often the text is said over.
        repeat: u64,
        /// Before each delta.
        delay: Option<Duration>,
    },
    Call {
        /// None: the one that `tool_choice` asks for, or the first that is declared.
        name: Option<String>,
        /// None: made from the schema of the tool.
        arguments: Option<String>,
        delay: Option<Duration>,
    },
    Wait(Duration),
    /// Goes on until the turn is cancelled.
    Hang,
    Fail {
        kind: EngineFailureKind,
        message: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    Text,
    Reasoning,
    Refusal,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Finish {
    #[default]
    Stop,
    MaxOutputTokens,
    ContentFilter,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ExactUsage {
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
}

/// A step as it is written: one of its first seven members says what it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepTable {
    text: Option<String>,
    reasoning: Option<String>,
    refusal: Option<String>,
    call: Option<String>,
    fail: Option<FailureName>,
    #[serde(default)]
    hang: bool,
    delay_ms: Option<u64>,
    repeat: Option<u64>,
    arguments: Option<String>,
    message: Option<String>,
    retry_after_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum FailureName {
    ModelNotFound,
    ContextLengthExceeded,
    Unsupported,
    Invalid,
    Overloaded,
    RateLimited,
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("script {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("script {}", path.display())]
    Malformed {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
}

impl Script {
    pub fn read(path: &Path) -> Result<Self, ScriptError> {
        let text = fs::read_to_string(path).map_err(|source| ScriptError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        text.parse().map_err(|source| ScriptError::Malformed {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }
}

impl Default for Script {
    fn default() -> Self {
        Self {
            model: default_model(),
            context_tokens: None,
            chunk_chars: default_chunk_chars(),
            replies: Vec::new(),
        }
    }
}

impl FromStr for Script {
    type Err = toml::de::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        toml::from_str(text)
    }
}

fn default_model() -> String {
    "scripted".into()
}

fn default_chunk_chars() -> NonZeroUsize {
    NonZeroUsize::new(16).expect("16 is not zero")
}

impl TryFrom<StepTable> for Step {
    type Error = &'static str;

    fn try_from(table: StepTable) -> Result<Self, Self::Error> {
        let delay = table.delay_ms.map(Duration::from_millis);
        let say = |kind, text| Self::Say {
            kind,
            text,
            repeat: table.repeat.unwrap_or(1),
            delay,
        };
        let mut steps = Vec::new();
        steps.extend(table.text.map(|text| say(Speech::Text, text)));
        steps.extend(table.reasoning.map(|text| say(Speech::Reasoning, text)));
        steps.extend(table.refusal.map(|text| say(Speech::Refusal, text)));
        let is_speech = !steps.is_empty();
        steps.extend(table.call.map(|name| Self::Call {
            name: (name != "*").then_some(name),
            arguments: table.arguments.clone(),
            delay,
        }));
        let is_call = !is_speech && !steps.is_empty();
        steps.extend(table.fail.as_ref().map(|name| {
            Self::Fail {
                kind: name.kind(table.retry_after_seconds),
                message: table
                    .message
                    .clone()
                    .unwrap_or("The script says so.".into()),
            }
        }));
        steps.extend(table.hang.then_some(Self::Hang));
        match (steps.pop(), delay) {
            (Some(_), _) if !steps.is_empty() => {
                Err("a step is one of text, reasoning, refusal, call, fail and hang")
            }
            _ if table.repeat.is_some() && !is_speech => {
                Err("`repeat` belongs to text, reasoning and refusal")
            }
            _ if table.arguments.is_some() && !is_call => Err("`arguments` belongs to call"),
            (Some(step), _) => Ok(step),
            (None, Some(delay)) => Ok(Self::Wait(delay)),
            (None, None) => Err("an empty step"),
        }
    }
}

impl FailureName {
    fn kind(&self, retry_after_seconds: Option<u32>) -> EngineFailureKind {
        match self {
            Self::ModelNotFound => EngineFailureKind::ModelNotFound,
            Self::ContextLengthExceeded => EngineFailureKind::ContextLengthExceeded,
            Self::Unsupported => EngineFailureKind::Unsupported,
            Self::Invalid => EngineFailureKind::Invalid,
            Self::Overloaded => EngineFailureKind::Overloaded,
            Self::RateLimited => EngineFailureKind::RateLimited {
                retry_after_seconds: retry_after_seconds.unwrap_or(1),
            },
            Self::Internal => EngineFailureKind::Internal,
        }
    }
}

impl From<Finish> for FinishReason {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Stop => Self::Stop,
            Finish::MaxOutputTokens => Self::MaxOutputTokens,
            Finish::ContentFilter => Self::ContentFilter,
        }
    }
}

impl From<ExactUsage> for Usage {
    fn from(usage: ExactUsage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            cached_tokens: usage.cached_tokens,
            output_tokens: usage.output_tokens,
            reasoning_tokens: usage.reasoning_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_says_what_is_wrong_with_it() {
        for (script, complaint) in [
            ("chunk_chars = 0", "chunk_chars"),
            ("modell = 'x'", "modell"),
            ("[[reply]]\nsteps = [{}]", "an empty step"),
            (
                "[[reply]]\nsteps = [{text = 'a', call = 'b'}]",
                "a step is one of",
            ),
            ("[[reply]]\nsteps = [{hang = true, repeat = 2}]", "`repeat`"),
            (
                "[[reply]]\nsteps = [{text = 'a', arguments = '{}'}]",
                "`arguments`",
            ),
            ("[[reply]]\nsteps = [{fail = 'sadly'}]", "sadly"),
        ] {
            let error = script.parse::<Script>().unwrap_err().to_string();
            assert!(error.contains(complaint), "{script}: {error}");
        }
    }
}
