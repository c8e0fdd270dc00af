//! Seen: what the scripted engine knows of a chain without looking at its items again.

use std::sync::Arc;

use serde::Deserialize;
use turnwire_protocol::chain::{Chain, EngineState};
use turnwire_protocol::item::{Item, ItemKind};

/// An item of input counts a token for every four bytes, the last ones begun included.
const BYTES_PER_TOKEN: usize = 4;

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) items: u64,
    pub(super) tokens: u64,
    last_user_message: Option<Item>,
}

#[derive(Deserialize)]
struct Author<'a> {
    role: &'a str,
}

#[derive(Deserialize)]
struct Message {
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

impl Seen {
    /// Looked up where this engine made the chain. Where another one did, its items are counted
    /// once and the count is left on the link.
    pub(super) fn of(chain: &Chain) -> Self {
        let mut uncounted = Vec::new();
        let mut seen = Self::default();
        for link in chain.ancestry() {
            let state = link.engine_state().and_then(EngineState::downcast::<Self>);
            if let Some(known) = state {
                seen = known.as_ref().clone();
                break;
            }
            uncounted.push(link);
        }
        for link in uncounted.iter().rev() {
            seen.add(link.input());
            seen.add(link.output());
        }
        if !uncounted.is_empty() {
            chain.set_engine_state(EngineState::new(Arc::new(seen.clone())));
        }
        seen
    }

    pub(super) fn add(&mut self, items: &[Item]) {
        self.items += items.len() as u64;
        let tokens = items.iter().map(|item| {
            // What is sealed counts as what it says.
            let bytes = item.revealed().map_or(item.raw().len(), str::len);
            bytes.div_ceil(BYTES_PER_TOKEN)
        });
        self.tokens += tokens.sum::<usize>() as u64;
        if let Some(message) = items.iter().rev().find(|item| is_of_user(item)) {
            self.last_user_message = Some(message.clone());
        }
    }

    /// Empty before the first user message.
    pub(super) fn last_user_text(&self) -> String {
        let message = self.last_user_message.as_ref();
        if let Some(compacted) = message.and_then(|item| item.revealed()) {
            return compacted.to_owned();
        }
        let message = message.and_then(|item| serde_json::from_slice::<Message>(item.raw()).ok());
        match message.map(|message| message.content) {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().map(|part| part.text).collect(),
            None => String::new(),
        }
    }
}

/// A compaction item is shown to a model as a message of the user.
fn is_of_user(item: &Item) -> bool {
    if item.kind() == ItemKind::Compaction {
        return true;
    }
    item.kind() == ItemKind::Message
        && serde_json::from_slice::<Author<'_>>(item.raw()).is_ok_and(|by| by.role == "user")
}
