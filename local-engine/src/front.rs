//! Front: from a request to a job for the engine thread.
//!
//! Rendering, tokenising and compiling a grammar happen here, beside the engine thread, so that
//! one client's long prompt delays no other client's next token.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use llguidance::Matcher;
use tokio::sync::mpsc;
use turnwire_prompt::format::begins_with_user;
use turnwire_prompt::grammar::Grammar;
use turnwire_prompt::{Before, Plan};
use turnwire_protocol::chain::{Chain, EngineState};
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, Purpose, TextFormat, TurnRequest,
    Usage,
};
use turnwire_protocol::item::Item;

use crate::cache::{NodeId, Token};
use crate::engine::Options;
use crate::grammars::Grammars;
use crate::head::{Head, Heads};
use crate::link_state::LinkState;
use crate::model::Model;
use crate::preparing::{Accepted, Preparing};
use crate::sampler::Sampler;
use crate::scheduler::{Command, Counters};
use crate::truncation;
use crate::turn::{Generation, Job};

/// What preparing a request needs. Shared with the threads that prepare long ones.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) id: u64,
    pub(crate) model: Model,
    pub(crate) name: String,
    pub(crate) options: Options,
    pub(crate) heads: Mutex<Heads>,
    pub(crate) grammars: Mutex<Grammars>,
    pub(crate) commands: Sender<Command>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) preparing: Preparing,
    pub(crate) next_node: AtomicU64,
    pub(crate) seeds: Mutex<fastrand::Rng>,
}

/// What became of a request.
enum Prepared {
    Job(Box<Job>),
    /// Its prompt has so many tokens, and more was not to be found out, or needs not be, because
    /// it is as long as the request says it must not be.
    Counted {
        reason: FinishReason,
        input_tokens: u64,
    },
}

impl Front {
    pub(crate) fn submit(&self, turn: Accepted) {
        let output = turn.output.clone();
        // Grammars are compiled from what clients send, by code that is not ours.
        let prepared = catch_unwind(AssertUnwindSafe(|| self.prepare(turn)));
        match prepared {
            Ok(Ok(Prepared::Job(job))) => {
                // Room for the first word is certain: the channel is new.
                let _ = output.try_send(EngineOutput::Started);
                if self.commands.send(Command::Run(job)).is_err() {
                    refuse(&output, stopped());
                }
            }
            Ok(Ok(Prepared::Counted {
                reason,
                input_tokens,
            })) => {
                let _ = output.try_send(EngineOutput::Started);
                let _ = output.try_send(EngineOutput::Finished {
                    reason,
                    usage: Usage {
                        input_tokens,
                        ..Usage::default()
                    },
                    state: None,
                });
            }
            Ok(Err(failure)) => refuse(&output, failure),
            Err(_) => {
                tracing::error!("preparing a turn panicked");
                refuse(&output, broke());
            }
        }
    }

