//! Tables: what changes them. Every method is part of the transaction that the writer has begun.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};
use sha2::{Digest, Sha256};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::record;
use turnwire_protocol::seal::{Content, Sealer};
use turnwire_protocol::session::SaveFailed;
use turnwire_protocol::stored::StoredResponse;

use super::place::Place;
use crate::auth::Tenant;
use crate::store::Conversation;

/// Bytes of the name of an item that its index holds; those that are given out here are shorter. A
/// client may give an item any name, and the keys of an index are read by all who search it.
const NAME_BYTES: usize = 128;

/// Links that one change takes away at most. The rest of a long chain goes in later ones, so that
/// no other change waits long.
const RELEASED_AT_ONCE: usize = 64;

/// The numbers of owners, as the writer has seen them.
pub(super) type Owners = HashMap<Tenant, i64>;

pub(super) struct Tables<'c> {
    pub(super) connection: &'c Connection,
    /// To be emptied when a transaction is taken back, which may have given out a number.
    pub(super) owners: &'c mut Owners,
}

/// A response on its way into the tables.
pub(super) struct Arriving {
    pub(super) owner: Tenant,
    pub(super) response: StoredResponse,
    /// Of the last link of its chain.
    pub(super) record: Bytes,
}

/// Where a link is, and the number of its response if it can be asked for.
struct Name {
    place: Place,
    response: Option<i64>,
}

