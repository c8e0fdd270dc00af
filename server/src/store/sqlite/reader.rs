//! Reader: connections that only read, each on a thread that may wait for the disk.
//!
//! What is asked for is read in a number of queries that depends neither on the length of a chain
//! nor on how often it was forked.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};
use tokio::sync::Semaphore;
use tokio::task;
use turnwire_protocol::id::{self, ConversationId, ResponseId};
use turnwire_protocol::record::Damaged;
use turnwire_protocol::session::StoreUnavailable;
use turnwire_protocol::stored::{ResponseText, Status};

use super::place::Place;
use super::tables::item_key;
use super::trouble::Trouble;
use crate::auth::Tenant;

/// Reads at once; more wait.
pub(super) const READERS: usize = 4;

/// Connections, and the right to use one.
#[derive(Debug)]
pub(super) struct Readers {
    pub(super) idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
    trouble: Arc<Trouble>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// The database at one moment.
pub(super) struct Snapshot<'c>(&'c Connection);

/// A response that can be asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) status: Status,
}

/// A link as it is stored.
#[derive(Debug)]
pub(super) struct StoredLink {
    pub(super) id: ResponseId,
    pub(super) record: Bytes,
}

/// A response object without its output items, and the link that has those.
pub(super) struct FoundText {
    pub(super) status: Status,
    pub(super) text: ResponseText,
    pub(super) record: Bytes,
}

/// One of a link's own items.
pub(super) struct FoundItem {
    pub(super) place: Place,
    pub(super) position: u32,
}

pub(super) struct FoundConversation {
    pub(super) created_at: u64,
    pub(super) metadata: Bytes,
    /// The link it ends with.
    pub(super) end: Option<(ResponseId, Place)>,
}

impl Readers {
    /// There must be [`READERS`] of them.
    pub(super) fn new(connections: Vec<Connection>, trouble: Arc<Trouble>) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(connections.len())),
            idle: Arc::new(Mutex::new(connections)),
            trouble,
        }
    }

    /// Reads on a thread of its own, to the end even if nobody waits for it any more.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot<'_>) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StoreUnavailable> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let idle = Arc::clone(&self.idle);
        let reading = task::spawn_blocking(move || {
            let mut connections = idle.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = connections.pop();
            drop(connections);
            let connection = connection.expect("there is a connection for every permit");
            let read = in_snapshot(&connection, read);
            let mut connections = idle.lock().unwrap_or_else(PoisonError::into_inner);
            connections.push(connection);
            drop(permit);
            read
        });
        // It is gone only if it panicked, or if the runtime ends.
        let read = reading.await.map_err(|_| StoreUnavailable)?;
        read.map_err(|error| {
            self.trouble.happened(&error);
            StoreUnavailable
        })
    }
}

