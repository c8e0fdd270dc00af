//! Store: where stored responses live beyond their connection.
//!
//! A response is always looked up together with its owner. Nothing here is reached by a turn
//! with `store: false`.

mod listing;
mod memory;

use std::sync::Arc;

use turnwire_protocol::action::StoredResponse;
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::item::Item;
use turnwire_protocol::session::SaveFailed;

use crate::auth::Tenant;

pub(crate) use listing::{Listed, input_of};
pub use memory::MemoryStore;

/// An enum rather than a trait object: there are few stores, and `async fn` stays plain.
#[derive(Debug)]
pub enum Store {
    Memory(MemoryStore),
}

impl Store {
    pub async fn load(&self, owner: Tenant, id: &ResponseId) -> Option<StoredResponse> {
        match self {
            Self::Memory(store) => store.load(owner, id),
        }
    }

    /// Once this is done, the response is found by every connection of its owner.
    pub async fn save(&self, owner: Tenant, response: StoredResponse) -> Result<(), SaveFailed> {
        match self {
            Self::Memory(store) => store.save(owner, response),
        }
    }

    /// Makes a response unknown; false if it was not known. What continues it stays as it is.
    pub async fn delete(&self, owner: Tenant, id: &ResponseId) -> bool {
        match self {
            Self::Memory(store) => store.delete(owner, id),
        }
    }

    /// Items of responses that are stored, or that stored ones continue, each by its own id or by
    /// the one it is listed by.
    pub async fn items(&self, owner: Tenant, ids: &[Arc<str>]) -> Vec<Option<Item>> {
        match self {
            Self::Memory(store) => ids.iter().map(|id| store.item(owner, id)).collect(),
        }
    }
}
