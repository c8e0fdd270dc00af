//! Reader: looks things up.
//!
//! Whether a response is there, and how far it is, is always asked of the database: another
//! server may have deleted it. How many statements it takes to read a chain does not depend on its
//! length.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{self, ConversationId, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::record::{self, Damaged};
use turnwire_protocol::session::StoreUnavailable;
use turnwire_protocol::stored::{ResponseText, Status};

use super::change::item_key;
use super::database::Database;
use super::is_possible;
use super::lines::{Argument, Lines};
use crate::auth::Tenant;
use crate::secret::{Secret, TenantSealer};
use crate::store::hot::Hot;
use crate::store::{Conversation, ShownResponse};

/// Links before the last one of a chain that are looked at to find one that is in memory.
const NEAR: i64 = 32;

/// Bytes of records that items are taken from at once, unless a single one has more.
const ITEMS_AT_ONCE: i64 = 8 << 20;

/// A chain that changes while it is read, because what was last in it is replaced or goes, is
/// read again. More often than this it is not what changes.
const MAX_READS: usize = 3;

#[derive(Debug)]
pub(super) struct Reader {
    database: Arc<Database>,
    secret: Arc<Secret>,
    hot: Arc<Hot>,
    lines: Lines,
}

/// Where a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    branch: i64,
    position: i32,
}

/// A link of which some items are asked for.
#[derive(Default)]
struct WantedLink {
    /// Of its record.
    bytes: i64,
    /// For each of them which one of those asked for it is, and at which place it is in the link.
    items: Vec<(usize, usize)>,
}

impl Reader {
    pub(super) fn new(database: Arc<Database>, secret: Arc<Secret>, hot: Arc<Hot>) -> Self {
        Self {
            secret,
            hot,
            lines: Lines::new(Arc::clone(&database)),
            database,
        }
    }

    /// What questions go over.
    pub(super) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// The chain of a response, if its status is one of those wanted.
    pub(super) async fn chain(
        &self,
        owner: Tenant,
        id: &ResponseId,
        wanted: fn(Status) -> bool,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        let sql = "SELECT status, branch, position FROM responses JOIN links USING (owner, id)
                   WHERE owner = $1 AND id = $2";
        for _ in 0..MAX_READS {
            let Some(row) = self.find(sql, owner, id.as_str()).await? else {
                return Ok(None);
            };
            let status = status(&row, 0)?;
            if !wanted(status) {
                return Ok(None);
            }
            let place = Place {
                branch: row.get(1),
                position: row.get(2),
            };
            if let Some(chain) = self.chain_at(owner, place, id).await? {
                // Others are still changed, or of no use to what comes.
                if status.is_continuable() {
                    self.hot.keep(owner, &chain);
                }
                return Ok(Some(chain));
            }
        }
        Err(StoreUnavailable)
    }

