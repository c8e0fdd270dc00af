//! Turn: one response being made, from its first prompt token to its last output token.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use llguidance::Matcher;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use turnwire_prompt::format::REASONING_END;
use turnwire_prompt::parser::{Inside, OutputParser};
use turnwire_prompt::{Before, Text};
use turnwire_protocol::chain::EngineState;
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, TokenLogprob, TopLogprob, Usage,
};

use crate::cache::{Grant, NodeId, Token, Want};
use crate::head::Head;
use crate::link_state::LinkState;
use crate::model::Model;
use crate::preparing::Slot;
use crate::sampler::{Sampler, log_probabilities};
use crate::scheduler::Command;
use crate::wrap_up::{LAST_TOKENS, Sentence};

/// A prepared request: rendered, tokenised, and known to fit the context.
pub(crate) struct Job {
    /// Names the engine, for the state its link gets.
    pub(crate) engine: u64,
    pub(crate) node: NodeId,
    pub(crate) head: Arc<Head>,
    pub(crate) parent: Option<Arc<LinkState>>,
    /// Ids of the new part of the prompt.
    pub(crate) delta: Vec<Token>,
    /// How many of them stay if the turn ends before the model has said anything: all but the
    /// opening of a call that it was made to begin with.
    pub(crate) quiet: usize,
    /// Whether the first message of it is a user's.
    pub(crate) begins_with_user: bool,
    /// None for a warm-up.
    pub(crate) generation: Option<Generation>,
    pub(crate) output: mpsc::Sender<EngineOutput>,
    /// Asks for an early end, because the user has something to say.
    pub(crate) wrap_up: CancellationToken,
    /// Given back when the turn ends.
    pub(crate) slot: Option<Slot>,
    pub(crate) release: Sender<Command>,
}

/// How to choose and read the tokens that the model makes.
pub(crate) struct Generation {
    pub(crate) sampler: Sampler,
    pub(crate) matcher: Option<Matcher>,
    pub(crate) parser: OutputParser,
    /// Whether messages are sentences, which can be complete before the model ends them.
    pub(crate) prose: bool,
    /// The client's `max_output_tokens`, or what the context leaves.
    pub(crate) max_output: u32,
    pub(crate) logprobs: bool,
    pub(crate) top_logprobs: usize,
    /// For benchmarks of a fixed length: an end-of-turn token does not end the output.
    pub(crate) ignore_end: bool,
}

pub(crate) struct Turn {
    job: Job,
    /// Where it writes; none while it waits for room.
    pub(crate) grant: Option<Grant>,
    /// Ids after the parent's: the delta, then what was generated.
    own: Vec<Token>,
    /// Tokens not yet in cells, in order.
    pending: VecDeque<Token>,
    /// Tokens of the whole prompt.
    input_tokens: u32,
    /// Of the prompt, when it was first admitted.
    cached: Option<u32>,
    output_tokens: u32,
    reasoning_tokens: u32,
    sentence: Sentence,
    /// Tokens of an open message that were made since the turn was to wrap up.
    last_tokens: u32,
    /// Output the channel had no room for. While there is any, the turn pauses.
    outbox: VecDeque<EngineOutput>,
    /// Reused from token to token.
    bytes: Vec<u8>,
}

/// What became of a turn after a step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Goes,
    Ends(FinishReason),
}

/// Cells asked for at a time when a turn has no `max_output_tokens`: its promise grows with it.
const OUTPUT_RESERVE: u32 = 256;

impl Turn {
    pub(crate) fn new(mut job: Job) -> Self {
        let own = std::mem::take(&mut job.delta);
        let mut turn = Self {
            job,
            grant: None,
            own,
            pending: VecDeque::new(),
            input_tokens: 0,
            cached: None,
            output_tokens: 0,
            reasoning_tokens: 0,
            sentence: Sentence::default(),
            last_tokens: 0,
            outbox: VecDeque::new(),
            bytes: Vec::new(),
        };
        turn.input_tokens = turn.len();
        turn
    }

    pub(crate) fn node(&self) -> NodeId {
        self.job.node
    }

    pub(crate) fn parent(&self) -> Option<NodeId> {
        self.job.parent.as_ref().map(|parent| parent.node)
    }

    /// Tokens before its own: the head and the parents' segments.
    fn base(&self) -> u32 {
        self.job.head.ids.len() as u32 + self.job.parent.as_ref().map_or(0, |parent| parent.total)
    }

    /// Tokens of everything up to now.
    pub(crate) fn len(&self) -> u32 {
        self.base() + self.own.len() as u32
    }

    /// All ids up to now. Costs the length of the chain.
    pub(crate) fn ids(&self) -> Vec<Token> {
        let mut ids = self.job.head.ids.clone();
        if let Some(parent) = &self.job.parent {
            ids.extend(parent.gather());
        }
        ids.extend_from_slice(&self.own);
        ids
    }

