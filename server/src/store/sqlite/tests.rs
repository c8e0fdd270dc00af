//! What is promised of the durable store, beside what every store has to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use serde_json::Value;
use tempfile::TempDir;
use turnwire_protocol::chain::Carried;
use turnwire_protocol::stored::Status;

use super::super::operations::{agree_with_memory, operations};
use super::super::story::{self, OWNER, content, link, response};
use super::super::{Storage, Store};
use super::*;

fn path(directory: &TempDir) -> PathBuf {
    directory.path().join("turnwire.db")
}

fn open_keeping(directory: &TempDir, retention: Retention) -> Result<SqliteStore, OpenError> {
    let secret = Arc::new(Secret::in_memory());
    SqliteStore::open(&path(directory), secret, retention)
}

fn open(directory: &TempDir) -> SqliteStore {
    open_keeping(directory, Retention::default()).unwrap()
}

impl SqliteStore {
    fn put(&self, chain: &Chain) -> BoxFuture<'static, Result<(), SaveFailed>> {
        self.save(OWNER, response(Status::Completed, chain))
    }

    async fn knows(&self, id: &str) -> bool {
        let found = self.response(OWNER, &id.into()).await;
        found.unwrap().is_some()
    }

    /// What the writer finds in its tables.
    async fn ask(&self, sql: &'static str) -> i64 {
        let ask = move |tables: &mut Tables<'_>| tables.row(sql, &[], |row| row.get(0));
        self.writer.queue().push(0, ask, |_| {}).await.unwrap()
    }

    /// Has everything taken away that is due at this second.
    async fn sweep(&self, now: u64) {
        loop {
            let retention = self.retention;
            let sweep = move |tables: &mut Tables<'_>| retention::sweep(tables, retention, now);
            let swept = self.writer.queue().push(0, sweep, |_| {});
            if !swept.await.unwrap().more {
                break;
            }
        }
    }

    /// Has the log copied into the database, and cut off.
    async fn settle(&self) {
        let queue = self.writer.queue().clone();
        let restart = move || queue.restart_log(true);
        tokio::task::spawn_blocking(restart).await.unwrap();
    }
}

/// A response of about so many bytes.
fn large(id: &str, bytes: usize) -> Chain {
    let text = "x".repeat(bytes);
    let item = format!(r#"{{"role":"user","content":"{text}"}}"#);
    let item = Item::parse(item.into()).unwrap();
    let (id, carried) = (ResponseId::from(id), Carried::default());
    Chain::append(None, id, Arc::new([item]), Arc::new([]), carried, None)
}

#[tokio::test]
async fn it_does_what_every_store_does() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::Sqlite(open(&directory));
    story::plays(&Storage::from(store)).await;
}

#[tokio::test]
async fn items_are_found_by_themselves_and_no_name_makes_an_index_large() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Storage::from(Store::Sqlite(open(&directory)));
    story::items_are_found_by_themselves(&storage).await;
    let database = rusqlite::Connection::open(path(&directory)).unwrap();
    let longest = || -> Option<i64> {
        database
            .query_row("SELECT max(length(id)) FROM items", [], |row| row.get(0))
            .unwrap()
    };
    assert!(
        longest().is_some_and(|bytes| bytes <= 128),
        "{longest:?}",
        longest = longest()
    );
    assert!(storage.deletes("resp_i1").await);
    assert_eq!(longest(), None);
}

