//! Link: one socket shared by lanes. A task owns it, sends what turns hand over, and gives each
//! event to the turn of its lane.

use std::collections::{HashMap, VecDeque};
use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::connection::Connection;
use crate::error::Error;
use crate::event::Event;
use crate::mailbox::{Mailbox, Slot, mailbox};
use crate::socket::{Message, Socket};

/// Messages that wait while the socket sends another.
const COMMANDS: usize = 16;

/// The error with which a server announces that a connection has become too old.
pub(crate) const AGE_LIMIT: &str = "websocket_connection_limit_reached";

/// The error for a lane whose name is one too many on its connection.
pub(crate) const NAME_LIMIT: &str = "websocket_stream_limit_reached";

/// Lanes from which on those that have gone are looked for and forgotten.
const MANY_LANES: usize = 64;

/// A handle to the task of one socket. When the last is dropped, the socket closes.
#[derive(Debug)]
pub(crate) struct Link {
    /// Tells the sockets of one session apart.
    pub(crate) serial: u64,
    opened: Instant,
    commands: mpsc::Sender<Command>,
    fate: Arc<Fate>,
    done: watch::Receiver<()>,
}

/// What becomes of a link, for all to see.
#[derive(Debug, Default)]
struct Fate {
    /// No new turn shall begin on it.
    retired: AtomicBool,
    /// Why it ended. Set before the channels of its turns close.
    ended: OnceLock<Error>,
}

#[derive(Debug)]
enum Command {
    /// Sends a create, and gives the events of its lane to this channel from now on.
    Start {
        lane: Option<String>,
        message: Bytes,
        events: Slot,
    },
    Send(Bytes),
}

/// What goes wrong when a link is used that has ended.
#[derive(Debug)]
pub(crate) struct Gone;

impl Link {
    pub(crate) fn over(connection: Connection, serial: u64) -> Self {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let fate = Arc::new(Fate::default());
        let (running, done) = watch::channel(());
        let task = Task {
            fate: Arc::clone(&fate),
            commands: receiver,
            routes: HashMap::new(),
            stuck: None,
            unwritable: false,
        };
        tokio::spawn(async move {
            task.run(connection).await;
            drop(running);
        });
        Self {
            serial,
            opened: Instant::now(),
            commands,
            fate,
            done,
        }
    }

    /// Sends a create and gives out the events that follow on its lane. `buffer` bytes of them
    /// may wait.
    pub(crate) async fn start(
        &self,
        lane: Option<String>,
        message: Bytes,
        buffer: usize,
    ) -> Result<Mailbox, Gone> {
        let (events, mailbox) = mailbox(buffer);
        let start = Command::Start {
            lane,
            message,
            events,
        };
        self.commands.send(start).await.map_err(|_| Gone)?;
        Ok(mailbox)
    }

    pub(crate) async fn send(&self, message: Bytes) -> Result<(), Gone> {
        let send = Command::Send(message);
        self.commands.send(send).await.map_err(|_| Gone)
    }

    /// Sends a message if that is possible without waiting, and tells whether it was.
    pub(crate) fn try_send(&self, message: Bytes) -> bool {
        self.commands.try_send(Command::Send(message)).is_ok()
    }

    /// Whether a new turn may begin on it.
    pub(crate) fn takes_turns(&self, rotate_after: Option<Duration>) -> bool {
        let young = rotate_after.is_none_or(|limit| self.opened.elapsed() < limit);
        young && !self.fate.retired.load(Ordering::Relaxed) && !self.commands.is_closed()
    }

    /// Lets no new turn begin on it.
    pub(crate) fn retire(&self) {
        self.fate.retired.store(true, Ordering::Relaxed);
    }

    /// Why it ended, if it has.
    pub(crate) fn ended(&self) -> Option<&Error> {
        self.fate.ended.get()
    }

    /// The error that cost it its running turns. One that was to end anyway is no loss.
    pub(crate) fn loss(&self) -> Option<&Error> {
        let retired = self.fate.retired.load(Ordering::Relaxed);
        self.ended().filter(|_| !retired)
    }

    /// Gives up this handle, and waits for the socket to close if it was the last.
    pub(crate) async fn close(self: Arc<Self>) {
        let Some(Self { mut done, .. }) = Arc::into_inner(self) else {
            return;
        };
        // The other end is never used, only dropped.
        let _ = done.changed().await;
    }
}

struct Task {
    fate: Arc<Fate>,
    commands: mpsc::Receiver<Command>,
    routes: HashMap<Option<String>, Route>,
    /// An event whose turn has no room for it. Until it has, nothing more is read.
    stuck: Option<(Slot, Event)>,
    /// The server takes nothing any more. What it said before is still read.
    unwritable: bool,
}

