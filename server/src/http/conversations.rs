//! Conversations over HTTP: names for chains, and their items.
//!
//! Items are put in and taken out between turns: while a turn works on a conversation, who wants
//! to change its items is told to come back. A response that was made in a conversation stays
//! when the conversation, or an item of it, is deleted.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::value::RawValue;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::conversation::{self, NewItems};
use turnwire_protocol::failure::Failure;
use turnwire_protocol::id::{ConversationId, ResponseId};

use super::answer::{self, Answer};
use super::body;
use super::item_list::{self, Page};
use super::query::Query;
use crate::auth::Tenant;
use crate::clock::RandomIds;
use crate::locks::{ConversationLock, ConversationLocks};
use crate::secret::TenantSealer;
use crate::serve::Server;
use crate::store::{Conversation, Storage};

#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    metadata: &'a RawValue,
}

/// Everything that a request for conversations is answered from.
struct Desk<'a> {
    server: &'a Server,
    storage: &'a Storage,
    owner: Tenant,
}

/// Answers a request for `/v1/conversations` or a path below it; none if there is no such path.
pub(super) async fn answer(
    server: &Server,
    owner: Tenant,
    request: Request<Incoming>,
    below: &str,
) -> Option<Answer> {
    let mut parts = below.split('/');
    let id = parts.next().filter(|id| !id.is_empty());
    let (part, item, more) = (parts.next(), parts.next(), parts.next());
    let allowed = match (id, part, item, more) {
        (None, None, None, None) => "POST",
        (Some(_), None, None, None) => "DELETE, GET, HEAD, POST",
        (Some(_), Some("items"), None, None) => "GET, HEAD, POST",
        (Some(_), Some("items"), Some(item), None) if !item.is_empty() => "DELETE, GET, HEAD",
        _ => return None,
    };
    if !answer::allows(allowed, request.method()) {
        return Some(answer::other_method(request.method(), allowed));
    }
    let answered = match &server.storage {
        Some(storage) => {
            let desk = Desk {
                server,
                storage,
                owner,
            };
            let decode = |name| percent_decode_str(name).decode_utf8_lossy();
            let id = id.map(|id| ConversationId::from(&*decode(id)));
            let item = item.map(decode);
            desk.answer(id.as_ref(), part.is_some(), item.as_deref(), request)
                .await
        }
        None => Err(answer::nothing_is_kept()),
    };
    Some(answer::of(answered))
}

