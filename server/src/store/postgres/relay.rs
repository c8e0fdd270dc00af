//! Relay: what servers tell each other about the responses that they make in the background.
//!
//! Events go through a table, so that those who begin to follow late are told what was before. A
//! notification says that there are more, or that somebody wants a response cancelled. One that
//! is lost costs some seconds: who waits for it looks again by itself.

mod listener;
mod publisher;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::Type;
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::session::StoreUnavailable;
use turnwire_protocol::sse;
use turnwire_protocol::stored::Status;

use super::change::Change;
use super::database::Database;
use super::lines::Argument;
use super::reader::Reader;
use super::writer::Writer;
use super::{UnderWay, is_possible};
use crate::auth::Tenant;
pub(crate) use listener::CancelRequests;
use listener::{Listener, Waiter};
pub(crate) use publisher::Outgoing;
use publisher::Publisher;

/// How often who follows a response looks for events without having been told that there are any.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long the last events of a response are waited for once it is stored as ended: they are told
/// after that.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Events that are looked up at once.
const EVENTS_AT_ONCE: i64 = 64;

/// How long the end of a response is waited for that was to be cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(crate) struct Relay(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    reader: Arc<Reader>,
    writer: Writer,
    publisher: Publisher,
    listener: Listener,
}

/// Somebody who follows a response that another server makes.
struct Follower {
    reader: Arc<Reader>,
    owner: Tenant,
    id: ResponseId,
    /// The number of the next event.
    next: u64,
    read: VecDeque<Published>,
    waiter: Waiter,
    /// When it was first seen that the response is made no more.
    made_until: Option<Instant>,
    has_ended: bool,
}

struct Published {
    number: u64,
    event: Bytes,
    is_last: bool,
}

impl Relay {
    /// Starts the tasks on the runtime that this is called on. `server` is what the database knows
    /// this one by.
    pub(super) fn start(
        database: Arc<Database>,
        server: i64,
        reader: Arc<Reader>,
        writer: Writer,
        under_way: UnderWay,
    ) -> Self {
        Self(Arc::new(Parts {
            reader,
            writer,
            publisher: Publisher::start(Arc::clone(&database)),
            listener: Listener::start(database, server, under_way),
        }))
    }

    /// For the events of one response that this server makes.
    pub(crate) fn outgoing(&self, owner: Tenant, id: &ResponseId) -> Outgoing {
        self.0.publisher.outgoing(owner, id)
    }

    /// Responses of this server that others want cancelled. None if they were asked for before.
    pub(crate) fn cancel_requests(&self) -> Option<CancelRequests> {
        self.0.listener.cancel_requests()
    }

    /// The events of a response from this number on, as server-sent events, those to come included,
    /// and the end of the stream. It ends without that if some are missing. None if there are none.
    pub(crate) async fn follow(
        &self,
        owner: Tenant,
        id: &ResponseId,
        from: u64,
    ) -> Result<Option<BoxStream<'static, Bytes>>, StoreUnavailable> {
        if !is_possible(id.as_str()) {
            return Ok(None);
        }
        // From before the first look, so that nothing is missed in between.
        let waiter = self.0.listener.wait_for(owner, id);
        let mut follower = Follower {
            reader: Arc::clone(&self.0.reader),
            owner,
            id: id.clone(),
            next: from,
            read: VecDeque::new(),
            waiter,
            made_until: None,
            has_ended: false,
        };
        let is_made = follower.is_made().await?;
        follower.look().await?;
        match follower.read.front() {
            Some(first) if first.number != from => return Ok(None),
            None if !is_made && !follower.has_any().await? => return Ok(None),
            _ => {}
        }
        let events = stream::unfold(Some(follower), async |follower| {
            let mut follower = follower?;
            let event = follower.next().await?;
            Some((event, Some(follower).filter(|it| !it.has_ended)))
        });
        Ok(Some(events.boxed()))
    }

    /// Has a response cancelled by the server that makes it, and waits for its end, for a while.
    pub(crate) async fn cancel(
        &self,
        owner: Tenant,
        id: &ResponseId,
    ) -> Result<(), StoreUnavailable> {
        if !is_possible(id.as_str()) {
            return Ok(());
        }
        let mut waiter = self.0.listener.wait_for(owner, id);
        let cancel = self.0.writer.change(owner, Change::Cancel(id.clone()));
        cancel.await.map_err(|_| StoreUnavailable)?;
        let give_up = Instant::now() + CANCEL_PATIENCE;
        while self.is_made(owner, id).await? && Instant::now() < give_up {
            let look = give_up.min(Instant::now() + LOOK_INTERVAL);
            let _ = timeout_at(look, waiter.wait()).await;
        }
        Ok(())
    }

    fn is_made<'a>(
        &'a self,
        owner: Tenant,
        id: &'a ResponseId,
    ) -> BoxFuture<'a, Result<bool, StoreUnavailable>> {
        Box::pin(async move {
            let shown = self.0.reader.response(owner, id).await?;
            Ok(shown.is_some_and(|shown| !shown.status.is_final()))
        })
    }
}

