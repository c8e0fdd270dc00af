//! What every store has to do, told as one story. Each of them plays it in its own tests.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use turnwire_protocol::chain::{Carried, Chain};
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::session::SaveFailed;
use turnwire_protocol::stored::{ConversationStep, Permit, ResponseText, Status, StoredResponse};

use super::{Conversation, Storage};
use crate::auth::Tenant;

pub(super) const OWNER: Tenant = Tenant::ANYONE;

/// A link with an item of its own, `said_ID`, and one that was asked, which has no name.
pub(super) fn link(parent: Option<&Chain>, id: &str) -> Chain {
    let item = |text: String| Item::parse(text.into()).unwrap();
    Chain::append(
        parent.cloned(),
        id.into(),
        Arc::new([item(format!(
            r#"{{"role":"user","content":"Asked {id}? "}}"#
        ))]),
        Arc::new([item(format!(
            r#"{{"type":"message","id":"said_{id}","role":"assistant","content":"é\u0000"}}"#
        ))]),
        Carried::default(),
        None,
    )
}

pub(super) fn response(status: Status, chain: &Chain) -> StoredResponse {
    let text = ResponseText {
        before: format!(
            r#"{{"id":"{}","status":"{}","output":["#,
            chain.id(),
            status.as_str()
        )
        .into(),
        after: Bytes::from_static(b"]}"),
    };
    StoredResponse::new(Permit::grant(), status, 7, text, chain.clone())
}

/// Ids and items of all links, the last first.
pub(super) fn content(chain: &Chain) -> Vec<(ResponseId, Vec<Bytes>)> {
    let items = |link: &Chain| {
        let lists = [link.asked(), link.input(), link.output()];
        let items = lists.into_iter().flat_map(|list| list.iter());
        items.map(|item| item.raw().clone()).collect()
    };
    let links = chain.ancestry();
    links.map(|link| (link.id().clone(), items(link))).collect()
}

impl Storage {
    pub(super) async fn save(&self, status: Status, chain: &Chain) -> Result<(), SaveFailed> {
        self.writer.save(OWNER, response(status, chain)).await
    }

    /// Saves a response of a conversation.
    pub(super) async fn save_in(
        &self,
        conversation: &str,
        chain: &Chain,
    ) -> Result<(), SaveFailed> {
        let mut response = response(Status::Completed, chain);
        response.conversation = Some(ConversationStep {
            id: conversation.into(),
            from: chain.parent().map(|from| from.id().clone()),
        });
        self.writer.save(OWNER, response).await
    }

    pub(super) async fn loads(&self, id: &str) -> Option<Chain> {
        self.reader.load(OWNER, &id.into()).await.unwrap()
    }

    pub(super) async fn shows(&self, id: &str) -> Option<(Status, Bytes)> {
        let shown = self.reader.response(OWNER, &id.into()).await.unwrap();
        shown.map(|shown| (shown.status, shown.json))
    }

    pub(super) async fn finds(&self, ids: &[&str]) -> Vec<Option<Bytes>> {
        let ids: Vec<Arc<str>> = ids.iter().map(|id| (*id).into()).collect();
        let items = self.reader.items(OWNER, &ids).await.unwrap();
        let raw = |item: Item| item.raw().clone();
        items.into_iter().map(|item| item.map(raw)).collect()
    }

    pub(super) async fn deletes(&self, id: &str) -> bool {
        self.writer.delete(OWNER, &id.into()).await.unwrap()
    }

    pub(super) async fn names(&self, id: &str, chain: Option<&Chain>) -> Result<(), SaveFailed> {
        let conversation = Conversation {
            id: id.into(),
            created_at: 3,
            metadata: Bytes::from_static(b"{}"),
            chain: chain.cloned(),
        };
        self.writer.create_conversation(OWNER, conversation).await
    }

    /// The last link of a conversation; none of one that is not known.
    pub(super) async fn ends(&self, id: &str) -> Option<Option<ResponseId>> {
        let conversation = self.reader.conversation(OWNER, &id.into()).await.unwrap();
        let chain = conversation.map(|conversation| conversation.chain)?;
        Some(chain.map(|chain| chain.id().clone()))
    }
}

pub(super) async fn plays(storage: &Storage) {
    chains_are_read_as_they_were_saved(storage).await;
    what_is_deleted_is_gone_and_what_continues_it_is_whole(storage).await;
    a_response_can_be_replaced_until_its_status_is_final(storage).await;
    conversations_end_with_a_chain(storage).await;
    nothing_crosses_owners(storage).await;
}