#[tokio::test]
async fn items_of_conversations_that_wait_to_be_written_count() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let busy = rusqlite::Connection::open(path(&directory)).unwrap();
    busy.execute_batch("BEGIN IMMEDIATE").unwrap();
    // More than the writer takes at once, so that only the first of them is out of the queue.
    let large = format!(r#"{{"role":"user","content":"{}"}}"#, "x".repeat(9 << 20));
    let chain = |id: &str| {
        let items = Arc::new([Item::parse(large.clone().into()).unwrap()]);
        let none = Arc::new([]);
        Chain::append(None, id.into(), items, none, Carried::default(), None)
    };
    let named = |id: &str, chain: Option<Chain>| Conversation {
        id: id.into(),
        created_at: 3,
        metadata: Bytes::from_static(b"{}"),
        chain,
    };
    let waiting = || store.writer.queue().waiting_bytes();
    let first = store.create_conversation(OWNER, named("conv_1", Some(chain("resp_1"))));
    let second = store.create_conversation(OWNER, named("conv_2", Some(chain("resp_2"))));
    let empty = store.create_conversation(OWNER, named("conv_3", None));
    let id = ConversationId::from("conv_3");
    let third = store.advance_conversation(OWNER, &id, None, Some(chain("resp_3")));
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut empty, mut third) = (pin!(empty), pin!(third));
    assert_eq!(
        [
            first.as_mut().now_or_never(),
            second.as_mut().now_or_never()
        ],
        [None; 2]
    );
    assert!(waiting() >= 9 << 20, "{}", waiting());
    assert_eq!(
        [empty.as_mut().now_or_never(), third.as_mut().now_or_never()],
        [None; 2]
    );
    assert!(waiting() >= 18 << 20, "{}", waiting());
    busy.execute_batch("ROLLBACK").unwrap();
    assert_eq!(
        tokio::join!(first, second, empty, third),
        (Ok(()), Ok(()), Ok(()), Ok(()))
    );
    assert_eq!(waiting(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn it_answers_as_memory_does(operations in operations()) {
        let directory = tempfile::tempdir().unwrap();
        agree_with_memory(operations, || Store::Sqlite(open(&directory)));
    }
}

#[tokio::test]
async fn what_was_under_way_when_a_server_ended_has_failed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let done = link(None, "resp_1");
    store.put(&done).await.unwrap();
    for (id, status) in [("resp_2", Status::Queued), ("resp_3", Status::InProgress)] {
        let running = response(status, &link(Some(&done), id));
        store.save(OWNER, running).await.unwrap();
    }
    drop(store);
    let store = open(&directory);
    let found = store.load(OWNER, done.id()).await.unwrap().unwrap();
    assert_eq!(content(&found), content(&done));
    for id in ["resp_2", "resp_3"] {
        let shown = store.response(OWNER, &id.into()).await.unwrap().unwrap();
        let json: Value = serde_json::from_slice(&shown.json).unwrap();
        assert_eq!(shown.status, Status::Failed);
        assert_eq!(
            (&json["id"], &json["status"]),
            (&id.into(), &"failed".into())
        );
        assert_eq!(json["error"]["code"], "server_error");
        assert!(!json["output"].as_array().unwrap().is_empty());
    }
}

#[tokio::test]
async fn one_server_at_a_time_has_it_open_and_no_other_user_may_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("a/b/turnwire.db");
    let open = || {
        let secret = Arc::new(Secret::in_memory());
        SqliteStore::open(&below, secret, Retention::default())
    };
    let store = open().unwrap();
    store.put(&link(None, "resp_1")).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for made in [directory.path().join("a"), directory.path().join("a/b")] {
        assert_eq!(mode(&made), 0o700, "{}", made.display());
    }
    let files: Vec<_> = fs::read_dir(below.parent().unwrap()).unwrap().collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    let second = open().unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");
    drop(store);
    assert!(open().unwrap().knows("resp_1").await);
}

#[test]
fn what_cannot_be_opened_is_told_with_its_path_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    let refused = || {
        let refused = open_keeping(&directory, Retention::default());
        format!("{:#}", anyhow::Error::from(refused.unwrap_err()))
    };
    fs::write(
        &path,
        "This is no database, but a text that is long enough.".repeat(100),
    )
    .unwrap();
    let said = refused();
    assert!(
        said.contains("turnwire.db: it cannot be used: file is not a database"),
        "{said}"
    );
    fs::remove_file(&path).unwrap();
    let theirs = rusqlite::Connection::open(&path).unwrap();
    theirs.execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(refused().contains("of another program"));
    theirs.execute_batch("DROP TABLE theirs").unwrap();
    drop(theirs);
    drop(open(&directory));
    let ours = rusqlite::Connection::open(&path).unwrap();
    ours.pragma_update(None, "user_version", 99).unwrap();
    drop(ours);
    let said = refused();
    assert!(
        said.contains("a later version") && said.contains("schema 99"),
        "{said}"
    );
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let said = refused();
    assert!(
        said.contains("turnwire.db: it cannot be made, or not be written to"),
        "{said}"
    );
}

static STATEMENTS: AtomicUsize = AtomicUsize::new(0);

