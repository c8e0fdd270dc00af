//! Preparing: turns on their way to the engine thread, and the threads that take them there.
//!
//! Rendering a long prompt or compiling a large schema takes longer than an asynchronous caller
//! may be kept, so it happens on threads of its own: a few at once, started when there is work.
//! The others wait their turn, and leave when nobody listens to them any more.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::engine::{EngineOutput, TurnRequest};

use crate::scheduler::Counters;

/// Turns accepted at once: prepared, running, or waiting for either.
const LIVE_TURNS: u64 = 1024;

/// A turn's place among the live ones, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Counters>);

impl Slot {
    fn take(counters: &Arc<Counters>) -> Option<Self> {
        let slot = Self(Arc::clone(counters));
        // Counted first: two that look at the same time may not both be the last one.
        let before = counters.live_turns.fetch_add(1, Ordering::Relaxed);
        (before < LIVE_TURNS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.live_turns.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A turn that was accepted and not yet prepared.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) request: TurnRequest,
    pub(crate) wrap_up: CancellationToken,
    pub(crate) output: mpsc::Sender<EngineOutput>,
    pub(crate) slot: Slot,
}

#[derive(Debug)]
pub(crate) struct Preparing {
    counters: Arc<Counters>,
    /// Threads at once.
    most: usize,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    queue: VecDeque<Accepted>,
    threads: usize,
}

/// What is to be done after a turn was put into the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// A thread will come to it.
    Waits,
    /// One more thread is to be started, which calls [`Preparing::next`] until it says none.
    NeedsThread,
    /// There are too many turns already; it was not put there.
    Full,
}

impl Preparing {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            counters,
            most: 2 * cores,
            work: Mutex::default(),
        }
    }

    pub(crate) fn push(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
        output: &mpsc::Sender<EngineOutput>,
    ) -> Queued {
        let mut work = self.work();
        let slot = Slot::take(&self.counters).or_else(|| {
            let heard = |turn: &Accepted| !self.left(turn);
            work.queue.retain(heard);
            Slot::take(&self.counters)
        });
        let Some(slot) = slot else {
            return Queued::Full;
        };
        work.queue.push_back(Accepted {
            request,
            wrap_up,
            output: output.clone(),
            slot,
        });
        if work.threads == self.most {
            return Queued::Waits;
        }
        work.threads += 1;
        Queued::NeedsThread
    }

    /// The next turn for the thread that asks, which ends if there is none.
    pub(crate) fn next(&self) -> Option<Accepted> {
        let mut work = self.work();
        while let Some(turn) = work.queue.pop_front() {
            if !self.left(&turn) {
                return Some(turn);
            }
        }
        work.threads -= 1;
        None
    }

    /// A thread that was asked for could not be started. Gives the turns that nobody will come to.
    pub(crate) fn without_thread(&self) -> VecDeque<Accepted> {
        let mut work = self.work();
        work.threads -= 1;
        match work.threads {
            0 => std::mem::take(&mut work.queue),
            _ => VecDeque::new(),
        }
    }

    /// Whether nobody waits for this turn any more; it is counted as cancelled then.
    fn left(&self, turn: &Accepted) -> bool {
        let left = turn.output.is_closed();
        if left {
            self.counters
                .cancelled_turns
                .fetch_add(1, Ordering::Relaxed);
        }
        left
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work
            .lock()
            .expect("no panic while the queue is locked")
    }
}

#[cfg(test)]
mod tests {
    use turnwire_protocol::id::ResponseId;

    use super::*;

    fn push(preparing: &Preparing) -> (Queued, mpsc::Receiver<EngineOutput>) {
        let (output, receiver) = mpsc::channel(1);
        let request = TurnRequest::new(ResponseId::from("resp_1"), "m");
        let queued = preparing.push(request, CancellationToken::new(), &output);
        (queued, receiver)
    }

    #[test]
    fn threads_are_few_and_turns_are_bounded_and_those_who_left_make_room() {
        let counters = Arc::new(Counters::default());
        let preparing = Preparing {
            most: 2,
            ..Preparing::new(Arc::clone(&counters))
        };
        let mut readers: Vec<_> = (0..LIVE_TURNS).map(|_| push(&preparing)).collect();
        let asked = readers.iter().filter(|r| r.0 == Queued::NeedsThread);
        assert_eq!(asked.count(), 2);
        assert_eq!(push(&preparing).0, Queued::Full);
        assert_eq!(counters.live_turns.load(Ordering::Relaxed), LIVE_TURNS);

        // Dropped in the middle, they are found when their places are needed.
        readers.drain(5..15);
        assert_eq!(push(&preparing).0, Queued::Waits);
        assert_eq!(counters.cancelled_turns.load(Ordering::Relaxed), 10);
        readers.drain(..3);
        let first = preparing.next().expect("there is work");
        assert!(!first.output.is_closed());
        drop(first);
        while preparing.next().is_some() {}
        assert_eq!(preparing.without_thread().len(), 0);
        assert_eq!(counters.live_turns.load(Ordering::Relaxed), 0);
        assert_eq!(push(&preparing).0, Queued::NeedsThread);
    }

    #[test]
    fn turns_that_no_thread_will_come_to_are_handed_back() {
        let preparing = Preparing::new(Arc::default());
        let _reader = push(&preparing);
        assert_eq!(preparing.without_thread().len(), 1);
        assert!(preparing.work().queue.is_empty());
    }
}
