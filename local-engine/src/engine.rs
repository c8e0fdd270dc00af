//! LocalEngine: a model being served, used from any thread.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::chain::EngineState;
use turnwire_protocol::engine::{EngineFailure, EngineOutput, TurnRequest};

use crate::cache::{KvCache, Tier};
use crate::front::{self, Front};
use crate::model::{LoadError, Model, memory_bytes};
use crate::preparing::{Preparing, Queued};
use crate::scheduler::{Command, Counters, Scheduler};

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
    /// Grammars that were not remembered from a turn before.
    pub compiled_grammars: u64,
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
            grammars: Mutex::default(),
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
            Queued::Full => front::refuse(&output, front::overloaded()),
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
                        front::refuse(&turn.output, front::overloaded());
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
            compiled_grammars: counters.compiled_grammars.load(Ordering::Relaxed),
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
