//! Tests with a real PostgreSQL, which `TURNWIRE_TEST_POSTGRES` names. Without it they are not run:
//! `scripts/with-postgres` and the test command set it.

use std::env;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::runtime::{Handle, Runtime};
use tokio::task::block_in_place;
use tokio_postgres::Client;
use turnwire_protocol::chain::Carried;
use turnwire_protocol::stored::Status;

use super::super::operations::{agree_with_memory, operations};
use super::super::story::{self, content, link};
use super::super::{Storage, Store};
use super::*;

/// A database that is empty and nobody else's; none where there is no PostgreSQL.
async fn database() -> Option<PostgresUrl> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    // A failed test shows what went wrong with the database.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let server = env::var("TURNWIRE_TEST_POSTGRES").ok()?;
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("turnwire_test_{}_{number}", std::process::id());
    let (client, connection) = tokio_postgres::connect(&server, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    let (place, _) = server.rsplit_once('/').unwrap();
    PostgresUrl::of(&format!("{place}/{name}"))
}

async fn open(url: &PostgresUrl) -> Storage {
    opened(url).await.into()
}

async fn opened(url: &PostgresUrl) -> Store {
    let secret = Arc::new(Secret::in_memory());
    let store = PostgresStore::open(url, secret, Retention::default())
        .await
        .unwrap();
    Store::Postgres(Box::new(store))
}

/// A connection beside those of servers.
async fn client(url: &PostgresUrl) -> Client {
    let database = Database::at(url.read().unwrap());
    database.connect().await.unwrap()
}

/// Takes everything away, if there is anything.
async fn clear(url: &PostgresUrl) {
    drop(open(url).await);
    let tables = "DELETE FROM responses; DELETE FROM links; DELETE FROM branches;
                  DELETE FROM items; DELETE FROM conversations; DELETE FROM volume";
    client(url).await.batch_execute(tables).await.unwrap();
}

/// What the database itself says.
async fn count(url: &PostgresUrl, what: &str) -> i64 {
    let client = client(url).await;
    client
        .query_one(&format!("SELECT {what}"), &[])
        .await
        .unwrap()
        .get(0)
}

/// Lets go of what is to be kept no longer, once servers leave it to us.
async fn swept(client: &Client, retention: Retention) {
    while upkeep::sweep(client, retention).await.unwrap().is_none() {}
}

#[tokio::test]
async fn it_does_what_every_store_does() {
    let Some(url) = database().await else { return };
    let storage = open(&url).await;
    story::plays(&storage).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn it_answers_as_memory_does(operations in operations()) {
        static DATABASE: OnceLock<Option<PostgresUrl>> = OnceLock::new();
        let runtime = Runtime::new().unwrap();
        let Some(url) = DATABASE.get_or_init(|| runtime.block_on(database())) else {
            return Ok(());
        };
        runtime.block_on(clear(url));
        agree_with_memory(operations, || {
            let opened = async {
                // The server that was there before is silent from now on.
                let storage = open(url).await;
                let client = client(url).await;
                client.batch_execute("DELETE FROM servers").await.unwrap();
                upkeep::fail_abandoned(&client).await.unwrap();
                drop(storage);
                opened(url).await
            };
            block_in_place(|| Handle::current().block_on(opened))
        });
    }
}

#[tokio::test]
async fn items_are_found_by_themselves() {
    let Some(url) = database().await else { return };
    story::items_are_found_by_themselves(&open(&url).await).await;
}