fn in_snapshot<T>(
    connection: &Connection,
    read: impl FnOnce(&Snapshot<'_>) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    // Ends when it is dropped.
    let _transaction = connection.unchecked_transaction()?;
    read(&Snapshot(connection))
}

impl Snapshot<'_> {
    pub(super) fn find(&self, owner: Tenant, id: &ResponseId) -> Result<Option<Found>, ReadError> {
        self.optional(
            "SELECT names.place, responses.status
             FROM names JOIN responses ON responses.number = names.response
             WHERE names.owner = (SELECT number FROM owners WHERE digest = ?1) AND names.id = ?2",
            &[&digest(&owner), &id.as_str()],
            |row| {
                Ok(Found {
                    place: row.get(0)?,
                    status: status(row, 1)?,
                })
            },
        )
    }

    pub(super) fn find_text(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<FoundText>, ReadError> {
        self.optional(
            "SELECT responses.status, responses.before, responses.after, links.record
             FROM names JOIN responses ON responses.number = names.response
             JOIN links ON links.place = names.place
             WHERE names.owner = (SELECT number FROM owners WHERE digest = ?1) AND names.id = ?2",
            &[&digest(&owner), &id.as_str()],
            |row| {
                Ok(FoundText {
                    status: status(row, 0)?,
                    text: ResponseText {
                        before: blob(row, 1)?,
                        after: blob(row, 2)?,
                    },
                    record: blob(row, 3)?,
                })
            },
        )
    }

    /// An item by its own id. Of several links that have one of this name, any.
    pub(super) fn find_item(
        &self,
        owner: Tenant,
        id: &str,
    ) -> Result<Option<FoundItem>, ReadError> {
        self.optional(
            "SELECT place, position FROM items
             WHERE owner = (SELECT number FROM owners WHERE digest = ?1) AND id = ?2
             ORDER BY place DESC LIMIT 1",
            &[&digest(&owner), &item_key(id)],
            |row| {
                Ok(FoundItem {
                    place: row.get(0)?,
                    position: row.get(1)?,
                })
            },
        )
    }

    /// An item by the id it is listed by, see [`id::of_place`].
    pub(super) fn find_item_by_place(
        &self,
        owner: Tenant,
        id: &str,
    ) -> Result<Option<FoundItem>, ReadError> {
        let Some((response, position)) = id::read_place(id) else {
            return Ok(None);
        };
        let Ok(position) = u32::try_from(position) else {
            return Ok(None);
        };
        self.optional(
            "SELECT place FROM names
             WHERE owner = (SELECT number FROM owners WHERE digest = ?1) AND id = ?2",
            &[&digest(&owner), &response.as_str()],
            |row| {
                Ok(FoundItem {
                    place: row.get(0)?,
                    position,
                })
            },
        )
    }

    /// The record of the link at a place that this snapshot has named.
    pub(super) fn record(&self, place: Place) -> Result<Bytes, ReadError> {
        let record = self.optional(
            "SELECT record FROM links WHERE place = ?1",
            &[&place],
            |row| blob(row, 0),
        )?;
        Ok(record.ok_or(Damaged)?)
    }

    pub(super) fn find_conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<Option<FoundConversation>, ReadError> {
        self.optional(
            "SELECT conversations.created_at, conversations.metadata, links.id, links.place
             FROM conversations LEFT JOIN links ON links.place = conversations.place
             WHERE conversations.owner = (SELECT number FROM owners WHERE digest = ?1)
             AND conversations.id = ?2",
            &[&digest(&owner), &id.as_str()],
            |row| {
                let end = match row.get_ref(2)?.as_str_or_null()? {
                    Some(id) => Some((ResponseId::from(id), row.get(3)?)),
                    None => None,
                };
                Ok(FoundConversation {
                    created_at: row.get::<_, i64>(0)?.unsigned_abs(),
                    metadata: blob(row, 1)?,
                    end,
                })
            },
        )
    }

    /// The links of the chain that ends at a place, the first one first.
    ///
    /// A chain is one range of places for each branch that it takes part in, so this walks
    /// branches, not links.
    pub(super) fn links(&self, end: Place) -> Result<Vec<StoredLink>, ReadError> {
        let mut statement = self.0.prepare_cached(
            "WITH RECURSIVE part (branch, last, depth) AS (
                 VALUES (?1 >> 24, ?1, 0)
                 UNION ALL
                 SELECT branches.parent >> 24, branches.parent, part.depth + 1
                 FROM part JOIN branches ON branches.number = part.branch
                 WHERE branches.parent IS NOT NULL
             )
             SELECT part.depth, links.place, links.id, links.record
             FROM part CROSS JOIN links
             ON links.place BETWEEN part.branch << 24 AND part.last",
        )?;
        let mut rows = statement.query([end])?;
        let mut links = Vec::new();
        while let Some(row) = rows.next()? {
            let order = (Reverse(row.get::<_, i64>(0)?), row.get::<_, Place>(1)?);
            let link = StoredLink {
                id: ResponseId::from(row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?),
                record: blob(row, 3)?,
            };
            links.push((order, link));
        }
        links.sort_unstable_by_key(|(order, _)| *order);
        Ok(links.into_iter().map(|(_, link)| link).collect())
    }

    fn optional<T>(
        &self,
        sql: &'static str,
        params: &[&dyn ToSql],
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, ReadError> {
        let mut statement = self.0.prepare_cached(sql)?;
        Ok(statement.query_row(params, read).optional()?)
    }
}

fn digest(owner: &Tenant) -> &[u8] {
    owner.as_bytes()
}

fn blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}

/// Every status that is written is one of ours.
fn status(row: &Row<'_>, column: usize) -> rusqlite::Result<Status> {
    let text = row.get_ref(column)?.as_str()?;
    let status = Status::ALL.into_iter().find(|it| it.as_str() == text);
    status.ok_or(rusqlite::Error::InvalidQuery)
}