impl Follower {
    /// The next event, or the end of the stream. None if it cannot be told.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(published) = self.read.pop_front() {
                if published.number != self.next {
                    return None;
                }
                self.next += 1;
                if published.is_last {
                    self.has_ended = true;
                    return Some([&published.event[..], &sse::DONE].concat().into());
                }
                return Some(published.event);
            }
            let is_made = self.is_made().await.ok()?;
            self.look().await.ok()?;
            if !self.read.is_empty() {
                continue;
            }
            let now = Instant::now();
            let look = match is_made {
                true => now + LOOK_INTERVAL,
                false => *self.made_until.get_or_insert(now) + END_PATIENCE,
            };
            if look <= now || (!is_made && self.is_beyond_the_end().await.ok()?) {
                self.has_ended = true;
                return self.end().await;
            }
            let _ = timeout_at(look, self.waiter.wait()).await;
        }
    }

    async fn look(&mut self) -> Result<(), StoreUnavailable> {
        let sql = "SELECT number, event, is_last FROM events
                   WHERE owner = $1 AND response = $2 AND number >= $3 ORDER BY number LIMIT $4";
        let owner = self.owner.as_bytes().to_vec();
        let next = i64::try_from(self.next).unwrap_or(i64::MAX);
        let rows = self
            .reader
            .lines()
            .ask(
                sql,
                &[
                    (&owner, Type::BYTEA),
                    (&self.id.as_str(), Type::TEXT),
                    (&next, Type::INT8),
                    (&EVENTS_AT_ONCE, Type::INT8),
                ],
            )
            .await?;
        self.read.extend(rows.iter().map(|row| Published {
            number: u64::try_from(row.get::<_, i64>(0)).unwrap_or(u64::MAX),
            event: Bytes::copy_from_slice(row.get(1)),
            is_last: row.get(2),
        }));
        Ok(())
    }

    /// Whether some server still makes the response.
    async fn is_made(&self) -> Result<bool, StoreUnavailable> {
        let shown = self.reader.response(self.owner, &self.id).await?;
        Ok(shown.is_some_and(|shown| !shown.status.is_final()))
    }

    /// Whether there are events, whatever their numbers are.
    async fn has_any(&self) -> Result<bool, StoreUnavailable> {
        let sql = "SELECT FROM events WHERE owner = $1 AND response = $2 LIMIT 1";
        let owner = self.owner.as_bytes().to_vec();
        let arguments: [Argument<'_>; 2] = [(&owner, Type::BYTEA), (&self.id.as_str(), Type::TEXT)];
        Ok(!self.reader.lines().ask(sql, &arguments).await?.is_empty())
    }

    /// Whether there were events, all of them with smaller numbers than the next one.
    async fn is_beyond_the_end(&self) -> Result<bool, StoreUnavailable> {
        let sql = "SELECT FROM events
                   WHERE owner = $1 AND response = $2 AND is_last AND number < $3";
        let owner = self.owner.as_bytes().to_vec();
        let next = i64::try_from(self.next).unwrap_or(i64::MAX);
        let rows = self
            .reader
            .lines()
            .ask(
                sql,
                &[
                    (&owner, Type::BYTEA),
                    (&self.id.as_str(), Type::TEXT),
                    (&next, Type::INT8),
                ],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// What is told of a response that is made no more. If its server died, nobody has told that
    /// it failed, so that is done here.
    async fn end(&self) -> Option<Bytes> {
        if self.is_beyond_the_end().await.ok()? {
            return Some(sse::DONE);
        }
        let shown = self.reader.response(self.owner, &self.id).await.ok()??;
        if shown.status != Status::Failed {
            return None;
        }
        let head = format!(
            "event: response.failed\ndata: {{\"type\":\"response.failed\",\
             \"sequence_number\":{},\"response\":",
            self.next
        );
        Some(
            [head.as_bytes(), &shown.json, b"}\n\n", &sse::DONE]
                .concat()
                .into(),
        )
    }
}
