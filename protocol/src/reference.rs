//! References: `item_reference` items, each replaced by the very item it names when its turn
//! starts.
//!
//! An item is looked for in the input itself, in the parent's chain, in what the lanes of the
//! connection keep, and last in the store. One that the parent's chain has is in the model's
//! context already, so its reference is dropped. Only an input with references ever costs a walk
//! along a chain.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use crate::chain::{Chain, LinkAddress};
use crate::failure::Failure;
use crate::field::Path;
use crate::id::{self, ResponseId};
use crate::item::{Item, ItemKind};

/// What an input refers to, as far as it was found.
#[derive(Debug)]
pub(crate) struct References {
    found: HashMap<Arc<str>, Found>,
    /// Ids that are still to be found.
    missing: BTreeSet<Arc<str>>,
    /// Those that name a place in a response.
    places: HashMap<(ResponseId, usize), Arc<str>>,
    /// Links that were searched; chains share most of theirs.
    searched: HashSet<LinkAddress>,
}

#[derive(Debug)]
enum Found {
    InContext,
    Elsewhere(Item),
}

impl References {
    /// Those of `input`, unless it has none. Its own items answer those behind them.
    pub(crate) fn of(input: &[Item]) -> Option<Self> {
        let is_reference = |item: &Item| item.kind() == ItemKind::ItemReference;
        if !input.iter().any(is_reference) {
            return None;
        }
        let mut found = HashMap::new();
        let mut missing = BTreeSet::new();
        for item in input {
            let Some(id) = item.id() else {
                continue;
            };
            if !is_reference(item) {
                // What stands behind its reference does not answer it.
                if !missing.contains(id) {
                    found.insert(Arc::from(id), Found::Elsewhere(item.clone()));
                }
            } else if !found.contains_key(id) {
                missing.insert(Arc::from(id));
            }
        }
        let place = |id: &Arc<str>| Some((id::read_place(id)?, Arc::clone(id)));
        Some(Self {
            found,
            places: missing.iter().filter_map(place).collect(),
            missing,
            searched: HashSet::new(),
        })
    }

    /// Searches the chain that the turn continues.
    pub(crate) fn search_parent(&mut self, parent: &Chain) {
        self.search(parent, |_| Found::InContext);
    }

    /// Searches another chain that the client may see.
    pub(crate) fn search_chain(&mut self, chain: &Chain) {
        self.search(chain, |item| Found::Elsewhere(item.detached()));
    }

    /// What only the store can know.
    pub(crate) fn missing(&self) -> Vec<Arc<str>> {
        self.missing.iter().cloned().collect()
    }

    /// Takes what the store found, in the order of what is missing.
    pub(crate) fn found_in_store(&mut self, items: Vec<Option<Item>>) {
        let missing = mem::take(&mut self.missing);
        for (id, item) in missing.into_iter().zip(items) {
            if let Some(item) = item {
                self.found.insert(id, Found::Elsewhere(item));
            }
        }
    }

    /// The input, which stands at `list`, with its references replaced. Fails at the first that
    /// names nothing.
    pub(crate) fn replace(&self, input: &[Item], list: Path<'_>) -> Result<Arc<[Item]>, Failure> {
        let mut items = Vec::with_capacity(input.len());
        for (index, item) in input.iter().enumerate() {
            let id = match item.id() {
                Some(id) if item.kind() == ItemKind::ItemReference => id,
                _ => {
                    items.push(item.clone());
                    continue;
                }
            };
            match self.found.get(id) {
                Some(Found::InContext) => {}
                Some(Found::Elsewhere(item)) => items.push(item.clone()),
                None => {
                    let path = Path::Index(&list, index);
                    return Err(Failure::item_not_found(Path::Member(&path, "id"), id));
                }
            }
        }
        Ok(items.into())
    }

    /// The id by which this item of a response is missing.
    fn take(&mut self, link: &Chain, place: usize, item: &Item) -> Option<Arc<str>> {
        if let Some(id) = item.id() {
            return self.missing.take(id);
        }
        if self.places.is_empty() {
            return None;
        }
        let id = self.places.get(&(link.id().clone(), place))?;
        self.missing.take(&**id)
    }

    fn search(&mut self, chain: &Chain, found: impl Fn(&Item) -> Found) {
        for link in chain.ancestry() {
            if self.missing.is_empty() || !self.searched.insert(link.address()) {
                return;
            }
            // What a compaction stands for is not in the context any more.
            let replaced = !Arc::ptr_eq(link.asked(), link.input());
            let own = link.asked().iter().chain(&**link.output()).enumerate();
            for (place, item) in own {
                if let Some(id) = self.take(link, place, item) {
                    let found = match replaced && place < link.asked().len() {
                        true => Found::Elsewhere(item.detached()),
                        false => found(item),
                    };
                    self.found.insert(id, found);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Carried;
    use bytes::Bytes;

    #[test]
    fn an_item_of_another_chain_does_not_keep_its_message_alive() {
        let message = Bytes::from_static(br#"{"id":"a","type":"x"} and a lot more"#);
        let item = Item::parse(message.slice(..21)).expect("an item");
        let id = ResponseId::from("resp_1");
        let none = Arc::default();
        let carried = Carried::default();
        let chain = Chain::append(None, id, Arc::new([item.clone()]), none, carried, None);
        let input = [Item::parse(r#"{"id":"a"}"#.into()).expect("a reference")];
        let mut references = References::of(&input).expect("a reference");
        references.search_chain(&chain);
        let found = references
            .replace(&input, Path::Name("input"))
            .expect("it was found");
        assert_eq!(found[0].raw(), item.raw());
        assert!(!message.as_ptr_range().contains(&found[0].raw().as_ptr()));
    }
}