/// Where the events of a lane go.
#[derive(Default)]
struct Route {
    /// The turns whose events are still to come, first the one whose turn it is. There are two
    /// where the first was dropped before its end; its events go nowhere.
    turns: VecDeque<Slot>,
    /// The first has begun: its response was created.
    begun: bool,
    /// The first has ended. It stays, because steering may add a successor.
    ended: bool,
}

enum Step {
    Command(Option<Command>),
    Sent,
    Unwritable,
    Message(Message),
    Room,
    Lost(Error),
}

impl Task {
    async fn run(mut self, mut connection: Connection) {
        let end = loop {
            match self.step(&mut connection.socket).await {
                Step::Command(Some(command)) => self.carry_out(command, &mut connection.socket),
                Step::Command(None) => {
                    let _ = connection.close().await;
                    return;
                }
                Step::Sent => {}
                Step::Unwritable => self.unwritable = true,
                Step::Room => {
                    if let Some((turn, event)) = self.stuck.take() {
                        self.hand_over(turn, event);
                    }
                }
                Step::Message(Message::Text(payload) | Message::Binary(payload)) => {
                    match Event::read(payload.bytes) {
                        Ok(event) => self.route(event),
                        Err(error) => break error,
                    }
                }
                Step::Message(Message::Close { code, reason }) => {
                    // Says goodbye as well, so that the server need not wait.
                    connection.answer_close().await;
                    break Error::Closed { code, reason };
                }
                Step::Message(Message::Ping(_) | Message::Pong(_)) => {}
                Step::Lost(error) => break error,
            }
        };
        // Nobody else sets it.
        let _ = self.fate.ended.set(end);
    }

    async fn step(&mut self, socket: &mut Socket) -> Step {
        // One message is sent at a time, so that what waits, waits with its sender.
        let writing = socket.owes() && !self.unwritable;
        let accepting = !socket.owes();
        let reading = self.stuck.is_none();
        tokio::select! {
            step = poll_fn(|cx| poll_socket(socket, cx, writing, reading)) => step,
            () = room(self.stuck.as_ref()) => Step::Room,
            command = self.commands.recv(), if accepting => Step::Command(command),
        }
    }

    fn carry_out(&mut self, command: Command, socket: &mut Socket) {
        match command {
            Command::Send(message) => socket.queue_text(message),
            Command::Start {
                lane,
                message,
                events,
            } => {
                if self.routes.len() >= MANY_LANES {
                    self.routes.retain(|_, route| !route.is_abandoned());
                }
                let route = self.routes.entry(lane).or_default();
                if route.ended {
                    route.next();
                }
                route.turns.push_back(events);
                socket.queue_text(message);
            }
        }
    }

    fn route(&mut self, event: Event) {
        let failure = (event.name == "error").then(|| event.failure());
        let aged = failure
            .as_ref()
            .is_some_and(|failure| failure.is(AGE_LIMIT));
        if aged {
            self.fate.retired.store(true, Ordering::Relaxed);
        }
        // What belongs to no turn of ours is of no use to anybody.
        let Some(route) = self.routes.get_mut(&event.lane) else {
            return;
        };
        let Some(turn) = route.turns.front().cloned() else {
            return;
        };
        // A response that has begun goes on; the error is about the connection.
        if aged && (route.begun || route.ended) {
            return;
        }
        if event.name == "response.created" {
            route.begun = true;
            route.ended = false;
        }
        if event.is_terminal() && !failure.is_some_and(|failure| failure.is_about_type()) {
            if route.turns.len() > 1 {
                route.next();
            } else {
                route.ended = true;
            }
        }
        self.hand_over(turn, event);
    }

    fn hand_over(&mut self, turn: Slot, event: Event) {
        if let Err(event) = turn.put(event) {
            self.stuck = Some((turn, event));
        }
    }
}

impl Route {
    /// Whether nothing will come, and nobody waits for it.
    fn is_abandoned(&self) -> bool {
        self.ended && self.turns.iter().all(Slot::is_abandoned)
    }

    fn next(&mut self) {
        self.turns.pop_front();
        self.begun = false;
        self.ended = false;
    }
}

/// Sends what is queued, and reads unless it must not.
fn poll_socket(
    socket: &mut Socket,
    cx: &mut Context<'_>,
    writing: bool,
    reading: bool,
) -> Poll<Step> {
    if writing {
        match socket.poll_send(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Step::Sent),
            Poll::Ready(Err(_)) => return Poll::Ready(Step::Unwritable),
            Poll::Pending => {}
        }
    }
    if !reading {
        return Poll::Pending;
    }
    socket.poll_message(cx).map(|message| match message {
        Ok(message) => Step::Message(message),
        Err(error) => Step::Lost(error),
    })
}

/// Ready when the turn has room for the event, or is gone.
async fn room(stuck: Option<&(Slot, Event)>) {
    match stuck {
        Some((turn, event)) => turn.has_room(event).await,
        None => pending().await,
    }
}
