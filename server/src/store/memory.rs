//! The store in memory: chains as they are, so that what an engine keeps for them stays too.
//!
//! What is held is bounded in bytes, and the oldest responses and conversations go first. A
//! response that went, or was deleted, cannot be asked for any more, but its items stay as long as
//! a later response continues it, or a conversation ends with it; until then they count. Each link
//! of a chain is counted once, however many share it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{self, ConversationId, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::session::SaveFailed;
use turnwire_protocol::stored::{ResponseText, Status, StoredResponse};

use super::{Conversation, ShownResponse};
use crate::auth::Tenant;
use crate::clock;

/// What one link costs beyond what its chain counts: ids, map entries.
const LINK_OVERHEAD: u64 = 512;

/// What finding an item by its id costs, beyond the id.
const ITEM_OVERHEAD: u64 = 256;

#[derive(Debug)]
pub struct MemoryStore {
    budget_bytes: u64,
    /// For how long something is kept that is not used.
    age: Option<Duration>,
    shelf: Mutex<Shelf>,
}

/// What one conversation costs beside its metadata and its chain.
const CONVERSATION_OVERHEAD: u64 = 512;

type Key = (Tenant, ResponseId);
type ConversationKey = (Tenant, ConversationId);

#[derive(Debug, Default)]
struct Shelf {
    links: HashMap<Key, Link>,
    conversations: HashMap<ConversationKey, Named>,
    /// What can be asked for, by the numbers it got when it came.
    by_age: BTreeMap<u64, Aged>,
    /// Named items of all links. Links may share a name, so the link's number is part of the key.
    items: BTreeMap<(Tenant, Arc<str>, u64), Item>,
    /// The number of the next link or response.
    next: u64,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct Aged {
    /// When it came, in seconds since 1970.
    since: u64,
    held: Held,
}

/// What can be asked for, and keeps links here.
#[derive(Clone, Debug)]
enum Held {
    Response(Key),
    Conversation(ConversationKey),
}

#[derive(Debug)]
struct Named {
    age: u64,
    conversation: Conversation,
}

/// A link that is held, by its own response, by that of a later one, or by a conversation.
#[derive(Debug)]
struct Link {
    number: u64,
    /// Its parents are held as well, so this keeps nothing alive that does not count.
    chain: Chain,
    /// Links held here that continue this one, and conversations that end with it.
    holders: usize,
    /// What it counts for by itself, and with all of its parents.
    own_bytes: u64,
    total_bytes: u64,
    response: Option<Response>,
}

/// What makes a link one that can be asked for.
#[derive(Debug)]
struct Response {
    age: u64,
    status: Status,
    text: ResponseText,
}

impl MemoryStore {
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            age: None,
            shelf: Mutex::default(),
        }
    }

    /// The same, but what was stored longer ago than that goes, and conversations that were not
    /// used for as long.
    #[must_use]
    pub fn keeping_for(self, age: Option<Duration>) -> Self {
        Self { age, ..self }
    }

    pub(super) fn load(&self, owner: Tenant, id: &ResponseId) -> Option<Chain> {
        let shelf = self.shelf();
        let (link, response) = shelf.find(owner, id)?;
        let continuable = response.status.is_continuable();
        continuable.then(|| link.chain.clone())
    }

    pub(super) fn chain(&self, owner: Tenant, id: &ResponseId) -> Option<Chain> {
        let shelf = self.shelf();
        shelf.find(owner, id).map(|(link, _)| link.chain.clone())
    }

    pub(super) fn response(&self, owner: Tenant, id: &ResponseId) -> Option<ShownResponse> {
        let shelf = self.shelf();
        let (link, response) = shelf.find(owner, id)?;
        let (status, text, chain) = (response.status, response.text.clone(), link.chain.clone());
        drop(shelf);
        let json = text.with_output_of(&chain);
        Some(ShownResponse { status, json })
    }

    /// Refuses only what, with all of its parents, is larger than the budget by itself.
    pub(super) fn save(&self, owner: Tenant, record: StoredResponse) -> Result<(), SaveFailed> {
        // Dropped after the lock is given back: freeing a long chain takes a while.
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        let alone = shelf.total_bytes(owner, &record.chain) + record.text.size() as u64;
        if alone > self.budget_bytes {
            return Err(SaveFailed::TooLarge);
        }
        let step = record.conversation.clone();
        let step = step.map(|step| ((owner, step.id), step.from));
        if let Some((key, from)) = &step {
            shelf.check_end(key, from.as_ref())?;
        }
        let chain = record.chain.clone();
        shelf.put(owner, record, &mut gone);
        if let Some((key, from)) = &step {
            shelf.advance(key, from.as_ref(), Some(chain), &mut gone)?;
        }
        shelf.shrink_to(self.budget_bytes, &mut gone);
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

    pub(super) fn conversation(&self, owner: Tenant, id: &ConversationId) -> Option<Conversation> {
        let shelf = self.shelf();
        let named = shelf.conversations.get(&(owner, id.clone()))?;
        Some(named.conversation.clone())
    }

    pub(super) fn create_conversation(
        &self,
        owner: Tenant,
        conversation: Conversation,
    ) -> Result<(), SaveFailed> {
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        let chain = conversation.chain.as_ref();
        let items = chain.map_or(0, |chain| shelf.total_bytes(owner, chain));
        if items + named_bytes(&conversation) > self.budget_bytes {
            return Err(SaveFailed::TooLarge);
        }
        shelf.name(owner, conversation);
        shelf.shrink_to(self.budget_bytes, &mut gone);
        drop(shelf);
        Ok(())
    }

    pub(super) fn update_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        metadata: Bytes,
    ) -> bool {
        let mut shelf = self.shelf();
        let Some(named) = shelf.conversations.get_mut(&(owner, id.clone())) else {
            return false;
        };
        let before = named_bytes(&named.conversation);
        named.conversation.metadata = metadata;
        let after = named_bytes(&named.conversation);
        shelf.bytes = shelf.bytes - before + after;
        true
    }

    pub(super) fn advance_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        from: Option<&ResponseId>,
        to: Option<Chain>,
    ) -> Result<(), SaveFailed> {
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        let alone = to.as_ref().map_or(0, |to| shelf.total_bytes(owner, to));
        if alone > self.budget_bytes {
            return Err(SaveFailed::TooLarge);
        }
        shelf.advance(&(owner, id.clone()), from, to, &mut gone)?;
        shelf.shrink_to(self.budget_bytes, &mut gone);
        drop(shelf);
        Ok(())
    }

    pub(super) fn delete_conversation(&self, owner: Tenant, id: &ConversationId) -> bool {
        let mut gone = Vec::new();
        let mut shelf = self.shelf();
        let known = shelf.unname(&(owner, id.clone()), &mut gone);
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

    /// What there is, without what is too old.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        let lock = || self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shelf = lock();
        let Some(age) = self.age else { return shelf };
        let cutoff = clock::unix_seconds().saturating_sub(age.as_secs());
        let mut gone = Vec::new();
        shelf.let_go_before(cutoff, &mut gone);
        if !gone.is_empty() {
            drop(shelf);
            drop(gone);
            shelf = lock();
        }
        shelf
    }
}

