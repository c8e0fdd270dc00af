//! Writer: makes changes in the order they were asked for, many in one transaction.
//!
//! One task has the one connection that changes things. What was asked for while a transaction was
//! under way goes into the next one together. A connection that is lost in the middle leaves open
//! what was done, so its changes are made again on the next one: each of them done twice is done
//! once. What cannot be done at all fails after a while, by itself.

use std::collections::VecDeque;
use std::iter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{self, BoxFuture, FutureExt, TryFutureExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::change::{Argument, Call, Change, Outcome};
use super::database::{ANSWER_TIMEOUT, Database, Trouble};
use crate::auth::Tenant;

/// Changes that wait; more are refused. Each is the end of a turn or a request.
const MAX_WAITING: usize = 16 << 10;

/// Memory that those may hold, in units of 1 KiB, so that it can be counted in permits. One change
/// that is larger waits alone.
const MAX_WAITING_KIB: u32 = 256 << 10;

/// What goes into one transaction. One change alone may be larger.
const BATCH_CHANGES: usize = 128;
const BATCH_BYTES: u64 = 8 << 20;

/// How long a change waits for a database that is away. Clients wait for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same for a change that may have been made: to say that it failed could be wrong, and a
/// database that is started again takes some seconds.
const PATIENCE_IN_DOUBT: Duration = Duration::from_secs(20);

/// Between two attempts to reach a database that is away.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Attempts at a change that meets others who change the same, or takes the connection with it.
/// The later half of them are in a transaction of its own.
const MAX_ATTEMPTS: u32 = 8;

/// Ids of links that are looked up at first to find out which of them are stored, and how many
/// times as many at each further look.
const FIRST_LOOK: usize = 16;
const FURTHER_LOOK: usize = 8;

/// A change could not be made, or it is not known whether it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unwritten;

/// Where changes are handed in. Once the last clone is gone, what was handed in is still done.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Job {
    owner: Tenant,
    change: Change,
    /// Links of its chain that are stored with it, counted from the last one.
    links: usize,
    /// Whether its links have to be counted first.
    is_uncounted: bool,
    /// Whether it goes into a transaction of its own, as one of its transaction was refused.
    is_alone: bool,
    attempts: u32,
    /// Whether an attempt may not have been in vain.
    is_in_doubt: bool,
    /// What the last attempt said, if it came that far.
    said: Option<Outcome>,
    /// Whether an attempt that may not have been in vain found what is to be deleted. There is
    /// nothing to be found the second time.
    was_known: bool,
    gives_up: Instant,
    done: oneshot::Sender<Result<Outcome, Unwritten>>,
    _place: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
}

/// The task that has the connection.
struct Task {
    database: Arc<Database>,
    client: Option<Client>,
    jobs: mpsc::UnboundedReceiver<Job>,
    waiting: VecDeque<Job>,
}

impl Writer {
    /// Starts the task on the runtime that this is called on.
    pub(super) fn start(database: Arc<Database>) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        let task = Task {
            database,
            client: None,
            jobs: queue,
            waiting: VecDeque::new(),
        };
        tokio::spawn(task.run());
        Self {
            jobs,
            places: Arc::new(Semaphore::new(MAX_WAITING)),
            room: Arc::new(Semaphore::new(MAX_WAITING_KIB as usize)),
        }
    }

    /// Hands a change in. What is handed in first is done first, however the futures are polled,
    /// and it is done whether or not they are.
    pub(super) fn change(
        &self,
        owner: Tenant,
        change: Change,
    ) -> BoxFuture<'static, Result<Outcome, Unwritten>> {
        let kib = u32::try_from(change.bytes() >> 10).unwrap_or(u32::MAX);
        let kib = kib.min(MAX_WAITING_KIB);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib);
        let (Ok(place), Ok(room)) = (place, room) else {
            return future::ready(Err(Unwritten)).boxed();
        };
        let (done, outcome) = oneshot::channel();
        let job = Job {
            owner,
            change,
            links: 1,
            is_uncounted: false,
            is_alone: false,
            attempts: 0,
            is_in_doubt: false,
            said: None,
            was_known: false,
            gives_up: Instant::now() + PATIENCE,
            done,
            _place: place,
            _room: room,
        };
        match self.jobs.send(job) {
            Ok(()) => outcome.map(|said| said.unwrap_or(Err(Unwritten))).boxed(),
            Err(_) => future::ready(Err(Unwritten)).boxed(),
        }
    }
}

