//! Play: one turn of the scripted engine, output by output.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::chain::EngineState;
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, ItemStart, Purpose, TextFormat,
    TokenLogprob, TopLogprob, TurnRequest, Usage,
};
use turnwire_protocol::item::ItemKind;
use turnwire_protocol::tool::{Tool, ToolChoice, ToolKind, ToolName};

use super::sample::sample;
use super::script::{Reply, Script, Speech, Step};
use super::seen::Seen;

/// What is said where no reply of the script applies.
const GREETING: &str = "Hello! This is the scripted engine of Turnwire.";

/// What a custom tool is called with where the script says nothing.
const INPUT: &str = "some input";

/// What a conversation comes to in such a case.
const SUMMARY: &str = "The scripted engine saw {items} items.";

/// One turn under way.
pub(super) struct Play {
    acts: VecDeque<Act>,
    open: Option<Saying>,
    progress: Progress,
    chunk_chars: usize,
    /// Alternatives to report for each token; none = no log probabilities at all.
    top_logprobs: Option<u8>,
    max_output_tokens: u64,
    finish: FinishReason,
    exact_usage: Option<Usage>,
    usage: Usage,
    /// The chain as it is with this turn's input, and with its output once that is made.
    seen: Seen,
    /// Asks to end soon.
    wrap_up: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Started,
    Ended,
}

/// A step with everything filled in that depends on the request.
enum Act {
    Say(Saying),
    Wait(Duration),
    Hang,
    Fail(EngineFailure),
}

struct Saying {
    item: ItemStart,
    kind: Speech,
    text: Arc<str>,
    /// Where in `text` the next delta begins.
    at: usize,
    /// How often `text` is still to be said.
    left: u64,
    delay: Option<Duration>,
}

impl Play {
    /// Fails where the turn cannot even start.
    pub(super) fn new(
        script: &Script,
        request: &TurnRequest,
        wrap_up: CancellationToken,
    ) -> Result<Self, EngineFailure> {
        let parent = request.parent.as_ref().map(Seen::of).unwrap_or_default();
        let mut seen = parent.clone();
        seen.add(&request.input);
        if request.purpose == Purpose::Count {
            return Ok(Self::silent(FinishReason::Stop, seen, wrap_up));
        }
        if request
            .compact_threshold
            .is_some_and(|at| seen.tokens >= at)
        {
            // It is left to be compacted.
            return Ok(Self::silent(FinishReason::ContextThreshold, seen, wrap_up));
        }
        if let Some(limit) = script.context_tokens.filter(|limit| seen.tokens > *limit) {
            return Err(EngineFailure {
                kind: EngineFailureKind::ContextLengthExceeded,
                message: format!(
                    "The prompt has {} tokens; the context of '{}' holds {limit}.",
                    seen.tokens, script.model
                ),
                param: Some("input".into()),
            });
        }
        let scene = Scene {
            request,
            seen: &seen,
            turn: request.parent.as_ref().map_or(0, |parent| parent.turns()) + 1,
        };
        let reply = script.replies.iter().find(|reply| scene.calls_for(reply));
        let acts = match reply {
            _ if !request.generate => VecDeque::new(),
            Some(reply) => reply
                .steps
                .iter()
                .map(|step| scene.act(step))
                .collect::<Result<_, _>>()?,
            None => VecDeque::from([scene.unscripted()?]),
        };
        Ok(Self {
            acts,
            open: None,
            progress: Progress::Waiting,
            chunk_chars: script.chunk_chars.get(),
            top_logprobs: request.logprobs.then_some(request.top_logprobs),
            max_output_tokens: request.max_output_tokens.map_or(u64::MAX, u64::from),
            finish: reply.map_or(FinishReason::Stop, |reply| reply.finish.into()),
            exact_usage: reply.and_then(|reply| reply.usage).map(Usage::from),
            usage: Usage {
                input_tokens: seen.tokens,
                cached_tokens: parent.tokens,
                ..Usage::default()
            },
            seen,
            wrap_up,
        })
    }

    /// Tells how long the prompt is, and no more.
    fn silent(finish: FinishReason, seen: Seen, wrap_up: CancellationToken) -> Self {
        Self {
            acts: VecDeque::new(),
            open: None,
            progress: Progress::Waiting,
            chunk_chars: 1,
            top_logprobs: None,
            max_output_tokens: 0,
            finish,
            exact_usage: None,
            usage: Usage {
                input_tokens: seen.tokens,
                ..Usage::default()
            },
            seen,
            wrap_up,
        }
    }