    fn prepare(&self, turn: Accepted) -> Result<Prepared, EngineFailure> {
        let request = &turn.request;
        let head = self.head(request)?;
        let mut parent = request
            .parent
            .as_ref()
            .map(|chain| self.ids_of(chain))
            .transpose()?;
        let plan = match request.generate {
            true => Some(self.model.format.plan(request)?),
            false => None,
        };
        let opening = plan.as_ref().map(|plan| plan.opening.as_str());
        let mut delta = self.delta(request, parent.as_deref(), opening)?;
        let length = |parent: Option<&LinkState>, delta: &[Token]| {
            head.ids.len() + parent.map_or(0, |parent| parent.total as usize) + delta.len()
        };
        let mut prompt = length(parent.as_deref(), &delta);
        let threshold = request.compact_threshold;
        let is_counted = request.purpose == Purpose::Count;
        if is_counted || threshold.is_some_and(|threshold| prompt as u64 >= threshold) {
            return Ok(Prepared::Counted {
                reason: match is_counted {
                    true => FinishReason::Stop,
                    false => FinishReason::ContextThreshold,
                },
                input_tokens: prompt as u64,
            });
        }
        if prompt == 0 && request.generate {
            return Err(EngineFailure {
                kind: EngineFailureKind::Invalid,
                message: "There is nothing to answer: the prompt is empty. Add a message to \
                          'input', or 'instructions'."
                    .to_owned(),
                param: Some("input".to_owned()),
            });
        }
        let context = self.model.context as usize;
        if prompt >= context
            && request.truncate
            && let Some(long) = &parent
        {
            parent = self.truncated(request, long, prompt - long.total as usize)?;
            delta = self.delta(request, parent.as_deref(), opening)?;
            prompt = length(parent.as_deref(), &delta);
        }
        // One cell at least must be left for output, or for the token after a warm-up.
        if prompt >= context {
            return Err(EngineFailure {
                kind: EngineFailureKind::ContextLengthExceeded,
                message: format!(
                    "This model's maximum context length is {context} tokens. However, your input \
                     resulted in {prompt} tokens. Please reduce the length of the input."
                ),
                param: Some("input".to_owned()),
            });
        }
        let room = (context - prompt) as u32;
        let quiet = match opening {
            Some(opening) if !opening.is_empty() => {
                let unopened = self.delta(request, parent.as_deref(), Some(""))?;
                let same = delta.iter().zip(&unopened).take_while(|(a, b)| a == b);
                same.count()
            }
            _ => delta.len(),
        };
        let generation = plan
            .map(|plan| self.generation(request, plan, room))
            .transpose()?;
        Ok(Prepared::Job(Box::new(Job {
            engine: self.id,
            node: self.new_node(),
            head,
            parent,
            delta,
            quiet,
            begins_with_user: begins_with_user(&request.input),
            generation,
            output: turn.output,
            wrap_up: turn.wrap_up,
            slot: Some(turn.slot),
            release: self.commands.clone(),
        })))
    }

    /// The ids that the turn appends behind `parent`: its new items, and the opening of the
    /// model's message if there is to be one.
    fn delta(
        &self,
        request: &TurnRequest,
        parent: Option<&LinkState>,
        opening: Option<&str>,
    ) -> Result<Vec<Token>, EngineFailure> {
        let before = parent.map_or(Before::Closed, |parent| parent.before);
        let items: Vec<&Item> = request.input.iter().collect();
        let text = self.model.format.segment(before, &items, opening)?;
        Ok(self.model.tokenize(&text))
    }

    /// What stays of a chain that does not fit, `rest` being the tokens of the prompt without it.
    /// None: nothing of it.
    fn truncated(
        &self,
        request: &TurnRequest,
        long: &Arc<LinkState>,
        rest: usize,
    ) -> Result<Option<Arc<LinkState>>, EngineFailure> {
        let context = self.model.context as usize;
        let wanted = (context - context / 4).saturating_sub(rest) as u32;
        let most = context.saturating_sub(rest + 1) as u32;
        let Some(links) = truncation::newest(long, wanted, most) else {
            // An output without its call would be worse than a failure.
            let alone = begins_with_user(&request.input);
            return Ok((!alone).then(|| Arc::clone(long)));
        };
        let left_out = links.last().and_then(|oldest| oldest.base.as_ref());
        let before = left_out.map_or(Before::Closed, |left_out| left_out.before);
        let closing = self.model.format.segment(before, &[], None)?;
        let closing = self.model.tokenize(&closing);
        Ok(truncation::relink(&links, &closing, || self.new_node()))
    }

    fn new_node(&self) -> NodeId {
        NodeId(self.next_node.fetch_add(1, Ordering::Relaxed))
    }

    fn generation(
        &self,
        request: &TurnRequest,
        plan: Plan,
        room: u32,
    ) -> Result<Generation, EngineFailure> {
        let matcher = plan
            .grammar
            .map(|grammar| self.matcher(request, grammar))
            .transpose()?;
        let rng = self
            .seeds
            .lock()
            .expect("no panic while drawing a seed")
            .fork();
        Ok(Generation {
            sampler: Sampler::new(request, rng),
            matcher,
            parser: plan.parser,
            prose: matches!(request.format, TextFormat::Text),
            max_output: request.max_output_tokens.unwrap_or(room).clamp(1, room),
            logprobs: request.logprobs,
            top_logprobs: usize::from(request.top_logprobs),
            ignore_end: self.options.ignore_end,
        })
    }

