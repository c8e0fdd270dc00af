//! Talk: one turn of a chat upstream, from the request to the last word.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use reqwest::Response;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use turnwire_client::sse::{Decoder, Message};
use turnwire_protocol::chain::{Chain, EngineState};
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, TurnRequest, Usage,
};
use turnwire_protocol::item::Item;

use super::assembler::{Assembler, Boundary};
use super::request;
use super::upstream::{LimitMember, Upstream, cause, failure};

/// Bytes of one chunk of an answer.
const CHUNK_BYTES: usize = 16 << 20;

/// How long a message may go on to the end of its sentence once it is to be wrapped up.
const LAST_SENTENCE: Duration = Duration::from_secs(2);

/// Bytes that are taken for a token where nobody has counted.
const BYTES_PER_TOKEN: u64 = 4;

/// What this engine leaves on a response.
struct Counted {
    /// Tokens of the chain up to and with it.
    tokens: u64,
}

/// Starts one turn.
pub(super) fn start(
    upstream: Arc<Upstream>,
    model: &Arc<str>,
    turn: &TurnRequest,
    wrap_up: CancellationToken,
) -> BoxStream<'static, EngineOutput> {
    let input_tokens = known_tokens(turn.parent.as_ref()) + estimate(&turn.input);
    if turn.compact_threshold.is_some_and(|at| input_tokens >= at) {
        let usage = Usage {
            input_tokens,
            ..Usage::default()
        };
        let finished = EngineOutput::Finished {
            reason: FinishReason::ContextThreshold,
            usage,
            state: None,
        };
        return stream::iter([EngineOutput::Started, finished]).boxed();
    }
    let talk = Talk {
        upstream,
        wrap_up,
        is_silent: !turn.wants_output(),
        estimated_input: input_tokens,
        stage: Stage::Asking(Arc::new(Asking {
            model: Arc::clone(model),
            turn: turn.clone(),
        })),
        assembler: Assembler::new(turn.offered()),
        ready: VecDeque::new(),
        last_sentence: None,
    };
    stream::unfold(talk, async |mut talk| Some((talk.next().await?, talk))).boxed()
}

struct Talk {
    upstream: Arc<Upstream>,
    wrap_up: CancellationToken,
    /// For a warm-up, and to have the prompt's tokens counted, which upstreams do only where they
    /// answer: what the upstream says is dropped.
    is_silent: bool,
    estimated_input: u64,
    stage: Stage,
    assembler: Assembler,
    ready: VecDeque<EngineOutput>,
    /// When a message that is to be wrapped up is cut, if its sentence has no end.
    last_sentence: Option<Instant>,
}

enum Stage {
    Asking(Arc<Asking>),
    Reading(Box<Reading>),
    Ended,
}

struct Asking {
    model: Arc<str>,
    turn: TurnRequest,
}

struct Reading {
    response: Response,
    decoder: Decoder,
}

/// The body of a request.
struct Body {
    json: Vec<u8>,
    /// It has a limit on output.
    is_limited: bool,
}

/// What comes next of an answer.
enum Step {
    Message(Message),
    /// The upstream is done.
    End,
    WrapUp,
    /// The last sentence took too long.
    Late,
}