    /// A response that nobody makes any more is shown as it is stored, until a server has stored
    /// that it failed: an end that was shown and not stored could become another one.
    pub(super) async fn response(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<Option<ShownResponse>, StoreUnavailable> {
        let sql = "SELECT status, text_before, text_after, record
                   FROM responses JOIN links USING (owner, id) WHERE owner = $1 AND id = $2";
        let Some(row) = self.find(sql, owner, id.as_str()).await? else {
            return Ok(None);
        };
        let status = status(&row, 0)?;
        let text = ResponseText {
            before: bytes(&row, 1),
            after: bytes(&row, 2),
        };
        let link = self.link(owner, id.clone(), bytes(&row, 3))?;
        let json = text.with_output_of(&link);
        Ok(Some(ShownResponse { status, json }))
    }

    pub(super) async fn items(
        &self,
        owner: Tenant,
        ids: &[Arc<str>],
    ) -> Result<Vec<Option<Item>>, StoreUnavailable> {
        let keys: Vec<_> = ids.iter().map(|id| item_key(id)).collect();
        let mut by_key: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (index, key) in keys.iter().enumerate() {
            by_key.entry(key).or_default().push(index);
        }
        let sql = "SELECT DISTINCT ON (name) name, place, branch, position, octet_length(record)
                   FROM items JOIN links USING (branch, position)
                   WHERE items.owner = $1 AND name = ANY ($2) ORDER BY name, number DESC";
        let owner_key = owner.as_bytes().to_vec();
        let named = self
            .lines
            .ask(
                sql,
                &[(&owner_key, Type::BYTEA), (&keys, Type::BYTEA_ARRAY)],
            )
            .await?;
        // By their links, each of which is read once, however many of its items are wanted.
        let mut wanted = BTreeMap::new();
        let mut is_named = vec![false; ids.len()];
        for row in &named {
            let place = usize::try_from(row.get::<_, i32>(1)).unwrap_or(usize::MAX);
            let wanted = wanted_link(&mut wanted, row, 2);
            for index in by_key.get(row.get::<_, &[u8]>(0)).into_iter().flatten() {
                is_named[*index] = true;
                wanted.items.push((*index, place));
            }
        }
        // Those without a name are known by their place.
        let mut by_response: HashMap<ResponseId, Vec<(usize, usize)>> = HashMap::new();
        for (index, id) in ids
            .iter()
            .enumerate()
            .filter(|(index, _)| !is_named[*index])
        {
            if let Some((response, place)) = id::read_place(id)
                && is_possible(response.as_str())
            {
                by_response
                    .entry(response)
                    .or_default()
                    .push((index, place));
            }
        }
        if !by_response.is_empty() {
            let responses: Vec<&str> = by_response.keys().map(ResponseId::as_str).collect();
            let sql = "SELECT id, branch, position, octet_length(record)
                       FROM links WHERE owner = $1 AND id = ANY ($2)";
            let unnamed = self
                .lines
                .ask(
                    sql,
                    &[(&owner_key, Type::BYTEA), (&responses, Type::TEXT_ARRAY)],
                )
                .await?;
            for row in &unnamed {
                let items = by_response.remove(&ResponseId::from(row.get::<_, &str>(0)));
                let wanted = wanted_link(&mut wanted, row, 1);
                wanted.items.extend(items.unwrap_or_default());
            }
        }
        self.read_items(owner, ids.len(), wanted).await
    }

    /// Reads those items of these links, as many links at once as are no more than some bytes.
    async fn read_items(
        &self,
        owner: Tenant,
        count: usize,
        wanted: BTreeMap<Place, WantedLink>,
    ) -> Result<Vec<Option<Item>>, StoreUnavailable> {
        let sql = "SELECT branch, position, record FROM links
                   WHERE (branch, position) IN (SELECT * FROM unnest($1::bigint[], $2::integer[]))";
        let sealer = TenantSealer::new(Arc::clone(&self.secret), owner);
        let mut found = vec![None; count];
        let mut left = wanted.iter().peekable();
        while left.peek().is_some() {
            let (mut branches, mut positions, mut size) = (Vec::new(), Vec::new(), 0);
            while let Some((place, link)) = left.peek()
                && (branches.is_empty() || size + link.bytes <= ITEMS_AT_ONCE)
            {
                branches.push(place.branch);
                positions.push(place.position);
                size += link.bytes;
                left.next();
            }
            let rows = self
                .lines
                .ask(
                    sql,
                    &[
                        (&branches, Type::INT8_ARRAY),
                        (&positions, Type::INT4_ARRAY),
                    ],
                )
                .await?;
            for row in &rows {
                let place = Place {
                    branch: row.get(0),
                    position: row.get(1),
                };
                let own = record::decode_items(bytes(row, 2), &sealer);
                let own = own.map_err(|Damaged| self.damaged())?;
                let own: Vec<&Item> = own.asked.iter().chain(own.output.iter()).collect();
                let items = wanted.get(&place).map(|wanted| &wanted.items);
                for (index, place) in items.into_iter().flatten() {
                    found[*index] = own.get(*place).map(|item| item.detached());
                }
            }
        }
        Ok(found)
    }

    pub(super) async fn conversation(
        &self,
        owner: Tenant,
        id: &ConversationId,
    ) -> Result<Option<Conversation>, StoreUnavailable> {
        let sql = "SELECT created_at, metadata, ends_with, branch, position
                   FROM conversations LEFT JOIN links
                   ON links.owner = conversations.owner AND links.id = ends_with
                   WHERE conversations.owner = $1 AND conversations.id = $2";
        for _ in 0..MAX_READS {
            let Some(row) = self.find(sql, owner, id.as_str()).await? else {
                return Ok(None);
            };
            let chain = match (row.get::<_, Option<&str>>(2), row.get(3), row.get(4)) {
                (Some(last), Some(branch), Some(position)) => {
                    let place = Place { branch, position };
                    let last = ResponseId::from(last);
                    match self.chain_at(owner, place, &last).await? {
                        Some(chain) => {
                            self.hot.keep(owner, &chain);
                            Some(chain)
                        }
                        None => continue,
                    }
                }
                _ => None,
            };
            return Ok(Some(Conversation {
                id: id.clone(),
                created_at: u64::try_from(row.get::<_, i64>(0)).unwrap_or_default(),
                metadata: bytes(&row, 1),
                chain,
            }));
        }
        Err(StoreUnavailable)
    }

    /// The chain that ends with the link of this id at a place; none if it went meanwhile. What is
    /// in memory of it is shared, and with it what engines keep.
    async fn chain_at(
        &self,
        owner: Tenant,
        place: Place,
        id: &ResponseId,
    ) -> Result<Option<Chain>, StoreUnavailable> {
        if let Some(chain) = self.hot.get(owner, id) {
            return Ok(Some(chain));
        }
        let (parent, rows) = match self.hot_before(owner, place).await? {
            Some((position, parent)) => (Some(parent), self.rows_behind(place, position).await?),
            None => (None, self.all_rows(place).await?),
        };
        let is_whole = rows
            .last()
            .is_some_and(|row| row.get::<_, &str>(0) == id.as_str());
        if !is_whole {
            return Ok(None);
        }
        // A long chain takes a while to be put together.
        let sealer = TenantSealer::new(Arc::clone(&self.secret), owner);
        let hot = Arc::clone(&self.hot);
        let made = spawn_blocking(move || {
            let id = |row: &Row| ResponseId::from(row.get::<_, &str>(0));
            let newest_first = rows.iter().enumerate().rev();
            let mut known =
                newest_first.filter_map(|(index, row)| Some((index, hot.get(owner, &id(row))?)));
            let (new, mut chain) = match known.next() {
                Some((index, chain)) => (index + 1, Some(chain)),
                None => (0, parent),
            };
            for row in &rows[new..] {
                chain = Some(record::decode(chain, id(row), bytes(row, 1), &sealer)?);
            }
            Ok(chain)
        });
        match made.await {
            Ok(Ok(chain)) => Ok(chain),
            Ok(Err(Damaged)) => Err(self.damaged()),
            Err(_) => Err(StoreUnavailable),
        }
    }

    /// The last link before a place that is in memory, if it is near it in the same branch, as
    /// where servers take turns with a chain.
    async fn hot_before(
        &self,
        owner: Tenant,
        place: Place,
    ) -> Result<Option<(i32, Chain)>, StoreUnavailable> {
        let sql = "SELECT position, id FROM links WHERE branch = $1 AND position < $2
                   ORDER BY position DESC LIMIT $3";
        let arguments: [Argument<'_>; 3] = [
            (&place.branch, Type::INT8),
            (&place.position, Type::INT4),
            (&NEAR, Type::INT8),
        ];
        let rows = self.lines.ask(sql, &arguments).await?;
        Ok(rows.iter().find_map(|row| {
            let chain = self.hot.get(owner, &row.get::<_, &str>(1).into())?;
            Some((row.get(0), chain))
        }))
    }

    /// Ids and records of the links of a branch behind a position, up to a place.
    async fn rows_behind(&self, place: Place, position: i32) -> Result<Vec<Row>, StoreUnavailable> {
        let sql = "SELECT id, record FROM links
                   WHERE branch = $1 AND position > $2 AND position <= $3 ORDER BY position";
        let arguments: [Argument<'_>; 3] = [
            (&place.branch, Type::INT8),
            (&position, Type::INT4),
            (&place.position, Type::INT4),
        ];
        self.lines.ask(sql, &arguments).await
    }

    /// Ids and records of the links of a chain, the first one first.
    async fn all_rows(&self, place: Place) -> Result<Vec<Row>, StoreUnavailable> {
        let sql = "WITH RECURSIVE way (step, branch, upto) AS (
                SELECT 0, $1::bigint, $2::integer
                UNION ALL
                SELECT step + 1, parent_branch, parent_position
                FROM way JOIN branches USING (branch) WHERE parent_branch IS NOT NULL
            )
            SELECT id, record FROM way, LATERAL (
                SELECT position, id, record FROM links
                WHERE links.branch = way.branch AND position <= upto OFFSET 0
            ) AS part
            ORDER BY step DESC, position";
        self.lines
            .ask(
                sql,
                &[(&place.branch, Type::INT8), (&place.position, Type::INT4)],
            )
            .await
    }