#[expect(
    clippy::needless_pass_by_value,
    reason = "SQLite's binding calls it so"
)]
fn count(event: TraceEvent<'_>) {
    if let TraceEvent::Stmt(..) = event {
        STATEMENTS.fetch_add(1, Ordering::Relaxed);
    }
}

/// The statements that reading a chain takes when it is in memory no more.
async fn statements_to_load(store: &SqliteStore, chain: &Chain) -> usize {
    store.hot.forget(OWNER, chain.id());
    for connection in &mut *store.readers.idle.lock().unwrap() {
        let traced = connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(count));
        traced.unwrap();
    }
    STATEMENTS.store(0, Ordering::Relaxed);
    let loaded = store.load(OWNER, chain.id()).await.unwrap().unwrap();
    assert_eq!(content(&loaded), content(chain));
    STATEMENTS.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_chain_is_read_at_once_however_long_it_is_and_however_often_it_was_forked() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let chain = |name: &str, links: usize| {
        let append = |parent: Option<Chain>, number| {
            Some(link(parent.as_ref(), &format!("resp_{name}{number}")))
        };
        (0..links).fold(None, append).unwrap()
    };
    let short = chain("s", 2);
    let long = chain("l", 10_000);
    store.put(&short).await.unwrap();
    store.put(&long).await.unwrap();
    // Each of its links goes on from one that had been continued before.
    let mut forked = link(None, "resp_f");
    let mut saves = Vec::new();
    for number in 0..500 {
        let first = link(Some(&forked), &format!("resp_a{number}"));
        forked = link(Some(&forked), &format!("resp_b{number}"));
        saves.extend([store.put(&first), store.put(&forked)]);
    }
    for saved in join_all(saves).await {
        saved.unwrap();
    }
    let few = statements_to_load(&store, &short).await;
    assert!(few <= 4, "{few}");
    assert_eq!(statements_to_load(&store, &long).await, few);
    assert_eq!(statements_to_load(&store, &forked).await, few);
    // 10,000 rows of one, 1,001 of the other, 2 of the first.
    assert_eq!(store.ask("SELECT count(*) FROM links").await, 11_003);
}

#[tokio::test]
async fn a_long_chain_goes_in_pieces_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let mut chain = link(None, "resp_0");
    for number in 1..1000 {
        chain = link(Some(&chain), &format!("resp_{number}"));
    }
    store.put(&chain).await.unwrap();
    assert!(store.delete(OWNER, chain.id()).await.unwrap());
    let left = store.ask("SELECT count(*) FROM links").await;
    assert!((800..1000).contains(&left), "{left}");
    store.sweep(0).await;
    let rows = "SELECT (SELECT count(*) FROM links) + (SELECT count(*) FROM names)
                + (SELECT count(*) FROM items) + (SELECT count(*) FROM branches)
                + (SELECT count(*) FROM responses) + (SELECT count(*) FROM loose)";
    assert_eq!(store.ask(rows).await, 0);
}

#[tokio::test]
async fn what_is_old_goes_unless_something_younger_needs_it() {
    let directory = tempfile::tempdir().unwrap();
    let retention = Retention {
        age: Some(Duration::from_secs(100)),
        bytes: None,
    };
    let store = open_keeping(&directory, retention).unwrap();
    let save = async |created_at, status, chain: &Chain| {
        let mut response = response(status, chain);
        response.created_at = created_at;
        store.save(OWNER, response).await.unwrap();
    };
    let now = clock::unix_seconds();
    let old = link(None, "resp_old");
    save(now, Status::Completed, &old).await;
    save(now, Status::InProgress, &link(None, "resp_running")).await;
    save(now, Status::Completed, &link(None, "resp_alone")).await;
    let young = link(Some(&old), "resp_young");
    save(now + 50, Status::Completed, &young).await;
    let conversation = Conversation {
        id: "conv_old".into(),
        created_at: now,
        metadata: Bytes::from_static(b"{}"),
        chain: Some(link(None, "items_old")),
    };
    store
        .create_conversation(OWNER, conversation)
        .await
        .unwrap();

    store.sweep(now + 90).await;
    assert!(store.knows("resp_old").await && store.knows("resp_alone").await);
    store.sweep(now + 120).await;
    assert!(!store.knows("resp_old").await && !store.knows("resp_alone").await);
    assert!(store.knows("resp_running").await);
    let found = store.load(OWNER, young.id()).await.unwrap().unwrap();
    assert_eq!(content(&found), content(&young));
    let conversation = store.conversation(OWNER, &"conv_old".into()).await;
    assert!(conversation.unwrap().is_none());
    assert_eq!(store.ask("SELECT count(*) FROM links").await, 3);
    store.sweep(now + 160).await;
    assert_eq!(store.ask("SELECT count(*) FROM links").await, 1);
}

