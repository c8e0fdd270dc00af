//! What durability costs: `cargo bench -p turnwire --no-default-features --bench durable_store`.
//!
//! Everything is measured against the least that the same disk can do, in the same run and in
//! turn. A directory as the argument says which disk; the temporary one otherwise, which must not
//! be memory.
//!
//! * One conversation: saving a response, against one insert of the same bytes into a bare table
//!   (write-ahead log, `synchronous=FULL`).
//! * 64 conversations at once: how many saves share a commit, which is one sync of the disk.
//! * A chain of 1,000 turns, with nothing of it in the memory of the process: loading it, against
//!   one row looked up by its key and one that holds all of its bytes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use turnwire::auth::Tenant;
use turnwire::secret::Secret;
use turnwire::store::{Retention, SqliteStore, Storage, Store};
use turnwire_protocol::chain::{Carried, Chain};
use turnwire_protocol::item::Item;
use turnwire_protocol::record;
use turnwire_protocol::stored::{Permit, ResponseText, Status, StoredResponse};

/// Bytes of a turn's items in an agent's session: what a tool said, and the next call.
const ASKED_BYTES: usize = 20_000;
const MADE_BYTES: usize = 6_000;

/// Of a response object without its output: instructions are left out, most agents send them as
/// items.
const TEXT_BYTES: usize = 2_000;

const SAVES: usize = 400;
const CONVERSATIONS: usize = 64;
const SAVES_OF_EACH: usize = 25;
const TURNS: usize = 1000;
const LOADS: usize = 15;

fn main() {
    // The first argument that is none of cargo's.
    let place = env::args().skip(1).find(|word| !word.starts_with("--"));
    let place = place.map_or_else(env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(&place).expect("a directory to write to");
    let runtime = Runtime::new().expect("a runtime");
    println!("in {}", place.display());
    runtime.block_on(one_conversation(&directory));
    runtime.block_on(many_conversations(&directory));
    runtime.block_on(resume(&directory, "of 26 kB", ASKED_BYTES, MADE_BYTES));
    runtime.block_on(resume(&directory, "of 2 kB", 1_500, 500));
}

fn open(path: &Path) -> Storage {
    let secret = Arc::new(Secret::in_memory());
    let store = SqliteStore::open(path, secret, Retention::default());
    Store::Sqlite(store.expect("the database opens")).into()
}

/// A table as simple as can be, with the same promise.
fn bare(path: &Path) -> Connection {
    let bare = Connection::open(path).expect("the database opens");
    let made = bare.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         CREATE TABLE bare (id INTEGER PRIMARY KEY, bytes BLOB);",
    );
    made.expect("the table is made");
    bare
}

fn link(parent: Option<&Chain>, id: &str, asked: usize, made: usize) -> Chain {
    let line = r#"    println!(\"a line of a program, as tools read them\");\n"#;
    let text = |bytes: usize| line.repeat(bytes / line.len() + 1);
    let item = |json: String| Item::parse(json.into()).expect("an item");
    let (asked, made) = (text(asked), text(made));
    let asked = item(format!(
        r#"{{"type":"function_call_output","call_id":"call_{id}","output":"{asked}"}}"#
    ));
    let made = item(format!(
        r#"{{"type":"function_call","id":"fc_{id}","call_id":"call_{id}","name":"shell","arguments":"{made}","status":"completed"}}"#
    ));
    let (asked, made) = (Arc::new([asked]), Arc::new([made]));
    let carried = Carried::default();
    let id = format!("resp_{id}").as_str().into();
    Chain::append(parent.cloned(), id, asked, made, carried, None)
}

fn response(chain: &Chain) -> StoredResponse {
    let text = ResponseText {
        before: vec![b' '; TEXT_BYTES].into(),
        after: "]}".into(),
    };
    StoredResponse::new(Permit::grant(), Status::Completed, 0, text, chain.clone())
}

async fn save(storage: &Storage, chain: &Chain) {
    let saved = storage.writer.save(Tenant::ANYONE, response(chain));
    saved.await.expect("the response is saved");
}