    /// A link without those before it.
    fn link(
        &self,
        owner: Tenant,
        id: ResponseId,
        record: Bytes,
    ) -> Result<Chain, StoreUnavailable> {
        let sealer = TenantSealer::new(Arc::clone(&self.secret), owner);
        record::decode(None, id, record, &sealer).map_err(|Damaged| self.damaged())
    }

    fn damaged(&self) -> StoreUnavailable {
        tracing::error!(
            database = %self.database.address(),
            "what is stored of a response cannot be read: it is damaged, or of a later version"
        );
        StoreUnavailable
    }

    /// The one row of an owner's own by that id.
    async fn find(
        &self,
        sql: &str,
        owner: Tenant,
        id: &str,
    ) -> Result<Option<Row>, StoreUnavailable> {
        if !is_possible(id) {
            return Ok(None);
        }
        let owner = owner.as_bytes().to_vec();
        let rows = self
            .lines
            .ask(sql, &[(&owner, Type::BYTEA), (&id, Type::TEXT)])
            .await?;
        Ok(rows.into_iter().next())
    }
}

fn status(row: &Row, column: usize) -> Result<Status, StoreUnavailable> {
    let text: &str = row.get(column);
    let known = Status::ALL
        .into_iter()
        .find(|status| status.as_str() == text);
    known.ok_or(StoreUnavailable)
}

fn bytes(row: &Row, column: usize) -> Bytes {
    Bytes::copy_from_slice(row.get(column))
}

/// The link that a row tells the place and the bytes of, from a column on.
fn wanted_link<'w>(
    wanted: &'w mut BTreeMap<Place, WantedLink>,
    row: &Row,
    column: usize,
) -> &'w mut WantedLink {
    let place = Place {
        branch: row.get(column),
        position: row.get(column + 1),
    };
    let link = wanted.entry(place).or_default();
    link.bytes = i64::from(row.get::<_, i32>(column + 2));
    link
}
