//! The store in memory: chains as they are, so that what an engine keeps for them stays too.
//!
//! What is held is bounded in bytes, and the oldest responses go first. A response that went, or
//! was deleted, cannot be asked for any more, but its items stay as long as a later response
//! continues it; until then they count. Each link of a chain is counted once, however many
//! responses share it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use turnwire_protocol::action::StoredResponse;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{self, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::session::SaveFailed;

use crate::auth::Tenant;

/// What one link costs beyond what its chain counts: ids, map entries.
const LINK_OVERHEAD: u64 = 512;

/// What finding an item by its id costs, beyond the id.
const ITEM_OVERHEAD: u64 = 256;

#[derive(Debug)]
pub struct MemoryStore {
    budget_bytes: u64,
    shelf: Mutex<Shelf>,
}

type Key = (Tenant, ResponseId);

#[derive(Debug, Default)]
struct Shelf {
    links: HashMap<Key, Link>,
    /// Responses that can be asked for, by the numbers they got when they came.
    by_age: BTreeMap<u64, Key>,
    /// Named items of all links. Links may share a name, so the link's number is part of the key.
    items: BTreeMap<(Tenant, Arc<str>, u64), Item>,
    /// The number of the next link or response.
    next: u64,
    bytes: u64,
}

/// A link that is held, by its own response or by that of a later one.
#[derive(Debug)]
struct Link {
    number: u64,
    /// Its parents are held as well, so this keeps nothing alive that does not count.
    chain: Chain,
    /// Links held here that continue this one.
    children: usize,
    /// What it counts for by itself, and with all of its parents.
    own_bytes: u64,
    total_bytes: u64,
    response: Option<Response>,
}

/// What makes a link one that can be asked for.
#[derive(Debug)]
struct Response {
    age: u64,
    json: Bytes,
}

