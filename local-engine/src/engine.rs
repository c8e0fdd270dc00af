//! LocalEngine: the front of the engine, used from any thread.
//!
//! Rendering, tokenising and compiling a grammar happen on the caller's side of the engine
//! thread, so that one client's long prompt delays no other client's next token.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use turnwire_prompt::{Before, Plan};
use turnwire_protocol::chain::{Chain, EngineState};
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, TextFormat, TurnRequest, Usage,
};
use turnwire_protocol::item::Item;

use crate::cache::Tier;
use crate::cache::{KvCache, NodeId, Token};
use crate::head::{Head, Heads};
use crate::link_state::LinkState;
use crate::model::{LoadError, Model, memory_bytes};
use crate::preparing::{Accepted, Preparing, Queued};
use crate::sampler::Sampler;
use crate::scheduler::{Command, Counters, Scheduler};
use crate::turn::{Generation, Job};

/// Settings of one embedded model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that compute; none: physical cores less one. They spin while they wait for each
    /// other, so more than there are idle cores is very slow.
    pub threads: Option<u32>,
    /// KV cells, each one token of one conversation; none: a quarter of memory, at most 32,768
    /// or the model's own context, whichever is more.
    pub kv_cells: Option<u32>,
    /// Bytes for conversations moved out of the cells; none: a quarter of memory.
    pub kv_ram_bytes: Option<u64>,
    /// Conversations in cells at once.
    pub sequences: u32,
    /// Tokens of one batch at the most.
    pub batch_tokens: u32,
    /// Layers to compute on a GPU, in builds that know one.
    pub gpu_layers: u32,
    /// Generate up to `max_output_tokens` whatever the model says. For benchmarks.
    pub ignore_end: bool,
    /// Seeds the choice of tokens; none: from the system.
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: None,
            kv_cells: None,
            kv_ram_bytes: None,
            sequences: 64,
            batch_tokens: 512,
            gpu_layers: 1_000,
            ignore_end: false,
            seed: None,
        }
    }
}

impl Options {
    /// llama.cpp aborts above 256 sequences.
    pub(crate) fn sequences(&self) -> u32 {
        self.sequences.clamp(1, 256)
    }

    pub(crate) fn threads(&self) -> i32 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        self.threads
            .unwrap_or(cores.saturating_sub(1))
            .clamp(1, 512) as i32
    }
}

/// A model being served. Dropping it ends its thread; turns still running end without a word.
#[derive(Debug)]
pub struct LocalEngine {
    front: Arc<Front>,
    thread: Option<JoinHandle<()>>,
}

/// What preparing a request needs. Shared with the threads that prepare long ones.
#[derive(Debug)]
struct Front {
    id: u64,
    model: Model,
    name: String,
    options: Options,
    heads: Mutex<Heads>,
    commands: Sender<Command>,
    counters: Arc<Counters>,
    preparing: Preparing,
    next_node: AtomicU64,
    seeds: Mutex<fastrand::Rng>,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Prompt tokens that were decoded.
    pub prefilled_tokens: u64,
    /// Output tokens that were fed back.
    pub decoded_tokens: u64,
    /// Batches decoded.
    pub steps: u64,
    pub cancelled_turns: u64,
    /// Turns accepted and not yet ended.
    pub live_turns: u64,
}

/// What the cache holds of a response.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub tier: Tier,
    /// The ids in its cells: a head and the recorded segments, perhaps without the last id.
    pub ids: Option<Vec<i32>>,
    /// Cells in use by all conversations.
    pub used_cells: u32,
}

/// Outputs that wait for a reader before its conversation pauses.
const OUTPUT_QUEUE: usize = 64;
/// Bytes of stack where grammars are compiled and followed, which goes by recursion: the deepest
/// schema that turnwire-prompt lets pass takes a quarter of it.
const GRAMMAR_STACK: usize = 32 << 20;

