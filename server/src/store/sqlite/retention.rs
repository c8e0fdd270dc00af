//! Retention: what goes by itself, because it is old or because there is too much.
//!
//! A response that is under way never does. The rest goes in slices, each a change like any other, so that no turn waits long for it.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use turnwire_protocol::failure::Failure;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::stored::ResponseText;

use super::place::Place;
use super::tables::{Tables, seconds};
use crate::auth::Tenant;
use crate::store::Retention;

/// For how long one slice takes things away.
const SLICE: Duration = Duration::from_millis(4);

/// Pages given back to the file system in one slice. Each may have to be moved first.
const PAGES_AT_ONCE: u32 = 128;

/// Of all pages one in so many may be free, for what comes next.
const FREE_SHARE: i64 = 8;

/// What one slice has taken away.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Responses that can be asked for no more.
    pub(super) gone: Vec<(Tenant, ResponseId)>,
    /// Whether anything is overwritten in the file, but not yet in the log.
    pub(super) changed: bool,
    /// Whether there is more to take away.
    pub(super) more: bool,
}

/// Something that can be asked for.
enum Held {
    Response {
        number: i64,
        place: Place,
        owner: i64,
        tenant: Tenant,
        id: ResponseId,
    },
    Conversation {
        tenant: Tenant,
        id: ConversationId,
    },
}

/// With the second of its last use.
type Aged = (i64, Held);

/// Marks responses as failed that were under way when the last server ended.
pub(super) fn fail_unfinished(connection: &Connection) -> rusqlite::Result<()> {
    let failure = Failure::server_error("The server stopped before the response was done.");
    let transaction = connection.unchecked_transaction()?;
    let mut unfinished = transaction.prepare(
        "SELECT number, before, after FROM responses WHERE status IN ('queued', 'in_progress')",
    )?;
    let mut fail = transaction.prepare(
        "UPDATE responses SET status = 'failed', before = ?2, after = ?3 WHERE number = ?1",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        let text = ResponseText {
            before: row.get::<_, Vec<u8>>(1)?.into(),
            after: row.get::<_, Vec<u8>>(2)?.into(),
        };
        Ok((row.get::<_, i64>(0)?, text))
    };
    let responses: Vec<_> = unfinished.query_map([], read)?.collect::<Result<_, _>>()?;
    for (number, text) in responses {
        let text = text.failed(&failure).unwrap_or(text);
        fail.execute((number, &text.before[..], &text.after[..]))?;
    }
    drop((unfinished, fail));
    transaction.commit()
}

/// Takes away what was stored or used last too long ago, and then the oldest until the rest fits.
pub(super) fn sweep(
    tables: &mut Tables<'_>,
    retention: Retention,
    now: u64,
) -> rusqlite::Result<Swept> {
    let cutoff = retention
        .age
        .map(|age| seconds(now.saturating_sub(age.as_secs())));
    let began = Instant::now();
    let mut swept = Swept::default();
    while began.elapsed() < SLICE {
        if tables.release_loose()? {
            swept.changed = true;
            continue;
        }
        let is_due = |(used, _): &Aged| cutoff.is_some_and(|cutoff| *used < cutoff);
        let response = tables.oldest_response()?;
        let conversation = tables.oldest_conversation()?;
        let due = match (response, conversation) {
            (Some(response), _) if is_due(&response) => Some(response),
            (_, Some(conversation)) if is_due(&conversation) => Some(conversation),
            (response, conversation) if tables.are_too_large(retention)? => response
                .into_iter()
                .chain(conversation)
                .min_by_key(|(used, _)| *used),
            _ => None,
        };
        swept.changed |= due.is_some();
        match due {
            None => return Ok(swept),
            Some((_, Held::Conversation { tenant, id })) => {
                tables.delete_conversation(tenant, &id)?;
            }
            Some((
                _,
                Held::Response {
                    number,
                    place,
                    owner,
                    tenant,
                    id,
                },
            )) => {
                tables.take(owner, &id, place, number)?;
                swept.gone.push((tenant, id));
            }
        }
    }
    swept.more = true;
    Ok(swept)
}

/// Gives free pages back to the file system, as far as many are free. True if there are more.
pub(super) fn vacuum(tables: &mut Tables<'_>) -> rusqlite::Result<bool> {
    let too_many = |tables: &Tables<'_>| {
        let (total, free) = tables.pages()?;
        rusqlite::Result::Ok(free * FREE_SHARE > total)
    };
    if !too_many(tables)? {
        return Ok(false);
    }
    let vacuum = format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})");
    let mut vacuum = tables.connection.prepare_cached(&vacuum)?;
    let mut pages = vacuum.query([])?;
    while pages.next()?.is_some() {}
    too_many(tables)
}

impl Tables<'_> {
    /// One that is under way is not old.
    fn oldest_response(&self) -> rusqlite::Result<Option<Aged>> {
        self.optional(
            "SELECT responses.created_at, responses.number, names.place, responses.owner,
                    owners.digest, responses.id
             FROM responses
             JOIN names ON names.owner = responses.owner AND names.id = responses.id
             JOIN owners ON owners.number = responses.owner
             WHERE responses.status NOT IN ('queued', 'in_progress')
             ORDER BY responses.number LIMIT 1",
            &[],
            |row| {
                let held = Held::Response {
                    number: row.get(1)?,
                    place: row.get(2)?,
                    owner: row.get(3)?,
                    tenant: Tenant::of_digest(row.get(4)?),
                    id: ResponseId::from(row.get_ref(5)?.as_str()?),
                };
                Ok((row.get(0)?, held))
            },
        )
    }

    fn oldest_conversation(&self) -> rusqlite::Result<Option<Aged>> {
        self.optional(
            "SELECT conversations.used_at, owners.digest, conversations.id
             FROM conversations JOIN owners ON owners.number = conversations.owner
             ORDER BY conversations.used_at LIMIT 1",
            &[],
            |row| {
                let held = Held::Conversation {
                    tenant: Tenant::of_digest(row.get(1)?),
                    id: ConversationId::from(row.get_ref(2)?.as_str()?),
                };
                Ok((row.get(0)?, held))
            },
        )
    }

    /// Whether more is stored than may be.
    fn are_too_large(&self, retention: Retention) -> rusqlite::Result<bool> {
        let Some(most) = retention.bytes else {
            return Ok(false);
        };
        let (total, free) = self.pages()?;
        let page_bytes: i64 = self.row("PRAGMA page_size", &[], |row| row.get(0))?;
        Ok((total - free).saturating_mul(page_bytes).unsigned_abs() > most)
    }

    /// Pages of the file, and those of them that hold nothing.
    pub(super) fn pages(&self) -> rusqlite::Result<(i64, i64)> {
        let total = self.row("PRAGMA page_count", &[], |row| row.get(0))?;
        let free = self.row("PRAGMA freelist_count", &[], |row| row.get(0))?;
        Ok((total, free))
    }
}