/// A store that reads records does not keep all of one for the sake of one item in it, and finds
/// items by names of any length.
pub(super) async fn items_are_found_by_themselves(storage: &Storage) {
    let item = |id: &str, text: &str| {
        let item = json!({"type": "message", "id": id, "role": "user", "content": text});
        Item::parse(item.to_string().into()).unwrap()
    };
    let long = "long".repeat(1 << 10);
    let items = [
        item("small", ""),
        item(&long, "é"),
        item("large", &"x".repeat(1 << 20)),
    ];
    let chain = Chain::append(
        None,
        "resp_i1".into(),
        Arc::new(items.clone()),
        Arc::new([]),
        Carried::default(),
        None,
    );
    storage.save(Status::Completed, &chain).await.unwrap();
    let raw = |index: usize| Some(items[index].raw().clone());
    let found = storage
        .finds(&["large", "none", "small", &long, "msg_i1_1", "msg_i1_3"])
        .await;
    assert_eq!(found, [raw(2), None, raw(0), raw(1), raw(1), None]);
    let mut alone = storage.finds(&["small"]).await;
    let alone = alone.remove(0).unwrap().try_into_mut().unwrap();
    assert!(alone.capacity() < 1 << 10, "{}", alone.capacity());
}

async fn chains_are_read_as_they_were_saved(storage: &Storage) {
    let root = link(None, "resp_a1");
    let middle = link(Some(&root), "resp_a2");
    let end = link(Some(&middle), "resp_a3");
    let fork = link(Some(&root), "resp_a4");
    storage.save(Status::Completed, &root).await.unwrap();
    // Its parent was not stored, so it is stored with it.
    storage.save(Status::Completed, &end).await.unwrap();
    storage.save(Status::Incomplete, &fork).await.unwrap();
    for chain in [&root, &end, &fork] {
        let loaded = storage.loads(chain.id().as_str()).await.unwrap();
        assert_eq!(content(&loaded), content(chain));
    }
    assert!(storage.loads("resp_a2").await.is_none());
    assert!(storage.shows("resp_a2").await.is_none());
    let (status, shown) = storage.shows("resp_a4").await.unwrap();
    let said = fork.output()[0].raw();
    let head = br#"{"id":"resp_a4","status":"incomplete","output":["#;
    assert_eq!(
        (status, shown),
        (Status::Incomplete, [head, &said[..], b"]}"].concat().into())
    );
    assert_eq!(
        storage
            .finds(&["said_resp_a2", "msg_a4_0", "msg_a4_2", "said", ""])
            .await,
        [
            Some(middle.output()[0].raw().clone()),
            Some(fork.asked()[0].raw().clone()),
            None,
            None,
            None
        ]
    );
    for strange in ["", "resp_a1\0", "resp_a1 ", &"x".repeat(10_000)] {
        assert!(storage.loads(strange).await.is_none());
        assert!(!storage.deletes(strange).await);
        assert_eq!(storage.finds(&[strange]).await, [None]);
    }
}

async fn what_is_deleted_is_gone_and_what_continues_it_is_whole(storage: &Storage) {
    let root = link(None, "resp_b1");
    let end = link(Some(&root), "resp_b2");
    let fork = link(Some(&root), "resp_b3");
    for chain in [&root, &end, &fork] {
        storage.save(Status::Completed, chain).await.unwrap();
    }
    assert!(storage.deletes("resp_b1").await && !storage.deletes("resp_b1").await);
    assert!(storage.loads("resp_b1").await.is_none());
    assert!(storage.shows("resp_b1").await.is_none());
    assert!(storage.deletes("resp_b2").await);
    assert_eq!(
        content(&storage.loads("resp_b3").await.unwrap()),
        content(&fork)
    );
    let items = ["said_resp_b1", "said_resp_b2"];
    assert_eq!(
        storage.finds(&items).await,
        [Some(root.output()[0].raw().clone()), None]
    );
    assert!(storage.deletes("resp_b3").await);
    assert_eq!(storage.finds(&items).await, [None, None]);
    // Who still has the chain can go on with it.
    let next = link(Some(&fork), "resp_b4");
    storage.save(Status::Completed, &next).await.unwrap();
    assert_eq!(
        content(&storage.loads("resp_b4").await.unwrap()),
        content(&next)
    );
}

async fn a_response_can_be_replaced_until_its_status_is_final(storage: &Storage) {
    let parent = link(None, "resp_c1");
    let first = link(Some(&parent), "resp_c2");
    storage.save(Status::Completed, &parent).await.unwrap();
    storage.save(Status::Queued, &first).await.unwrap();
    assert!(storage.loads("resp_c2").await.is_none());
    let held = storage
        .reader
        .chain(OWNER, &"resp_c2".into())
        .await
        .unwrap();
    assert_eq!(content(&held.unwrap()), content(&first));
    assert_eq!(storage.shows("resp_c2").await.unwrap().0, Status::Queued);
    // What replaces it may even be without the parent, as after a compaction.
    let last = link(None, "resp_c2");
    storage.save(Status::InProgress, &first).await.unwrap();
    storage.save(Status::Completed, &last).await.unwrap();
    assert_eq!(
        content(&storage.loads("resp_c2").await.unwrap()),
        content(&last)
    );
    storage.save(Status::Completed, &first).await.unwrap();
    assert_eq!(
        content(&storage.loads("resp_c2").await.unwrap()),
        content(&last)
    );
    assert!(storage.deletes("resp_c1").await && storage.deletes("resp_c2").await);
    assert_eq!(
        storage.finds(&["said_resp_c1", "said_resp_c2"]).await,
        [None, None]
    );
}