async fn one_conversation(directory: &TempDir) {
    let storage = open(&directory.path().join("one/turnwire.db"));
    let bare = bare(&directory.path().join("bare.db"));
    let mut chain = None;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..SAVES {
        let id = format!("{number:032x}");
        let link = link(chain.as_ref(), &id, ASKED_BYTES, MADE_BYTES);
        let bytes = [&record::encode(&link)[..], &[b' '; TEXT_BYTES]].concat();
        let save_ours = async {
            let began = Instant::now();
            save(&storage, &link).await;
            began.elapsed()
        };
        let save_bare = || {
            let began = Instant::now();
            let insert = bare.prepare_cached("INSERT INTO bare (bytes) VALUES (?1)");
            let inserted = insert.and_then(|mut insert| insert.execute([&bytes]));
            inserted.expect("the row is inserted");
            began.elapsed()
        };
        // Whoever comes second may find the disk still busy.
        if number % 2 == 0 {
            ours.push(save_ours.await);
            theirs.push(save_bare());
        } else {
            theirs.push(save_bare());
            ours.push(save_ours.await);
        }
        chain = Some(link);
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "one conversation: a save {}, a bare insert {}, ratio {:.2}",
        shown(ours),
        shown(theirs),
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

async fn many_conversations(directory: &TempDir) {
    let path = directory.path().join("many/turnwire.db");
    let storage = open(&path);
    let began = Instant::now();
    let before = commits(&path);
    let conversations = (0..CONVERSATIONS).map(|conversation| {
        let storage = storage.clone();
        tokio::spawn(async move {
            let mut chain = None;
            for number in 0..SAVES_OF_EACH {
                let id = format!("{conversation:016x}{number:016x}");
                let link = link(chain.as_ref(), &id, ASKED_BYTES, MADE_BYTES);
                save(&storage, &link).await;
                chain = Some(link);
            }
        })
    });
    for done in join_all(conversations).await {
        done.expect("a conversation ends");
    }
    let saves = CONVERSATIONS * SAVES_OF_EACH;
    let commits = commits(&path).wrapping_sub(before);
    println!(
        "{CONVERSATIONS} conversations: {saves} saves in {commits} commits, {:.1} in each, {:.0} saves per second",
        saves as f64 / f64::from(commits),
        saves as f64 / began.elapsed().as_secs_f64()
    );
}

/// The transactions of a database, as its index of the log counts them.
fn commits(path: &Path) -> u32 {
    let mut index = path.as_os_str().to_owned();
    index.push("-shm");
    let index = fs::read(index).expect("there is an index while the database is open");
    let count = index[8..12].try_into().expect("four bytes");
    u32::from_ne_bytes(count)
}

async fn resume(directory: &TempDir, turns: &str, asked: usize, made: usize) {
    let name = format!("resume {turns}");
    let path = directory.path().join(&name).join("turnwire.db");
    let (mut chain, mut bytes) = (None, Vec::new());
    for number in 0..TURNS {
        let next = link(chain.as_ref(), &format!("{number:032x}"), asked, made);
        bytes.extend_from_slice(&record::encode(&next));
        chain = Some(next);
    }
    let chain = chain.expect("there are turns");
    let storage = open(&path);
    save(&storage, &chain).await;
    drop(storage);
    let bare_path = directory.path().join(format!("{name}.db"));
    let table = bare(&bare_path);
    table
        .execute("INSERT INTO bare (bytes) VALUES (x''), (?1)", [&bytes])
        .expect("the rows are inserted");
    drop(table);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..LOADS {
        // Opened anew: nothing of it is in any cache but that of the operating system.
        let storage = open(&path);
        let began = Instant::now();
        let loaded = storage.reader.load(Tenant::ANYONE, chain.id()).await;
        ours.push(began.elapsed());
        let loaded = loaded.expect("it can be read").expect("it is there");
        assert_eq!(loaded.turns(), TURNS as u64);
        drop(storage);

        let bare = Connection::open(&bare_path).expect("the database opens");
        let began = Instant::now();
        let mut select = bare
            .prepare("SELECT bytes FROM bare WHERE id = ?1")
            .expect("it can be asked for");
        for (id, length) in [(1, 0), (2, bytes.len())] {
            let read: Vec<u8> = select
                .query_row([id], |row| row.get(0))
                .expect("it is there");
            assert_eq!(read.len(), length);
        }
        theirs.push(began.elapsed());
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "{TURNS} turns {turns}: loaded in {}, a point read and {} bytes in {}, ratio {:.2}",
        shown(ours),
        bytes.len(),
        shown(theirs),
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn shown(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
