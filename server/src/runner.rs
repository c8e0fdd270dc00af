//! Runner: carries out what a session decides, with engines, the store and the log.
//!
//! It owns one [`Session`] and everything that runs for it. What the session wants sent waits
//! in an outbox for whoever owns the transport: the WebSocket's task, or an HTTP answer. A lane
//! with much to send holds its own engine back and no other. An owner who does not poll holds
//! all of them back, and one who drops the runner cancels its turns.

mod outbox;
mod turns;

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::task::coop;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::action::{Action, TurnKey};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::engine::EngineOutput;
use turnwire_protocol::event::Event;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::session::{
    OpenedConversation, SaveFailed, Session, StoreUnavailable, Transport,
};
use turnwire_protocol::stored::Permit;

use crate::auth::Tenant;
use crate::clock::RandomIds;
use crate::locks::{ConversationLock, ConversationLocks};
use crate::secret::TenantSealer;
use crate::serve::Server;
use outbox::Outbox;
use turns::Turns;

/// Bytes of events made at a time. What engines have ready leaves in one write, and a turn that
/// never waits lets its connection be heard in between.
const BATCH_BYTES: usize = 16 << 10;

pub(crate) struct Runner {
    server: Arc<Server>,
    owner: Tenant,
    session: Session,
    turns: Turns,
    replies: FuturesUnordered<BoxFuture<'static, Reply>>,
    outbox: Outbox,
    /// The conversations that turns go on with.
    locks: HashMap<TurnKey, ConversationLock>,
    close: Option<Close>,
}

/// The session's wish to end the connection, once everything queued is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Close {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
}

/// What a store says.
enum Reply {
    Loaded(TurnKey, Result<Option<Chain>, StoreUnavailable>),
    Conversation(TurnKey, Result<OpenedConversation, StoreUnavailable>),
    Items(TurnKey, Result<Vec<Option<Item>>, StoreUnavailable>),
    Saved(TurnKey, Result<(), SaveFailed>),
    /// What is stored on the way. If it is not, the end will be.
    Noted,
}

impl Runner {
    pub(crate) fn new(server: Arc<Server>, owner: Tenant, transport: Transport) -> Self {
        let sealer = Arc::new(TenantSealer::new(Arc::clone(&server.secret), owner));
        let now = server.clock.now();
        let permit = server.storage.as_ref().map(|_| Permit::grant());
        let mut session = Session::new(transport, server.limits.clone(), sealer, permit, now);
        if transport == Transport::Http && server.histories.are_kept() {
            session.match_histories();
        }
        let mut runner = Self {
            server,
            owner,
            session,
            turns: Turns::default(),
            replies: FuturesUnordered::new(),
            outbox: Outbox::default(),
            locks: HashMap::new(),
            close: None,
        };
        runner.carry_out();
        runner
    }

    pub(crate) fn handle_message(&mut self, message: Bytes) {
        let now = self.server.clock.now();
        self.session.handle_message(now, &mut RandomIds, message);
        self.carry_out();
    }

    /// The body of a request for a compaction.
    pub(crate) fn handle_compact(&mut self, message: Bytes) {
        let now = self.server.clock.now();
        self.session.handle_compact(now, &mut RandomIds, message);
        self.carry_out();
    }

    /// The body of a request to count the tokens of a prompt.
    pub(crate) fn handle_count(&mut self, message: Bytes) {
        let now = self.server.clock.now();
        self.session.handle_count(now, &mut RandomIds, message);
        self.carry_out();
    }

    /// Cancels a response, as `response.cancel` does on a socket.
    pub(crate) fn handle_cancel(&mut self, id: &ResponseId) {
        let now = self.server.clock.now();
        self.session.handle_cancel(now, &mut RandomIds, id);
        self.carry_out();
    }

    pub(crate) fn handle_oversized(&mut self) {
        self.session.handle_oversized(self.server.clock.now());
        self.carry_out();
    }

    /// To be called when [`Runner::deadline`] has passed.
    pub(crate) fn handle_timeout(&mut self) {
        let now = self.server.clock.now();
        for (turn, lane) in self.turns.lanes() {
            if self.outbox.holds(lane) {
                self.session.defer_keep_alive(now, turn);
            }
        }
        self.session.handle_timeout(now);
        self.carry_out();
    }

    pub(crate) fn handle_drain(&mut self) {
        self.session.handle_drain(self.server.clock.now());
        self.carry_out();
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let elapsed = self.session.deadline()?;
        self.server.clock.instant(elapsed)
    }

