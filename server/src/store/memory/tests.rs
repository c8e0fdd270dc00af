//! What is particular to the store in memory: its budget, and what counts for how much.

use std::sync::Arc;

use turnwire_protocol::chain::Carried;
use turnwire_protocol::item::Item;
use turnwire_protocol::stored::{ConversationStep, Permit};

use super::*;
use crate::store::{Store, story};

const RESPONSE_BYTES: u64 = 200;

#[tokio::test]
async fn it_does_what_every_store_does() {
    let store = Store::Memory(MemoryStore::new(u64::MAX));
    story::plays(&store.into()).await;
}

/// What one saved response counts for.
fn each() -> u64 {
    own_bytes(&link(None, "x")) + RESPONSE_BYTES
}

fn link(parent: Option<&Chain>, id: &str) -> Chain {
    // The name counts three times: in the text, in the item and in the index.
    let text = "x".repeat(1000 - 3 * id.len());
    let item = format!(r#"{{"type":"{text}","id":"item_of_{id}"}}"#);
    let item = Item::parse(item.into()).unwrap();
    Chain::append(
        parent.cloned(),
        ResponseId::from(id),
        Arc::new([item]),
        Arc::new([]),
        Carried::default(),
        None,
    )
}

fn save(store: &MemoryStore, chain: &Chain) -> Result<(), SaveFailed> {
    let text = ResponseText {
        before: Bytes::from(vec![b' '; RESPONSE_BYTES as usize]),
        after: Bytes::new(),
    };
    let (permit, status) = (Permit::grant(), Status::Completed);
    let record = StoredResponse::new(permit, status, 0, text, chain.clone());
    store.save(Tenant::ANYONE, record)
}

fn knows(store: &MemoryStore, id: &str) -> bool {
    store.load(Tenant::ANYONE, &ResponseId::from(id)).is_some()
}

fn bytes(store: &MemoryStore) -> u64 {
    store.shelf.lock().unwrap().bytes
}

#[test]
fn a_response_is_found_by_its_owner_only() {
    let store = MemoryStore::new(u64::MAX);
    save(&store, &link(None, "a")).unwrap();
    assert!(knows(&store, "a"));
    let other = Tenant::of_key(b"other");
    assert!(store.load(other, &ResponseId::from("a")).is_none());
}

#[test]
fn the_oldest_go_when_the_budget_is_used_up() {
    let store = MemoryStore::new(3 * each());
    for id in ["a", "b", "c", "d"] {
        save(&store, &link(None, id)).unwrap();
    }
    assert_eq!(
        ["a", "b", "c", "d"].map(|id| knows(&store, id)),
        [false, true, true, true]
    );
    assert_eq!(bytes(&store), 3 * each());
}

#[test]
fn what_is_old_goes_when_anything_is_asked() {
    let store = MemoryStore::new(u64::MAX).keeping_for(Some(Duration::from_secs(1000)));
    let save = |created_at, chain: &Chain| {
        let text = ResponseText {
            before: Bytes::new(),
            after: Bytes::new(),
        };
        let (permit, status) = (Permit::grant(), Status::Completed);
        let record = StoredResponse::new(permit, status, created_at, text, chain.clone());
        store.save(Tenant::ANYONE, record).unwrap();
    };
    let now = clock::unix_seconds();
    save(now - 2000, &link(None, "old"));
    save(now, &link(None, "young"));
    assert!(!knows(&store, "old") && knows(&store, "young"));
}

#[test]
fn the_items_of_a_gone_parent_count_as_long_as_a_child_is_held() {
    let store = MemoryStore::new(3 * each());
    let parent = link(None, "parent");
    let child = link(Some(&parent), "child");
    save(&store, &parent).unwrap();
    save(&store, &child).unwrap();
    assert_eq!(
        bytes(&store),
        2 * each(),
        "the parent's items are counted once"
    );

    save(&store, &link(None, "c")).unwrap();
    save(&store, &link(None, "d")).unwrap();
    // Without its response the parent still weighs its items, so the child has to go too.
    assert!(!knows(&store, "parent") && !knows(&store, "child"));
    assert!(knows(&store, "c") && knows(&store, "d"));
    assert_eq!(bytes(&store), 2 * each());
}

#[test]
fn parents_that_were_never_stored_count_with_the_child_that_needs_them() {
    let store = MemoryStore::new(10 * each());
    let unstored = link(None, "unstored");
    let fork = link(Some(&unstored), "fork");
    save(&store, &link(Some(&unstored), "child")).unwrap();
    save(&store, &fork).unwrap();
    assert!(!knows(&store, "unstored"));
    assert_eq!(bytes(&store), 3 * each() - RESPONSE_BYTES);
}

#[test]
fn what_can_never_fit_is_refused_and_pushes_nothing_out() {
    let store = MemoryStore::new(each());
    let parent = link(None, "parent");
    save(&store, &parent).unwrap();
    assert_eq!(
        save(&store, &link(Some(&parent), "child")),
        Err(SaveFailed::TooLarge)
    );
    assert!(knows(&store, "parent"));
}

#[test]
fn a_deleted_response_is_unknown_but_what_continues_it_is_whole() {
    let store = MemoryStore::new(u64::MAX);
    let parent = link(None, "p");
    save(&store, &parent).unwrap();
    save(&store, &link(Some(&parent), "c")).unwrap();
    let delete = |id: &str| store.delete(Tenant::ANYONE, &ResponseId::from(id));
    assert!(!store.delete(Tenant::of_key(b"other"), &ResponseId::from("p")));
    assert!(delete("p"));
    assert!(!knows(&store, "p") && knows(&store, "c") && !delete("p"));
    assert_eq!(bytes(&store), 2 * each() - RESPONSE_BYTES);
    assert!(delete("c"));
    assert_eq!(bytes(&store), 0);
    let shelf = store.shelf();
    assert!(shelf.links.is_empty() && shelf.items.is_empty() && shelf.by_age.is_empty());
}

#[test]
fn a_conversation_holds_its_chain_and_goes_on_from_nothing_else() {
    let store = MemoryStore::new(u64::MAX);
    let (owner, id) = (Tenant::ANYONE, ConversationId::from("conv_1"));
    let first = link(None, "first");
    let conversation = Conversation {
        id: id.clone(),
        created_at: 1,
        metadata: Bytes::from_static(b"{}"),
        chain: Some(first.clone()),
    };
    store.create_conversation(owner, conversation).unwrap();
    assert!(store.item(owner, "item_of_first").is_some() && !knows(&store, "first"));
    let second = link(Some(&first), "second");
    let advance = |from: Option<&Chain>, to: Option<&Chain>| {
        store.advance_conversation(owner, &id, from.map(Chain::id), to.cloned())
    };
    advance(Some(&first), Some(&second)).unwrap();
    assert_eq!(
        advance(Some(&first), None),
        Err(SaveFailed::ConversationMoved)
    );
    let chain = store.conversation(owner, &id).unwrap().chain.unwrap();
    assert!(chain.is(&second));
    // A compaction begins the chain anew.
    let compacted = link(None, "compacted");
    let text = ResponseText {
        before: Bytes::new(),
        after: Bytes::new(),
    };
    let (permit, status) = (Permit::grant(), Status::Completed);
    let mut record = StoredResponse::new(permit, status, 0, text, compacted.clone());
    for (from, outcome) in [
        (None, Err(SaveFailed::ConversationMoved)),
        (Some(second.id().clone()), Ok(())),
    ] {
        let id = id.clone();
        record.conversation = Some(ConversationStep { id, from });
        assert_eq!(store.save(owner, record.clone()), outcome);
    }
    assert!(store.item(owner, "item_of_first").is_none());
    advance(Some(&compacted), None).unwrap();
    assert!(store.delete(owner, compacted.id()));
    assert!(!store.delete_conversation(Tenant::of_key(b"other"), &id));
    assert!(store.delete_conversation(owner, &id));
    assert_eq!(bytes(&store), 0);
}

#[test]
fn what_is_not_final_is_replaced_and_cannot_be_continued() {
    let store = MemoryStore::new(u64::MAX);
    let save = |status, items: &Chain| {
        let text = ResponseText {
            before: Bytes::from_static(b"["),
            after: Bytes::from_static(b"]"),
        };
        let record = StoredResponse::new(Permit::grant(), status, 0, text, items.clone());
        store.save(Tenant::ANYONE, record).unwrap();
    };
    let id = ResponseId::from("r");
    let parent = link(None, "parent");
    save(Status::Queued, &link(Some(&parent), "r"));
    assert!(!knows(&store, "r"));
    let status = || store.response(Tenant::ANYONE, &id).unwrap().status;
    assert_eq!(status(), Status::Queued);
    let last = link(Some(&parent), "r");
    save(Status::Completed, &last);
    save(Status::Failed, &link(None, "r"));
    assert!(knows(&store, "r") && status() == Status::Completed);
    assert!(store.chain(Tenant::ANYONE, &id).unwrap().is(&last));
    store.delete(Tenant::ANYONE, &id);
    assert_eq!(bytes(&store), 0);
}

#[test]
fn an_item_is_found_by_its_owner_as_long_as_its_link_is_held() {
    let store = MemoryStore::new(u64::MAX);
    let parent = link(None, "resp_p");
    save(&store, &link(Some(&parent), "resp_c")).unwrap();
    // Another response that was given an item of the same name.
    save(&store, &link(None, "resp_p")).unwrap();
    let finds = |id: &str| {
        let item = store.item(Tenant::ANYONE, id);
        item.map(|item| item.id().map(ToOwned::to_owned).unwrap())
    };
    for id in ["item_of_resp_p", "msg_p_0"] {
        assert_eq!(finds(id).as_deref(), Some("item_of_resp_p"));
        assert!(store.item(Tenant::of_key(b"other"), id).is_none());
    }
    assert_eq!(finds("msg_p_1"), None);
    store.delete(Tenant::ANYONE, &ResponseId::from("resp_c"));
    assert_eq!(finds("item_of_resp_c"), None);
    assert!(finds("item_of_resp_p").is_some());
}
