//! The store in memory: chains as they are, so that what an engine keeps for them stays too.
//!
//! What is held is bounded in bytes, and the oldest responses go first. A response that went
//! cannot be asked for any more, but its items stay as long as a later response continues it;
//! until then they count. Each link of a chain is counted once, however many responses share it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use turnwire_protocol::action::StoredResponse;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::session::SaveFailed;

use crate::auth::Tenant;

/// What one link costs beyond what its chain counts: ids, map entries.
const LINK_OVERHEAD: u64 = 512;

#[derive(Debug)]
pub struct MemoryStore {
    budget_bytes: u64,
    shelf: Mutex<Shelf>,
}

type Key = (Tenant, ResponseId);

#[derive(Debug, Default)]
struct Shelf {
    links: HashMap<Key, Link>,
    /// Keys of the responses that can be asked for, oldest first.
    by_age: VecDeque<Key>,
    bytes: u64,
}

/// A link that is held, by its own response or by that of a later one.
#[derive(Debug)]
struct Link {
    parent: Option<Key>,
    /// Links held here that continue this one.
    children: usize,
    item_bytes: u64,
    /// Set while the response can be asked for.
    response: Option<(Bytes, Chain)>,
}

impl MemoryStore {
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            shelf: Mutex::default(),
        }
    }

    pub(super) fn load(&self, owner: Tenant, id: &ResponseId) -> Option<StoredResponse> {
        let shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let (response, chain) = shelf.links.get(&(owner, id.clone()))?.response.clone()?;
        Some(StoredResponse {
            id: id.clone(),
            response,
            chain,
        })
    }

    /// Refuses only what, with all of its parents, is larger than the budget by itself.
    pub(super) fn save(&self, owner: Tenant, record: StoredResponse) -> Result<(), SaveFailed> {
        let chain = &record.chain;
        let alone = chain.bytes() + chain.turns() * LINK_OVERHEAD + record.response.len() as u64;
        if alone > self.budget_bytes {
            return Err(SaveFailed);
        }
        // Dropped after the lock is given back: freeing a long chain takes a while.
        let mut dropped = Vec::new();
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.put(owner, record);
        while shelf.bytes > self.budget_bytes {
            let oldest = shelf.by_age.pop_front();
            let oldest = oldest.expect("what weighs belongs to a response that can be asked for");
            dropped.extend(shelf.take(&oldest));
        }
        drop(shelf);
        Ok(())
    }
}

impl Shelf {
    fn put(&mut self, owner: Tenant, record: StoredResponse) {
        let StoredResponse {
            id,
            response,
            chain,
        } = record;
        let key = (owner, id);
        self.hold(owner, &chain);
        let link = self.links.get_mut(&key);
        let link = link.expect("the chain of a response ends with its own link");
        if link.response.is_none() {
            self.bytes += response.len() as u64;
            link.response = Some((response, chain));
            self.by_age.push_back(key);
        }
    }

    /// Counts the links of a chain up to the first one that is held already. Each is walked
    /// once in its life, so the walk costs what is new.
    fn hold(&mut self, owner: Tenant, chain: &Chain) {
        let mut child = None;
        for link in chain.ancestry() {
            let key = (owner, link.id().clone());
            if let Some(held) = self.links.get_mut(&key) {
                held.children += usize::from(child.is_some());
                return;
            }
            let item_bytes = own_bytes(link);
            self.bytes += item_bytes;
            self.links.insert(
                key.clone(),
                Link {
                    parent: link.parent().map(|parent| (owner, parent.id().clone())),
                    children: usize::from(child.is_some()),
                    item_bytes,
                    response: None,
                },
            );
            child = Some(key);
        }
    }

    /// Makes a response unknown and lets go of every link that nothing else here continues.
    fn take(&mut self, key: &Key) -> Option<(Bytes, Chain)> {
        let taken = self.links.get_mut(key)?.response.take();
        if let Some((response, _)) = &taken {
            self.bytes -= response.len() as u64;
        }
        let mut next = Some(key.clone());
        while let Some(key) = next {
            let link = self.links.get(&key)?;
            if link.children > 0 || link.response.is_some() {
                break;
            }
            let link = self.links.remove(&key)?;
            self.bytes -= link.item_bytes;
            next = link.parent;
            if let Some(parent) = next.as_ref().and_then(|key| self.links.get_mut(key)) {
                parent.children -= 1;
            }
        }
        taken
    }
}