#[tokio::test]
async fn changes_that_wait_for_a_database_that_is_away_are_bounded_in_bytes() {
    let nowhere = PostgresUrl::of("postgres://nobody@127.0.0.1:1/nothing").unwrap();
    let writer = Writer::start(Arc::new(Database::at(nowhere.read().unwrap())));
    let large = format!(r#"{{"role":"user","content":"{}"}}"#, "x".repeat(100 << 20));
    let items = Arc::new([Item::parse(large.into()).unwrap()]);
    let none = Arc::new([]);
    let chain = Chain::append(None, "resp_1".into(), items, none, Carried::default(), None);
    let change = || {
        let change = Change::AdvanceConversation {
            id: "conv_1".into(),
            from: None,
            to: Some(chain.clone()),
        };
        writer.change(story::OWNER, change).now_or_never()
    };
    assert_eq!([change(), change()], [None, None]);
    assert_eq!(change(), Some(Err(Unwritten)));
}

#[tokio::test]
async fn two_servers_that_continue_the_same_response_make_two_branches() {
    let Some(url) = database().await else { return };
    let (a, b) = (open(&url).await, open(&url).await);
    let root = link(None, "resp_1");
    a.save(Status::Completed, &root).await.unwrap();
    let known_by_b = b.loads("resp_1").await.unwrap();
    let (mine, other) = (
        link(Some(&root), "resp_2"),
        link(Some(&known_by_b), "resp_3"),
    );
    let (by_a, by_b) = tokio::join!(
        a.save(Status::Completed, &mine),
        b.save(Status::Completed, &other)
    );
    assert_eq!((by_a, by_b), (Ok(()), Ok(())));
    for (storage, chain) in [(&a, &other), (&b, &mine)] {
        let loaded = storage.loads(chain.id().as_str()).await.unwrap();
        assert_eq!(content(&loaded), content(chain));
        // What a server has of a chain it shares, and so what its engine keeps.
        let shared = storage.loads("resp_1").await.unwrap();
        assert!(loaded.parent().unwrap().is(&shared));
    }
    assert_eq!(count(&url, "count(*) FROM links").await, 3);
    assert_eq!(count(&url, "count(*) FROM branches").await, 2);
    // Deleted by one, it is unknown to the other, and what was needed by nothing else is gone.
    assert!(a.deletes("resp_1").await && !b.deletes("resp_1").await);
    assert!(b.loads("resp_1").await.is_none());
    assert!(b.deletes("resp_2").await);
    assert_eq!(content(&a.loads("resp_3").await.unwrap()), content(&other));
    assert!(a.deletes("resp_3").await);
    for table in ["links", "branches", "items", "responses"] {
        assert_eq!(
            count(&url, &format!("count(*) FROM {table}")).await,
            0,
            "{table}"
        );
    }
    assert_eq!(count(&url, "sum(bytes)::bigint FROM volume").await, 0);
}

#[tokio::test]
async fn servers_that_start_at_the_same_time_make_the_tables_once() {
    let Some(url) = database().await else { return };
    let (a, b, c) = tokio::join!(open(&url), open(&url), open(&url));
    let chain = link(None, "resp_1");
    a.save(Status::Completed, &chain).await.unwrap();
    for storage in [b, c] {
        assert_eq!(
            content(&storage.loads("resp_1").await.unwrap()),
            content(&chain)
        );
    }
    let client = client(&url).await;
    client
        .batch_execute("UPDATE version SET version = 99")
        .await
        .unwrap();
    let secret = Arc::new(Secret::in_memory());
    let later = PostgresStore::open(&url, secret, Retention::default()).await;
    let error = later.unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[tokio::test]
async fn what_a_server_leaves_unfinished_fails_and_what_was_deleted_stays_deleted() {
    let Some(url) = database().await else { return };
    let (a, b) = (open(&url).await, open(&url).await);
    for id in ["resp_1", "resp_2", "resp_3"] {
        a.save(Status::Queued, &link(None, id)).await.unwrap();
        a.save(Status::InProgress, &link(None, id)).await.unwrap();
    }
    assert_eq!(b.shows("resp_1").await.unwrap().0, Status::InProgress);
    assert!(b.deletes("resp_2").await);
    a.save(Status::Completed, &link(None, "resp_2"))
        .await
        .unwrap();
    assert!(a.shows("resp_2").await.is_none());
    a.save(Status::Completed, &link(None, "resp_3"))
        .await
        .unwrap();

    let client = client(&url).await;
    let silence = "UPDATE servers SET heard_at = now() - interval '31 seconds'
                   WHERE server IN (SELECT server FROM responses)";
    client.batch_execute(silence).await.unwrap();
    // No end is shown that is not stored.
    assert_eq!(b.shows("resp_1").await.unwrap().0, Status::InProgress);
    assert!(!upkeep::fail_abandoned(&client).await.unwrap());
    let (status, shown) = b.shows("resp_1").await.unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    assert_eq!(
        (status, &shown["status"]),
        (Status::Failed, &"failed".into())
    );
    assert_eq!(shown["output"][0]["id"], "said_resp_1");
    assert_eq!(
        count(&url, "count(*) FROM responses WHERE status = 'failed'").await,
        1
    );
    // The server was not gone but slow, and learns that it is too late.
    let late = a.save(Status::Completed, &link(None, "resp_1")).await;
    assert_eq!(late, Err(SaveFailed::Unavailable));
    assert_eq!(a.shows("resp_1").await.unwrap().0, Status::Failed);
    assert!(a.loads("resp_3").await.is_some());
}

#[tokio::test]
async fn the_oldest_go_by_age_and_by_size() {
    let Some(url) = database().await else { return };
    let storage = open(&url).await;
    let first = link(None, "resp_1");
    storage.save(Status::Completed, &first).await.unwrap();
    storage
        .save(Status::Queued, &link(None, "resp_2"))
        .await
        .unwrap();
    storage.names("conv_1", Some(&first)).await.unwrap();
    for id in ["resp_3", "resp_4", "resp_5"] {
        storage
            .save(Status::Completed, &link(None, id))
            .await
            .unwrap();
    }
    let client = client(&url).await;
    let day = Duration::from_secs(24 * 60 * 60);
    let by_age = Retention {
        age: Some(day),
        bytes: None,
    };
    swept(&client, by_age).await;
    assert!(storage.loads("resp_1").await.is_some());
    let age = "UPDATE responses SET stored_at = now() - interval '25 hours'
               WHERE id IN ('resp_1', 'resp_2');
               UPDATE conversations SET changed_at = now() - interval '25 hours'";
    client.batch_execute(age).await.unwrap();
    swept(&client, by_age).await;
    assert!(storage.loads("resp_1").await.is_none());
    assert_eq!(storage.ends("conv_1").await, None);
    assert!(storage.shows("resp_2").await.is_some(), "it is being made");
    assert!(storage.loads("resp_3").await.is_some());

    let bytes = count(&url, "sum(bytes)::bigint FROM volume").await;
    let counted = "(SELECT sum(octet_length(record)) FROM links)::bigint
        + (SELECT sum(octet_length(text_before) + octet_length(text_after)) FROM responses)::bigint";
    assert_eq!(count(&url, counted).await, bytes);
    let by_size = Retention {
        age: None,
        bytes: Some(bytes as u64 - 1),
    };
    swept(&client, by_size).await;
    let left = ["resp_2", "resp_3", "resp_4", "resp_5"].map(|id| storage.shows(id));
    let left = futures_util::future::join_all(left).await;
    let left: Vec<_> = left.iter().map(Option::is_some).collect();
    assert_eq!(left, [true, false, true, true]);
}

#[tokio::test]
async fn connections_that_are_lost_lose_nothing_and_do_nothing_twice() {
    let Some(url) = database().await else { return };
    let storage = open(&url).await;
    let client = client(&url).await;
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let mut ends = Vec::new();
    let mut saved = Vec::new();
    for number in 0..300_usize {
        // Ten chains side by side, each of which was continued before it is known to be stored.
        let parent = number.checked_sub(10).map(|before| &ends[before]);
        let chain = link(parent, &format!("resp_{number}"));
        let response = story::response(Status::Completed, &chain);
        saved.push(storage.writer.save(Tenant::ANYONE, response));
        ends.push(chain);
        if number % 20 == 0 {
            client.query_one(cut, &[]).await.unwrap();
        }
    }
    let done = futures_util::future::join_all(saved).await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    client.query_one(cut, &[]).await.unwrap();
    for end in ends.iter().rev().take(10) {
        let loaded = storage.loads(end.id().as_str()).await.unwrap();
        assert_eq!(content(&loaded), content(end));
    }
    assert_eq!(count(&url, "count(*) FROM links").await, 300);
    assert_eq!(count(&url, "count(*) FROM branches").await, 10);
    assert_eq!(
        count(&url, "sum(holders)::bigint FROM links").await,
        300 + 290
    );
}

#[tokio::test]
async fn a_chain_of_any_length_is_read_in_as_many_statements() {
    let Some(url) = database().await else { return };
    let storage = open(&url).await;
    let statements = async |length: usize| {
        let name = |number: usize| format!("resp_{length}_{number}");
        let mut end = link(None, &name(0));
        for number in 1..length {
            end = link(Some(&end), &name(number));
            // Where a fork goes on, a branch begins.
            if number % 7 == 0 {
                storage.save(Status::Completed, &end).await.unwrap();
                let aside = link(Some(&end), &format!("{}_aside", name(number)));
                storage.save(Status::Completed, &aside).await.unwrap();
            }
        }
        storage.save(Status::Completed, &end).await.unwrap();
        let reader = open(&url).await;
        let Store::Postgres(store) = &*reader.reader.0 else {
            unreachable!("it was opened as one");
        };
        let loaded = reader.loads(end.id().as_str()).await.unwrap();
        assert_eq!(content(&loaded), content(&end));
        store.reader.lines().statements()
    };
    let few = statements(2).await;
    assert_eq!((few, few), (statements(50).await, statements(500).await));
}

#[tokio::test]
async fn events_reach_those_who_follow_at_another_server_from_any_number_on() {
    let Some(url) = database().await else { return };
    let (a, b) = (open(&url).await, open(&url).await);
    let (owner, id) = (Tenant::ANYONE, ResponseId::from("resp_1"));
    let follow = async |from| {
        let relay = b.relay().unwrap();
        let followed = relay.follow(owner, &id, from).await.unwrap();
        followed.map(|events| events.map(|event| String::from_utf8(event.into()).unwrap()))
    };
    assert!(follow(0).await.is_none());
    a.save(Status::Queued, &link(None, "resp_1")).await.unwrap();
    let mut early = follow(0).await.unwrap();
    let mut outgoing = a.relay().unwrap().outgoing(owner, &id);
    for number in 0..100 {
        outgoing.publish(format!("{number} ").into(), false);
    }
    for number in 0..100 {
        assert_eq!(early.next().await.unwrap(), format!("{number} "));
    }
    a.save(Status::Completed, &link(None, "resp_1"))
        .await
        .unwrap();
    outgoing.publish("end".into(), true);
    let end = "enddata: [DONE]\n\n";
    assert_eq!(early.collect::<Vec<_>>().await, [end]);
    assert_eq!(
        follow(99).await.unwrap().collect::<Vec<_>>().await,
        ["99 ", end]
    );
    assert_eq!(
        follow(200).await.unwrap().collect::<Vec<_>>().await,
        ["data: [DONE]\n\n"]
    );
    let other = b.relay().unwrap().follow(Tenant::of_key(b"other"), &id, 0);
    assert!(other.await.unwrap().is_none());
    // What is missing is not told as if it were whole.
    let client = client(&url).await;
    client
        .batch_execute("DELETE FROM events WHERE number = 50")
        .await
        .unwrap();
    assert_eq!(follow(49).await.unwrap().collect::<Vec<_>>().await, ["49 "]);
    assert!(follow(50).await.is_none());
    assert!(a.deletes("resp_1").await);
    assert!(follow(0).await.is_none());
    assert_eq!(count(&url, "count(*) FROM events").await, 0);
}

#[tokio::test]
async fn who_follows_a_server_that_dies_is_told_that_the_response_failed() {
    let Some(url) = database().await else { return };
    let (a, b) = (open(&url).await, open(&url).await);
    let (owner, id) = (Tenant::ANYONE, ResponseId::from("resp_1"));
    a.save(Status::Queued, &link(None, "resp_1")).await.unwrap();
    let relay = b.relay().unwrap();
    let mut events = relay.follow(owner, &id, 0).await.unwrap().unwrap();
    let mut outgoing = a.relay().unwrap().outgoing(owner, &id);
    outgoing.publish("first".into(), false);
    assert_eq!(events.next().await.unwrap(), "first");
    drop(a);
    let forget = "DELETE FROM servers WHERE server = (SELECT server FROM responses)";
    let client = client(&url).await;
    client.batch_execute(forget).await.unwrap();
    upkeep::fail_abandoned(&client).await.unwrap();
    let last = events.next().await.unwrap();
    let last = String::from_utf8(last.into()).unwrap();
    let head = "event: response.failed\ndata: {\"type\":\"response.failed\",\"sequence_number\":1,";
    assert!(
        last.starts_with(head) && last.ends_with("}\n\ndata: [DONE]\n\n"),
        "{last}"
    );
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_server_hears_what_others_want_cancelled() {
    let Some(url) = database().await else { return };
    let (a, b) = (open(&url).await, open(&url).await);
    let owner = Tenant::ANYONE;
    let mut requests = a.relay().unwrap().cancel_requests().unwrap();
    assert!(a.relay().unwrap().cancel_requests().is_none());
    for id in ["resp_1", "resp_2"] {
        a.save(Status::Queued, &link(None, id)).await.unwrap();
    }
    let made = async {
        let asked = requests.recv().await.unwrap();
        assert_eq!(asked, (owner, "resp_1".into()));
        a.save(Status::Cancelled, &link(None, "resp_1"))
            .await
            .unwrap();
    };
    let first = "resp_1".into();
    let (cancelled, ()) = tokio::join!(b.relay().unwrap().cancel(owner, &first), made);
    cancelled.unwrap();
    assert_eq!(b.shows("resp_1").await.unwrap().0, Status::Cancelled);
    // Whoever deletes what is being made cancels it.
    assert!(b.deletes("resp_2").await);
    loop {
        // The first one may have been heard of twice.
        if requests.recv().await.unwrap() == (owner, "resp_2".into()) {
            break;
        }
    }
}
