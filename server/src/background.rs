//! Background: responses that are made whether anybody waits for them or not.
//!
//! Each is an [`Exchange`] in a task of its own, which a shutdown waits for. Its events are kept in
//! memory, so that whoever asks is told them from any number on, while it is made and for a while
//! afterwards. How far it is, and what came of it, is in the store.
//!
//! All of it is of this server. Where servers share a store, its [`Relay`](crate::store::Relay)
//! hands the events on to those who follow them elsewhere, and brings their wish to cancel.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::event::Event;
use turnwire_protocol::failure::Failure;
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::sse;

use crate::auth::Tenant;
use crate::exchange::Exchange;
use crate::serve::Server;
use crate::store::{CancelRequests, Outgoing, Storage};

/// For how long the events of a response are kept once it has ended.
const KEPT: Duration = Duration::from_secs(600);

/// Bytes of the events of one response. Of more, the first ones are forgotten.
const RUN_BYTES: usize = 32 << 20;

/// Bytes of the events of all. For more, those of the responses that ended first are forgotten.
const ALL_BYTES: usize = 256 << 20;

/// What clients are told to wait when too many responses are being made.
const BUSY_SECONDS: u32 = 5;

type Key = (Tenant, ResponseId);

/// The responses in the background that this server makes, and those whose events it still has.
#[derive(Debug)]
pub(crate) struct Background {
    shelf: Mutex<Shelf>,
    slots: Arc<Semaphore>,
    most: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    runs: HashMap<Key, Run>,
    /// Those that have ended, in that order.
    ended: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Run {
    /// As server-sent events. The last one is the end if `ended`.
    events: VecDeque<Bytes>,
    /// The number of the first of them; each has the next one.
    first: u64,
    bytes: usize,
    ended: bool,
    cancel: CancellationToken,
    news: watch::Sender<()>,
}

/// A response that is stored and about to be made.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) id: ResponseId,
    /// The response object.
    pub(crate) response: Bytes,
}

/// Begins a create, which goes on even if nobody waits for what this returns.
pub(crate) async fn begin(
    server: &Arc<Server>,
    owner: Tenant,
    create: Bytes,
) -> Result<Begun, Failure> {
    let slot = server.background.slot()?;
    let (tell, told) = oneshot::channel();
    let task = make(Arc::clone(server), owner, create, slot, tell);
    server.tasks.spawn(task);
    told.await
        .unwrap_or_else(|_| Err(Failure::server_shutting_down()))
}

async fn make(
    server: Arc<Server>,
    owner: Tenant,
    create: Bytes,
    slot: OwnedSemaphorePermit,
    tell: oneshot::Sender<Result<Begun, Failure>>,
) {
    let mut exchange = Exchange::begin(Arc::clone(&server), owner, create);
    let first = exchange.next().await;
    let begun = first.ok_or_else(Failure::server_shutting_down);
    let (first, begun) = match begun.and_then(|first| Ok((Begun::of(&first)?, first))) {
        Ok((begun, first)) => (first, begun),
        // Whoever asked may have left.
        Err(failure) => return drop(tell.send(Err(failure))),
    };
    let id = begun.id.clone();
    let relay = server.storage.as_ref().and_then(Storage::relay);
    let outgoing = relay.map(|relay| relay.outgoing(owner, &id));
    let background = Arc::clone(&server.background);
    let mut listed = Listed::new(background, (owner, id.clone()), outgoing);
    listed.add(&first);
    let _ = tell.send(Ok(begun));
    let mut cancel = Some(listed.cancel.clone());
    loop {
        let event = tokio::select! {
            event = exchange.next() => event,
            () = asked(cancel.as_ref()) => {
                cancel = None;
                exchange.cancel(&id);
                continue;
            }
        };
        let Some(event) = event else { break };
        listed.add(&event);
        if event.is_terminal() {
            break;
        }
    }
    drop(exchange);
    drop(slot);
    drop(listed);
    tokio::select! {
        () = sleep(KEPT) => server.background.forget(owner, &id),
        // Who follows it is told the rest.
        () = server.draining() => {}
    }
}

/// Ready when the response is to be cancelled; never, if that was heard before.
async fn asked(cancel: Option<&CancellationToken>) {
    match cancel {
        Some(cancel) => cancel.cancelled().await,
        None => std::future::pending().await,
    }
}

impl Begun {
    fn of(first: &Event) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Named<'a> {
            id: &'a str,
        }
        if let Some(failure) = &first.failure {
            return Err((**failure).clone());
        }
        let response = first.response().unwrap_or_default();
        let named: Result<Named<'_>, _> = serde_json::from_slice(&response);
        let id = named.map(|named| ResponseId::from(named.id));
        let id = id.map_err(|_| Failure::server_error("The response has no beginning."))?;
        Ok(Self { id, response })
    }
}