impl Tables<'_> {
    pub(super) fn save(&mut self, arriving: &Arriving) -> rusqlite::Result<Result<(), SaveFailed>> {
        let Arriving {
            owner,
            response,
            record,
        } = arriving;
        let owner = self.owner(*owner)?;
        let chain = &response.chain;
        if let Some(step) = &response.conversation {
            let now = self.end_of(owner, &step.id)?;
            if now.as_ref() != Some(&step.from) {
                return Ok(Err(SaveFailed::ConversationMoved));
            }
        }
        let mut is_final = false;
        if let Some(before) = self.name(owner, &response.id)?
            && let Some(number) = before.response
        {
            is_final = self.is_final(number)?;
            if !is_final {
                self.take(owner, &response.id, before.place, number)?;
            }
        }
        let place = self.link(owner, chain, Some(record))?;
        if !is_final {
            self.put(owner, response)?;
        }
        if let Some(step) = &response.conversation {
            self.advance(owner, &step.id, Some(place), response.created_at)?;
        }
        Ok(Ok(()))
    }

    /// Makes a response of the link with its id.
    fn put(&self, owner: i64, response: &StoredResponse) -> rusqlite::Result<()> {
        let number: i64 = self.row(
            "INSERT INTO responses (owner, id, status, created_at, before, after)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) RETURNING number",
            &[
                &owner,
                &response.id.as_str(),
                &response.status.as_str(),
                &seconds(response.created_at),
                &&response.text.before[..],
                &&response.text.after[..],
            ],
            |row| row.get(0),
        )?;
        self.run(
            "UPDATE names SET response = ?3 WHERE owner = ?1 AND id = ?2",
            &[&owner, &response.id.as_str(), &number],
        )
    }

    /// False if it is not known.
    pub(super) fn delete(&mut self, owner: Tenant, id: &ResponseId) -> rusqlite::Result<bool> {
        let owner = self.owner(owner)?;
        let Some(name) = self.name(owner, id)? else {
            return Ok(false);
        };
        let Some(number) = name.response else {
            return Ok(false);
        };
        self.take(owner, id, name.place, number)?;
        Ok(true)
    }

    pub(super) fn create_conversation(
        &mut self,
        owner: Tenant,
        conversation: &Conversation,
        now: u64,
    ) -> rusqlite::Result<()> {
        let owner = self.owner(owner)?;
        let place = match &conversation.chain {
            Some(chain) => Some(self.link(owner, chain, None)?),
            None => None,
        };
        self.run(
            "INSERT INTO conversations (owner, id, created_at, used_at, metadata, place)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            &[
                &owner,
                &conversation.id.as_str(),
                &seconds(conversation.created_at),
                &seconds(now),
                &&conversation.metadata[..],
                &place,
            ],
        )
    }

    /// False if it is not known.
    pub(super) fn update_conversation(
        &mut self,
        owner: Tenant,
        id: &ConversationId,
        metadata: &[u8],
    ) -> rusqlite::Result<bool> {
        let owner = self.owner(owner)?;
        let updated: Option<i64> = self.optional(
            "UPDATE conversations SET metadata = ?3 WHERE owner = ?1 AND id = ?2 RETURNING owner",
            &[&owner, &id.as_str(), &metadata],
            |row| row.get(0),
        )?;
        Ok(updated.is_some())
    }

    pub(super) fn advance_conversation(
        &mut self,
        owner: Tenant,
        id: &ConversationId,
        from: Option<&ResponseId>,
        to: Option<&Chain>,
        now: u64,
    ) -> rusqlite::Result<Result<(), SaveFailed>> {
        let owner = self.owner(owner)?;
        if self.end_of(owner, id)? != Some(from.cloned()) {
            return Ok(Err(SaveFailed::ConversationMoved));
        }
        let to = match to {
            Some(chain) => Some(self.link(owner, chain, None)?),
            None => None,
        };
        self.advance(owner, id, to, now)?;
        Ok(Ok(()))
    }

    /// False if it is not known.
    pub(super) fn delete_conversation(
        &mut self,
        owner: Tenant,
        id: &ConversationId,
    ) -> rusqlite::Result<bool> {
        let owner = self.owner(owner)?;
        let place: Option<Option<Place>> = self.optional(
            "DELETE FROM conversations WHERE owner = ?1 AND id = ?2 RETURNING place",
            &[&owner, &id.as_str()],
            |row| row.get(0),
        )?;
        if let Some(Some(place)) = place {
            self.release(place)?;
        }
        Ok(place.is_some())
    }

    /// Looks at the end of a chain that may not be needed any more; false if there is none left.
    pub(super) fn release_loose(&mut self) -> rusqlite::Result<bool> {
        let loose: Option<Place> = self.optional(
            "DELETE FROM loose WHERE place = (SELECT min(place) FROM loose) RETURNING place",
            &[],
            |row| row.get(0),
        )?;
        if let Some(place) = loose {
            self.release(place)?;
        }
        Ok(loose.is_some())
    }

    fn owner(&mut self, owner: Tenant) -> rusqlite::Result<i64> {
        if let Some(number) = self.owners.get(&owner) {
            return Ok(*number);
        }
        let digest = &&owner.as_bytes()[..];
        self.run(
            "INSERT INTO owners (digest) VALUES (?1) ON CONFLICT DO NOTHING",
            &[digest],
        )?;
        let number = self.row(
            "SELECT number FROM owners WHERE digest = ?1",
            &[digest],
            |row| row.get(0),
        )?;
        self.owners.insert(owner, number);
        Ok(number)
    }

    fn name(&self, owner: i64, id: &ResponseId) -> rusqlite::Result<Option<Name>> {
        self.optional(
            "SELECT place, response FROM names WHERE owner = ?1 AND id = ?2",
            &[&owner, &id.as_str()],
            |row| {
                Ok(Name {
                    place: row.get(0)?,
                    response: row.get(1)?,
                })
            },
        )
    }

    fn is_final(&self, number: i64) -> rusqlite::Result<bool> {
        self.row(
            "SELECT status NOT IN ('queued', 'in_progress') FROM responses WHERE number = ?1",
            &[&number],
            |row| row.get(0),
        )
    }

    /// The id of the link that a conversation ends with; none if the conversation is not known.
    fn end_of(
        &self,
        owner: i64,
        id: &ConversationId,
    ) -> rusqlite::Result<Option<Option<ResponseId>>> {
        self.optional(
            "SELECT links.id FROM conversations LEFT JOIN links ON links.place = conversations.place
             WHERE conversations.owner = ?1 AND conversations.id = ?2",
            &[&owner, &id.as_str()],
            |row| {
                let id = row.get_ref(0)?.as_str_or_null()?;
                Ok(id.map(ResponseId::from))
            },
        )
    }

    fn advance(
        &self,
        owner: i64,
        id: &ConversationId,
        to: Option<Place>,
        now: u64,
    ) -> rusqlite::Result<()> {
        let before: Option<Place> = self.row(
            "SELECT place FROM conversations WHERE owner = ?1 AND id = ?2",
            &[&owner, &id.as_str()],
            |row| row.get(0),
        )?;
        self.run(
            "UPDATE conversations SET place = ?3, used_at = ?4 WHERE owner = ?1 AND id = ?2",
            &[&owner, &id.as_str(), &to, &seconds(now)],
        )?;
        match before {
            Some(before) => self.release(before),
            None => Ok(()),
        }
    }

    /// The place of the last link of a chain. It and those of its parents that are not there yet
    /// are written; the record of the last one may have been made before.
    fn link(&self, owner: i64, chain: &Chain, record: Option<&Bytes>) -> rusqlite::Result<Place> {
        let mut place = None;
        let mut missing = Vec::new();
        for link in chain.ancestry() {
            if let Some(name) = self.name(owner, link.id())? {
                place = Some(name.place);
                break;
            }
            missing.push(link);
        }
        for link in missing.into_iter().rev() {
            let record = match record.filter(|_| link.is(chain)) {
                Some(record) => record.clone(),
                None => record::encode(link),
            };
            place = Some(self.append(place, owner, link, &record)?);
        }
        Ok(place.expect("a chain has a link, which is there or was missing"))
    }

    /// Writes a link behind its parent: as the next one of the same branch if that is free.
    fn append(
        &self,
        parent: Option<Place>,
        owner: i64,
        link: &Chain,
        record: &[u8],
    ) -> rusqlite::Result<Place> {
        let place = match parent.and_then(Place::next) {
            Some(next) if !self.is_taken(next)? => next,
            _ => {
                let branch = self.row(
                    "INSERT INTO branches (parent) VALUES (?1) RETURNING number",
                    &[&parent],
                    |row| row.get(0),
                )?;
                Place::first_of(branch)
            }
        };
        let id = link.id().as_str();
        self.run(
            "INSERT INTO links (place, owner, id, record) VALUES (?1, ?2, ?3, ?4)",
            &[&place, &owner, &id, &record],
        )?;
        self.run(
            "INSERT INTO names (owner, id, place) VALUES (?1, ?2, ?3)",
            &[&owner, &id, &place],
        )?;
        let items = link.asked().iter().chain(link.output().iter());
        for (position, item) in items.enumerate() {
            if let Some(id) = item.id() {
                self.run(
                    "INSERT OR REPLACE INTO items (owner, id, place, position)
                     VALUES (?1, ?2, ?3, ?4)",
                    &[&owner, &item_key(id), &place, &(position as i64)],
                )?;
            }
        }
        Ok(place)
    }

    fn is_taken(&self, place: Place) -> rusqlite::Result<bool> {
        self.row(
            "SELECT EXISTS (SELECT 1 FROM links WHERE place = ?1)",
            &[&place],
            |row| row.get(0),
        )
    }

    /// Makes a response unknown and lets go of every link that nothing else needs.
    pub(super) fn take(
        &self,
        owner: i64,
        id: &ResponseId,
        place: Place,
        number: i64,
    ) -> rusqlite::Result<()> {
        self.run("DELETE FROM responses WHERE number = ?1", &[&number])?;
        self.run(
            "UPDATE names SET response = NULL WHERE owner = ?1 AND id = ?2",
            &[&owner, &id.as_str()],
        )?;
        self.release(place)
    }

    /// Lets go of a link that nothing needs, and of those before it that nothing needs then.
    fn release(&self, place: Place) -> rusqlite::Result<()> {
        let mut next = Some(place);
        let mut released = 0;
        while let Some(place) = next.take() {
            if self.is_needed(place)? {
                break;
            }
            if released == RELEASED_AT_ONCE {
                return self.run("INSERT OR IGNORE INTO loose (place) VALUES (?1)", &[&place]);
            }
            released += 1;
            if !self.remove_link(place)? {
                break;
            }
            next = match place.previous() {
                Some(previous) => Some(previous),
                None => self.row(
                    "DELETE FROM branches WHERE number = ?1 RETURNING parent",
                    &[&place.branch()],
                    |row| row.get(0),
                )?,
            };
        }
        Ok(())
    }

    /// Whether a response, a conversation or another link needs the link at this place.
    fn is_needed(&self, place: Place) -> rusqlite::Result<bool> {
        self.row(
            "SELECT EXISTS (SELECT 1 FROM links CROSS JOIN names
                            ON names.owner = links.owner AND names.id = links.id
                            WHERE links.place = ?1 AND names.response IS NOT NULL)
                 OR EXISTS (SELECT 1 FROM links WHERE place = ?2)
                 OR EXISTS (SELECT 1 FROM branches WHERE parent = ?1)
                 OR EXISTS (SELECT 1 FROM conversations WHERE place = ?1)",
            &[&place, &place.next()],
            |row| row.get(0),
        )
    }

    /// False if there is none.
    fn remove_link(&self, place: Place) -> rusqlite::Result<bool> {
        let removed: Option<(i64, String, Bytes)> = self.optional(
            "DELETE FROM links WHERE place = ?1 RETURNING owner, id, record",
            &[&place],
            |row| {
                let record = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
                Ok((row.get(0)?, row.get(1)?, record))
            },
        )?;
        let Some((owner, id, record)) = removed else {
            return Ok(false);
        };
        self.run(
            "DELETE FROM names WHERE owner = ?1 AND id = ?2",
            &[&owner, &id],
        )?;
        // What cannot be read was never found by its items either.
        if let Ok(items) = record::decode_items(record, &Sealed) {
            for item in items.asked.iter().chain(items.output.iter()) {
                if let Some(id) = item.id() {
                    self.run(
                        "DELETE FROM items WHERE owner = ?1 AND id = ?2 AND place = ?3",
                        &[&owner, &item_key(id), &place],
                    )?;
                }
            }
        }
        Ok(true)
    }

    pub(super) fn run(&self, sql: &'static str, params: &[&dyn ToSql]) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(params)?;
        Ok(())
    }

    pub(super) fn row<T>(
        &self,
        sql: &'static str,
        params: &[&dyn ToSql],
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut statement = self.connection.prepare_cached(sql)?;
        statement.query_row(params, read)
    }

    pub(super) fn optional<T>(
        &self,
        sql: &'static str,
        params: &[&dyn ToSql],
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        self.row(sql, params, read).optional()
    }
}

/// What an item of this name is found by: a name that is too long is known by its digest.
pub(super) fn item_key(name: &str) -> Cow<'_, str> {
    if name.len() <= NAME_BYTES {
        return name.into();
    }
    let digest = Sha256::digest(name);
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<String>().into()
}

/// Opens nothing: names of items are never sealed.
#[derive(Debug)]
struct Sealed;

impl Sealer for Sealed {
    fn seal(&self, _: Content, plain: &str) -> String {
        plain.to_owned()
    }

    fn open(&self, _: Content, _: &str) -> Option<String> {
        None
    }
}

/// Seconds since 1970, as SQLite counts.
pub(super) fn seconds(since_1970: u64) -> i64 {
    i64::try_from(since_1970).unwrap_or(i64::MAX)
}
