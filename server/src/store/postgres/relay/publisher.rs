//! Publisher: hands the events of responses on to those who follow them at other servers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use turnwire_protocol::id::ResponseId;

use crate::auth::Tenant;
use crate::store::postgres::database::{ANSWER_TIMEOUT, Database, Trouble};

/// Kilobytes of events that wait for the database. What comes beyond is left out, and who follows
/// is told so by the missing number.
const MAX_WAITING_KB: usize = 64 << 10;

/// Bytes of the events of one response. Later ones are left out.
const RESPONSE_BYTES: usize = 32 << 20;

/// Events in one statement.
const EVENTS_AT_ONCE: usize = 512;

/// How long events wait for others, so that a fast model makes no commit for every token.
const LINGER: Duration = Duration::from_millis(20);

/// Between two attempts to reach a database that is away.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Publisher {
    events: mpsc::UnboundedSender<Outbound>,
    places: Arc<Semaphore>,
}

/// The events of one response, in order.
#[derive(Debug)]
pub(crate) struct Outgoing {
    publisher: Publisher,
    owner: Tenant,
    id: ResponseId,
    next: i64,
    bytes: usize,
}

#[derive(Debug)]
struct Outbound {
    owner: Tenant,
    id: ResponseId,
    number: i64,
    event: Bytes,
    is_last: bool,
    _place: OwnedSemaphorePermit,
}

impl Publisher {
    pub(super) fn start(database: Arc<Database>) -> Self {
        let (events, outbound) = mpsc::unbounded_channel();
        tokio::spawn(publish_all(database, outbound));
        Self {
            events,
            places: Arc::new(Semaphore::new(MAX_WAITING_KB)),
        }
    }

    pub(super) fn outgoing(&self, owner: Tenant, id: &ResponseId) -> Outgoing {
        Outgoing {
            publisher: self.clone(),
            owner,
            id: id.clone(),
            next: 0,
            bytes: 0,
        }
    }
}

impl Outgoing {
    /// Hands the next event on, in the form that is sent to clients.
    pub(crate) fn publish(&mut self, event: Bytes, is_last: bool) {
        let number = self.next;
        self.next += 1;
        self.bytes += event.len();
        let kilobytes = u32::try_from(event.len() / 1024 + 1).unwrap_or(u32::MAX);
        let places = Arc::clone(&self.publisher.places);
        let Ok(place) = places.try_acquire_many_owned(kilobytes) else {
            return;
        };
        if self.bytes > RESPONSE_BYTES {
            return;
        }
        // It ends with the process only.
        let _ = self.publisher.events.send(Outbound {
            owner: self.owner,
            id: self.id.clone(),
            number,
            event,
            is_last,
            _place: place,
        });
    }
}

async fn publish_all(database: Arc<Database>, mut outbound: mpsc::UnboundedReceiver<Outbound>) {
    let mut client: Option<Client> = None;
    let mut batch = Vec::new();
    while outbound.recv_many(&mut batch, EVENTS_AT_ONCE).await > 0 {
        sleep(LINGER).await;
        while batch.len() < EVENTS_AT_ONCE
            && let Ok(more) = outbound.try_recv()
        {
            batch.push(more);
        }
        let connected = match client.take().filter(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => connect(&database).await,
        };
        let published = match connected {
            Ok(connected) => publish(&connected, &batch).await.map(|()| connected),
            Err(trouble) => Err(trouble),
        };
        batch.clear();
        match published {
            Ok(connected) => client = Some(connected),
            // Who follows misses these events, and can ask for the response.
            Err(trouble) => {
                database.note_trouble(&trouble);
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn connect(database: &Database) -> Result<Client, Trouble> {
    let client = database.connect().await?;
    // Events are not kept for ever, and nobody was promised any.
    client
        .batch_execute("SET synchronous_commit TO off")
        .await?;
    Ok(client)
}

async fn publish(client: &Client, batch: &[Outbound]) -> Result<(), Trouble> {
    let owners: Vec<&[u8]> = batch.iter().map(|it| &it.owner.as_bytes()[..]).collect();
    let ids: Vec<&str> = batch.iter().map(|it| it.id.as_str()).collect();
    let numbers: Vec<i64> = batch.iter().map(|it| it.number).collect();
    let events: Vec<&[u8]> = batch.iter().map(|it| &it.event[..]).collect();
    let are_last: Vec<bool> = batch.iter().map(|it| it.is_last).collect();
    let arguments: [(&(dyn ToSql + Sync), Type); 5] = [
        (&owners, Type::BYTEA_ARRAY),
        (&ids, Type::TEXT_ARRAY),
        (&numbers, Type::INT8_ARRAY),
        (&events, Type::BYTEA_ARRAY),
        (&are_last, Type::BOOL_ARRAY),
    ];
    let sql = "SELECT publish_events($1, $2, $3, $4, $5)";
    match timeout(ANSWER_TIMEOUT, client.query_typed(sql, &arguments)).await {
        Ok(published) => Ok(published.map(drop)?),
        Err(_) => Err(Trouble::Lost("it does not answer".into())),
    }
}
