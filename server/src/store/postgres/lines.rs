//! Lines: a few connections for questions, which come back by themselves.

use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use turnwire_protocol::session::StoreUnavailable;

use super::database::{ANSWER_TIMEOUT, Database, Trouble};

/// Connections. What is asked for at the same time shares them.
const CONNECTIONS: usize = 4;

/// Questions at a time; more wait. It bounds the memory of answers.
const MAX_ASKED: usize = 64;

/// How long nobody tries to connect after an attempt has failed; whoever asks fails at once.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Lines {
    database: Arc<Database>,
    lines: [Line; CONNECTIONS],
    asked: Semaphore,
    /// Questions that were put to the database.
    #[cfg(test)]
    statements: AtomicU64,
}

/// One connection, or none.
#[derive(Debug, Default)]
struct Line {
    state: Mutex<LineState>,
    /// Questions that wait for it.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct LineState {
    client: Option<Arc<Client>>,
    /// When an attempt to connect has failed.
    failed: Option<Instant>,
}

/// A question that waits for a line, until this is dropped.
struct Waiting<'a>(&'a Line);

/// What a statement is given, and as which type.
pub(super) type Argument<'a> = (&'a (dyn ToSql + Sync), Type);

impl Lines {
    pub(super) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            lines: Default::default(),
            asked: Semaphore::new(MAX_ASKED),
            #[cfg(test)]
            statements: AtomicU64::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// All rows of the answer to a statement that changes nothing.
    pub(super) async fn ask(
        &self,
        sql: &str,
        arguments: &[Argument<'_>],
    ) -> Result<Vec<Row>, StoreUnavailable> {
        let _permit = self.asked.acquire().await.map_err(|_| StoreUnavailable)?;
        let waiting = |line: &&Line| line.waiting.load(Ordering::Relaxed);
        let line = self.lines.iter().min_by_key(waiting);
        let line = line.expect("there are some connections");
        let _waiting = Waiting::on(line);
        match self.ask_on(line, sql, arguments).await {
            Ok(rows) => {
                self.database.note_success();
                Ok(rows)
            }
            Err(trouble) => {
                self.database.note_trouble(&trouble);
                Err(StoreUnavailable)
            }
        }
    }

    async fn ask_on(
        &self,
        line: &Line,
        sql: &str,
        arguments: &[Argument<'_>],
    ) -> Result<Vec<Row>, Trouble> {
        // A connection that was there may be from before the database was started again.
        let mut may_be_stale = true;
        loop {
            let (client, is_new) = line.client(&self.database).await?;
            #[cfg(test)]
            self.statements.fetch_add(1, Ordering::Relaxed);
            let answer = timeout(ANSWER_TIMEOUT, client.query_typed(sql, arguments)).await;
            let trouble = match answer {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => Trouble::from(error),
                Err(_) => Trouble::Lost("it does not answer".into()),
            };
            if matches!(trouble, Trouble::Lost(_)) {
                line.forget(&client).await;
                if may_be_stale && !is_new {
                    may_be_stale = false;
                    continue;
                }
            }
            return Err(trouble);
        }
    }
}

impl<'a> Waiting<'a> {
    fn on(line: &'a Line) -> Self {
        line.waiting.fetch_add(1, Ordering::Relaxed);
        Self(line)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Line {
    /// The connection, and whether it was made just now.
    async fn client(&self, database: &Database) -> Result<(Arc<Client>, bool), Trouble> {
        let mut state = self.state.lock().await;
        if let Some(client) = state.client.as_ref().filter(|client| !client.is_closed()) {
            return Ok((Arc::clone(client), false));
        }
        state.client = None;
        if state
            .failed
            .is_some_and(|failed| failed.elapsed() < RETRY_PAUSE)
        {
            return Err(Trouble::Lost("it could not be reached just now".into()));
        }
        match database.connect().await {
            Ok(client) => {
                let client = Arc::new(client);
                *state = LineState {
                    client: Some(Arc::clone(&client)),
                    failed: None,
                };
                Ok((client, true))
            }
            Err(trouble) => {
                state.failed = Some(Instant::now());
                Err(trouble)
            }
        }
    }

    /// Uses a connection no more.
    async fn forget(&self, client: &Arc<Client>) {
        let mut state = self.state.lock().await;
        if state
            .client
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, client))
        {
            state.client = None;
        }
    }
}