    /// The next event to send.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.outbox.pop_if(|_| true)
    }

    /// The next event to send, if one of that many bytes may be sent now. Which it is depends on
    /// when it is asked for: lanes take turns, and one that was idle comes first.
    pub(crate) fn next_event_if(&mut self, fits: impl FnOnce(usize) -> bool) -> Option<Event> {
        self.outbox.pop_if(fits)
    }

    /// Bytes of the events that wait to be sent; 0 if there are none.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Set once the connection is to end, after all events.
    pub(crate) fn close(&self) -> Option<Close> {
        self.close
    }

    /// Lets engines and the store go on. Ready if they did, with or without a new event.
    pub(crate) fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut progress = Poll::Pending;
        let enough = self.outbox.bytes() + BATCH_BYTES;
        while self.outbox.bytes() < enough {
            // Counted like what a socket does: engines that always have something ready leave
            // the thread to other tasks in time.
            let Poll::Ready(budget) = coop::poll_proceed(cx) else {
                break;
            };
            let now = self.server.clock.now();
            if let Poll::Ready(Some(reply)) = self.replies.poll_next_unpin(cx) {
                let ids = &mut RandomIds;
                match reply {
                    Reply::Loaded(turn, parent) => {
                        self.session.handle_loaded(now, ids, turn, parent);
                    }
                    Reply::Conversation(turn, opened) => {
                        self.session.handle_conversation(now, ids, turn, opened);
                    }
                    Reply::Items(turn, items) => self.session.handle_items(now, ids, turn, items),
                    Reply::Noted => {}
                    Reply::Saved(turn, saved) => self.session.handle_saved(now, ids, turn, saved),
                }
            } else if let Poll::Ready((turn, output)) = self.poll_engines(cx) {
                self.session
                    .handle_output(now, &mut RandomIds, turn, output);
            } else {
                break;
            }
            budget.made_progress();
            self.carry_out();
            progress = Poll::Ready(());
        }
        progress
    }

    fn poll_engines(&mut self, cx: &mut Context<'_>) -> Poll<(TurnKey, EngineOutput)> {
        let Self { turns, outbox, .. } = self;
        turns.poll_next(cx, |lane| outbox.is_full(lane))
    }

    /// Looks a conversation up, and keeps others from going on with it until the turn has ended.
    fn open_conversation(
        &mut self,
        turn: TurnKey,
        id: ConversationId,
        lock: bool,
    ) -> impl Future<Output = Result<OpenedConversation, StoreUnavailable>> + use<> {
        let (server, owner) = (Arc::clone(&self.server), self.owner);
        let locked = lock.then(|| ConversationLocks::lock(&server.conversation_locks, owner, &id));
        let is_locked = matches!(locked, Some(None));
        if let Some(Some(lock)) = locked {
            self.locks.insert(turn, lock);
        }
        async move {
            if is_locked {
                return Ok(OpenedConversation::Locked);
            }
            let found = match &server.storage {
                Some(storage) => storage.reader.conversation(owner, &id).await?,
                None => None,
            };
            Ok(match found {
                Some(conversation) => OpenedConversation::Open(conversation.chain),
                None => OpenedConversation::NotFound,
            })
        }
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Load { turn, id } => {
                    let (server, owner) = (Arc::clone(&self.server), self.owner);
                    let load = async move {
                        let loaded = match &server.storage {
                            Some(storage) => storage.reader.load(owner, &id).await,
                            None => Ok(None),
                        };
                        Reply::Loaded(turn, loaded)
                    };
                    self.replies.push(load.boxed());
                }
                Action::LoadConversation { turn, id, lock } => {
                    let opened = self.open_conversation(turn, id, lock);
                    let opened = opened.map(move |opened| Reply::Conversation(turn, opened));
                    self.replies.push(opened.boxed());
                }
                Action::LoadItems { turn, ids } => {
                    let (server, owner) = (Arc::clone(&self.server), self.owner);
                    let load = async move {
                        let items = match &server.storage {
                            Some(storage) => storage.reader.items(owner, &ids).await,
                            None => Ok(vec![None; ids.len()]),
                        };
                        Reply::Items(turn, items)
                    };
                    self.replies.push(load.boxed());
                }
                Action::Match { turn, prefixes } => {
                    let now = self.server.clock.now();
                    let histories = &self.server.histories;
                    let found = histories.find(self.owner, &prefixes, now.elapsed);
                    self.session
                        .handle_matched(now, &mut RandomIds, turn, found);
                }
                Action::Keep { history, chain } => {
                    let now = self.server.clock.now();
                    let histories = &self.server.histories;
                    histories.keep(self.owner, history, chain, now.elapsed);
                }
                Action::Start {
                    turn,
                    lane,
                    request,
                } => {
                    let wrap_up = CancellationToken::new();
                    let output = self.server.engines.start(*request, wrap_up.clone());
                    self.turns.start(turn, lane, output, wrap_up);
                }
                Action::WrapUp { turn } => self.turns.wrap_up(turn),
                Action::Stop { turn } => self.turns.stop(turn),
                Action::Save { turn, record } => {
                    let storage = self.server.storage.as_ref();
                    let storage = storage.expect("a record takes a permit, which takes a store");
                    let saved = storage.writer.save(self.owner, record);
                    let saved = saved.map(move |saved| Reply::Saved(turn, saved));
                    self.replies.push(saved.boxed());
                }
                Action::SaveProgress { record } => {
                    let storage = self.server.storage.as_ref();
                    let storage = storage.expect("a record takes a permit, which takes a store");
                    let noted = storage.writer.save(self.owner, record);
                    self.replies.push(noted.map(|_| Reply::Noted).boxed());
                }
                Action::Send(event) => self.outbox.push(event),
                Action::Ended { turn, summary } => {
                    self.locks.remove(&turn);
                    let model_is_known = self.server.engines.know(&summary.model);
                    self.turns.end(turn).log(&summary, model_is_known);
                }
                Action::Close { code, reason } => self.close = Some(Close { code, reason }),
            }
        }
    }
}
