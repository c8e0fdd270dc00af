//! Histories: chains that were made over HTTP, for requests that bring all of their history to
//! continue instead of beginning anew.
//!
//! In memory only, always looked up together with the owner, and by nothing that a client could
//! name: a chain is found by who brings all that is in it. What nobody has continued for a while
//! is dropped, and so is the oldest where there is too much. A chain stays as long as another one
//! that is kept continues it, so what counts for a chain is what it adds to its parent.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use turnwire_protocol::chain::Chain;
use turnwire_protocol::history::{History, Prefix};
use turnwire_protocol::id::ResponseId;

use crate::auth::Tenant;

/// What keeping one chain costs beyond what it counts itself: ids, map entries.
const OVERHEAD: u64 = 512;

/// The most often that chains are looked for whose time is over.
const SHORTEST_SWEEP: Duration = Duration::from_secs(1);

/// What a server keeps of conversations that come whole. All times are those of one clock.
#[derive(Debug)]
pub struct Histories(Option<Index>);

#[derive(Debug)]
struct Index {
    budget_bytes: u64,
    idle: Duration,
    shelf: Mutex<Shelf>,
}

type Key = (Tenant, History);

/// When a chain was kept or found last, and a number, because that may be several at once.
type Use = (Duration, u64);

#[derive(Debug, Default)]
struct Shelf {
    kept: HashMap<Key, Kept>,
    /// The same by the last response of each chain.
    by_response: HashMap<(Tenant, ResponseId), Key>,
    /// Those that nothing here continues, and that may go first.
    ends: BTreeMap<Use, Key>,
    uses: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Kept {
    chain: Chain,
    /// The chain here that this one continues.
    parent: Option<Key>,
    /// Chains here that continue this one.
    children: usize,
    /// What it adds to its parent, or all of it if that is not here.
    bytes: u64,
    used: Use,
}

impl Histories {
    /// Keeps so many bytes, and nothing that was neither kept nor found for `idle`.
    pub fn new(budget_bytes: u64, idle: Duration) -> Self {
        Self(Some(Index {
            budget_bytes,
            idle,
            shelf: Mutex::default(),
        }))
    }

    /// Keeps nothing and finds nothing.
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// The chain of the first of these histories that is known, and how many items it has.
    pub(crate) fn find(
        &self,
        owner: Tenant,
        prefixes: &[Prefix],
        now: Duration,
    ) -> Option<(usize, Chain)> {
        let index = self.0.as_ref()?;
        index.change(now, |shelf, _| {
            let known = |prefix: &&Prefix| shelf.kept.contains_key(&(owner, prefix.history));
            let prefix = prefixes.iter().find(known)?;
            let chain = shelf.touch(&(owner, prefix.history), now)?;
            Some((prefix.items, chain))
        })
    }

    /// Keeps a chain that is the whole of this history.
    pub(crate) fn keep(&self, owner: Tenant, history: History, chain: Chain, now: Duration) {
        let Some(index) = &self.0 else {
            return;
        };
        // Nothing else would have room beside it.
        if chain.bytes() > index.budget_bytes {
            return;
        }
        index.change(now, |shelf, gone| {
            let key = (owner, history);
            let known = shelf.kept.get(&key).map(|known| known.children);
            match known {
                // What is continued is hot as well, and cannot be taken away.
                Some(1..) => drop(shelf.touch(&key, now)),
                Some(0) => {
                    gone.extend(shelf.remove(&key));
                    shelf.insert(owner, key, chain, now);
                }
                None => shelf.insert(owner, key, chain, now),
            }
            while shelf.bytes > index.budget_bytes {
                let oldest = shelf.ends.first_key_value().map(|(_, key)| *key);
                let oldest = oldest.expect("of what is kept, something is continued by nothing");
                gone.extend(shelf.remove(&oldest));
            }
        });
    }

    /// Drops what nobody has continued for too long. Returns when to look again; never, if nothing
    /// is kept at all.
    pub(crate) fn sweep(&self, now: Duration) -> Option<Duration> {
        let index = self.0.as_ref()?;
        index.change(now, |shelf, _| {
            let oldest = shelf.ends.first_key_value();
            let since = oldest.map_or(now, |((at, _), _)| *at);
            let due = since.saturating_add(index.idle);
            Some(due.max(now.saturating_add(SHORTEST_SWEEP)))
        })
    }
}

impl Index {
    /// Takes out what is too old and changes the rest. What is gone is dropped after the lock is
    /// given back: freeing a long chain takes a while.
    fn change<R>(&self, now: Duration, change: impl FnOnce(&mut Shelf, &mut Vec<Kept>) -> R) -> R {
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        while let Some((&(at, _), key)) = shelf.ends.first_key_value()
            && at.saturating_add(self.idle) <= now
        {
            let key = *key;
            gone.extend(shelf.remove(&key));
        }
        let changed = change(&mut shelf, &mut gone);
        drop(shelf);
        changed
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn insert(&mut self, owner: Tenant, key: Key, chain: Chain, now: Duration) {
        let parent = chain.parent().and_then(|parent| {
            let key = self.by_response.get(&(owner, parent.id().clone()))?;
            Some((*key, parent.bytes()))
        });
        let inherited = parent.map_or(0, |(_, bytes)| bytes);
        let parent = parent.map(|(key, _)| key);
        if let Some(parent) = parent.as_ref().and_then(|key| self.kept.get_mut(key)) {
            parent.children += 1;
            self.ends.remove(&parent.used);
        }
        let kept = Kept {
            parent,
            children: 0,
            bytes: chain.bytes() - inherited + OVERHEAD,
            used: self.next_use(now),
            chain,
        };
        self.bytes += kept.bytes;
        self.ends.insert(kept.used, key);
        self.by_response
            .insert((owner, kept.chain.id().clone()), key);
        self.kept.insert(key, kept);
    }

    /// Takes out one that nothing here continues.
    fn remove(&mut self, key: &Key) -> Option<Kept> {
        let kept = self.kept.remove(key)?;
        self.bytes -= kept.bytes;
        self.ends.remove(&kept.used);
        self.by_response.remove(&(key.0, kept.chain.id().clone()));
        if let Some(key) = kept.parent
            && let Some(parent) = self.kept.get_mut(&key)
        {
            parent.children -= 1;
            if parent.children == 0 {
                self.ends.insert(parent.used, key);
            }
        }
        Some(kept)
    }

    /// The chain, which was of use just now.
    fn touch(&mut self, key: &Key, now: Duration) -> Option<Chain> {
        let used = self.next_use(now);
        let kept = self.kept.get_mut(key)?;
        if self.ends.remove(&kept.used).is_some() {
            self.ends.insert(used, *key);
        }
        kept.used = used;
        Some(kept.chain.clone())
    }

    fn next_use(&mut self, now: Duration) -> Use {
        self.uses += 1;
        (now, self.uses)
    }
}

#[cfg(test)]
mod tests;