    pub(super) async fn next(&mut self) -> Option<EngineOutput> {
        if self.open.is_some() {
            return Some(self.go_on().await);
        }
        loop {
            match self.acts.front() {
                _ if self.progress == Progress::Ended => return None,
                Some(_) if self.progress == Progress::Started && self.wrap_up.is_cancelled() => {
                    return Some(self.end(FinishReason::WrappedUp));
                }
                Some(Act::Wait(delay)) => {
                    // Nothing is started after an interrupted pause, so it may as well be over.
                    pause(*delay, &self.wrap_up).await;
                    self.acts.pop_front();
                }
                Some(Act::Fail(failure)) => {
                    self.progress = Progress::Ended;
                    return Some(EngineOutput::Failed(failure.clone()));
                }
                _ if self.progress == Progress::Waiting => {
                    self.progress = Progress::Started;
                    return Some(EngineOutput::Started);
                }
                Some(Act::Hang) => self.wrap_up.cancelled().await,
                Some(Act::Say(_)) => {
                    let Some(Act::Say(saying)) = self.acts.pop_front() else {
                        continue;
                    };
                    self.seen.items += 1;
                    let item = saying.item.clone();
                    self.open = Some(saying);
                    return Some(EngineOutput::ItemStarted(item));
                }
                None => return Some(self.end(self.finish)),
            }
        }
    }

    /// The next output of the open item.
    async fn go_on(&mut self) -> EngineOutput {
        let saying = self.open.as_mut().expect("called while an item is open");
        if saying.at == saying.text.len() && saying.left > 1 {
            saying.at = 0;
            saying.left -= 1;
        }
        let rest = &saying.text[saying.at..];
        if rest.is_empty() || saying.left == 0 {
            // A reply that does not simply stop was cut, and leaves its last item open.
            if self.acts.is_empty() && self.finish != FinishReason::Stop {
                return self.end(self.finish);
            }
            self.open = None;
            return EngineOutput::ItemDone;
        }
        if self.usage.output_tokens == self.max_output_tokens {
            return self.end(FinishReason::MaxOutputTokens);
        }
        let is_call = matches!(
            saying.item,
            ItemStart::FunctionCall { .. } | ItemStart::CustomToolCall { .. }
        );
        match saying.delay {
            Some(delay) if is_call => tokio::time::sleep(delay).await,
            Some(delay) => pause(delay, &self.wrap_up).await,
            None => {}
        }
        if !is_call && self.wrap_up.is_cancelled() {
            self.acts.clear();
            self.finish = FinishReason::WrappedUp;
            self.open = None;
            return EngineOutput::ItemDone;
        }
        let mut ends = rest.char_indices().map(|(at, _)| at).skip(self.chunk_chars);
        let text = rest[..ends.next().unwrap_or(rest.len())].to_owned();
        saying.at += text.len();
        self.usage.output_tokens += 1;
        match (&saying.item, saying.kind) {
            (ItemStart::FunctionCall { .. }, _) => EngineOutput::ArgumentsDelta { text },
            (ItemStart::CustomToolCall { .. }, _) => EngineOutput::InputDelta { text },
            (_, Speech::Text) => {
                let logprobs = self.top_logprobs.map(|top| certain(&text, top));
                let logprobs = logprobs.into_iter().collect();
                EngineOutput::TextDelta { text, logprobs }
            }
            (_, Speech::Refusal) => EngineOutput::RefusalDelta { text },
            (_, Speech::Reasoning) => {
                self.usage.reasoning_tokens += 1;
                EngineOutput::ReasoningDelta { text }
            }
        }
    }

    fn end(&mut self, reason: FinishReason) -> EngineOutput {
        self.progress = Progress::Ended;
        self.open = None;
        let usage = self.exact_usage.unwrap_or(self.usage);
        self.seen.tokens = usage.input_tokens + usage.output_tokens;
        EngineOutput::Finished {
            reason,
            usage,
            state: Some(EngineState::new(Arc::new(self.seen.clone()))),
        }
    }
}

/// Sleeps, unless the turn is to be wrapped up.
async fn pause(delay: Duration, wrap_up: &CancellationToken) {
    wrap_up.run_until_cancelled(tokio::time::sleep(delay)).await;
}

/// What a reply is chosen by and filled in from.
struct Scene<'a> {
    request: &'a TurnRequest,
    seen: &'a Seen,
    /// Which response of its chain this is, counted from 1.
    turn: u64,
}