    fn matcher(&self, request: &TurnRequest, grammar: Grammar) -> Result<Matcher, EngineFailure> {
        let grammars = || {
            self.grammars
                .lock()
                .expect("no panic while grammars are looked up")
        };
        if let Some(matcher) = grammars().get(&grammar) {
            return Ok(matcher);
        }
        self.counters
            .compiled_grammars
            .fetch_add(1, Ordering::Relaxed);
        let model = &self.model;
        let matcher = model.matcher(&grammar).map_err(|_| {
            // Compiles parts of it to name the field at fault.
            model
                .format
                .blame(request, |grammar| model.matcher(grammar).map(drop))
        })?;
        grammars().insert(grammar, &matcher);
        Ok(matcher)
    }

    pub(crate) fn head(&self, request: &TurnRequest) -> Result<Arc<Head>, EngineFailure> {
        let (instructions, tools) = (request.instructions.as_ref(), &request.tools.raw);
        let heads = || {
            self.heads
                .lock()
                .expect("no panic while heads are looked up")
        };
        if let Some(head) = heads().get(instructions, tools) {
            return Ok(head);
        }
        let text = self
            .model
            .format
            .head(request.instructions.as_deref(), &request.tools)?;
        let ids = self.model.tokenize(&text);
        Ok(heads().insert(instructions, tools, ids))
    }

    /// The state of a chain's last link, if this engine made it.
    fn state_of(&self, chain: &Chain) -> Option<Arc<LinkState>> {
        self.own(chain.engine_state()?)
    }

    pub(crate) fn own(&self, state: &EngineState) -> Option<Arc<LinkState>> {
        let state: Arc<LinkState> = state.downcast()?;
        (state.engine == self.id).then_some(state)
    }

    /// The ids of a chain. Those of links that have none are rendered once and recorded.
    fn ids_of(&self, chain: &Chain) -> Result<Arc<LinkState>, EngineFailure> {
        if let Some(state) = self.state_of(chain) {
            return Ok(state);
        }
        let mut unknown = Vec::new();
        let mut base = None;
        for link in chain.ancestry() {
            base = self.state_of(link);
            if base.is_some() {
                break;
            }
            unknown.push(link);
        }
        let items: Vec<&Item> = unknown
            .iter()
            .rev()
            .flat_map(|link| link.input().iter().chain(link.output().iter()))
            .collect();
        let before = base.as_ref().map_or(Before::Closed, |base| base.before);
        let ids: Vec<Token> = self
            .model
            .tokenize(&self.model.format.segment(before, &items, None)?);
        let state = Arc::new(LinkState {
            engine: self.id,
            total: base.as_ref().map_or(0, |base| base.total) + ids.len() as u32,
            base,
            ids: ids.into(),
            before: Before::Closed,
            begins_with_user: unknown
                .last()
                .is_some_and(|link| begins_with_user(link.input())),
            node: self.new_node(),
            release: self.commands.clone(),
        });
        chain.set_engine_state(EngineState::new(state.clone()));
        // Another turn may have been faster; then its ids are the ones that count.
        Ok(self.state_of(chain).unwrap_or(state))
    }
}

/// Ends a turn that has not started. Room is certain: the channel is new.
pub(crate) fn refuse(output: &mpsc::Sender<EngineOutput>, failure: EngineFailure) {
    let _ = output.try_send(EngineOutput::Failed(failure));
}

pub(crate) fn overloaded() -> EngineFailure {
    EngineFailure {
        kind: EngineFailureKind::Overloaded,
        message: "The server is overloaded. Please try again later.".to_owned(),
        param: None,
    }
}

fn broke() -> EngineFailure {
    EngineFailure {
        kind: EngineFailureKind::Internal,
        message: "The server failed to prepare this request.".to_owned(),
        param: None,
    }
}

fn stopped() -> EngineFailure {
    EngineFailure {
        kind: EngineFailureKind::Internal,
        message: "The engine of this model has stopped.".to_owned(),
        param: None,
    }
}