fn own_bytes(link: &Chain) -> u64 {
    let parent = link.parent().map_or(0, Chain::bytes);
    link.bytes() - parent + LINK_OVERHEAD
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use turnwire_protocol::chain::PendingCalls;
    use turnwire_protocol::item::Item;

    use super::*;

    const RESPONSE_BYTES: u64 = 200;

    /// What one saved response counts for.
    fn each() -> u64 {
        link(None, "any").bytes() + RESPONSE_BYTES + LINK_OVERHEAD
    }

    fn link(parent: Option<&Chain>, id: &str) -> Chain {
        let text = "x".repeat(1000);
        let item = Item::parse(format!(r#"{{"type":"{text}"}}"#).into()).unwrap();
        Chain::append(
            parent.cloned(),
            ResponseId::from(id),
            Arc::new([item]),
            Arc::new([]),
            PendingCalls::default(),
            None,
        )
    }

    fn save(store: &MemoryStore, chain: &Chain) -> Result<(), SaveFailed> {
        let record = StoredResponse {
            id: chain.id().clone(),
            response: Bytes::from(vec![b' '; RESPONSE_BYTES as usize]),
            chain: chain.clone(),
        };
        store.save(Tenant::ANYONE, record)
    }

    fn knows(store: &MemoryStore, id: &str) -> bool {
        store.load(Tenant::ANYONE, &ResponseId::from(id)).is_some()
    }

    fn bytes(store: &MemoryStore) -> u64 {
        store.shelf.lock().unwrap().bytes
    }

    #[test]
    fn a_response_is_found_by_its_owner_only() {
        let store = MemoryStore::new(u64::MAX);
        save(&store, &link(None, "a")).unwrap();
        assert!(knows(&store, "a"));
        let other = Tenant::of_key(b"other");
        assert!(store.load(other, &ResponseId::from("a")).is_none());
    }

    #[test]
    fn the_oldest_go_when_the_budget_is_used_up() {
        let store = MemoryStore::new(3 * each());
        for id in ["a", "b", "c", "d"] {
            save(&store, &link(None, id)).unwrap();
        }
        assert_eq!(
            ["a", "b", "c", "d"].map(|id| knows(&store, id)),
            [false, true, true, true]
        );
        assert_eq!(bytes(&store), 3 * each());
    }

    #[test]
    fn the_items_of_a_gone_parent_count_as_long_as_a_child_is_held() {
        let store = MemoryStore::new(3 * each());
        let parent = link(None, "parent");
        let child = link(Some(&parent), "child");
        save(&store, &parent).unwrap();
        save(&store, &child).unwrap();
        assert_eq!(
            bytes(&store),
            2 * each(),
            "the parent's items are counted once"
        );

        save(&store, &link(None, "c")).unwrap();
        save(&store, &link(None, "d")).unwrap();
        // Without its response the parent still weighs its items, so the child has to go too.
        assert!(!knows(&store, "parent") && !knows(&store, "child"));
        assert!(knows(&store, "c") && knows(&store, "d"));
        assert_eq!(bytes(&store), 2 * each());
    }

    #[test]
    fn parents_that_were_never_stored_count_with_the_child_that_needs_them() {
        let store = MemoryStore::new(10 * each());
        let unstored = link(None, "unstored");
        let fork = link(Some(&unstored), "fork");
        save(&store, &link(Some(&unstored), "child")).unwrap();
        save(&store, &fork).unwrap();
        assert!(!knows(&store, "unstored"));
        assert_eq!(bytes(&store), 3 * each() - RESPONSE_BYTES);
    }

    #[test]
    fn what_can_never_fit_is_refused_and_pushes_nothing_out() {
        let store = MemoryStore::new(each());
        let parent = link(None, "parent");
        save(&store, &parent).unwrap();
        assert_eq!(save(&store, &link(Some(&parent), "child")), Err(SaveFailed));
        assert!(knows(&store, "parent"));
    }
}
