//! Hot: chains of a durable store that are in memory as well, and with them what engines keep.
//!
//! Whether a response exists is never asked here, only what its chain is. What is held is bounded
//! in bytes, and the chains that were not used for the longest time go first. Each link is counted
//! once, however many chains share it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::ResponseId;

use crate::auth::Tenant;

/// Bytes of chains that a store holds in memory as well.
pub(super) const HOT_BYTES: u64 = 256 << 20;

/// What one link costs beyond what its chain counts.
const LINK_OVERHEAD: u64 = 384;

#[derive(Debug)]
pub(super) struct Hot {
    budget_bytes: u64,
    shelf: Mutex<Shelf>,
}

type Key = (Tenant, ResponseId);

#[derive(Debug, Default)]
struct Shelf {
    links: HashMap<Key, Link>,
    /// The ends of chains, by the numbers they got when they were last used.
    by_use: BTreeMap<u64, Key>,
    next: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Link {
    /// Its parents are held as well, so this keeps nothing alive that does not count.
    chain: Chain,
    /// Links held here that continue this one.
    children: usize,
    own_bytes: u64,
    /// Its key in `by_use`, if it is held for itself.
    last_use: Option<u64>,
}

impl Hot {
    pub(super) fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            shelf: Mutex::default(),
        }
    }

    pub(super) fn get(&self, owner: Tenant, id: &ResponseId) -> Option<Chain> {
        let key = (owner, id.clone());
        let mut shelf = self.shelf();
        let chain = shelf.links.get(&key)?.chain.clone();
        shelf.touch(key);
        Some(chain)
    }

    /// Holds a chain, unless it would leave no room for others, or keep links alive that do not
    /// count, because others of the same ids are held. It must be what is stored.
    pub(super) fn keep(&self, owner: Tenant, chain: &Chain) {
        if chain.bytes() > self.budget_bytes {
            return;
        }
        // Dropped after the lock is given back: freeing a long chain takes a while.
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        if !shelf.shares_links_with(owner, chain) {
            return;
        }
        shelf.hold(owner, chain);
        shelf.touch((owner, chain.id().clone()));
        shelf.shrink_to(self.budget_bytes, &mut gone);
        drop(shelf);
    }

    /// Lets go of a chain that nobody can ask for any more.
    pub(super) fn forget(&self, owner: Tenant, id: &ResponseId) {
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        shelf.release((owner, id.clone()), &mut gone);
        drop(shelf);
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    /// Makes a link the one that was used last.
    fn touch(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        if let Some(before) = link.last_use.replace(self.next) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.next, key);
        self.next += 1;
    }

    /// Whether the first of its links that is held already is the very link, not another copy.
    fn shares_links_with(&self, owner: Tenant, chain: &Chain) -> bool {
        let held =
            |link: &Chain| Some((self.links.get(&(owner, link.id().clone()))?, link.clone()));
        let first = chain.ancestry().find_map(held);
        first.is_none_or(|(held, link)| held.chain.is(&link))
    }

    /// Counts the links of a chain up to the first one that is held already.
    fn hold(&mut self, owner: Tenant, chain: &Chain) {
        let mut is_parent = false;
        for link in chain.ancestry() {
            let key = (owner, link.id().clone());
            if let Some(held) = self.links.get_mut(&key) {
                held.children += usize::from(is_parent);
                return;
            }
            let own_bytes = link.own_bytes() + LINK_OVERHEAD;
            self.bytes += own_bytes;
            let held = Link {
                chain: link.clone(),
                children: usize::from(is_parent),
                own_bytes,
                last_use: None,
            };
            self.links.insert(key, held);
            is_parent = true;
        }
    }

    fn shrink_to(&mut self, budget_bytes: u64, gone: &mut Vec<Link>) {
        while self.bytes > budget_bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            self.release(oldest, gone);
        }
    }

    /// Holds a link for itself no more, and lets go of it and of those before it as far as nothing
    /// continues them.
    fn release(&mut self, key: Key, gone: &mut Vec<Link>) {
        let owner = key.0;
        if let Some(link) = self.links.get_mut(&key)
            && let Some(last_use) = link.last_use.take()
        {
            self.by_use.remove(&last_use);
        }
        let mut next = Some(key);
        while let Some(key) = next.take() {
            let needed = |link: &Link| link.children > 0 || link.last_use.is_some();
            if self.links.get(&key).is_none_or(needed) {
                break;
            }
            let Some(link) = self.links.remove(&key) else {
                break;
            };
            self.bytes -= link.own_bytes;
            if let Some(parent) = link.chain.parent() {
                let key = (owner, parent.id().clone());
                if let Some(parent) = self.links.get_mut(&key) {
                    parent.children -= 1;
                }
                next = Some(key);
            }
            gone.push(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use turnwire_protocol::chain::Carried;
    use turnwire_protocol::item::Item;

    use super::*;

    const OWNER: Tenant = Tenant::ANYONE;

    fn link(parent: Option<&Chain>, id: &str) -> Chain {
        let item = Item::parse(r#"{"role":"user","content":"x"}"#.into()).unwrap();
        Chain::append(
            parent.cloned(),
            id.into(),
            Arc::new([item]),
            Arc::new([]),
            Carried::default(),
            None,
        )
    }

    fn holds(hot: &Hot, id: &str) -> bool {
        hot.shelf().links.contains_key(&(OWNER, id.into()))
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first() {
        let each = link(None, "x").bytes() + LINK_OVERHEAD;
        let hot = Hot::new(3 * each);
        let (a, b) = (link(None, "a"), link(None, "b"));
        hot.keep(OWNER, &a);
        hot.keep(OWNER, &b);
        assert!(hot.get(OWNER, a.id()).unwrap().is(&a));
        assert!(hot.get(Tenant::of_key(b"other"), a.id()).is_none());
        let c = link(Some(&a), "c");
        hot.keep(OWNER, &c);
        hot.keep(OWNER, &link(None, "d"));
        assert_eq!(
            ["a", "b", "c", "d"].map(|id| holds(&hot, id)),
            [true, false, true, true]
        );
        assert_eq!(hot.shelf().bytes, 3 * each);
    }

    #[test]
    fn links_stay_as_long_as_a_chain_that_is_held_has_them() {
        let hot = Hot::new(u64::MAX);
        let parent = link(None, "p");
        let fork = link(Some(&parent), "f");
        hot.keep(OWNER, &link(Some(&parent), "c"));
        hot.keep(OWNER, &fork);
        hot.forget(OWNER, &"c".into());
        hot.forget(OWNER, parent.id());
        assert!(holds(&hot, "p") && !holds(&hot, "c"));
        hot.forget(OWNER, fork.id());
        let shelf = hot.shelf();
        assert!(shelf.links.is_empty() && shelf.by_use.is_empty() && shelf.bytes == 0);
    }

    #[test]
    fn a_chain_is_not_held_that_would_keep_other_copies_of_links_alive() {
        let hot = Hot::new(u64::MAX);
        hot.keep(OWNER, &link(None, "p"));
        let copy = link(None, "p");
        hot.keep(OWNER, &link(Some(&copy), "c"));
        assert!(holds(&hot, "p") && !holds(&hot, "c"));
        let held = hot.get(OWNER, copy.id()).unwrap();
        hot.keep(OWNER, &link(Some(&held), "c"));
        assert!(holds(&hot, "c"));
    }
}
