//! The engine thread: owns the context and decodes all conversations in shared batches.
//!
//! One step takes commands, admits what has room, fills one batch with a token of every
//! conversation that decodes and chunks of those that prefill, decodes it, and samples. Chunks
//! adapt so that a step lasts about [`STEP`]: that bounds how long a new token, a cancel or a
//! newcomer waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use turnwire_protocol::engine::{EngineFailure, EngineFailureKind, FinishReason};

use crate::cache::{KvCache, NodeId, Tier, Token};
use crate::engine::Inspection;
use crate::model::{Context, Model};
use crate::turn::{Job, Progress, Turn};

/// How long one step may last when others wait for it.
const STEP: Duration = Duration::from_millis(250);
/// Prefill tokens per step at the least, however slow the model is.
const SMALLEST_CHUNK: usize = 16;
/// Matrix products work in tiles of this many rows: on AVX2, 1,024 tokens of the default model
/// take 6.0 s in chunks of 64 and 8.1 s in chunks of 40. Taken whenever nobody waits for the step.
const TILE: usize = 64;
/// How often to look whether a reader has caught up when all that run have a slow one.
const PAUSE: Duration = Duration::from_millis(2);

pub(crate) enum Command {
    Run(Box<Job>),
    /// Nobody can name this response any more.
    Release(NodeId),
    Inspect(NodeId, std::sync::mpsc::Sender<Inspection>),
    EvictIdle(Tier, std::sync::mpsc::Sender<()>),
    Stop,
}

/// Counts since the start; read from any thread.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) prefilled_tokens: AtomicU64,
    pub(crate) decoded_tokens: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) cancelled_turns: AtomicU64,
    pub(crate) compiled_grammars: AtomicU64,
    /// Turns accepted and not yet ended.
    pub(crate) live_turns: AtomicU64,
}

pub(crate) struct Scheduler<'a> {
    model: &'a Model,
    cache: KvCache<Context<'a>>,
    commands: Receiver<Command>,
    counters: Arc<Counters>,
    waiting: VecDeque<Turn>,
    running: Vec<Turn>,
    /// Finished turns whose last words have not been taken yet.
    leaving: Vec<Turn>,
    /// Seconds that a token of a batch takes, lately.
    pace: f64,
    /// Who is first to prefill in the next step.
    rotation: usize,
    stopped: bool,
}

/// A running turn's share of a batch.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// Index in `running`.
    turn: usize,
    tokens: usize,
    /// The token it made last, rather than a piece of its prompt.
    decodes: bool,
}

