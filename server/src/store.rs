//! Store: where stored responses and conversations live beyond their connection.
//!
//! Everything is looked up together with its owner. What writes takes a [`StoredResponse`], which
//! nobody can make for a turn with `store: false`; a server that retains nothing has no store.
//!
//! A store that cannot do its work logs why, and says no more than that to its caller.

mod hot;
mod memory;
#[cfg(test)]
mod operations;
mod postgres;
mod spec;
mod sqlite;
#[cfg(test)]
mod story;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::session::{SaveFailed, StoreUnavailable};
use turnwire_protocol::stored::{Status, StoredResponse};

use crate::auth::Tenant;

pub use memory::MemoryStore;
pub(crate) use postgres::{CancelRequests, Outgoing, Relay};
pub use postgres::{PostgresStore, PostgresUrl};
pub use spec::StoreSpec;
pub use sqlite::{OpenError, SqliteStore};

/// An enum rather than a trait object: there are few stores, and `async fn` stays plain.
#[derive(Debug)]
pub enum Store {
    Memory(MemoryStore),
    Postgres(Box<PostgresStore>),
    Sqlite(SqliteStore),
}

/// What goes by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// What was stored, or used in a conversation, longer ago than this goes.
    pub age: Option<Duration>,
    /// The oldest go while more than this is stored.
    pub bytes: Option<u64>,
}

/// What is stored, to be read.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Store>);

/// What is stored, to be changed.
#[derive(Clone, Debug)]
pub struct Writer(Arc<Store>);

/// A stored response as a client is shown it.
#[derive(Clone, Debug)]
pub struct ShownResponse {
    pub status: Status,
    /// The response object.
    pub json: Bytes,
}

/// A conversation: a name for the end of a chain.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub id: ConversationId,
    /// Seconds since 1970.
    pub created_at: u64,
    /// A JSON object.
    pub metadata: Bytes,
    /// Its items; none if it has none yet.
    pub chain: Option<Chain>,
}

/// Both.
#[derive(Clone, Debug)]
pub struct Storage {
    pub reader: Reader,
    pub writer: Writer,
}

impl From<Store> for Storage {
    fn from(store: Store) -> Self {
        let store = Arc::new(store);
        Self {
            reader: Reader(Arc::clone(&store)),
            writer: Writer(store),
        }
    }
}

impl Storage {
    /// What servers that share the store tell each other. None if it belongs to this one alone.
    pub(crate) fn relay(&self) -> Option<&Relay> {
        match &*self.reader.0 {
            Store::Postgres(store) => Some(store.relay()),
            Store::Memory(_) | Store::Sqlite(_) => None,
        }
    }
}

impl Reader {
    /// The chain of a response that can be continued.
    pub async fn load(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(store.load(owner, id)),
            Store::Sqlite(store) => store.load(owner, id).await,
            Store::Postgres(store) => store.load(owner, id).await,
        }
    }

    /// The chain of a response, however far it is.
    pub async fn chain(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(store.chain(owner, id)),
            Store::Sqlite(store) => store.chain(owner, id).await,
            Store::Postgres(store) => store.chain(owner, id).await,
        }
    }

    pub async fn response(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<ShownResponse>, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(store.response(owner, id)),
            Store::Sqlite(store) => store.response(owner, id).await,
            Store::Postgres(store) => store.response(owner, id).await,
        }
    }

    /// Items of responses that are stored, or that stored ones continue, each by its own id or by
    /// the one it is listed by.
    pub async fn items(
        &self,
        owner: Tenant,
        ids: &[Arc<str>],
    ) -> Result<Vec<Option<Item>>, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(ids.iter().map(|id| store.item(owner, id)).collect()),
            Store::Sqlite(store) => store.items(owner, ids).await,
            Store::Postgres(store) => store.items(owner, ids).await,
        }
    }

    pub async fn conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<Option<Conversation>, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(store.conversation(owner, id)),
            Store::Sqlite(store) => store.conversation(owner, id).await,
            Store::Postgres(store) => store.conversation(owner, id).await,
        }
    }
}

impl Writer {
    /// Once this is done, the response is found by every connection of its owner, and its
    /// conversation, if it is part of one, goes on with it. What is called first is stored first,
    /// however the futures are polled.
    pub fn save(
        &self,
        owner: Tenant,
        response: StoredResponse,
    ) -> BoxFuture<'static, Result<(), SaveFailed>> {
        match &*self.0 {
            Store::Memory(store) => future::ready(store.save(owner, response)).boxed(),
            Store::Sqlite(store) => store.save(owner, response),
            Store::Postgres(store) => store.save(owner, response),
        }
    }

    /// Makes a response unknown; false if it was not known. What continues it stays as it is.
    pub async fn delete(&self, owner: Tenant, id: &ResponseId) -> Result<bool, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(store.delete(owner, id)),
            Store::Sqlite(store) => store.delete(owner, id).await,
            Store::Postgres(store) => store.delete(owner, id).await,
        }
    }

    pub async fn create_conversation(
        &self,
        owner: Tenant,
        conversation: Conversation,
    ) -> Result<(), SaveFailed> {
        match &*self.0 {
            Store::Memory(store) => store.create_conversation(owner, conversation),
            Store::Sqlite(store) => store.create_conversation(owner, conversation).await,
            Store::Postgres(store) => store.create_conversation(owner, conversation).await,
        }
    }

    /// Gives a conversation other metadata, a JSON object; false if it is not known.
    pub async fn update_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        metadata: Bytes,
    ) -> Result<bool, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(store.update_conversation(owner, id, metadata)),
            Store::Sqlite(store) => store.update_conversation(owner, id, metadata).await,
            Store::Postgres(store) => store.update_conversation(owner, id, metadata).await,
        }
    }

    /// Puts another chain in the place of one that ends with `from`.
    pub async fn advance_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        from: Option<&ResponseId>,
        to: Option<Chain>,
    ) -> Result<(), SaveFailed> {
        match &*self.0 {
            Store::Memory(store) => store.advance_conversation(owner, id, from, to),
            Store::Sqlite(store) => store.advance_conversation(owner, id, from, to).await,
            Store::Postgres(store) => store.advance_conversation(owner, id, from, to).await,
        }
    }

    /// Makes a conversation unknown; false if it was not known. Responses made in it stay.
    pub async fn delete_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<bool, StoreUnavailable> {
        match &*self.0 {
            Store::Memory(store) => Ok(store.delete_conversation(owner, id)),
            Store::Sqlite(store) => store.delete_conversation(owner, id).await,
            Store::Postgres(store) => store.delete_conversation(owner, id).await,
        }
    }
}