#[tokio::test]
async fn the_oldest_go_above_a_size_and_the_file_shrinks() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    for number in 0..64 {
        let chain = large(&format!("resp_{number}"), 64 << 10);
        store.put(&chain).await.unwrap();
    }
    store.settle().await;
    let bytes = || fs::metadata(path(&directory)).unwrap().len();
    let before = bytes();
    assert!(before > 4 << 20, "{before}");
    drop(store);

    let retention = Retention {
        age: None,
        bytes: Some(1 << 20),
    };
    let store = open_keeping(&directory, retention).unwrap();
    store.sweep(0).await;
    assert!(!store.knows("resp_0").await && store.knows("resp_63").await);
    while {
        let more = store.writer.queue().push(0, retention::vacuum, |_| {});
        more.await.unwrap()
    } {}
    store.settle().await;
    let after = bytes();
    assert!((512 << 10..1280 << 10).contains(&after), "{after}");
    let too_large = store.put(&large("resp_64", 2 << 20)).await;
    assert_eq!(too_large, Err(SaveFailed::TooLarge));
}

#[tokio::test]
async fn what_is_deleted_is_in_no_file_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let secret = ["a marker that ", "is searched for"].concat();
    let item = format!(
        r#"{{"role":"user","content":"{} {secret}"}}"#,
        "x".repeat(50_000)
    );
    let item = Item::parse(item.into()).unwrap();
    let (id, carried) = (ResponseId::from("resp_1"), Carried::default());
    let chain = Chain::append(None, id, Arc::new([item]), Arc::new([]), carried, None);
    let found = || {
        let files = fs::read_dir(directory.path()).unwrap();
        let contents = files.map(|file| fs::read(file.unwrap().path()).unwrap());
        contents
            .filter(|content| {
                let mut windows = content.windows(secret.len());
                windows.any(|window| window == secret.as_bytes())
            })
            .count()
    };
    store.put(&chain).await.unwrap();
    store.settle().await;
    assert_eq!(found(), 1);
    assert!(store.delete(OWNER, chain.id()).await.unwrap());
    store.settle().await;
    assert_eq!(found(), 0);
}

#[tokio::test]
async fn a_full_disk_fails_what_needs_it_and_is_over_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.put(&link(None, "resp_1")).await.unwrap();
    let limit = async |pages: &'static str| store.ask(pages).await;
    limit("PRAGMA max_page_count = 64").await;
    let failed = store.put(&large("resp_2", 1 << 20)).await;
    assert_eq!(failed, Err(SaveFailed::Unavailable));
    assert!(!store.knows("resp_2").await);
    store.put(&link(None, "resp_3")).await.unwrap();
    limit("PRAGMA max_page_count = 1000000").await;
    store.put(&large("resp_2", 1 << 20)).await.unwrap();
    for id in ["resp_1", "resp_2", "resp_3"] {
        assert!(store.knows(id).await, "{id}");
    }
}

#[tokio::test]
async fn a_change_that_fails_hurts_none_of_those_that_are_committed_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let (go_on, wait) = mpsc::channel::<()>();
    let first = store.writer.queue().push(
        0,
        move |_| {
            let _ = wait.recv();
            Ok(())
        },
        |()| {},
    );
    let before = store.put(&link(None, "resp_1"));
    let broken = store.writer.queue().push(
        0,
        |tables| tables.run("INSERT INTO loose (place) VALUES (1), (1)", &[]),
        |()| {},
    );
    let after = store.put(&link(None, "resp_2"));
    go_on.send(()).unwrap();
    assert_eq!((before.await, after.await), (Ok(()), Ok(())));
    assert!(first.await.is_ok() && broken.await.is_err());
    assert!(store.knows("resp_1").await && store.knows("resp_2").await);
    assert_eq!(store.ask("SELECT count(*) FROM loose").await, 0);
}
