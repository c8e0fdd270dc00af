//! Listener: hears what other servers tell, and wakes those whom it concerns.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use turnwire_protocol::id::ResponseId;

use crate::auth::Tenant;
use crate::store::postgres::UnderWay;
use crate::store::postgres::database::{ANSWER_TIMEOUT, Database, Trouble};

/// How often responses to be cancelled are looked for without having been told of any.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Between two attempts to reach a database that is away.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Requests to cancel that nobody has carried out yet. The rest is found at the next look.
const MAX_CANCELS: usize = 256;

/// Responses of this server that others want cancelled.
pub(crate) type CancelRequests = mpsc::Receiver<(Tenant, ResponseId)>;

#[derive(Debug)]
pub(super) struct Listener {
    waiting: Waiting,
    cancels: Mutex<Option<CancelRequests>>,
    task: JoinHandle<()>,
}

/// Responses whose news somebody waits for, by what servers call them.
#[derive(Clone, Debug, Default)]
struct Waiting(Arc<Mutex<HashMap<String, watch::Sender<()>>>>);

/// Somebody who waits for news of a response.
pub(super) struct Waiter(watch::Receiver<()>);

struct Task {
    database: Arc<Database>,
    server: i64,
    under_way: UnderWay,
    waiting: Waiting,
    cancels: mpsc::Sender<(Tenant, ResponseId)>,
}

impl Listener {
    pub(super) fn start(database: Arc<Database>, server: i64, under_way: UnderWay) -> Self {
        let (cancels, requests) = mpsc::channel(MAX_CANCELS);
        let waiting = Waiting::default();
        let task = Task {
            database,
            server,
            under_way,
            waiting: waiting.clone(),
            cancels,
        };
        Self {
            waiting,
            cancels: Mutex::new(Some(requests)),
            task: tokio::spawn(task.run()),
        }
    }

    pub(super) fn cancel_requests(&self) -> Option<CancelRequests> {
        let mut cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        cancels.take()
    }

    pub(super) fn wait_for(&self, owner: Tenant, id: &ResponseId) -> Waiter {
        let mut names = self.waiting.names();
        // Those whose last waiter has left. There are few beside them.
        names.retain(|_, news| news.receiver_count() > 0);
        let news = names.entry(name_of(owner, id)).or_default();
        Waiter(news.subscribe())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Waiter {
    /// Ready if there was news since this was called the last time.
    pub(super) async fn wait(&mut self) {
        // The sender is there as long as somebody waits.
        let _ = self.0.changed().await;
    }
}

impl Waiting {
    fn names(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    async fn run(self) {
        loop {
            if let Err(trouble) = self.listen().await {
                self.database.note_trouble(&trouble);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Listens as long as there is a connection.
    async fn listen(&self) -> Result<(), Trouble> {
        let (client, mut notes) = self.database.connect_to_listen().await?;
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                note = notes.recv() => match note {
                    Some(note) => self.hear(&note),
                    None => return Ok(()),
                },
                _ = looks.tick() => self.look(&client).await?,
            }
        }
    }

    fn hear(&self, note: &str) {
        match note.split_once(' ') {
            Some(("news", name)) => {
                if let Some(sender) = self.waiting.names().get(name) {
                    sender.send_replace(());
                }
            }
            Some(("cancel", name)) => self.cancel(name),
            // Of a later version.
            _ => {}
        }
    }

    fn cancel(&self, name: &str) {
        let found = {
            let responses = self.under_way.responses();
            let mut responses = responses.iter();
            responses
                .find(|(owner, id)| name_of(*owner, id) == name)
                .cloned()
        };
        if let Some(response) = found {
            let _ = self.cancels.try_send(response);
        }
    }

    /// Finds what somebody wanted cancelled while this did not listen.
    async fn look(&self, client: &Client) -> Result<(), Trouble> {
        let sql = "SELECT name_of(owner, id) FROM responses
                   WHERE server = $1 AND is_to_be_cancelled";
        let arguments: [(&(dyn ToSql + Sync), Type); 1] = [(&self.server, Type::INT8)];
        let rows = timeout(ANSWER_TIMEOUT, client.query_typed(sql, &arguments)).await;
        let rows = rows.map_err(|_| Trouble::Lost("it does not answer".into()))??;
        for row in &rows {
            self.cancel(row.get(0));
        }
        Ok(())
    }
}

/// What servers call a response, as `name_of` of the database does.
fn name_of(owner: Tenant, id: &ResponseId) -> String {
    let mut name = String::new();
    for byte in owner.as_bytes() {
        let _ = write!(name, "{byte:02x}");
    }
    name.push(' ');
    name.push_str(id.as_str());
    name
}