impl Scene<'_> {
    fn calls_for(&self, reply: &Reply) -> bool {
        let input = &self.request.input;
        let after_tool = input.iter().any(|item| {
            let kind = item.kind();
            kind == ItemKind::FunctionCallOutput || kind == ItemKind::CustomToolCallOutput
        });
        let has_tools = self.request.offered().next().is_some();
        let said = |text: &String| self.seen.last_user_text().contains(text.as_str());
        let summary = self.request.purpose == Purpose::Summary;
        reply.summary == summary
            && reply.user_contains.as_ref().is_none_or(said)
            && reply.turn.is_none_or(|turn| turn == self.turn)
            && reply.until_turn.is_none_or(|turn| self.turn <= turn)
            && reply.after_tool.is_none_or(|wanted| wanted == after_tool)
            && reply.has_tools.is_none_or(|wanted| wanted == has_tools)
    }

    fn act(&self, step: &Step) -> Result<Act, EngineFailure> {
        Ok(match step {
            Step::Say {
                kind,
                text,
                repeat,
                delay,
            } => Act::Say(Saying {
                left: *repeat,
                delay: *delay,
                ..say(*kind, self.filled_in(text))
            }),
            Step::Call {
                name,
                arguments,
                delay,
            } => {
                let tool = self.tool(name.as_deref())?;
                let text = arguments.clone().unwrap_or_else(|| made_up_text(tool));
                Act::Say(Saying {
                    delay: *delay,
                    ..call(tool, text)
                })
            }
            Step::Wait(delay) => Act::Wait(*delay),
            Step::Hang => Act::Hang,
            Step::Fail { kind, message } => Act::Fail(EngineFailure {
                kind: *kind,
                message: message.clone(),
                param: None,
            }),
        })
    }

    /// The answer where the script has none: what the request insists on, or a greeting.
    fn unscripted(&self) -> Result<Act, EngineFailure> {
        let must_call = match &self.request.tool_choice {
            ToolChoice::Required | ToolChoice::Tool(_) => true,
            ToolChoice::Allowed { required, .. } => *required,
            ToolChoice::Auto | ToolChoice::None => false,
        };
        if must_call {
            let tool = self.tool(None)?;
            return Ok(Act::Say(call(tool, made_up_text(tool))));
        }
        let text = match &self.request.format {
            _ if self.request.purpose == Purpose::Summary => self.filled_in(SUMMARY),
            TextFormat::Text => GREETING.into(),
            TextFormat::JsonObject => "{}".into(),
            TextFormat::JsonSchema { schema } => made_up(schema),
        };
        Ok(Act::Say(say(Speech::Text, text)))
    }

    /// The tool of this name, or the one that `tool_choice` asks for, or the first.
    fn tool(&self, name: Option<&str>) -> Result<&Tool, EngineFailure> {
        let chosen = match &self.request.tool_choice {
            ToolChoice::Tool(name) => Some(name),
            ToolChoice::Allowed { names, .. } => names.first(),
            ToolChoice::Auto | ToolChoice::None | ToolChoice::Required => None,
        };
        let chosen = chosen.map(ToolName::qualified);
        let name = name.or(chosen.as_deref());
        let mut tools = self.request.offered();
        let tool = match name {
            Some(name) => tools.find(|tool| *tool.name.qualified() == *name),
            None => tools.next(),
        };
        tool.ok_or_else(|| EngineFailure {
            kind: EngineFailureKind::Unsupported,
            message: match name {
                Some(name) => format!("The call of '{name}' needs a tool of that name."),
                None => "A call needs at least one tool.".into(),
            },
            param: Some("tools".into()),
        })
    }

    fn filled_in(&self, text: &str) -> String {
        let mut text = text
            .replace("{items}", &self.seen.items.to_string())
            .replace("{turn}", &self.turn.to_string());
        if text.contains("{instructions}") {
            let instructions = self.request.instructions.as_deref();
            text = text.replace("{instructions}", instructions.unwrap_or_default());
        }
        if text.contains("{user}") {
            text = text.replace("{user}", &self.seen.last_user_text());
        }
        text
    }
}

fn say(kind: Speech, text: String) -> Saying {
    let item = match kind {
        Speech::Text | Speech::Refusal => ItemStart::Message,
        Speech::Reasoning => ItemStart::Reasoning,
    };
    Saying {
        item,
        kind,
        text: text.into(),
        at: 0,
        left: 1,
        delay: None,
    }
}

/// A call of `tool` with these arguments, or this input.
fn call(tool: &Tool, text: String) -> Saying {
    let name = tool.name.clone();
    Saying {
        item: match tool.kind {
            ToolKind::Function { .. } => ItemStart::FunctionCall { tool: name },
            ToolKind::Custom(_) => ItemStart::CustomToolCall { tool: name },
        },
        ..say(Speech::Text, text)
    }
}

/// Arguments that the parameters of a function accept. What a custom tool accepts cannot be
/// derived from its grammar: its input is always the same few words.
fn made_up_text(tool: &Tool) -> String {
    match &tool.kind {
        ToolKind::Function { parameters, .. } => {
            parameters.as_deref().map_or_else(|| "{}".into(), made_up)
        }
        ToolKind::Custom(_) => INPUT.into(),
    }
}

/// JSON text that a schema accepts.
fn made_up(schema: &[u8]) -> String {
    let schema = serde_json::from_slice(schema).unwrap_or(Value::Bool(true));
    sample(&schema).to_string()
}

/// A token that could be no other.
fn certain(token: &str, top: u8) -> TokenLogprob {
    let only = TopLogprob {
        token: token.to_owned(),
        bytes: token.as_bytes().to_owned(),
        logprob: 0.0,
    };
    TokenLogprob {
        token: only.token.clone(),
        bytes: only.bytes.clone(),
        logprob: only.logprob,
        top: if top > 0 { vec![only] } else { Vec::new() },
    }
}
