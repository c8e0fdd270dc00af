//! Heads: the tokens of instructions and tools, rendered once for all turns that share them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::cache::Token;

/// The start of a prompt. Two turns have the same head if they have the same `key`.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) key: u64,
    pub(crate) ids: Vec<Token>,
}

/// The heads in use lately, found by the very bytes they were made from.
///
/// Compared in full rather than by a hash: whoever could make two heads collide would have
/// another's instructions act on his conversation.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    entries: VecDeque<(Source, Arc<Head>)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    instructions: Option<Arc<str>>,
    tools: Bytes,
}

/// Heads to remember. More than this many agents of different make at once are rare, and a
/// head that was forgotten only costs rendering it and, for its conversation, one prefill.
const REMEMBERED: usize = 256;
/// Bytes of instructions and tools to remember, so that large ones do not add up.
const REMEMBERED_BYTES: usize = 64 << 20;

impl Heads {
    pub(crate) fn get(
        &mut self,
        instructions: Option<&Arc<str>>,
        tools: &Bytes,
    ) -> Option<Arc<Head>> {
        let at = self.entries.iter().position(|(source, _)| {
            source.tools == *tools && source.instructions.as_ref() == instructions
        })?;
        // The most recently used stands first, where an agent's next turn finds it.
        let entry = self
            .entries
            .remove(at)
            .expect("a position that was just found");
        let head = Arc::clone(&entry.1);
        self.entries.push_front(entry);
        Some(head)
    }

    pub(crate) fn insert(
        &mut self,
        instructions: Option<&Arc<str>>,
        tools: &Bytes,
        ids: Vec<Token>,
    ) -> Arc<Head> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let head = Arc::new(Head {
            key: NEXT.fetch_add(1, Ordering::Relaxed),
            ids,
        });
        // Copied: a slice would keep the whole message alive that the tools came in.
        let source = Source {
            instructions: instructions.cloned(),
            tools: Bytes::copy_from_slice(tools),
        };
        self.entries.push_front((source, Arc::clone(&head)));
        while self.entries.len() > REMEMBERED || self.bytes() > REMEMBERED_BYTES {
            self.entries.pop_back();
        }
        head
    }

    fn bytes(&self) -> usize {
        let size = |source: &Source| {
            source.tools.len() + source.instructions.as_ref().map_or(0, |i| i.len())
        };
        self.entries.iter().map(|(source, _)| size(source)).sum()
    }
}