impl Aged {
    fn now(conversation: ConversationKey) -> Self {
        Self {
            since: clock::unix_seconds(),
            held: Held::Conversation(conversation),
        }
    }
}

impl Shelf {
    fn find(&self, owner: Tenant, id: &ResponseId) -> Option<(&Link, &Response)> {
        let link = self.links.get(&(owner, id.clone()))?;
        Some((link, link.response.as_ref()?))
    }

    /// One that is stored already is replaced while it is not final.
    fn put(&mut self, owner: Tenant, record: StoredResponse, gone: &mut Vec<Link>) {
        let key = (owner, record.id);
        let before = self.find(owner, &key.1);
        let before = before.map(|(_, response)| response.status);
        match before {
            Some(status) if status.is_final() => return,
            Some(_) => drop(self.take(&key, gone)),
            None => {}
        }
        self.hold(owner, &record.chain);
        let age = self.number();
        let link = self.links.get_mut(&key);
        let link = link.expect("the chain of a response ends with its own link");
        // Slices of the last event, whose output the chain has already.
        let text = ResponseText {
            before: Bytes::copy_from_slice(&record.text.before),
            after: Bytes::copy_from_slice(&record.text.after),
        };
        self.bytes += text.size() as u64;
        link.response = Some(Response {
            age,
            status: record.status,
            text,
        });
        let since = record.created_at;
        let held = Held::Response(key);
        self.by_age.insert(age, Aged { since, held });
    }

