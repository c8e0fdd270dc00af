//! The store in a SQLite database: what is stored survives the server, and the loss of power.
//!
//! A link of a chain is one row, whoever shares it, and its place says what comes before it (see
//! [`place`]). One thread writes, and syncs the disk once for all who wait at that moment; others
//! read beside it. The chains that were used last are in memory as well, so that what engines keep
//! for them stays. Decision 0010 tells why so.

mod file;
mod place;
mod reader;
mod retention;
mod schema;
mod tables;
#[cfg(test)]
mod tests;
mod trouble;
mod upkeep;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::record::{self, Damaged};
use turnwire_protocol::session::{SaveFailed, StoreUnavailable};
use turnwire_protocol::stored::StoredResponse;

use super::hot::{HOT_BYTES, Hot};
use super::{Conversation, Retention, ShownResponse};
use crate::auth::Tenant;
use crate::clock;
use crate::secret::{Secret, TenantSealer};
use file::DatabaseFile;
pub use file::OpenError;
use place::Place;
use reader::{FoundItem, READERS, ReadError, Readers, Snapshot};
use tables::{Arriving, Tables};
use trouble::Trouble;
use upkeep::Upkeep;
use writer::Writer;

/// Bytes of a page, see decision 0010.
const PAGE_BYTES: u32 = 8192;

#[derive(Debug)]
pub struct SqliteStore {
    hot: Arc<Hot>,
    secret: Arc<Secret>,
    /// Set when something was deleted, so that the log is cut off in time.
    deleted: Arc<AtomicBool>,
    readers: Readers,
    retention: Retention,
    // Dropped in this order: the writer ends, then what kept house for it, then the file is free.
    writer: Writer,
    _upkeep: Upkeep,
    _file: DatabaseFile,
}

impl SqliteStore {
    /// Opens the database, which is made if it is not there. Responses that were under way when
    /// the last server ended are failed from here on. `secret` opens what clients had sealed.
    pub fn open(path: &Path, secret: Arc<Secret>, retention: Retention) -> Result<Self, OpenError> {
        let file = DatabaseFile::claim(path)?;
        let trouble = Arc::new(Trouble::new(path.to_owned()));
        let connection = file.open_writer(PAGE_BYTES)?;
        retention::fail_unfinished(&connection).map_err(|error| file.unusable(error))?;
        let readers = (0..READERS).map(|_| file.open_reader());
        let readers = Readers::new(readers.collect::<Result<_, _>>()?, Arc::clone(&trouble));
        let hot = Arc::new(Hot::new(HOT_BYTES));
        let (upkeep, woken) = Upkeep::prepare(file.open_upkeep()?, Arc::clone(&trouble));
        let writer = Writer::start(connection, woken, trouble);
        let writer = writer.map_err(|error| file.unusable(error))?;
        let queue = writer.queue().clone();
        let deleted = Arc::default();
        let upkeep = upkeep.start(queue, Arc::clone(&hot), retention, Arc::clone(&deleted));
        Ok(Self {
            hot,
            secret,
            deleted,
            readers,
            retention,
            writer,
            _upkeep: upkeep,
            _file: file,
        })
    }