impl<'a> Scheduler<'a> {
    pub(crate) fn new(
        model: &'a Model,
        cache: KvCache<Context<'a>>,
        commands: Receiver<Command>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            model,
            cache,
            commands,
            counters,
            waiting: VecDeque::new(),
            running: Vec::new(),
            leaving: Vec::new(),
            // A guess that the first steps correct; low enough not to make the first one long.
            pace: 0.005,
            rotation: 0,
            stopped: false,
        }
    }

    /// Runs until told to stop or until nobody is left who could say so.
    pub(crate) fn run(mut self) {
        while self.take_commands() {
            self.drop_cancelled();
            self.wrap_up();
            self.leaving.retain_mut(|turn| !turn.flush());
            self.admit();
            self.step();
        }
    }

    /// Waits for a command if there is nothing else to do. False: stop.
    fn take_commands(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() && self.leaving.is_empty() {
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => return false,
            }
        }
        while !self.stopped
            && let Ok(command) = self.commands.try_recv()
        {
            self.obey(command);
        }
        !self.stopped
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Run(job) => self.waiting.push_back(Turn::new(*job)),
            Command::Release(node) => self.cache.release(node),
            Command::Inspect(node, reply) => {
                let inspection = Inspection {
                    tier: self.cache.tier(node),
                    ids: self.cache.ids(node).map(<[Token]>::to_vec),
                    used_cells: self.cache.used(),
                };
                let _ = reply.send(inspection);
            }
            Command::EvictIdle(tier, reply) => {
                self.cache.evict_idle(tier);
                let _ = reply.send(());
            }
            Command::Stop => self.stopped = true,
        }
    }

    fn drop_cancelled(&mut self) {
        let cache = &mut self.cache;
        let counters = &self.counters;
        self.running.retain_mut(|turn| {
            if turn.is_cancelled() {
                if let Some(grant) = turn.grant.take() {
                    // Back to the end of the parent, as if the turn had never been.
                    cache.finish(grant.branch, &[]);
                }
                counters.cancelled_turns.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            true
        });
        self.waiting.retain(|turn| {
            let gone = turn.is_cancelled();
            if gone {
                cache.release(turn.node());
                counters.cancelled_turns.fetch_add(1, Ordering::Relaxed);
            }
            !gone
        });
        self.leaving.retain(|turn| !turn.is_cancelled());
    }

    /// Ends the turns that were asked to wrap up and can. One that waits keeps its prompt, and
    /// what it would have continued is where its successor finds it.
    fn wrap_up(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].may_wrap_up() {
                self.end(index, FinishReason::WrappedUp);
            }
        }
        for index in (0..self.waiting.len()).rev() {
            if self.waiting[index].may_wrap_up() {
                let turn = self.waiting.remove(index);
                let mut turn = turn.expect("an index below its length");
                turn.wrap_up(self.model);
                let (node, parent) = (turn.node(), turn.parent());
                self.cache.end_without_room(node, turn.len(), parent);
                turn.finish(FinishReason::WrappedUp, self.model);
                self.leave(turn);
            }
        }
    }

    /// Lets waiting turns in, first come first served, as long as there is room.
    fn admit(&mut self) {
        let mut index = 0;
        while index < self.waiting.len() {
            let turn = &mut self.waiting[index];
            if !turn.flush() {
                // Its reader is behind: room would be wasted on it.
                index += 1;
                continue;
            }
            let grant = {
                let ids = || turn.ids();
                self.cache.acquire(&turn.want(&ids))
            };
            let Some(grant) = grant else { return };
            turn.admit(grant);
            let turn = self.waiting.remove(index).expect("it was just admitted");
            // If it had been moved out in the middle, the mark that kept its cells has served.
            self.cache.release(turn.node());
            self.running.push(turn);
        }
    }

    fn step(&mut self) {
        self.end_warm_ups_without_work();
        let chunks = self.chunks();
        if chunks.is_empty() {
            if !(self.running.is_empty() && self.waiting.is_empty() && self.leaving.is_empty()) {
                self.pause();
            }
            return;
        }
        let started = Instant::now();
        let (fed, rows) = self.fill(&chunks);
        if let Err(error) = self.cache.cells().decode() {
            tracing::error!(%error, "a batch could not be decoded");
            return self.fail_all(&chunks);
        }
        self.count(&chunks, started.elapsed());
        for (chunk, ids) in chunks.iter().zip(&fed) {
            let grant = self.running[chunk.turn]
                .grant
                .expect("only turns with room are fed");
            self.cache.advance(grant.branch, ids);
        }
        self.sample(&rows);
    }

    /// A warm-up whose prompt is all there already has no token to decode.
    fn end_warm_ups_without_work(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].pending() == 0 && !self.running[index].generates() {
                self.end(index, FinishReason::Stop);
            }
        }
    }

    /// What of which running turn goes into the next batch.
    fn chunks(&mut self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut prefilling = Vec::new();
        let mut index = 0;
        while index < self.running.len() {
            let turn = &mut self.running[index];
            if !turn.flush() {
                // A reader that is behind pauses its own turn, and must not keep others out.
                match self.waiting.is_empty() {
                    true => index += 1,
                    false => {
                        let turn = self.park(index);
                        self.waiting.push_back(turn);
                    }
                }
            } else if !turn.decodes() {
                prefilling.push(index);
                index += 1;
            } else if self.has_cell(index) {
                chunks.push(Chunk {
                    turn: index,
                    tokens: 1,
                    decodes: true,
                });
                index += 1;
            } else {
                // It is first in line for the room that the others will leave.
                let turn = self.park(index);
                self.waiting.push_front(turn);
            }
        }
        let batch = self.cache.cells().batch_tokens;
        chunks.truncate(batch);
        if prefilling.is_empty() {
            return chunks;
        }
        let mut budget = self.prefill_budget(chunks.len()).min(batch - chunks.len());
        self.rotation = (self.rotation + 1) % prefilling.len();
        prefilling.rotate_left(self.rotation);
        let share = (budget / prefilling.len()).max(SMALLEST_CHUNK);
        for turn in prefilling {
            let pending = self.running[turn].pending();
            // What is left of a prompt would be computed without tiles: it rather comes along.
            let rest = pending.saturating_sub(share);
            let along = if chunks.is_empty() && rest < TILE {
                rest
            } else {
                0
            };
            let tokens = pending.min(share + along).min((budget + along).min(batch));
            if tokens > 0 {
                chunks.push(Chunk {
                    turn,
                    tokens,
                    decodes: false,
                });
                budget = budget.saturating_sub(tokens);
            }
        }
        chunks
    }

    /// Prompt tokens that fit a step in which `decoding` conversations wait for their next token.
    fn prefill_budget(&self, decoding: usize) -> usize {
        let paced = ((STEP.as_secs_f64() / self.pace) as usize).saturating_sub(decoding);
        match (paced / TILE, decoding) {
            (0, 0) => TILE,
            (0, _) => paced.max(SMALLEST_CHUNK),
            (tiles, _) => tiles * TILE,
        }
    }

    /// Whether a decoding turn may write one more cell.
    fn has_cell(&mut self, index: usize) -> bool {
        let turn = &self.running[index];
        let branch = turn.grant.expect("running turns have room").branch;
        self.cache.reserved(branch) > 0 || self.cache.grow(branch, turn.growth())
    }

    /// Takes a turn out. Its cells stay where they are, under its own mark, until another needs them.
    fn park(&mut self, index: usize) -> Turn {
        let mut turn = self.running.remove(index);
        let branch = turn.grant.expect("running turns have room").branch;
        let mark = (turn.node(), self.cache.len(branch));
        self.cache.finish(branch, &[mark]);
        turn.park();
        turn
    }

    /// Fills the batch. Answers the tokens of each chunk, and which turn's logits are in which row.
    fn fill(&mut self, chunks: &[Chunk]) -> (Vec<Vec<Token>>, Vec<(usize, usize)>) {
        let mut rows = Vec::new();
        let mut fed = Vec::with_capacity(chunks.len());
        self.cache.cells().clear_batch();
        for chunk in chunks {
            let turn = &mut self.running[chunk.turn];
            let grant = turn.grant.expect("running turns have room");
            let wants_logits = turn.generates() && turn.pending() == chunk.tokens;
            let start = self.cache.len(grant.branch);
            let ids: Vec<Token> = turn.take(chunk.tokens).collect();
            for (offset, &token) in ids.iter().enumerate() {
                let logits = wants_logits && offset + 1 == ids.len();
                let row = self
                    .cache
                    .cells()
                    .push(token, start + offset as u32, grant.seq, logits);
                if logits {
                    rows.push((chunk.turn, row));
                }
            }
            fed.push(ids);
        }
        (fed, rows)
    }

    fn count(&mut self, chunks: &[Chunk], took: Duration) {
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens).sum();
        let decoded = chunks.iter().filter(|chunk| chunk.decodes).count();
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
        self.counters
            .decoded_tokens
            .fetch_add(decoded as u64, Ordering::Relaxed);
        self.counters
            .prefilled_tokens
            .fetch_add((tokens - decoded) as u64, Ordering::Relaxed);
        // Single tokens say little about the pace of a chunk.
        if tokens >= SMALLEST_CHUNK {
            self.pace = 0.5 * self.pace + 0.5 * took.as_secs_f64() / tokens as f64;
        }
    }

    fn sample(&mut self, rows: &[(usize, usize)]) {
        let mut ended = Vec::new();
        for &(index, row) in rows {
            let logits = self.cache.cells().logits(row);
            match self.running[index].sample(self.model, logits) {
                Ok(Progress::Goes) => {}
                Ok(Progress::Ends(reason)) => ended.push((index, Ok(reason))),
                Err(failure) => ended.push((index, Err(failure))),
            }
        }
        // From the back, so that the indexes before stay true.
        ended.sort_by_key(|&(index, _)| std::cmp::Reverse(index));
        for (index, outcome) in ended {
            match outcome {
                Ok(reason) => self.end(index, reason),
                Err(failure) => self.fail(index, failure),
            }
        }
    }

    fn end(&mut self, index: usize, reason: FinishReason) {
        let mut turn = self.running.swap_remove(index);
        let grant = turn.grant.take().expect("running turns have room");
        if reason == FinishReason::WrappedUp {
            turn.wrap_up(self.model);
        }
        let marks = turn.marks(self.cache.len(grant.branch));
        self.cache.finish(grant.branch, &marks);
        turn.finish(reason, self.model);
        self.leave(turn);
    }

    fn fail(&mut self, index: usize, failure: EngineFailure) {
        let mut turn = self.running.swap_remove(index);
        if let Some(grant) = turn.grant.take() {
            self.cache.finish(grant.branch, &[]);
        }
        turn.fail(failure);
        self.leave(turn);
    }

    fn leave(&mut self, mut turn: Turn) {
        turn.give_back_slot();
        if !turn.flush() {
            self.leaving.push(turn);
        }
    }

    fn fail_all(&mut self, chunks: &[Chunk]) {
        let mut turns: Vec<usize> = chunks.iter().map(|chunk| chunk.turn).collect();
        turns.sort_unstable_by_key(|&turn| std::cmp::Reverse(turn));
        for turn in turns {
            let failure = EngineFailure {
                kind: EngineFailureKind::Internal,
                message: "The model failed while it worked on this response.".to_owned(),
                param: None,
            };
            self.fail(turn, failure);
        }
    }

    /// All readers are slow: waits a little, or for a command.
    fn pause(&mut self) {
        match self.commands.recv_timeout(PAUSE) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.stopped = true,
        }
    }
}