async fn conversations_end_with_a_chain(storage: &Storage) {
    assert_eq!(storage.ends("conv_d").await, None);
    storage.names("conv_d", None).await.unwrap();
    assert_eq!(storage.ends("conv_d").await, Some(None));
    let first = link(None, "resp_d1");
    storage.save_in("conv_d", &first).await.unwrap();
    let second = link(Some(&first), "resp_d2");
    storage.save_in("conv_d", &second).await.unwrap();
    // Something else continued what the conversation ended with before.
    let late = link(Some(&first), "resp_d3");
    assert_eq!(
        storage.save_in("conv_d", &late).await,
        Err(SaveFailed::ConversationMoved)
    );
    assert!(storage.loads("resp_d3").await.is_none());
    let unknown = storage.save_in("conv_e", &link(None, "resp_d3")).await;
    assert_eq!(unknown, Err(SaveFailed::ConversationMoved));

    let id = ConversationId::from("conv_d");
    let metadata = Bytes::from_static(br#"{"a":"b"}"#);
    let updated = storage
        .writer
        .update_conversation(OWNER, &id, metadata.clone());
    assert!(updated.await.unwrap());
    let conversation = storage
        .reader
        .conversation(OWNER, &id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (conversation.created_at, &conversation.metadata),
        (3, &metadata)
    );
    assert_eq!(content(&conversation.chain.unwrap()), content(&second));
    // Its chain stays without the responses.
    assert!(storage.deletes("resp_d1").await && storage.deletes("resp_d2").await);
    assert_eq!(storage.ends("conv_d").await, Some(Some("resp_d2".into())));

    let third = link(Some(&second), "resp_d4");
    let advance = |from: &'static str, to: Option<Chain>| {
        let (writer, id) = (storage.writer.clone(), id.clone());
        async move {
            let from = ResponseId::from(from);
            writer
                .advance_conversation(OWNER, &id, Some(&from), to)
                .await
        }
    };
    advance("resp_d2", Some(third)).await.unwrap();
    assert_eq!(
        advance("resp_d2", None).await,
        Err(SaveFailed::ConversationMoved)
    );
    assert_eq!(storage.ends("conv_d").await, Some(Some("resp_d4".into())));
    advance("resp_d4", None).await.unwrap();
    // One that was under way is replaced by what came of it, in the conversation too.
    let queued = link(None, "resp_d5");
    storage.save(Status::Queued, &queued).await.unwrap();
    let done = Chain::append(
        None,
        "resp_d5".into(),
        Arc::clone(queued.input()),
        Arc::new([]),
        Carried::default(),
        None,
    );
    storage.save_in("conv_d", &done).await.unwrap();
    let conversation = storage.reader.conversation(OWNER, &id).await.unwrap();
    let chain = conversation.unwrap().chain.unwrap();
    assert_eq!(content(&chain), content(&done));
    advance("resp_d5", None).await.unwrap();
    assert_eq!(storage.ends("conv_d").await, Some(None));
    assert_eq!(
        storage.finds(&["said_resp_d1", "said_resp_d4"]).await,
        [None, None]
    );
    assert!(
        storage
            .writer
            .delete_conversation(OWNER, &id)
            .await
            .unwrap()
    );
    assert!(
        !storage
            .writer
            .delete_conversation(OWNER, &id)
            .await
            .unwrap()
    );
    assert_eq!(storage.ends("conv_d").await, None);
}

async fn nothing_crosses_owners(storage: &Storage) {
    storage
        .save(Status::Completed, &link(None, "resp_f"))
        .await
        .unwrap();
    storage.names("conv_f", None).await.unwrap();
    let (other, id) = (Tenant::of_key(b"other"), ResponseId::from("resp_f"));
    let conversation = ConversationId::from("conv_f");
    let Storage { reader, writer } = storage;
    assert!(reader.load(other, &id).await.unwrap().is_none());
    assert!(reader.chain(other, &id).await.unwrap().is_none());
    assert!(reader.response(other, &id).await.unwrap().is_none());
    let items = reader
        .items(other, &["said_resp_f".into(), "msg_f_0".into()])
        .await;
    assert!(items.unwrap().iter().all(Option::is_none));
    assert!(
        reader
            .conversation(other, &conversation)
            .await
            .unwrap()
            .is_none()
    );
    assert!(!writer.delete(other, &id).await.unwrap());
    assert!(
        !writer
            .delete_conversation(other, &conversation)
            .await
            .unwrap()
    );
    assert!(storage.loads("resp_f").await.is_some());
    assert_eq!(storage.ends("conv_f").await, Some(None));
}
