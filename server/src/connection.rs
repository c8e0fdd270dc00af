//! Connection: one task drives one session over one WebSocket until either ends.
//!
//! Lanes are fair to each other here: events wait with the runner, and the socket takes the next
//! one when it has handed over what it took before. Back-pressure follows from that: a lane whose
//! events wait is not asked for more, and its engine stops because nobody reads it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use turnwire_protocol::session::Transport;

use crate::auth::Tenant;
use crate::runner::Runner;
use crate::serve::Server;
use crate::websocket::{Incoming, Socket};

/// Keeps middleboxes from forgetting the connection, and shows that the peer is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Intervals of Pings after which a peer is given up that takes nothing it is owed, or that
/// was not heard at all: 15 minutes. Some clients read nothing, and so answer no Ping, while
/// they run a tool; one that vanished is noticed by TCP long before.
const PATIENCE_INTERVALS: u32 = 30;

/// Which of a connection's two sides had something to say.
enum Step {
    Peer(Incoming),
    Engines,
}

/// Serves one connection to its end.
///
/// Both halves are boxed: a future has room for everything that is moved in it, several times
/// over, and there may be many thousands of these.
pub(crate) async fn run(mut socket: Box<Socket>, server: Arc<Server>, owner: Tenant) {
    let mut draining = pin!(server.draining());
    let runner = Runner::new(Arc::clone(&server), owner, Transport::WebSocket);
    let mut runner = Box::new(runner);
    let mut next_ping = Instant::now() + PING_INTERVAL;
    let mut alarm = pin!(sleep_until(next_ping));
    let mut taking = Patience::since(socket.bytes_taken());
    let mut heard = Patience::since(socket.bytes_heard());
    let mut drained = false;
    loop {
        if let Some(close) = runner.close() {
            while let Some(event) = runner.next_event() {
                socket.queue(event.json);
            }
            // Nothing runs on while the peer takes its time to answer.
            drop(runner);
            return socket.close(close.code, close.reason).await;
        }
        let due = runner
            .deadline()
            .map_or(next_ping, |deadline| deadline.min(next_ping));
        if alarm.deadline() != due {
            alarm.as_mut().reset(due);
        }
        let step = poll_fn(|cx| {
            loop {
                while let Some(event) = runner.next_event_if(|bytes| socket.takes(bytes)) {
                    socket.queue(event.json);
                }
                let waiting_bytes = runner.waiting_bytes();
                if let Poll::Ready(incoming) = socket.poll_next(cx, waiting_bytes) {
                    return Poll::Ready(Step::Peer(incoming));
                }
                if runner.poll_progress(cx).is_ready() {
                    return Poll::Ready(Step::Engines);
                }
                if socket.owes() || waiting_bytes == 0 {
                    return Poll::Pending;
                }
            }
        });
        tokio::select! {
            step = step => match step {
                Step::Engines => {}
                Step::Peer(Incoming::Message(message)) => runner.handle_message(message),
                Step::Peer(Incoming::Oversized) => runner.handle_oversized(),
                Step::Peer(Incoming::NotUtf8) => {
                    drop(runner);
                    return socket.close(1007, "a message is not valid UTF-8").await;
                }
                Step::Peer(Incoming::Closing) => {
                    drop(runner);
                    return socket.finish().await;
                }
                // Many clients leave like this.
                Step::Peer(Incoming::Lost) => return tracing::debug!("connection lost"),
            },
            () = &mut draining, if !drained => {
                drained = true;
                runner.handle_drain();
            }
            () = &mut alarm => {
                let now = Instant::now();
                if runner.deadline().is_some_and(|deadline| deadline <= now) {
                    runner.handle_timeout();
                }
                if next_ping <= now {
                    next_ping = now + PING_INTERVAL;
                    let stuck = taking.ends(socket.bytes_taken()) && socket.owes();
                    if stuck || heard.ends(socket.bytes_heard()) {
                        return tracing::debug!("peer is silent; connection dropped");
                    }
                    socket.ping();
                }
            }
        }
    }
}

/// Counts the intervals for which a sign of life has not changed.
struct Patience {
    sign: u64,
    intervals: u32,
}

impl Patience {
    fn since(sign: u64) -> Self {
        Self { sign, intervals: 0 }
    }

    /// Whether the sign has been the same for too long. To be asked once in an interval.
    fn ends(&mut self, sign: u64) -> bool {
        self.intervals = if sign == self.sign {
            self.intervals + 1
        } else {
            0
        };
        self.sign = sign;
        self.intervals >= PATIENCE_INTERVALS
    }
}
