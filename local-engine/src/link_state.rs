//! LinkState: what this engine keeps for a response, in the slot its link has for it.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use turnwire_prompt::Before;

use crate::cache::{NodeId, Token};
use crate::scheduler::Command;

/// A response's exact token ids, and the name of its end in the cache.
pub(crate) struct LinkState {
    /// The engine that made it: ids of another model mean nothing to this one.
    pub(crate) engine: u64,
    /// The nearest response before this one that has ids of this engine.
    pub(crate) base: Option<Arc<Self>>,
    /// The segment: what this response appended to the prompt, generated ids included.
    pub(crate) ids: Arc<[Token]>,
    /// Ids from the first response to this one, without a head.
    pub(crate) total: u32,
    /// How the segment ends, for what is rendered behind it.
    pub(crate) before: Before,
    /// Whether the first message of its segment is a user's.
    pub(crate) begins_with_user: bool,
    pub(crate) node: NodeId,
    /// To the engine thread: frees the cache when nobody can name this response any more.
    pub(crate) release: Sender<Command>,
}

impl LinkState {
    /// All ids from the first response to this one. Costs the length of the chain.
    pub(crate) fn gather(&self) -> Vec<Token> {
        self.tail(self.total)
    }

    /// The last `count` ids, those of responses before this one included. Costs what it gives.
    pub(crate) fn tail(&self, count: u32) -> Vec<Token> {
        let mut segments: Vec<&[Token]> = Vec::new();
        let mut left = count as usize;
        let mut link = Some(self);
        while let Some(state) = link.filter(|_| left > 0) {
            let taken = left.min(state.ids.len());
            segments.push(&state.ids[state.ids.len() - taken..]);
            left -= taken;
            link = state.base.as_deref();
        }
        segments.into_iter().rev().flatten().copied().collect()
    }
}

impl Drop for LinkState {
    fn drop(&mut self) {
        // The engine may have ended before the last conversation; then there is nothing to free.
        let _ = self.release.send(Command::Release(self.node));
        // Bases are unlinked in a loop: a long chain would overflow the stack.
        let mut next = self.base.take();
        while let Some(state) = next {
            next = Arc::into_inner(state).and_then(|mut state| state.base.take());
        }
    }
}