    pub(super) async fn load(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        let (id, chains) = (id.clone(), self.chains(owner));
        let read = move |snapshot: &Snapshot<'_>| match snapshot.find(owner, &id)? {
            Some(found) if found.status.is_continuable() => {
                let chain = chains.read(snapshot, &id, found.place)?;
                chains.hot.keep(owner, &chain);
                Ok(Some(chain))
            }
            _ => Ok(None),
        };
        self.readers.read(read).await
    }

    pub(super) async fn chain(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        let (id, chains) = (id.clone(), self.chains(owner));
        let read = move |snapshot: &Snapshot<'_>| match snapshot.find(owner, &id)? {
            Some(found) => chains.read(snapshot, &id, found.place).map(Some),
            None => Ok(None),
        };
        self.readers.read(read).await
    }

    pub(super) async fn response(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<ShownResponse>, StoreUnavailable> {
        let (id, sealer) = (id.clone(), self.sealer(owner));
        let read = move |snapshot: &Snapshot<'_>| {
            let Some(found) = snapshot.find_text(owner, &id)? else {
                return Ok(None);
            };
            let items = record::decode_items(found.record, &sealer)?;
            Ok(Some(ShownResponse {
                status: found.status,
                json: found.text.with_output(&items.output),
            }))
        };
        self.readers.read(read).await
    }

    pub(super) async fn items(
        &self,
        owner: Tenant,
        ids: &[Arc<str>],
    ) -> Result<Vec<Option<Item>>, StoreUnavailable> {
        let (ids, sealer) = (ids.to_vec(), self.sealer(owner));
        let read = move |snapshot: &Snapshot<'_>| {
            // By their links, each of which is read once, however many of its items are wanted.
            let mut wanted: BTreeMap<Place, Vec<(usize, usize)>> = BTreeMap::new();
            for (index, id) in ids.iter().enumerate() {
                let found = match snapshot.find_item(owner, id)? {
                    Some(found) => Some(found),
                    None => snapshot.find_item_by_place(owner, id)?,
                };
                if let Some(FoundItem { place, position }) = found {
                    let wanted = wanted.entry(place).or_default();
                    wanted.push((position as usize, index));
                }
            }
            let mut items = vec![None; ids.len()];
            for (place, wanted) in wanted {
                let own = record::decode_items(snapshot.record(place)?, &sealer)?;
                let own: Vec<&Item> = own.asked.iter().chain(own.output.iter()).collect();
                for (position, index) in wanted {
                    items[index] = own.get(position).map(|item| item.detached());
                }
            }
            Ok(items)
        };
        self.readers.read(read).await
    }

    pub(super) async fn conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<Option<Conversation>, StoreUnavailable> {
        let (id, chains) = (id.clone(), self.chains(owner));
        let read = move |snapshot: &Snapshot<'_>| {
            let Some(found) = snapshot.find_conversation(owner, &id)? else {
                return Ok(None);
            };
            let chain = match found.end {
                Some((last, place)) => Some(chains.read(snapshot, &last, place)?),
                None => None,
            };
            if let Some(chain) = &chain {
                chains.hot.keep(owner, chain);
            }
            Ok(Some(Conversation {
                id,
                created_at: found.created_at,
                metadata: found.metadata,
                chain,
            }))
        };
        self.readers.read(read).await
    }

    pub(super) fn save(
        &self,
        owner: Tenant,
        response: StoredResponse,
    ) -> BoxFuture<'static, Result<(), SaveFailed>> {
        let record = record::encode(&response.chain);
        let bytes = record.len() + response.text.size();
        if self.retention.bytes.is_some_and(|most| bytes as u64 > most) {
            return futures_util::future::ready(Err(SaveFailed::TooLarge)).boxed();
        }
        let continuable = response.status.is_continuable();
        let kept = self.keeper(owner, continuable.then(|| response.chain.clone()));
        let arriving = Arriving {
            owner,
            response,
            record,
        };
        let make = move |tables: &mut Tables<'_>| tables.save(&arriving);
        let saved = self.writer.queue().push(bytes, make, kept);
        saved
            .unwrap_or_else(|_| Err(SaveFailed::Unavailable))
            .boxed()
    }

    pub(super) async fn delete(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<bool, StoreUnavailable> {
        let (id, hot) = (id.clone(), Arc::clone(&self.hot));
        let (forgotten, deleted) = (id.clone(), Arc::clone(&self.deleted));
        let made = self.writer.queue().push(
            0,
            move |tables| tables.delete(owner, &id),
            move |_| {
                hot.forget(owner, &forgotten);
                deleted.store(true, Ordering::Relaxed);
            },
        );
        made.await.map_err(|_| StoreUnavailable)
    }

    pub(super) async fn create_conversation(
        &self,
        owner: Tenant,
        conversation: Conversation,
    ) -> Result<(), SaveFailed> {
        let bytes = written_bytes(conversation.chain.as_ref());
        let kept = self.keeper(owner, conversation.chain.clone());
        let make = move |tables: &mut Tables<'_>| {
            let now = clock::unix_seconds();
            tables
                .create_conversation(owner, &conversation, now)
                .map(Ok)
        };
        let made = self.writer.queue().push(bytes, make, kept).await;
        made.unwrap_or(Err(SaveFailed::Unavailable))
    }

    pub(super) async fn update_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        metadata: Bytes,
    ) -> Result<bool, StoreUnavailable> {
        let id = id.clone();
        let make = move |tables: &mut Tables<'_>| tables.update_conversation(owner, &id, &metadata);
        let made = self.writer.queue().push(0, make, |_| {});
        made.await.map_err(|_| StoreUnavailable)
    }

    pub(super) async fn advance_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
        from: Option<&ResponseId>,
        to: Option<Chain>,
    ) -> Result<(), SaveFailed> {
        let (id, from) = (id.clone(), from.cloned());
        let bytes = written_bytes(to.as_ref());
        let kept = self.keeper(owner, to.clone());
        let make = move |tables: &mut Tables<'_>| {
            let now = clock::unix_seconds();
            tables.advance_conversation(owner, &id, from.as_ref(), to.as_ref(), now)
        };
        let made = self.writer.queue().push(bytes, make, kept).await;
        made.unwrap_or(Err(SaveFailed::Unavailable))
    }

    pub(super) async fn delete_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<bool, StoreUnavailable> {
        let id = id.clone();
        let deleted = Arc::clone(&self.deleted);
        let made = self.writer.queue().push(
            0,
            move |tables| tables.delete_conversation(owner, &id),
            move |_| deleted.store(true, Ordering::Relaxed),
        );
        made.await.map_err(|_| StoreUnavailable)
    }

    /// Puts a chain among those in memory, once it is stored.
    fn keeper(
        &self,
        owner: Tenant,
        chain: Option<Chain>,
    ) -> impl FnOnce(&Result<(), SaveFailed>) + use<> {
        let hot = Arc::clone(&self.hot);
        move |stored| {
            if let (Ok(()), Some(chain)) = (stored, chain) {
                hot.keep(owner, &chain);
            }
        }
    }

    fn sealer(&self, owner: Tenant) -> TenantSealer {
        TenantSealer::new(Arc::clone(&self.secret), owner)
    }

    fn chains(&self, owner: Tenant) -> Chains {
        Chains {
            owner,
            hot: Arc::clone(&self.hot),
            sealer: self.sealer(owner),
        }
    }
}

/// About what is written of a chain whose parents are stored.
fn written_bytes(chain: Option<&Chain>) -> usize {
    let bytes = chain.map_or(0, Chain::own_bytes);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Makes chains of what is stored, or takes those that are in memory.
struct Chains {
    owner: Tenant,
    hot: Arc<Hot>,
    sealer: TenantSealer,
}

impl Chains {
    fn read(
        &self,
        snapshot: &Snapshot<'_>,
        id: &ResponseId,
        end: Place,
    ) -> Result<Chain, ReadError> {
        if let Some(chain) = self.hot.get(self.owner, id) {
            return Ok(chain);
        }
        let mut links = snapshot.links(end)?;
        // What is in memory is shared, and with it what engines keep of it.
        let mut chain = None;
        let hot = |index: &usize| {
            chain = self.hot.get(self.owner, &links[*index].id);
            chain.is_some()
        };
        if let Some(last) = (0..links.len()).rev().find(hot) {
            links.drain(..=last);
        }
        for link in links {
            chain = Some(record::decode(chain, link.id, link.record, &self.sealer)?);
        }
        chain.ok_or(Damaged.into())
    }
}