impl Background {
    /// `most` is how many responses are made at once.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        let most = most.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            shelf: Mutex::default(),
            slots: Arc::new(Semaphore::new(most)),
            most,
        })
    }

    /// The events of a response from this number on, those to come included, and the end of the
    /// stream. None if the server does not have them, or not all of them.
    pub(crate) fn follow(
        self: &Arc<Self>,
        owner: Tenant,
        id: &ResponseId,
        from: u64,
    ) -> Option<BoxStream<'static, Bytes>> {
        let key = (owner, id.clone());
        let news = {
            let shelf = self.shelf();
            let run = shelf.runs.get(&key).filter(|run| run.first <= from)?;
            run.news.subscribe()
        };
        let follower = Follower {
            background: Arc::clone(self),
            key,
            next: from,
            news,
        };
        let events = stream::unfold(Some(follower), async |follower| {
            let mut follower = follower?;
            match follower.next().await? {
                Told::Event(event) => Some((event, Some(follower))),
                Told::End => Some((sse::DONE, None)),
            }
        });
        Some(events.boxed())
    }

    /// Cancels a response that is being made here, and waits for its end.
    pub(crate) async fn cancel(&self, owner: Tenant, id: &ResponseId) {
        let key = (owner, id.clone());
        let Some(mut news) = self.ask_to_end(&key) else {
            return;
        };
        loop {
            let is_made = |run: &Run| !run.ended;
            if !self.shelf().runs.get(&key).is_some_and(is_made) || news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Cancels what others want cancelled, until `server` shuts down.
    pub(crate) async fn serve_others(server: Arc<Server>, mut requests: CancelRequests) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => request,
                () = server.draining() => None,
            };
            let Some(key) = request else { return };
            server.background.ask_to_end(&key);
        }
    }

    /// What tells when something becomes of a response that is asked to end. None if it is not
    /// made here.
    fn ask_to_end(&self, key: &Key) -> Option<watch::Receiver<()>> {
        let shelf = self.shelf();
        let run = shelf.runs.get(key)?;
        run.cancel.cancel();
        Some(run.news.subscribe())
    }

    /// Forgets the events of a response.
    pub(crate) fn forget(&self, owner: Tenant, id: &ResponseId) {
        self.shelf().remove(&(owner, id.clone()));
    }

    fn slot(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        slot.map_err(|_| too_many(self.most))
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many(most: usize) -> Failure {
    Failure {
        status: 429,
        kind: "rate_limit_error",
        code: "too_many_background_responses",
        retry_after_seconds: Some(BUSY_SECONDS),
        ..Failure::server_error(format!(
            "The server makes {most} responses in the background at once, and does so now. Please \
             try again in {BUSY_SECONDS}s, or leave 'background' out."
        ))
    }
}

/// A run on the shelf while it is made. It has ended when this is dropped, however that comes
/// about.
struct Listed {
    background: Arc<Background>,
    key: Key,
    cancel: CancellationToken,
    /// To other servers, if there can be any.
    outgoing: Option<Outgoing>,
}

impl Listed {
    fn new(background: Arc<Background>, key: Key, outgoing: Option<Outgoing>) -> Self {
        let run = Run {
            events: VecDeque::new(),
            first: 0,
            bytes: 0,
            ended: false,
            cancel: CancellationToken::new(),
            news: watch::Sender::new(()),
        };
        let cancel = run.cancel.clone();
        background.shelf().runs.insert(key.clone(), run);
        Self {
            background,
            key,
            cancel,
            outgoing,
        }
    }

    fn add(&mut self, event: &Event) {
        let is_last = event.is_terminal();
        let event = sse::encode(event);
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.publish(event.clone(), is_last);
        }
        self.background.shelf().add(&self.key, event);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.background.shelf().end(&self.key);
    }
}

impl Shelf {
    fn add(&mut self, key: &Key, event: Bytes) {
        let Some(run) = self.runs.get_mut(key) else {
            return;
        };
        self.bytes += event.len();
        run.bytes += event.len();
        run.events.push_back(event);
        while run.bytes > RUN_BYTES && run.events.len() > 1 {
            self.bytes -= run.forget_first();
        }
        run.news.send_replace(());
        while self.bytes > ALL_BYTES {
            match self.ended.front().cloned() {
                Some(oldest) => self.remove(&oldest),
                None => break,
            }
        }
        // Nothing else can go but what this response has said before.
        if let Some(run) = self.runs.get_mut(key) {
            while self.bytes > ALL_BYTES && run.events.len() > 1 {
                self.bytes -= run.forget_first();
            }
        }
    }