impl Desk<'_> {
    async fn answer(
        &self,
        id: Option<&ConversationId>,
        items: bool,
        item: Option<&str>,
        request: Request<Incoming>,
    ) -> Result<Answer, Failure> {
        let Some(id) = id else {
            return self.create(self.read(request).await?).await;
        };
        // Methods that these paths do not have were refused before.
        match (request.method().clone(), items, item) {
            (Method::POST, false, _) => self.update(id, &self.read(request).await?).await,
            (Method::POST, true, _) => self.append(id, &self.read(request).await?).await,
            (Method::DELETE, false, _) => self.delete(id).await,
            (Method::DELETE, true, Some(item)) => self.remove(id, item).await,
            (_, false, _) => Ok(show(&self.find(id).await?)),
            (_, true, Some(item)) => self.item(id, item).await,
            (_, true, None) => self.items(id, Query::of(request.uri())).await,
        }
    }

    async fn read(&self, request: Request<Incoming>) -> Result<Bytes, Failure> {
        body::read(request, self.server.limits.message_bytes).await
    }

    async fn create(&self, body: Bytes) -> Result<Answer, Failure> {
        let sealer = self.sealer();
        let strict = self.server.limits.strict;
        let (metadata, items) = conversation::read_create(&body, &sealer, strict)?;
        let chain = self.extend(items, None).await?;
        let conversation = Conversation {
            id: ConversationId::mint(&mut RandomIds),
            created_at: self.server.clock.now().unix_seconds,
            metadata,
            chain,
        };
        let created = conversation.clone();
        let writer = &self.storage.writer;
        writer.create_conversation(self.owner, created).await?;
        Ok(show(&conversation))
    }

    async fn update(&self, id: &ConversationId, body: &Bytes) -> Result<Answer, Failure> {
        let metadata = conversation::read_update(body, self.server.limits.strict)?;
        let writer = &self.storage.writer;
        match writer.update_conversation(self.owner, id, metadata).await? {
            true => Ok(show(&self.find(id).await?)),
            false => Err(answer::conversation_not_found(id)),
        }
    }

    async fn delete(&self, id: &ConversationId) -> Result<Answer, Failure> {
        let writer = &self.storage.writer;
        if !writer.delete_conversation(self.owner, id).await? {
            return Err(answer::conversation_not_found(id));
        }
        let deleted = serde_json::json!({
            "id": id.as_str(),
            "object": "conversation.deleted",
            "deleted": true,
        });
        Ok(answer::json(200, deleted.to_string()))
    }

    async fn items(&self, id: &ConversationId, query: Query<'_>) -> Result<Answer, Failure> {
        let page = Page::read(query)?;
        let chain = self.find(id).await?.chain;
        let list =
            item_list::walk(move || item_list::conversation(chain.as_ref(), &page)).await??;
        Ok(answer::json(200, list))
    }

    async fn item(&self, id: &ConversationId, item: &str) -> Result<Answer, Failure> {
        let named = item.to_owned();
        let chain = self.find(id).await?.chain;
        let shown = item_list::walk(move || item_list::one(chain.as_ref()?, &named)).await?;
        match shown {
            Some(shown) => Ok(answer::json(200, shown)),
            None => Err(answer::item_not_found(item)),
        }
    }

    /// Puts items at the end.
    async fn append(&self, id: &ConversationId, body: &Bytes) -> Result<Answer, Failure> {
        let items = conversation::read_items(body, &self.sealer(), self.server.limits.strict)?;
        let _lock = self.lock(id)?;
        let from = self.find(id).await?.chain;
        let to = self.extend(items, from.clone()).await?;
        let added = to
            .as_ref()
            .filter(|to| !from.as_ref().is_some_and(|from| from.is(to)));
        if added.is_some() {
            self.advance(id, from.as_ref(), to.clone()).await?;
        }
        let added = added.cloned();
        let list = item_list::walk(move || item_list::last_link(added.as_ref())).await?;
        Ok(answer::json(200, list))
    }

    /// Takes an item out.
    async fn remove(&self, id: &ConversationId, item: &str) -> Result<Answer, Failure> {
        let _lock = self.lock(id)?;
        let conversation = self.find(id).await?;
        let named = item.to_owned();
        let chain = conversation.chain.clone();
        let next_id = || ResponseId::mint(&mut RandomIds);
        let left = item_list::walk(move || conversation::without(&chain?, &named, next_id)).await?;
        let Some(left) = left else {
            return Err(answer::item_not_found(item));
        };
        self.advance(id, conversation.chain.as_ref(), left).await?;
        Ok(show(&conversation))
    }

    async fn find(&self, id: &ConversationId) -> Result<Conversation, Failure> {
        let found = self.storage.reader.conversation(self.owner, id).await?;
        found.ok_or_else(|| answer::conversation_not_found(id))
    }

    /// Nothing else works on the conversation as long as what this returns lives.
    fn lock(&self, id: &ConversationId) -> Result<ConversationLock, Failure> {
        let locks = &self.server.conversation_locks;
        let lock = ConversationLocks::lock(locks, self.owner, id);
        lock.ok_or_else(Failure::conversation_locked)
    }

    /// The chain with these items behind it.
    async fn extend(
        &self,
        mut items: NewItems,
        chain: Option<Chain>,
    ) -> Result<Option<Chain>, Failure> {
        let missing = items.missing(chain.as_ref());
        let found = match &*missing {
            [] => Vec::new(),
            ids => self.storage.reader.items(self.owner, ids).await?,
        };
        let id = ResponseId::mint(&mut RandomIds);
        items.append_to(chain, found, id, self.server.limits.chain_bytes)
    }

    async fn advance(
        &self,
        id: &ConversationId,
        from: Option<&Chain>,
        to: Option<Chain>,
    ) -> Result<(), Failure> {
        let from = from.map(Chain::id);
        let writer = &self.storage.writer;
        Ok(writer
            .advance_conversation(self.owner, id, from, to)
            .await?)
    }

    fn sealer(&self) -> TenantSealer {
        TenantSealer::new(Arc::clone(&self.server.secret), self.owner)
    }
}

fn show(conversation: &Conversation) -> Answer {
    let metadata = serde_json::from_slice(&conversation.metadata);
    let shown = Shown {
        id: conversation.id.as_str(),
        object: "conversation",
        created_at: conversation.created_at,
        metadata: metadata.expect("a conversation's metadata is a JSON object"),
    };
    let json = serde_json::to_vec(&shown).expect("strings, numbers and raw JSON can be written");
    answer::json(200, json)
}
