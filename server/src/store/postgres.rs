//! The store in a PostgreSQL database, which several servers can share.
//!
//! The rows are those of `migrations`: links of chains, each stored once, and what ends with them.
//! What is changed is changed by functions of the database, each of them one call, so that many
//! fit into a transaction that waits for nothing in between. Decision 0011 tells why so.

mod address;
mod change;
mod database;
mod lines;
mod reader;
mod relay;
mod schema;
#[cfg(test)]
mod tests;
mod tls;
mod upkeep;
mod writer;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::session::{SaveFailed, StoreUnavailable};
use turnwire_protocol::stored::{Status, StoredResponse};

use super::hot::{HOT_BYTES, Hot};
use super::{Conversation, Retention, ShownResponse};
use crate::auth::Tenant;
use crate::secret::Secret;
use address::AddressError;
pub use address::PostgresUrl;
use change::{Change, Outcome};
use database::{Database, Trouble};
use reader::Reader;
pub(crate) use relay::{CancelRequests, Outgoing, Relay};
use schema::SchemaError;
use upkeep::Upkeep;
use writer::{Unwritten, Writer};

#[derive(Debug)]
pub struct PostgresStore {
    hot: Arc<Hot>,
    reader: Arc<Reader>,
    writer: Writer,
    /// What the database knows this server by.
    server: i64,
    under_way: UnderWay,
    relay: Relay,
    _upkeep: Upkeep,
}

/// Responses that are stored before they are done, and that this server has more to say of.
#[derive(Clone, Debug, Default)]
struct UnderWay(Arc<Mutex<HashSet<(Tenant, ResponseId)>>>);

/// A database that cannot be used. What is printed names it, and no password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("--store")]
    Address(#[from] AddressError),
    #[error("--store: the database {database} cannot be used: {problem}")]
    Unusable { database: String, problem: String },
}

impl PostgresStore {
    /// Connects, and brings the tables to what this server knows. `secret` opens what clients had
    /// sealed.
    pub async fn open(
        url: &PostgresUrl,
        secret: Arc<Secret>,
        retention: Retention,
    ) -> Result<Self, OpenError> {
        let database = Arc::new(Database::at(url.read()?));
        let unusable = |problem: String| OpenError::Unusable {
            database: database.address().to_string(),
            problem,
        };
        let connected = database.connect().await;
        let client = connected.map_err(|trouble: Trouble| unusable(trouble.to_string()))?;
        let migrated = schema::migrate(&client).await;
        migrated.map_err(|error: SchemaError| unusable(error.to_string()))?;
        let begun = upkeep::begin(&client).await;
        let server = begun.map_err(|trouble| unusable(trouble.to_string()))?;
        let hot = Arc::new(Hot::new(HOT_BYTES));
        let reader = Reader::new(Arc::clone(&database), secret, Arc::clone(&hot));
        let reader = Arc::new(reader);
        let writer = Writer::start(Arc::clone(&database));
        let under_way = UnderWay::default();
        let relay = Relay::start(
            Arc::clone(&database),
            server,
            Arc::clone(&reader),
            writer.clone(),
            under_way.clone(),
        );
        Ok(Self {
            hot,
            reader,
            writer,
            server,
            under_way,
            relay,
            _upkeep: Upkeep::start(database, server, retention),
        })
    }

    pub(super) fn relay(&self) -> &Relay {
        &self.relay
    }

    pub(super) async fn load(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        self.reader.chain(owner, id, Status::is_continuable).await
    }

    pub(super) async fn chain(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        self.reader.chain(owner, id, |_| true).await
    }

    pub(super) async fn response(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<ShownResponse>, StoreUnavailable> {
        self.reader.response(owner, id).await
    }

    pub(super) async fn items(
        &self,
        owner: Tenant,
        ids: &[Arc<str>],
    ) -> Result<Vec<Option<Item>>, StoreUnavailable> {
        self.reader.items(owner, ids).await
    }

    pub(super) async fn conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<Option<Conversation>, StoreUnavailable> {
        self.reader.conversation(owner, id).await
    }

    pub(super) fn save(
        &self,
        owner: Tenant,
        response: StoredResponse,
    ) -> BoxFuture<'static, Result<(), SaveFailed>> {
        let key = (owner, response.id.clone());
        let is_final = response.status.is_final();
        let replaces = match is_final {
            true => self.under_way.remove(&key),
            false => !self.under_way.insert(key.clone()),
        };
        let server = (!is_final).then_some(self.server);
        let continuable = response.status.is_continuable();
        let chain = continuable.then(|| response.chain.clone());
        let save = Change::Save {
            response,
            server,
            replaces,
        };
        let saved = self.writer.change(owner, save);
        let saved = self.keep(owner, chain, saved);
        if is_final || replaces {
            return saved.map(stored).boxed();
        }
        // What was not begun is not gone on with.
        let under_way = self.under_way.clone();
        let forget = move |said: &Result<Outcome, Unwritten>| {
            if *said != Ok(Outcome::Saved) {
                under_way.remove(&key);
            }
        };
        saved.inspect(forget).map(stored).boxed()
    }