impl MemoryStore {
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            shelf: Mutex::default(),
        }
    }

    pub(super) fn load(&self, owner: Tenant, id: &ResponseId) -> Option<StoredResponse> {
        let shelf = self.shelf();
        let link = shelf.links.get(&(owner, id.clone()))?;
        Some(StoredResponse {
            id: id.clone(),
            response: link.response.as_ref()?.json.clone(),
            chain: link.chain.clone(),
        })
    }

    /// Refuses only what, with all of its parents, is larger than the budget by itself.
    pub(super) fn save(&self, owner: Tenant, record: StoredResponse) -> Result<(), SaveFailed> {
        // Dropped after the lock is given back: freeing a long chain takes a while.
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        let alone = shelf.total_bytes(owner, &record.chain) + record.response.len() as u64;
        if alone > self.budget_bytes {
            return Err(SaveFailed);
        }
        shelf.put(owner, record);
        while shelf.bytes > self.budget_bytes {
            let oldest = shelf.by_age.first_key_value().map(|(_, key)| key.clone());
            let oldest = oldest.expect("what weighs belongs to a response that can be asked for");
            shelf.take(&oldest, &mut gone);
        }
        drop(shelf);
        Ok(())
    }

    pub(super) fn delete(&self, owner: Tenant, id: &ResponseId) -> bool {
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        let known = shelf.take(&(owner, id.clone()), &mut gone);
        drop(shelf);
        known
    }

    pub(super) fn item(&self, owner: Tenant, id: &str) -> Option<Item> {
        let shelf = self.shelf();
        let name: Arc<str> = id.into();
        let named = (owner, Arc::clone(&name), 0)..=(owner, name, u64::MAX);
        if let Some((_, item)) = shelf.items.range(named).next_back() {
            return Some(item.clone());
        }
        let (response, place) = id::read_place(id)?;
        let chain = &shelf.links.get(&(owner, response))?.chain;
        items(chain).nth(place).cloned()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn put(&mut self, owner: Tenant, record: StoredResponse) {
        let StoredResponse {
            id,
            response: json,
            chain,
        } = record;
        let key = (owner, id);
        self.hold(owner, &chain);
        let age = self.number();
        let link = self.links.get_mut(&key);
        let link = link.expect("the chain of a response ends with its own link");
        if link.response.is_none() {
            self.bytes += json.len() as u64;
            link.response = Some(Response { age, json });
            self.by_age.insert(age, key);
        }
    }

    /// Counts the links of a chain up to the first one that is held already. Each is walked
    /// once in its life, so the walk costs what is new.
    fn hold(&mut self, owner: Tenant, chain: &Chain) {
        let mut total_bytes = self.total_bytes(owner, chain);
        let mut is_parent = false;
        for link in chain.ancestry() {
            let key = (owner, link.id().clone());
            if let Some(held) = self.links.get_mut(&key) {
                held.children += usize::from(is_parent);
                return;
            }
            let number = self.number();
            let own_bytes = own_bytes(link);
            self.bytes += own_bytes;
            self.links.insert(
                key,
                Link {
                    number,
                    chain: link.clone(),
                    children: usize::from(is_parent),
                    own_bytes,
                    total_bytes,
                    response: None,
                },
            );
            for item in items(link) {
                if let Some(id) = item.id() {
                    self.items.insert((owner, id.into(), number), item.clone());
                }
            }
            total_bytes -= own_bytes;
            is_parent = true;
        }
    }

    /// What a chain counts for if nothing else is held.
    fn total_bytes(&self, owner: Tenant, chain: &Chain) -> u64 {
        let mut bytes = 0;
        for link in chain.ancestry() {
            if let Some(held) = self.links.get(&(owner, link.id().clone())) {
                return bytes + held.total_bytes;
            }
            bytes += own_bytes(link);
        }
        bytes
    }

    /// Makes a response unknown and lets go of every link that nothing else here continues.
    /// False if it was not known.
    fn take(&mut self, key: &Key, gone: &mut Vec<Link>) -> bool {
        let response = self
            .links
            .get_mut(key)
            .and_then(|link| link.response.take());
        let Some(Response { age, json }) = response else {
            return false;
        };
        self.by_age.remove(&age);
        self.bytes -= json.len() as u64;
        let owner = key.0;
        let mut next = Some(key.clone());
        while let Some(key) = next.take() {
            let needed = |link: &Link| link.children > 0 || link.response.is_some();
            if self.links.get(&key).is_none_or(needed) {
                break;
            }
            let Some(link) = self.links.remove(&key) else {
                break;
            };
            self.bytes -= link.own_bytes;
            for item in items(&link.chain) {
                if let Some(id) = item.id() {
                    self.items.remove(&(owner, id.into(), link.number));
                }
            }
            if let Some(parent) = link.chain.parent() {
                let key = (owner, parent.id().clone());
                if let Some(parent) = self.links.get_mut(&key) {
                    parent.children -= 1;
                }
                next = Some(key);
            }
            gone.push(link);
        }
        true
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A link's own items, those of its request before its output.
fn items(link: &Chain) -> impl Iterator<Item = &Item> {
    link.asked().iter().chain(link.output().iter())
}

fn own_bytes(link: &Chain) -> u64 {
    let parent = link.parent().map_or(0, Chain::bytes);
    let named = items(link).filter_map(Item::id);
    let index: u64 = named.map(|id| ITEM_OVERHEAD + id.len() as u64).sum();
    link.bytes() - parent + LINK_OVERHEAD + index
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use turnwire_protocol::chain::Carried;
    use turnwire_protocol::item::Item;

    use super::*;

    const RESPONSE_BYTES: u64 = 200;

    /// What one saved response counts for.
    fn each() -> u64 {
        own_bytes(&link(None, "x")) + RESPONSE_BYTES
    }

    fn link(parent: Option<&Chain>, id: &str) -> Chain {
        // The name counts three times: in the text, in the item and in the index.
        let text = "x".repeat(1000 - 3 * id.len());
        let item = format!(r#"{{"type":"{text}","id":"item_of_{id}"}}"#);
        let item = Item::parse(item.into()).unwrap();
        Chain::append(
            parent.cloned(),
            ResponseId::from(id),
            Arc::new([item]),
            Arc::new([]),
            Carried::default(),
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

    #[test]
    fn a_deleted_response_is_unknown_but_what_continues_it_is_whole() {
        let store = MemoryStore::new(u64::MAX);
        let parent = link(None, "p");
        save(&store, &parent).unwrap();
        save(&store, &link(Some(&parent), "c")).unwrap();
        let delete = |id: &str| store.delete(Tenant::ANYONE, &ResponseId::from(id));
        assert!(!store.delete(Tenant::of_key(b"other"), &ResponseId::from("p")));
        assert!(delete("p"));
        assert!(!knows(&store, "p") && knows(&store, "c") && !delete("p"));
        assert_eq!(bytes(&store), 2 * each() - RESPONSE_BYTES);
        assert!(delete("c"));
        assert_eq!(bytes(&store), 0);
        let shelf = store.shelf();
        assert!(shelf.links.is_empty() && shelf.items.is_empty() && shelf.by_age.is_empty());
    }

    #[test]
    fn an_item_is_found_by_its_owner_as_long_as_its_link_is_held() {
        let store = MemoryStore::new(u64::MAX);
        let parent = link(None, "resp_p");
        save(&store, &link(Some(&parent), "resp_c")).unwrap();
        // Another response that was given an item of the same name.
        save(&store, &link(None, "resp_p")).unwrap();
        let finds = |id: &str| {
            let item = store.item(Tenant::ANYONE, id);
            item.map(|item| item.id().map(ToOwned::to_owned).unwrap())
        };
        for id in ["item_of_resp_p", "msg_p_0"] {
            assert_eq!(finds(id).as_deref(), Some("item_of_resp_p"));
            assert!(store.item(Tenant::of_key(b"other"), id).is_none());
        }
        assert_eq!(finds("msg_p_1"), None);
        store.delete(Tenant::ANYONE, &ResponseId::from("resp_c"));
        assert_eq!(finds("item_of_resp_c"), None);
        assert!(finds("item_of_resp_p").is_some());
    }
}