impl Task {
    async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                match self.jobs.recv().await {
                    Some(job) => self.waiting.push_back(job),
                    None => return,
                }
            }
            while let Ok(job) = self.jobs.try_recv() {
                self.waiting.push_back(job);
            }
            let Some(client) = self.client().await else {
                self.give_up_what_waited_too_long();
                sleep(RETRY_PAUSE).await;
                continue;
            };
            let mut batch = self.take_batch();
            let written = write(&client, &mut batch).await;
            self.settle(client, batch, &written);
        }
    }

    /// The connection, taken out; none if there cannot be one now.
    async fn client(&mut self) -> Option<Client> {
        if let Some(client) = self.client.take()
            && !client.is_closed()
        {
            return Some(client);
        }
        match self.database.connect().await {
            Ok(client) => Some(client),
            Err(trouble) => {
                self.database.note_trouble(&trouble);
                None
            }
        }
    }

    fn give_up_what_waited_too_long(&mut self) {
        let now = Instant::now();
        let (late, waiting) = self
            .waiting
            .drain(..)
            .partition::<VecDeque<_>, _>(|job| job.gives_up <= now);
        self.waiting = waiting;
        for job in late {
            job.answer(Err(Unwritten));
        }
    }

    /// The first of those that wait, as many as belong into one transaction.
    fn take_batch(&mut self) -> Vec<Job> {
        let mut bytes = 0;
        let mut count = 0;
        for job in &self.waiting {
            bytes += job.change.bytes();
            let fits = count < BATCH_CHANGES && bytes <= BATCH_BYTES && !job.is_alone;
            if count > 0 && !fits {
                break;
            }
            count += 1;
            if job.is_alone {
                break;
            }
        }
        self.waiting.drain(..count).collect()
    }

    /// Answers, or puts back in front what has to be done again.
    fn settle(&mut self, client: Client, batch: Vec<Job>, written: &Result<(), Trouble>) {
        let is_single = batch.len() == 1;
        match written {
            Ok(()) => self.database.note_success(),
            Err(Trouble::Conflict(_)) => {}
            Err(trouble) => self.database.note_trouble(trouble),
        }
        // The transaction of a connection that is dropped is not carried on.
        if !matches!(written, Err(Trouble::Lost(_))) {
            self.client = Some(client);
        }
        let mut again = Vec::new();
        for mut job in batch {
            job.attempts += 1;
            match written {
                Ok(()) => match job.said {
                    Some(Outcome::NoParent) | None => job.is_uncounted = true,
                    Some(outcome) => {
                        job.answer(Ok(outcome));
                        continue;
                    }
                },
                Err(Trouble::Lost(_)) => {
                    job.is_in_doubt = true;
                    job.was_known |= job.said == Some(Outcome::Known);
                    job.gives_up = job.gives_up.max(Instant::now() + PATIENCE_IN_DOUBT);
                }
                Err(Trouble::Conflict(_)) => {}
                Err(Trouble::Refused(_)) if is_single => {
                    job.answer(Err(Unwritten));
                    continue;
                }
                Err(Trouble::Refused(_)) => job.is_alone = true,
            }
            match job.attempts {
                MAX_ATTEMPTS => job.answer(Err(Unwritten)),
                attempts => {
                    job.is_alone |= attempts >= MAX_ATTEMPTS / 2;
                    again.push(job);
                }
            }
        }
        for job in again.into_iter().rev() {
            self.waiting.push_front(job);
        }
    }
}