    fn end(&mut self, key: &Key) {
        if let Some(run) = self.runs.get_mut(key).filter(|run| !run.ended) {
            run.ended = true;
            run.news.send_replace(());
            self.ended.push_back(key.clone());
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(run) = self.runs.remove(key) {
            self.bytes -= run.bytes;
            self.ended.retain(|ended| ended != key);
        }
    }
}

impl Run {
    /// Returns how many bytes that were.
    fn forget_first(&mut self) -> usize {
        let bytes = self.events.pop_front().map_or(0, |event| event.len());
        self.bytes -= bytes;
        self.first += 1;
        bytes
    }
}

/// Somebody who is told the events of a run.
struct Follower {
    background: Arc<Background>,
    key: Key,
    /// The number of the next event.
    next: u64,
    news: watch::Receiver<()>,
}

enum Told {
    Event(Bytes),
    End,
}

impl Follower {
    /// None if what comes next was forgotten: it was listened to too slowly.
    async fn next(&mut self) -> Option<Told> {
        loop {
            self.news.borrow_and_update();
            {
                let shelf = self.background.shelf();
                let run = shelf.runs.get(&self.key)?;
                let place = usize::try_from(self.next.checked_sub(run.first)?).ok()?;
                if let Some(event) = run.events.get(place) {
                    self.next += 1;
                    return Some(Told::Event(event.clone()));
                }
                if run.ended {
                    return Some(Told::End);
                }
            }
            self.news.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        (Tenant::of_key(b"k"), ResponseId::from(id))
    }

    fn listed(background: &Arc<Background>, id: &str) -> Listed {
        Listed::new(Arc::clone(background), key(id), None)
    }

    fn add(listed: &Listed, bytes: usize) {
        let event = Bytes::from(vec![b'x'; bytes]);
        listed.background.shelf().add(&listed.key, event);
    }

    async fn sizes(background: &Arc<Background>, id: &str, from: u64) -> Option<Vec<usize>> {
        let (owner, id) = key(id);
        let events = background.follow(owner, &id, from)?;
        Some(events.map(|event| event.len()).collect().await)
    }

    #[tokio::test]
    async fn events_are_told_from_any_number_on_and_the_first_are_forgotten() {
        let background = Background::new(1);
        let run = listed(&background, "resp_1");
        for bytes in [1, 2, 3] {
            add(&run, bytes);
        }
        let end = sse::DONE.len();
        run.background.shelf().end(&run.key);
        assert_eq!(
            sizes(&background, "resp_1", 0).await,
            Some(vec![1, 2, 3, end])
        );
        assert_eq!(sizes(&background, "resp_1", 2).await, Some(vec![3, end]));
        assert_eq!(sizes(&background, "resp_1", 9).await, Some(vec![end]));
        assert_eq!(sizes(&background, "resp_2", 0).await, None);
        add(&run, RUN_BYTES - 3);
        assert_eq!(sizes(&background, "resp_1", 1).await, None);
        assert_eq!(
            sizes(&background, "resp_1", 2).await,
            Some(vec![3, RUN_BYTES - 3, end])
        );
        let (owner, id) = key("resp_1");
        background.forget(owner, &id);
        assert_eq!(sizes(&background, "resp_1", 2).await, None);
        assert_eq!(background.shelf().bytes, 0);
    }

    #[tokio::test]
    async fn what_ended_first_goes_first_when_there_is_too_much() {
        let background = Background::new(1);
        for number in 0..=ALL_BYTES / RUN_BYTES {
            add(&listed(&background, &number.to_string()), RUN_BYTES);
        }
        assert_eq!(background.shelf().bytes, ALL_BYTES);
        assert!(sizes(&background, "0", 0).await.is_none());
        assert!(sizes(&background, "1", 0).await.is_some());
        let running = listed(&background, "running");
        for _ in 0..3 {
            add(&running, RUN_BYTES / 2);
        }
        let shelf = background.shelf();
        let bytes: usize = shelf.runs.values().map(|run| run.bytes).sum();
        assert_eq!(shelf.bytes, bytes);
        assert!(bytes <= ALL_BYTES, "{bytes}");
    }

    #[tokio::test]
    async fn who_listens_too_slowly_is_told_no_end() {
        let background = Background::new(1);
        let run = listed(&background, "resp_1");
        add(&run, 1);
        let (owner, id) = key("resp_1");
        let events = background.follow(owner, &id, 0).unwrap();
        add(&run, RUN_BYTES);
        drop(run);
        assert_eq!(events.count().await, 0);
    }
}