    fn name(&mut self, owner: Tenant, conversation: Conversation) {
        let key = (owner, conversation.id.clone());
        if let Some(chain) = &conversation.chain {
            self.pin(owner, chain);
        }
        let age = self.number();
        self.bytes += named_bytes(&conversation);
        self.by_age.insert(age, Aged::now(key.clone()));
        self.conversations.insert(key, Named { age, conversation });
    }

    /// Makes a conversation unknown. False if it was not known.
    fn unname(&mut self, key: &ConversationKey, gone: &mut Vec<Link>) -> bool {
        let Some(named) = self.conversations.remove(key) else {
            return false;
        };
        self.by_age.remove(&named.age);
        self.bytes -= named_bytes(&named.conversation);
        if let Some(chain) = named.conversation.chain {
            self.unpin(key.0, &chain, gone);
        }
        true
    }

    /// The chain of a conversation, which must end with this.
    fn check_end(
        &self,
        key: &ConversationKey,
        end: Option<&ResponseId>,
    ) -> Result<Option<Chain>, SaveFailed> {
        let named = self.conversations.get(key);
        let named = named.ok_or(SaveFailed::ConversationMoved)?;
        let chain = named.conversation.chain.clone();
        match chain.as_ref().map(Chain::id) == end {
            true => Ok(chain),
            false => Err(SaveFailed::ConversationMoved),
        }
    }

    /// Lets a conversation that ends with `from` end with `to`.
    fn advance(
        &mut self,
        key: &ConversationKey,
        from: Option<&ResponseId>,
        to: Option<Chain>,
        gone: &mut Vec<Link>,
    ) -> Result<(), SaveFailed> {
        let before = self.check_end(key, from)?;
        if let Some(to) = &to {
            self.pin(key.0, to);
        }
        let age = self.number();
        self.by_age.insert(age, Aged::now(key.clone()));
        if let Some(named) = self.conversations.get_mut(key) {
            self.by_age.remove(&named.age);
            named.age = age;
            named.conversation.chain = to;
        }
        if let Some(before) = before {
            self.unpin(key.0, &before, gone);
        }
        Ok(())
    }

    /// Holds a chain for a conversation.
    fn pin(&mut self, owner: Tenant, chain: &Chain) {
        self.hold(owner, chain);
        if let Some(link) = self.links.get_mut(&(owner, chain.id().clone())) {
            link.holders += 1;
        }
    }

    fn unpin(&mut self, owner: Tenant, chain: &Chain, gone: &mut Vec<Link>) {
        let key = (owner, chain.id().clone());
        if let Some(link) = self.links.get_mut(&key) {
            link.holders -= 1;
        }
        self.let_go(key, gone);
    }

    /// Lets the oldest go until the rest fits.
    fn shrink_to(&mut self, budget_bytes: u64, gone: &mut Vec<Link>) {
        while self.bytes > budget_bytes {
            let oldest = self.by_age.first_key_value();
            let oldest = oldest.expect("what weighs belongs to something that can be asked for");
            let held = oldest.1.held.clone();
            self.drop_held(held, gone);
        }
    }

    /// Lets go of what came before this second.
    fn let_go_before(&mut self, second: u64, gone: &mut Vec<Link>) {
        while let Some((_, oldest)) = self.by_age.first_key_value()
            && oldest.since < second
        {
            let held = oldest.held.clone();
            self.drop_held(held, gone);
        }
    }

    fn drop_held(&mut self, held: Held, gone: &mut Vec<Link>) {
        match held {
            Held::Response(key) => drop(self.take(&key, gone)),
            Held::Conversation(key) => drop(self.unname(&key, gone)),
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
                held.holders += usize::from(is_parent);
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
                    holders: usize::from(is_parent),
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
        let Some(Response { age, text, .. }) = response else {
            return false;
        };
        self.by_age.remove(&age);
        self.bytes -= text.size() as u64;
        self.let_go(key.clone(), gone);
        true
    }

    /// Lets go of a link that nothing here needs, and of those before it that are not needed then.
    fn let_go(&mut self, key: Key, gone: &mut Vec<Link>) {
        let owner = key.0;
        let mut next = Some(key);
        while let Some(key) = next.take() {
            let needed = |link: &Link| link.holders > 0 || link.response.is_some();
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
                    parent.holders -= 1;
                }
                next = Some(key);
            }
            gone.push(link);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// What a conversation counts for beside its chain.
fn named_bytes(conversation: &Conversation) -> u64 {
    CONVERSATION_OVERHEAD + conversation.metadata.len() as u64
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