    /// What to ask the cache for. `ids` must be a closure over [`Turn::ids`].
    pub(crate) fn want<'a>(&self, ids: &'a dyn Fn() -> Vec<Token>) -> Want<'a> {
        let parked = self.cached.is_some();
        let output = match &self.job.generation {
            Some(generation) => (generation.max_output - self.output_tokens).min(OUTPUT_RESERVE),
            None => 0,
        };
        Want {
            // A turn that was moved out in the middle left a mark under its own name.
            parent: if parked {
                Some(self.job.node)
            } else {
                self.parent()
            },
            head: self.job.head.key,
            prompt_len: self.len(),
            cacheable: self.len() - u32::from(self.job.generation.is_some() && self.len() > 0),
            output,
            prompt: ids,
        }
    }

    /// It has room, and `grant.cached` tokens are there already.
    pub(crate) fn admit(&mut self, grant: Grant) {
        let base = self.base();
        let parents = self.job.parent.as_ref();
        self.pending = if grant.cached >= base {
            self.own[(grant.cached - base) as usize..]
                .iter()
                .copied()
                .collect()
        } else if let Some(parents) = parents.filter(|p| base - grant.cached <= p.total) {
            // The usual turn: the parent's last token was sampled but never fed.
            let mut pending = parents.tail(base - grant.cached);
            pending.extend_from_slice(&self.own);
            pending.into()
        } else {
            self.ids()[grant.cached as usize..]
                .iter()
                .copied()
                .collect()
        };
        self.cached.get_or_insert(grant.cached);
        self.grant = Some(grant);
    }

    /// It lost its room and has to ask again.
    pub(crate) fn park(&mut self) {
        self.grant = None;
        self.pending.clear();
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether it has its prompt in cells and makes one token per step.
    pub(crate) fn decodes(&self) -> bool {
        self.output_tokens > 0 && self.pending.len() == 1
    }

    pub(crate) fn generates(&self) -> bool {
        self.job.generation.is_some()
    }

    /// The first `count` tokens not yet in cells, taken off.
    pub(crate) fn take(&mut self, count: usize) -> impl ExactSizeIterator<Item = Token> {
        self.pending.drain(..count)
    }

    /// How many more cells to ask for when the promised ones are used up.
    pub(crate) fn growth(&self) -> u32 {
        let left = self
            .job
            .generation
            .as_ref()
            .map_or(0, |generation| generation.max_output - self.output_tokens);
        left.clamp(1, OUTPUT_RESERVE)
    }

    /// Chooses the next token from `logits` and hands on what it says.
    pub(crate) fn sample(
        &mut self,
        model: &Model,
        logits: &[f32],
    ) -> Result<Progress, EngineFailure> {
        let Some(generation) = &mut self.job.generation else {
            return Ok(Progress::Ends(FinishReason::Stop));
        };
        let allowed = match &mut generation.matcher {
            Some(matcher) => Some(matcher.compute_mask_or_eos().map_err(|_| broken())?),
            None => None,
        };
        let Some(token) = generation.sampler.sample(logits, allowed.as_ref()) else {
            return Err(broken());
        };
        let ends = model.ends_generation(token) && !generation.ignore_end;
        model.piece(token, &mut self.bytes);
        if self.job.wrap_up.is_cancelled() && generation.parser.inside() == Inside::Message {
            if !ends && generation.prose && self.sentence.ends_before(&self.bytes) {
                // It would begin another sentence.
                return Ok(Progress::Ends(FinishReason::WrappedUp));
            }
            self.last_tokens += 1;
        }
        self.own.push(token);
        self.pending.push_back(token);
        self.output_tokens += 1;
        let mut out = Vec::new();
        let mut done = ends;
        if !ends {
            if let Some(matcher) = &mut generation.matcher {
                matcher.consume_token(token as u32).map_err(|_| broken())?;
                // Nothing may follow: the end-of-turn token need not be decoded to know it.
                done = matcher.is_stopped();
            }
            let logprob = generation.logprobs.then(|| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let (logprob, top) = log_probabilities(logits, token, generation.top_logprobs);
                let top = top.into_iter().map(|(token, logprob)| {
                    let mut bytes = Vec::new();
                    model.piece(token, &mut bytes);
                    TopLogprob {
                        token: text(&bytes),
                        bytes,
                        logprob,
                    }
                });
                TokenLogprob {
                    token: text(&self.bytes),
                    bytes: self.bytes.clone(),
                    logprob,
                    top: top.collect(),
                }
            });
            generation.parser.push(&self.bytes, logprob, &mut out);
            self.sentence.read(&self.bytes);
            self.reasoning_tokens += u32::from(generation.parser.in_reasoning());
        }
        let cut = self.output_tokens >= generation.max_output;
        if done || cut {
            generation.parser.finish(done, &mut out);
        }
        for output in out {
            self.send(output);
        }
        Ok(match (done, cut) {
            (true, _) => Progress::Ends(FinishReason::Stop),
            (false, true) => Progress::Ends(FinishReason::MaxOutputTokens),
            (false, false) => Progress::Goes,
        })
    }

    /// Whether the turn was asked to wrap up, and can at this point: it has said nothing yet, or
    /// is between two items, or at the end of a sentence, or has gone on for long enough.
    pub(crate) fn may_wrap_up(&self) -> bool {
        self.job.wrap_up.is_cancelled()
            && self.job.generation.as_ref().is_some_and(|generation| {
                match generation.parser.inside() {
                    Inside::Nothing | Inside::Reasoning => true,
                    Inside::Message => {
                        (generation.prose && self.sentence.ended())
                            || self.last_tokens >= LAST_TOKENS
                    }
                    Inside::Call => false,
                }
            })
    }

    /// Ends the output where it is, so that another message can follow: closes the open item if
    /// it can be said to be complete, and takes back what was made but belongs to no item.
    pub(crate) fn wrap_up(&mut self, model: &Model) {
        let Some(generation) = &mut self.job.generation else {
            return;
        };
        let mut out = Vec::new();
        let mut held = 0;
        match generation.parser.inside() {
            Inside::Reasoning => {
                let end = Text {
                    pieces: vec![REASONING_END.to_owned()],
                };
                let ids = model.tokenize(&end);
                let more = ids.len() as u32;
                if self.output_tokens + more <= generation.max_output {
                    generation
                        .parser
                        .push(REASONING_END.as_bytes(), None, &mut out);
                    self.own.extend(ids);
                    self.output_tokens += more;
                    self.reasoning_tokens += more;
                } else {
                    generation.parser.finish(false, &mut out);
                }
            }
            Inside::Message
                if generation.prose
                    && (self.sentence.ended() || self.last_tokens < LAST_TOKENS) =>
            {
                held = generation.parser.stop(&mut out);
            }
            Inside::Message | Inside::Call => generation.parser.finish(false, &mut out),
            Inside::Nothing => held = generation.parser.stop(&mut out),
        }
        self.take_back(held, model);
        for output in out {
            self.send(output);
        }
    }

    /// Drops generated tokens from the end that consist of the last `bytes` of the output.
    fn take_back(&mut self, mut bytes: usize, model: &Model) {
        let prompt = (self.input_tokens - self.base()) as usize;
        while self.own.len() > prompt
            && let Some(&last) = self.own.last()
        {
            model.piece(last, &mut self.bytes);
            if self.bytes.len() > bytes {
                break;
            }
            bytes -= self.bytes.len();
            self.own.pop();
        }
        if self.own.len() == prompt {
            self.own.truncate(self.job.quiet);
        }
    }

    /// The last word: what it cost, and the state that its link is to keep.
    pub(crate) fn finish(&mut self, reason: FinishReason, model: &Model) {
        let total =
            self.job.parent.as_ref().map_or(0, |parent| parent.total) + self.own.len() as u32;
        let before = match self.own.last() {
            _ if self.job.generation.is_none() => Before::Closed,
            Some(&last) if model.ends_generation(last) => Before::Ended,
            _ => Before::Open,
        };
        let usage = Usage {
            input_tokens: u64::from(self.input_tokens),
            cached_tokens: u64::from(self.cached.unwrap_or(0)),
            output_tokens: u64::from(self.output_tokens),
            reasoning_tokens: u64::from(self.reasoning_tokens),
        };
        let state = LinkState {
            base: self.job.parent.clone(),
            ids: std::mem::take(&mut self.own).into(),
            total,
            before,
            begins_with_user: self.job.begins_with_user,
            engine: self.job.engine,
            node: self.job.node,
            release: self.job.release.clone(),
        };
        let state = Some(EngineState::new(Arc::new(state)));
        self.send(EngineOutput::Finished {
            reason,
            usage,
            state,
        });
    }

    /// Marks to leave on its branch, which holds `len` tokens: its own end, and its parent's if
    /// the branch is the first to have that behind this head.
    pub(crate) fn marks(&self, len: u32) -> Vec<(NodeId, u32)> {
        let base = self.base();
        // Fewer than that are its own if some were taken back.
        let len = len.min(self.len());
        let parent = self
            .job
            .parent
            .as_ref()
            .filter(|_| base <= len && self.cached.is_some_and(|cached| cached + 1 < base));
        parent
            .map(|parent| (parent.node, base))
            .into_iter()
            .chain([(self.job.node, len)])
            .collect()
    }

    /// It has ended, even if its last words were not taken yet.
    pub(crate) fn give_back_slot(&mut self) {
        self.job.slot = None;
    }

    pub(crate) fn fail(&mut self, failure: EngineFailure) {
        self.send(EngineOutput::Failed(failure));
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.job.output.is_closed()
    }

    /// Sends what is left over. True: nothing is, and the turn may go on.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some(output) = self.outbox.pop_front() {
            if let Err(TrySendError::Full(output)) = self.job.output.try_send(output) {
                self.outbox.push_front(output);
                return false;
            }
        }
        true
    }

    /// Bounded by what one token can say, since a turn with a full outbox is not sampled.
    fn send(&mut self, output: EngineOutput) {
        self.outbox.push_back(output);
        self.flush();
    }
}

/// The grammar and the model part ways: nothing the model may say is left.
fn broken() -> EngineFailure {
    EngineFailure {
        kind: EngineFailureKind::Internal,
        message: "The model could not produce output of the requested form.".to_owned(),
        param: None,
    }
}