    pub(super) async fn delete(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<bool, StoreUnavailable> {
        if !is_possible(id.as_str()) {
            return Ok(false);
        }
        self.hot.forget(owner, id);
        self.under_way.remove(&(owner, id.clone()));
        known(self.writer.change(owner, Change::Delete(id.clone())).await)
    }

    pub(super) async fn create_conversation(
        &self,
        owner: Tenant,
        conversation: Conversation,
    ) -> Result<(), SaveFailed> {
        let chain = conversation.chain.clone();
        let change = Change::CreateConversation(conversation);
        let created = self.writer.change(owner, change);
        stored(self.keep(owner, chain, created).await)
    }

    pub(super) async fn update_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        metadata: Bytes,
    ) -> Result<bool, StoreUnavailable> {
        if !is_possible(id.as_str()) {
            return Ok(false);
        }
        let id = id.clone();
        let change = Change::UpdateConversation { id, metadata };
        known(self.writer.change(owner, change).await)
    }

    pub(super) async fn advance_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        from: Option<&ResponseId>,
        to: Option<Chain>,
    ) -> Result<(), SaveFailed> {
        if !is_possible(id.as_str()) {
            return Err(SaveFailed::ConversationMoved);
        }
        let change = Change::AdvanceConversation {
            id: id.clone(),
            from: from.cloned(),
            to: to.clone(),
        };
        let advanced = self.writer.change(owner, change);
        stored(self.keep(owner, to, advanced).await)
    }

    pub(super) async fn delete_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<bool, StoreUnavailable> {
        if !is_possible(id.as_str()) {
            return Ok(false);
        }
        let change = Change::DeleteConversation(id.clone());
        known(self.writer.change(owner, change).await)
    }

    /// Puts a chain among those in memory once it is stored.
    fn keep(
        &self,
        owner: Tenant,
        chain: Option<Chain>,
        change: BoxFuture<'static, Result<Outcome, Unwritten>>,
    ) -> BoxFuture<'static, Result<Outcome, Unwritten>> {
        let hot = Arc::clone(&self.hot);
        let keep = move |said: &Result<Outcome, Unwritten>| {
            if let (Ok(Outcome::Saved), Some(chain)) = (said, chain) {
                hot.keep(owner, &chain);
            }
        };
        change.inspect(keep).boxed()
    }
}

impl UnderWay {
    /// False if it was there.
    fn insert(&self, key: (Tenant, ResponseId)) -> bool {
        self.responses().insert(key)
    }

    /// True if it was there.
    fn remove(&self, key: &(Tenant, ResponseId)) -> bool {
        self.responses().remove(key)
    }

    fn responses(&self) -> MutexGuard<'_, HashSet<(Tenant, ResponseId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stored(said: Result<Outcome, Unwritten>) -> Result<(), SaveFailed> {
    match said {
        // Nobody wants what was deleted while it was made.
        Ok(Outcome::Saved | Outcome::Kept | Outcome::Gone) => Ok(()),
        Ok(Outcome::Moved) => Err(SaveFailed::ConversationMoved),
        Ok(_) | Err(Unwritten) => Err(SaveFailed::Unavailable),
    }
}

fn known(said: Result<Outcome, Unwritten>) -> Result<bool, StoreUnavailable> {
    match said {
        Ok(outcome) => Ok(outcome == Outcome::Known),
        Err(Unwritten) => Err(StoreUnavailable),
    }
}

/// Whether an id that a client names can be one that is stored: ours are short and plain.
fn is_possible(id: &str) -> bool {
    id.len() <= 100 && !id.contains('\0')
}