impl LocalEngine {
    /// Loads a GGUF file. Blocks for as long as that takes.
    pub fn load(path: &Path, options: Options) -> Result<Self, LoadError> {
        let model = Model::load(path, &options)?;
        let (commands, inbox) = channel();
        let counters = Arc::new(Counters::default());
        let seeds = options
            .seed
            .map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let front = Arc::new(Front {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: model.name(path),
            model,
            options,
            heads: Mutex::default(),
            commands,
            preparing: Preparing::new(Arc::clone(&counters)),
            counters: Arc::clone(&counters),
            next_node: AtomicU64::new(1),
            seeds: Mutex::new(seeds),
        });
        let (ready, loaded) = channel();
        let engine = Arc::clone(&front);
        let thread = std::thread::Builder::new()
            .name("local-engine".to_owned())
            .stack_size(GRAMMAR_STACK)
            .spawn(move || {
                let context = match engine.model.context(&engine.options) {
                    Ok(context) => context,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let ram = engine
                    .options
                    .kv_ram_bytes
                    .or(memory_bytes().map(|all| all / 4));
                let warm_budget = usize::try_from(ram.unwrap_or(0)).unwrap_or(usize::MAX);
                let sequences = engine.options.sequences();
                let cache = KvCache::new(context, engine.model.cells, sequences, warm_budget);
                let _ = ready.send(Ok(()));
                Scheduler::new(&engine.model, cache, inbox, counters).run();
            })
            .map_err(LoadError::Thread)?;
        loaded
            .recv()
            .expect("the thread answers before it does anything else")?;
        Ok(Self {
            front,
            thread: Some(thread),
        })
    }

    /// The model's name, from its file's.
    pub fn name(&self) -> &str {
        &self.front.name
    }

    /// The most tokens one conversation may have.
    pub fn context_tokens(&self) -> u32 {
        self.front.model.context
    }

    /// Starts one turn. Dropping the receiver cancels it; cancelling `wrap_up` ends it soon and
    /// well, so that it can be continued by what the user has to say.
    ///
    /// Returns at once: the request is prepared on another thread, since a long prompt or a
    /// large schema takes longer than an asynchronous caller may be kept.
    pub fn start(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> mpsc::Receiver<EngineOutput> {
        let (output, receiver) = mpsc::channel(OUTPUT_QUEUE);
        let preparing = &self.front.preparing;
        match preparing.push(request, wrap_up, &output) {
            Queued::Waits => {}
            Queued::Full => refuse(&output, overloaded()),
            Queued::NeedsThread => {
                let front = Arc::clone(&self.front);
                let spawned = std::thread::Builder::new()
                    .name("local-engine-prepare".to_owned())
                    .stack_size(GRAMMAR_STACK)
                    .spawn(move || {
                        while let Some(turn) = front.preparing.next() {
                            front.submit(turn);
                        }
                    });
                if spawned.is_err() {
                    for turn in preparing.without_thread() {
                        refuse(&turn.output, overloaded());
                    }
                }
            }
        }
        receiver
    }

    pub fn stats(&self) -> Stats {
        let counters = &self.front.counters;
        Stats {
            prefilled_tokens: counters.prefilled_tokens.load(Ordering::Relaxed),
            decoded_tokens: counters.decoded_tokens.load(Ordering::Relaxed),
            steps: counters.steps.load(Ordering::Relaxed),
            cancelled_turns: counters.cancelled_turns.load(Ordering::Relaxed),
            live_turns: counters.live_turns.load(Ordering::Relaxed),
        }
    }

    /// What the cache holds of a response. None: not this engine's, or the engine has ended.
    pub fn inspect(&self, state: &EngineState) -> Option<Inspection> {
        let state = self.front.own(state)?;
        let (reply, answer) = channel();
        self.front
            .commands
            .send(Command::Inspect(state.node, reply))
            .ok()?;
        answer.recv().ok()
    }

    /// The recorded ids of a response and its parents, without a head.
    pub fn recorded_ids(&self, state: &EngineState) -> Option<Vec<i32>> {
        Some(self.front.own(state)?.gather())
    }

    /// The ids of the head made of these instructions and tools.
    pub fn head_ids(&self, request: &TurnRequest) -> Result<Vec<i32>, EngineFailure> {
        Ok(self.front.head(request)?.ids.clone())
    }

    /// Moves all idle conversations out of the cells, to RAM or altogether, and waits for it.
    pub fn evict_idle(&self, to: Tier) {
        let (reply, done) = channel();
        if self
            .front
            .commands
            .send(Command::EvictIdle(to, reply))
            .is_ok()
        {
            let _ = done.recv();
        }
    }
}

impl Drop for LocalEngine {
    fn drop(&mut self) {
        let _ = self.front.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of a request.
enum Prepared {
    Job(Box<Job>),
    /// Its prompt is as long as the request says it must not be.
    AtThreshold {
        input_tokens: u64,
    },
}

impl Front {
    fn submit(&self, turn: Accepted) {
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
            Ok(Ok(Prepared::AtThreshold { input_tokens })) => {
                let _ = output.try_send(EngineOutput::Started);
                let _ = output.try_send(EngineOutput::Finished {
                    reason: FinishReason::ContextThreshold,
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
        let parent = request
            .parent
            .as_ref()
            .map(|chain| self.ids_of(chain))
            .transpose()?;
        let plan = match request.generate {
            true => Some(self.model.format.plan(request)?),
            false => None,
        };
        let before = parent
            .as_ref()
            .map_or(Before::Closed, |parent| parent.before);
        let items: Vec<&Item> = request.input.iter().collect();
        let segment = |opening: Option<&str>| {
            let text = self.model.format.segment(before, &items, opening)?;
            Ok(self.model.tokenize(&text))
        };
        let opening = plan.as_ref().map(|plan| plan.opening.as_str());
        let delta: Vec<Token> = segment(opening)?;
        let inherited = head.ids.len() + parent.as_ref().map_or(0, |parent| parent.total as usize);
        let prompt = inherited + delta.len();
        let threshold = request.compact_threshold;
        if threshold.is_some_and(|threshold| prompt as u64 >= threshold) {
            return Ok(Prepared::AtThreshold {
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
                let unopened = segment(Some(""))?;
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
            node: NodeId(self.next_node.fetch_add(1, Ordering::Relaxed)),
            head,
            parent,
            delta,
            quiet,
            generation,
            output: turn.output,
            wrap_up: turn.wrap_up,
            slot: Some(turn.slot),
            release: self.commands.clone(),
        })))
    }

    fn generation(
        &self,
        request: &TurnRequest,
        plan: Plan,
        room: u32,
    ) -> Result<Generation, EngineFailure> {
        let model = &self.model;
        let matcher = plan
            .grammar
            .map(|grammar| model.matcher(&grammar))
            .transpose();
        let matcher = matcher.map_err(|_| {
            // Compiles the parts one by one to name the field at fault.
            model
                .format
                .blame(request, |grammar| model.matcher(grammar).map(drop))
        })?;
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

    fn head(&self, request: &TurnRequest) -> Result<Arc<Head>, EngineFailure> {
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

    fn own(&self, state: &EngineState) -> Option<Arc<LinkState>> {
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
            ids,
            before: Before::Closed,
            node: NodeId(self.next_node.fetch_add(1, Ordering::Relaxed)),
            release: self.commands.clone(),
        });
        chain.set_engine_state(EngineState::new(state.clone()));
        // Another turn may have been faster; then its ids are the ones that count.
        Ok(self.state_of(chain).unwrap_or(state))
    }
}

/// Ends a turn that has not started. Room is certain: the channel is new.
fn refuse(output: &mpsc::Sender<EngineOutput>, failure: EngineFailure) {
    let _ = output.try_send(EngineOutput::Failed(failure));
}

fn overloaded() -> EngineFailure {
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
