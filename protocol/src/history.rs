//! History: a digest of what a model is shown of a conversation, one item at a time.
//!
//! A client that sends all of a conversation with each request sends what the server knows
//! already, though not byte for byte: members come in another order, are left out, or are written
//! in another way. What is equal in meaning has an equal digest here, and whatever could change
//! what a model is shown changes it. So a request whose first items have the digest of a chain can
//! continue that chain by its other items.

mod shown;

use std::fmt;

use sha2::{Digest, Sha256};

use crate::item::Item;

/// The longest beginnings of an input that are looked for. A chain that ends further back than
/// that many items would save little, and an input may have a million of them.
const MOST_PREFIXES: usize = 1024;

/// The digest of a conversation up to one of its items.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct History([u8; 32]);

/// The beginning of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// How many items it has: at least one, and fewer than the input.
    pub items: usize,
    pub history: History,
}

/// What has to be the same, besides the items, for one turn to continue what another has made.
#[derive(Clone, Copy, Debug)]
pub struct Premise<'a> {
    /// What a chain keeps for an engine is of use to that engine alone.
    pub model: &'a str,
    /// A stored response must not come to stand on one that was not to be stored.
    pub store: bool,
    /// A model may be shown less of a conversation that is truncated than of another.
    pub truncate: bool,
}

impl History {
    /// A conversation without items.
    pub fn begin(premise: Premise<'_>) -> Self {
        let Premise {
            model,
            store,
            truncate,
        } = premise;
        let mut hash = Sha256::new();
        hash.update([u8::from(store), u8::from(truncate)]);
        hash.update(model);
        Self(hash.finalize().into())
    }

    /// This conversation and one more item.
    #[must_use]
    pub fn followed_by(self, item: &Item) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        shown::feed(&mut hash, item);
        Self(hash.finalize().into())
    }

    /// This conversation and more items, with those of its beginnings on the way that are worth
    /// looking for, the longest first.
    pub(crate) fn with_prefixes(self, items: &[Item]) -> (Self, Vec<Prefix>) {
        let mut history = self;
        let mut prefixes = Vec::with_capacity(items.len().min(MOST_PREFIXES));
        for (index, item) in items.iter().enumerate() {
            history = history.followed_by(item);
            let left = items.len() - index - 1;
            if (1..=MOST_PREFIXES).contains(&left) {
                let items = index + 1;
                prefixes.push(Prefix { items, history });
            }
        }
        prefixes.reverse();
        (history, prefixes)
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("History")
    }
}

#[cfg(test)]
mod tests;
