//! Change: what is to be done to what is stored, and the call of the database that does it.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_postgres::types::{ToSql, Type};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::record;
use turnwire_protocol::stored::StoredResponse;

use crate::auth::Tenant;
use crate::store::Conversation;

#[derive(Debug)]
pub(super) enum Change {
    Save {
        response: StoredResponse,
        /// This server, if it has more to say of the response.
        server: Option<i64>,
        /// Whether it takes the place of what was said before.
        replaces: bool,
    },
    Delete(ResponseId),
    Cancel(ResponseId),
    CreateConversation(Conversation),
    UpdateConversation {
        id: ConversationId,
        metadata: Bytes,
    },
    AdvanceConversation {
        id: ConversationId,
        /// The response at the end of its chain.
        from: Option<ResponseId>,
        to: Option<Chain>,
    },
    DeleteConversation(ConversationId),
}

/// What has become of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Saved,
    /// The response is stored with a final status, and stays as it is.
    Kept,
    /// The link before those that were given is not stored. Nothing was changed.
    NoParent,
    /// The conversation ends with something else, or is not known. Nothing was changed.
    Moved,
    /// The response came to another end while it was made. Nothing was changed.
    Superseded,
    /// The response was deleted while it was made. Nothing was changed.
    Gone,
    Known,
    Unknown,
}

/// A function of the database with its arguments. It answers with one text.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) sql: &'static str,
    pub(super) arguments: Vec<(Argument, Type)>,
}

pub(super) type Argument = Box<dyn ToSql + Send + Sync>;

/// The last links of a chain, as the database takes them.
#[derive(Default)]
struct Links {
    parent: Option<String>,
    ids: Vec<String>,
    records: Vec<Vec<u8>>,
    item_links: Vec<i32>,
    item_places: Vec<i32>,
    item_names: Vec<Vec<u8>>,
}

/// What an item of this name is found by.
pub(super) fn item_key(name: &str) -> Vec<u8> {
    Sha256::digest(name).to_vec()
}

impl Change {
    /// The chain that has to be stored with it.
    pub(super) fn chain(&self) -> Option<&Chain> {
        match self {
            Self::Save { response, .. } => Some(&response.chain),
            Self::CreateConversation(conversation) => conversation.chain.as_ref(),
            Self::AdvanceConversation { to, .. } => to.as_ref(),
            Self::Delete(_)
            | Self::Cancel(_)
            | Self::UpdateConversation { .. }
            | Self::DeleteConversation(_) => None,
        }
    }

    /// Bytes that it takes to the database, roughly.
    pub(super) fn bytes(&self) -> u64 {
        let chain = self.chain().map_or(0, Chain::own_bytes);
        let text = match self {
            Self::Save { response, .. } => response.text.size(),
            _ => 0,
        };
        chain + text as u64
    }

    /// The call that does it, which stores the last `links` of its chain as far as they are new.
    /// `again` if it may have been done before.
    pub(super) fn call(&self, owner: Tenant, links: usize, again: bool) -> Call {
        match self {
            Self::Save {
                response,
                server,
                replaces,
            } => {
                let step = response.conversation.as_ref();
                let conversation = step.map(|step| step.id.as_str().to_owned());
                let from = step.and_then(|step| step.from.as_ref());
                Call::new(
                    "SELECT save_response($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
                     $14, $15, $16)",
                    owner,
                )
                .chain(Some(&response.chain), links)
                .with(response.status.as_str(), Type::TEXT)
                .with(whole(response.created_at), Type::INT8)
                .with(response.text.before.to_vec(), Type::BYTEA)
                .with(response.text.after.to_vec(), Type::BYTEA)
                .with(*server, Type::INT8)
                .with(*replaces, Type::BOOL)
                .with(conversation, Type::TEXT)
                .with(from.map(|from| from.as_str().to_owned()), Type::TEXT)
                .with(again, Type::BOOL)
            }
            Self::Delete(id) => Call::new("SELECT delete_response($1, $2)", owner)
                .with(id.as_str().to_owned(), Type::TEXT),
            Self::Cancel(id) => Call::new("SELECT cancel_response($1, $2)", owner)
                .with(id.as_str().to_owned(), Type::TEXT),
            Self::CreateConversation(conversation) => Call::new(
                "SELECT create_conversation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                owner,
            )
            .chain(conversation.chain.as_ref(), links)
            .with(conversation.id.as_str().to_owned(), Type::TEXT)
            .with(whole(conversation.created_at), Type::INT8)
            .with(conversation.metadata.to_vec(), Type::BYTEA),
            Self::UpdateConversation { id, metadata } => {
                Call::new("SELECT update_conversation($1, $2, $3)", owner)
                    .with(id.as_str().to_owned(), Type::TEXT)
                    .with(metadata.to_vec(), Type::BYTEA)
            }
            Self::AdvanceConversation { id, from, to } => Call::new(
                "SELECT advance_conversation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                owner,
            )
            .chain(to.as_ref(), links)
            .with(id.as_str().to_owned(), Type::TEXT)
            .with(
                from.as_ref().map(|from| from.as_str().to_owned()),
                Type::TEXT,
            )
            .with(again, Type::BOOL),
            Self::DeleteConversation(id) => Call::new("SELECT delete_conversation($1, $2)", owner)
                .with(id.as_str().to_owned(), Type::TEXT),
        }
    }
}

impl Outcome {
    /// What the functions of the database call it.
    pub(super) fn read(text: &str) -> Option<Self> {
        Some(match text {
            "saved" => Self::Saved,
            "kept" => Self::Kept,
            "no_parent" => Self::NoParent,
            "moved" => Self::Moved,
            "superseded" => Self::Superseded,
            "gone" => Self::Gone,
            "known" => Self::Known,
            "unknown" => Self::Unknown,
            _ => return None,
        })
    }
}

impl Call {
    fn new(sql: &'static str, owner: Tenant) -> Self {
        let call = Self {
            sql,
            arguments: Vec::new(),
        };
        call.with(owner.as_bytes().to_vec(), Type::BYTEA)
    }

    fn with(mut self, argument: impl ToSql + Send + Sync + 'static, of: Type) -> Self {
        self.arguments.push((Box::new(argument), of));
        self
    }

    fn chain(self, chain: Option<&Chain>, count: usize) -> Self {
        let links = chain.map_or_else(Links::default, |chain| Links::at_the_end_of(chain, count));
        self.with(links.parent, Type::TEXT)
            .with(links.ids, Type::TEXT_ARRAY)
            .with(links.records, Type::BYTEA_ARRAY)
            .with(links.item_links, Type::INT4_ARRAY)
            .with(links.item_places, Type::INT4_ARRAY)
            .with(links.item_names, Type::BYTEA_ARRAY)
    }
}

impl Links {
    fn at_the_end_of(chain: &Chain, count: usize) -> Self {
        let mut newest_first: Vec<_> = chain.ancestry().take(count).collect();
        newest_first.reverse();
        let first = newest_first.first().and_then(|first| first.parent());
        let mut links = Self {
            parent: first.map(|parent| parent.id().as_str().to_owned()),
            ..Self::default()
        };
        for (number, link) in (1..).zip(newest_first) {
            links.ids.push(link.id().as_str().to_owned());
            links.records.push(record::encode(link).into());
            let items = link.asked().iter().chain(link.output().iter());
            for (place, item) in (0..).zip(items) {
                if let Some(name) = item.id() {
                    links.item_links.push(number);
                    links.item_places.push(place);
                    links.item_names.push(item_key(name));
                }
            }
        }
        links
    }
}

/// Seconds since 1970 are far below the limit for some time to come.
fn whole(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
