//! Tests with a real PostgreSQL, which `TURNWIRE_TEST_POSTGRES` names. Without it they are not run:
//! `scripts/with-postgres` and the test command set it.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use turnwire_protocol::stored::Status;

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
    let secret = Arc::new(Secret::in_memory());
    let store = PostgresStore::open(url, secret).await.unwrap();
    Store::Postgres(store).into()
}

/// What the database itself says.
async fn count(url: &PostgresUrl, what: &str) -> i64 {
    let database = Database::at(url.read().unwrap());
    let client = database.connect().await.unwrap();
    client
        .query_one(&format!("SELECT {what}"), &[])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn it_does_what_every_store_does() {
    let Some(url) = database().await else { return };
    let storage = open(&url).await;
    story::plays(&storage).await;
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
    let database = Database::at(url.read().unwrap());
    let client = database.connect().await.unwrap();
    client
        .batch_execute("UPDATE version SET version = 99")
        .await
        .unwrap();
    let later = PostgresStore::open(&url, Arc::new(Secret::in_memory())).await;
    let error = later.unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}