impl Talk {
    async fn next(&mut self) -> Option<EngineOutput> {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return Some(output);
            }
            let went = match &self.stage {
                Stage::Ended => return None,
                Stage::Asking(_) => self.ask().await,
                Stage::Reading(_) => self.read().await,
            };
            if let Err(failure) = went {
                self.stage = Stage::Ended;
                self.ready.push_back(EngineOutput::Failed(failure));
            }
        }
    }

    async fn ask(&mut self) -> Result<(), EngineFailure> {
        let Stage::Asking(asking) = std::mem::replace(&mut self.stage, Stage::Ended) else {
            return Ok(());
        };
        let mut limit = self.upstream.limit_member();
        let response = loop {
            let Some(body) = asking.body(limit).await? else {
                // Nothing to compute yet.
                break None;
            };
            match self.upstream.complete(body.json).await {
                Ok(response) => {
                    self.upstream.remember_limit(limit);
                    break Some(response);
                }
                Err(refusal) => match limit.after(&refusal).filter(|_| body.is_limited) {
                    Some(other) => limit = other,
                    None => return Err(refusal),
                },
            }
        };
        self.ready.push_back(EngineOutput::Started);
        match response {
            Some(response) => {
                self.stage = Stage::Reading(Box::new(Reading {
                    response,
                    decoder: Decoder::new(CHUNK_BYTES),
                }));
            }
            None => self.end(FinishReason::Stop),
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), EngineFailure> {
        let Stage::Reading(reading) = &mut self.stage else {
            return Ok(());
        };
        let late = self.last_sentence;
        let step = tokio::select! {
            biased;
            () = self.wrap_up.cancelled(), if late.is_none() => Step::WrapUp,
            () = sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => Step::Late,
            step = reading.next() => step?,
        };
        match step {
            Step::Message(message) if &*message.data == b"[DONE]" => self.finish(),
            Step::End => self.finish(),
            Step::Message(message) => {
                let from = self.ready.len();
                self.assembler.take(&message.data, &mut self.ready)?;
                if self.is_silent {
                    self.ready.clear();
                } else if late.is_some() {
                    self.wrap_up_at_boundary(from);
                }
                Ok(())
            }
            Step::WrapUp => {
                self.last_sentence = Some(Instant::now() + LAST_SENTENCE);
                let from = self.ready.len();
                self.wrap_up_at_boundary(from);
                Ok(())
            }
            Step::Late => {
                // A call is completed however long it takes; half of one helps nobody.
                if self.assembler.boundary() == Boundary::Call {
                    self.last_sentence = Some(Instant::now() + LAST_SENTENCE);
                } else {
                    self.assembler.wrap_up(false, &mut self.ready);
                    self.end(FinishReason::WrappedUp);
                }
                Ok(())
            }
        }
    }

    /// Ends the turn if what was added to `ready` since `from` came to a good end.
    fn wrap_up_at_boundary(&mut self, from: usize) {
        let whole = match self.assembler.boundary() {
            Boundary::Here => true,
            Boundary::Call => false,
            Boundary::Sentence => self.ready.range(from..).any(|output| match output {
                EngineOutput::TextDelta { text, .. } => ends_sentence(text),
                _ => false,
            }),
        };
        if whole {
            self.assembler.wrap_up(true, &mut self.ready);
            self.end(FinishReason::WrappedUp);
        }
    }

    fn finish(&mut self) -> Result<(), EngineFailure> {
        let reason = self.assembler.finish(&mut self.ready)?;
        if self.is_silent {
            self.ready.clear();
            self.end(FinishReason::Stop);
        } else {
            self.end(reason);
        }
        Ok(())
    }

    /// The last word. Dropping the answer ends the upstream's request, if it still runs.
    fn end(&mut self, reason: FinishReason) {
        self.stage = Stage::Ended;
        let mut usage = self.assembler.usage().unwrap_or(Usage {
            input_tokens: self.estimated_input,
            output_tokens: self.assembler.pieces,
            ..Usage::default()
        });
        if self.is_silent {
            usage.output_tokens = 0;
            usage.reasoning_tokens = 0;
        }
        let tokens = usage.input_tokens + usage.output_tokens;
        self.ready.push_back(EngineOutput::Finished {
            reason,
            usage,
            state: Some(EngineState::new(Arc::new(Counted { tokens }))),
        });
    }
}

impl Asking {
    /// None for a prompt without anything in it that is not to be answered.
    ///
    /// Made on a thread of its own: it is the whole conversation, which may have many megabytes.
    async fn body(self: &Arc<Self>, limit: LimitMember) -> Result<Option<Body>, EngineFailure> {
        let asking = Arc::clone(self);
        let make = move || {
            let Self { model, turn } = &*asking;
            let body = request::body(model, turn, limit.name())?;
            if !turn.wants_output() && body["messages"].as_array().is_some_and(Vec::is_empty) {
                return Ok(None);
            }
            Ok(Some(Body {
                is_limited: body.get(limit.name()).is_some(),
                json: body.to_string().into_bytes(),
            }))
        };
        let made = tokio::task::spawn_blocking(make).await;
        made.unwrap_or_else(|_| {
            let message = "The request for the model's server could not be made.";
            Err(failure(EngineFailureKind::Internal, message))
        })
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Step, EngineFailure> {
        loop {
            if let Some(message) = self.decoder.poll_message() {
                return Ok(Step::Message(message));
            }
            let piece = self.response.chunk().await.map_err(|error| {
                tracing::warn!(error = cause(error), "the upstream's answer broke off");
                lost()
            })?;
            let Some(piece) = piece else {
                return Ok(Step::End);
            };
            self.decoder.feed(&piece).map_err(|_| lost())?;
        }
    }
}

fn lost() -> EngineFailure {
    let message = "The connection to the model's server was lost in the middle of the answer.";
    failure(EngineFailureKind::Internal, message)
}

/// Whether a piece of text holds the end of a sentence.
fn ends_sentence(text: &str) -> bool {
    let trimmed = text.trim_end();
    text.contains('\n') || trimmed.ends_with(['.', '!', '?', '。', '！', '？'])
}

/// Tokens of a chain: as counted with the latest response that was, and estimated from there.
fn known_tokens(parent: Option<&Chain>) -> u64 {
    let mut tokens = 0;
    for link in parent.into_iter().flat_map(Chain::ancestry) {
        let counted = link
            .engine_state()
            .and_then(EngineState::downcast::<Counted>);
        if let Some(counted) = counted {
            return tokens + counted.tokens;
        }
        tokens += estimate(link.input()) + estimate(link.output());
    }
    tokens
}

fn estimate(items: &[Item]) -> u64 {
    let bytes: usize = items.iter().map(|item| item.raw().len()).sum();
    bytes as u64 / BYTES_PER_TOKEN
}
