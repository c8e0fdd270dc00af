//! Upkeep: what every server does for the database from time to time.
//!
//! It says that it is there, ends as failed what servers were making that are there no more, and
//! lets go of what is to be kept no longer. All servers do, and none of them has to: each thing is
//! done in small steps, by whoever comes first.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use turnwire_protocol::failure::Failure;
use turnwire_protocol::stored::ResponseText;

use super::database::{ANSWER_TIMEOUT, Database, Trouble};
use crate::store::Retention;

/// How often a server says that it is there.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long a server may be silent before what it was making is lost, in seconds. Longer than a
/// database takes to be started again.
const PATIENCE_SECONDS: f64 = 30.0;

/// How long events of responses that have ended can still be asked for.
const EVENTS_KEPT_SECONDS: f64 = 600.0;

/// Events that are forgotten in one step.
const EVENTS_AT_ONCE: i32 = 4096;

/// Responses that are ended in one step.
const FAILED_AT_ONCE: i64 = 64;

/// Responses and conversations that go in one step, and the rest between two steps: a step takes
/// some milliseconds, in which the rows it touches are locked.
const SWEPT_AT_ONCE: i32 = 32;
const REST: Duration = Duration::from_millis(20);

/// The task, which ends with this.
#[derive(Debug)]
pub(super) struct Upkeep(JoinHandle<()>);

struct Task {
    database: Arc<Database>,
    server: i64,
    retention: Retention,
}

impl Upkeep {
    /// Starts the task on the runtime that this is called on.
    pub(super) fn start(database: Arc<Database>, server: i64, retention: Retention) -> Self {
        let task = Task {
            database,
            server,
            retention,
        };
        Self(tokio::spawn(task.run()))
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    async fn run(self) {
        let mut client = None;
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(trouble) = self.look_after(&mut client).await {
                // The next one may find the database again, or meet nobody.
                client = None;
                if !matches!(trouble, Trouble::Conflict(_)) {
                    self.database.note_trouble(&trouble);
                }
            }
        }
    }

    async fn look_after(&self, client: &mut Option<Client>) -> Result<(), Trouble> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.database.connect().await?),
        };
        in_time(hear_of(client, self.server)).await?;
        in_time(fail_abandoned(client)).await?;
        in_time(forget_events(client)).await?;
        let begun = Instant::now();
        while in_time(sweep(client, self.retention)).await? == Some(SWEPT_AT_ONCE)
            && begun.elapsed() < INTERVAL
        {
            sleep(REST).await;
        }
        self.database.note_success();
        Ok(())
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let answer = timeout(ANSWER_TIMEOUT, asked).await;
    answer.unwrap_or_else(|_| Err(Trouble::Lost("it does not answer".into())))
}

/// The number of a server that has just begun.
pub(super) async fn begin(client: &Client) -> Result<i64, Trouble> {
    let sql = "INSERT INTO servers DEFAULT VALUES RETURNING server";
    Ok(client.query_typed_one(sql, &[]).await?.get(0))
}

async fn hear_of(client: &Client, server: i64) -> Result<(), Trouble> {
    let sql = "SELECT hear_of($1)";
    client.query_typed(sql, &[(&server, Type::INT8)]).await?;
    Ok(())
}

/// Ends what is being made by servers that are silent. True if there may be more.
pub(super) async fn fail_abandoned(client: &Client) -> Result<bool, Trouble> {
    let sql = "SELECT owner, id, server, text_before, text_after FROM responses
               WHERE server IS NOT NULL AND is_silent(server, make_interval(secs => $1)) LIMIT $2";
    let limits: [(&(dyn ToSql + Sync), Type); 2] = [
        (&PATIENCE_SECONDS, Type::FLOAT8),
        (&FAILED_AT_ONCE, Type::INT8),
    ];
    let abandoned = client.query_typed(sql, &limits).await?;
    for row in &abandoned {
        let (owner, id): (&[u8], &str) = (row.get(0), row.get(1));
        let server: i64 = row.get(2);
        let text = ResponseText {
            before: Bytes::copy_from_slice(row.get(3)),
            after: Bytes::copy_from_slice(row.get(4)),
        };
        let ResponseText { before, after } = failed(text);
        let arguments: [(&(dyn ToSql + Sync), Type); 5] = [
            (&owner, Type::BYTEA),
            (&id, Type::TEXT),
            (&server, Type::INT8),
            (&&*before, Type::BYTEA),
            (&&*after, Type::BYTEA),
        ];
        let sql = "SELECT fail_response($1, $2, $3, $4, $5)";
        client.query_typed(sql, &arguments).await?;
    }
    Ok(i64::try_from(abandoned.len()).is_ok_and(|count| count == FAILED_AT_ONCE))
}

async fn forget_events(client: &Client) -> Result<(), Trouble> {
    let limits: [(&(dyn ToSql + Sync), Type); 2] = [
        (&EVENTS_KEPT_SECONDS, Type::FLOAT8),
        (&EVENTS_AT_ONCE, Type::INT4),
    ];
    let sql = "SELECT forget_events(make_interval(secs => $1), $2)";
    client.query_typed(sql, &limits).await?;
    Ok(())
}

/// What is shown of a response that nobody makes any more.
fn failed(text: ResponseText) -> ResponseText {
    let failure = Failure::server_error("The server stopped before the response was done.");
    text.failed(&failure).unwrap_or(text)
}

/// Lets go of some of what is to be kept no longer. How much that was; none if another server is
/// about it.
pub(super) async fn sweep(client: &Client, retention: Retention) -> Result<Option<i32>, Trouble> {
    let age = retention.age.map(|age| age.as_secs_f64());
    let bytes = retention
        .bytes
        .map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let arguments: [(&(dyn ToSql + Sync), Type); 3] = [
        (&age, Type::FLOAT8),
        (&bytes, Type::INT8),
        (&SWEPT_AT_ONCE, Type::INT4),
    ];
    let sql = "SELECT sweep(make_interval(secs => $1), $2, $3)";
    let row = client.query_typed_one(sql, &arguments).await?;
    Ok(row.get(0))
}