impl Job {
    /// Nobody listens if the client has left; it is done all the same.
    fn answer(self, said: Result<Outcome, Unwritten>) {
        let said = match said {
            Ok(Outcome::Unknown) if self.was_known => Ok(Outcome::Known),
            said => said,
        };
        let _ = self.done.send(said);
    }
}

/// Makes all of the changes, or none, and notes what was said of each.
async fn write(client: &Client, batch: &mut [Job]) -> Result<(), Trouble> {
    let transaction = async {
        for job in batch.iter_mut().filter(|job| job.is_uncounted) {
            job.links = links_to_store(client, job).await?;
            job.is_uncounted = false;
        }
        let calls = batch
            .iter()
            .map(|job| job.change.call(job.owner, job.links, job.is_in_doubt));
        let calls: Vec<_> = calls.collect();
        // Sent in one go: a transaction waits for no answer before its end. If one fails, so does
        // what comes after it, and the end is none.
        let begin = client.batch_execute("BEGIN").map_ok(|()| None).boxed();
        let asked = calls
            .iter()
            .map(|call| ask(client, call).map_ok(Some).boxed());
        let commit = client.batch_execute("COMMIT").map_ok(|()| None).boxed();
        let statements = iter::once(begin).chain(asked).chain(iter::once(commit));
        let answers = in_order(statements.collect()).await;
        let mut jobs = batch.iter_mut();
        let mut ended = Ok(());
        for answer in answers {
            match answer {
                Ok(None) => {}
                Ok(Some(said)) => {
                    let job = jobs.next().expect("each change is asked for once");
                    job.said = Outcome::read(&said);
                }
                // The first failure tells the cause; those after it only that there was one.
                Err(error) => ended = ended.and(Err(error)),
            }
        }
        Ok(ended?)
    };
    let ended = timeout(ANSWER_TIMEOUT, transaction).await;
    ended.unwrap_or_else(|_| Err(Trouble::Lost("it does not answer".into())))
}

async fn ask(client: &Client, call: &Call) -> Result<String, tokio_postgres::Error> {
    let arguments: Vec<(&(dyn ToSql + Sync), Type)> = call
        .arguments
        .iter()
        .map(|(argument, kind): &(Argument, Type)| {
            (&**argument as &(dyn ToSql + Sync), kind.clone())
        })
        .collect();
    let row = client.query_typed_one(call.sql, &arguments).await?;
    row.try_get(0)
}

/// Polls all in order, so that what they send is sent in order.
async fn in_order<T>(futures: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(future::maybe_done).collect();
    future::poll_fn(|cx| {
        let mut all = Poll::Ready(());
        for future in &mut futures {
            if future.poll_unpin(cx).is_pending() {
                all = Poll::Pending;
            }
        }
        all
    })
    .await;
    let outputs = futures
        .iter_mut()
        .map(|future| Pin::new(future).take_output());
    outputs.flatten().collect()
}

/// How many links at the end of the chain of a change are not stored, which is at least its own.
async fn links_to_store(client: &Client, job: &Job) -> Result<usize, Trouble> {
    let Some(chain) = job.change.chain() else {
        return Ok(1);
    };
    let owner = job.owner.as_bytes().to_vec();
    let sql = "SELECT id FROM links WHERE owner = $1 AND id = ANY ($2)";
    let mut ancestors = chain.ancestry().skip(1).map(|link| link.id().as_str());
    let mut count = 1;
    let mut look = FIRST_LOOK;
    loop {
        let ids: Vec<&str> = ancestors.by_ref().take(look).collect();
        if ids.is_empty() {
            return Ok(count);
        }
        let arguments: [(&(dyn ToSql + Sync), Type); 2] =
            [(&owner, Type::BYTEA), (&ids, Type::TEXT_ARRAY)];
        let rows = client.query_typed(sql, &arguments).await?;
        let stored: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        match ids.iter().position(|id| stored.contains(id)) {
            Some(place) => return Ok(count + place),
            None => count += ids.len(),
        }
        look *= FURTHER_LOOK;
    }
}
