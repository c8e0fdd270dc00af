//! Serve: the accept loop, what all connections share, and the way they all end.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turnwire_protocol::limits::Limits;

use crate::auth::Access;
use crate::background::Background;
use crate::clock::Clock;
use crate::engine::Engines;
use crate::histories::Histories;
use crate::http;
use crate::locks::ConversationLocks;
use crate::secret::Secret;
use crate::store::{Relay, Storage, Store};
use crate::stream::Stream;
use crate::tls::{Insecure, Tls};
use crate::websocket::SocketSettings;

/// How long the head of a request may take to arrive, and how long an HTTP connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Bytes of a request's head: clients send some kilobytes of telemetry headers.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What connections get to end by themselves once the server shuts down. Two seconds to send
/// what is queued and two for the peer's Close frame fit into it.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(4500);

/// How long a peer may take nothing of what it is owed. It bounds for how long a stream that
/// nobody reads holds its engine; a WebSocket has a patience of its own.
#[cfg(target_os = "linux")]
const STALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Bytes that the kernel holds for a peer without having sent them. More would be a queue in which
/// an event of one lane waits for those of others. What is on its way to the peer does not count,
/// so this costs no throughput: it is what the kernel has to send while we are woken up.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 64 << 10;

/// Probes for a peer whose host vanished while it waits in silence. Linux gives it up after
/// [`STALL_TIMEOUT`], others after the last probe.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Pause after a failed accept, which fails again at once while file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond the limit that are answered 503 at a time. More are dropped.
const REFUSALS_AT_ONCE: usize = 64;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What all connections of a server share.
#[derive(Debug)]
pub struct Server {
    pub(crate) engines: Arc<Engines>,
    /// None on a server that retains nothing.
    pub(crate) storage: Option<Storage>,
    pub(crate) histories: Histories,
    pub(crate) background: Arc<Background>,
    pub(crate) conversation_locks: Arc<ConversationLocks>,
    pub(crate) access: Access,
    pub(crate) secret: Arc<Secret>,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) sockets: Arc<SocketSettings>,
    /// Everything that runs for a connection, so that shutting down waits for all of it.
    pub(crate) tasks: TaskTracker,
    pub(crate) drain: CancellationToken,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

/// How much a server does at once.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    pub connections: usize,
    /// Responses made in the background.
    pub background: usize,
}

/// Where connections come from, and whether they have to be secure.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
}

/// A connection's share of the limit on connections, for as long as the connection lasts.
#[derive(Debug)]
pub(crate) struct Place {
    refusal: Option<Refusal>,
    _permit: OwnedSemaphorePermit,
}

/// Why a connection is there only to be told that it cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooManyConnections,
    /// It speaks plain HTTP where TLS is spoken.
    NotSecure,
}

impl Server {
    pub fn new(
        engines: Engines,
        store: Option<Store>,
        histories: Histories,
        access: Access,
        secret: impl Into<Arc<Secret>>,
        limits: Limits,
        capacity: Capacity,
    ) -> Arc<Self> {
        let connections = capacity.connections.min(Semaphore::MAX_PERMITS);
        let server = Arc::new(Self {
            engines: Arc::new(engines),
            storage: store.map(Storage::from),
            histories,
            background: Background::new(capacity.background),
            conversation_locks: Arc::default(),
            access,
            secret: secret.into(),
            clock: Clock::start(),
            sockets: Arc::new(SocketSettings::new(limits.message_bytes)),
            limits,
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            places: Arc::new(Semaphore::new(connections)),
            refusals: Arc::new(Semaphore::new(REFUSALS_AT_ONCE)),
        });
        let relay = server.storage.as_ref().and_then(Storage::relay);
        if let Some(requests) = relay.and_then(Relay::cancel_requests) {
            let served = Background::serve_others(Arc::clone(&server), requests);
            server.tasks.spawn(served);
        }
        server
    }

    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Ready once the server shuts down.
    pub(crate) fn draining(&self) -> impl Future<Output = ()> {
        self.drain.cancelled()
    }

    fn place(&self) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let granted = place.is_ok();
        let permit = place.or_else(|_| Arc::clone(&self.refusals).try_acquire_owned());
        permit.ok().map(|permit| Place {
            refusal: (!granted).then_some(Refusal::TooManyConnections),
            _permit: permit,
        })
    }
}

impl Place {
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }
}

impl From<TcpListener> for Listener {
    /// Plain HTTP.
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

impl Listener {
    /// HTTPS only.
    pub fn secure(tcp: TcpListener, tls: Tls) -> Self {
        Self {
            tcp,
            tls: Some(tls),
        }
    }
}

/// Serves until `shutdown` is ready, then ends every connection, within five seconds.
pub async fn serve(
    listener: impl Into<Listener>,
    server: Arc<Server>,
    shutdown: impl Future<Output = ()>,
) {
    let Listener { tcp: listener, tls } = listener.into();
    let mut shutdown = pin!(shutdown);
    server.tasks.spawn(sweep_histories(Arc::clone(&server)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Some(place) = server.place() {
                    prepare(&stream);
                    let connection = connection(stream, tls.clone(), Arc::clone(&server), place);
                    server.tasks.spawn(connection);
                }
            }
            // A client that left while it waited is no concern of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    server.drain.cancel();
    server.tasks.close();
    if timeout(DRAIN_TIMEOUT, server.tasks.wait()).await.is_err() {
        tracing::warn!(connections = server.tasks.len(), "connections were cut off");
    }
}

/// Drops histories that are kept for nobody, also while no request comes.
async fn sweep_histories(server: Arc<Server>) {
    while let Some(due) = server.histories.sweep(server.clock.now().elapsed)
        && let Some(due) = server.clock.instant(due)
    {
        tokio::select! {
            () = sleep_until(due) => {}
            () = server.draining() => return,
        }
    }
}

/// Options that a connection does without if the platform refuses them.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    {
        let _ = socket.set_tcp_user_timeout(Some(STALL_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
    }
}

/// Serves one connection: the handshake of TLS first, if there is to be one.
async fn connection(tcp: TcpStream, tls: Option<Tls>, server: Arc<Server>, mut place: Place) {
    let stream = match tls {
        None => Stream::Plain(tcp.into()),
        Some(tls) => {
            let accepted = tokio::select! {
                accepted = tls.accept(tcp) => accepted,
                () = server.draining() => return,
            };
            match accepted {
                Ok(stream) => stream,
                Err(Insecure::Plain(tcp)) => {
                    place.refusal = Some(Refusal::NotSecure);
                    Stream::Plain(tcp.into())
                }
                Err(Insecure::Failed(error)) => {
                    return tracing::debug!(%error, "TLS handshake failed");
                }
            }
        }
    };
    http_connection(stream, server, place).await;
}

async fn http_connection(stream: Stream, server: Arc<Server>, place: Place) {
    let place = Arc::new(place);
    let is_served = place.refusal().is_none();
    let head_timeout = if is_served {
        HEAD_TIMEOUT
    } else {
        REFUSAL_TIMEOUT
    };
    let service =
        service_fn(|request| http::handle(Arc::clone(&server), Arc::clone(&place), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(is_served)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = server.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection failed");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_gives_up_a_peer_that_takes_nothing_and_queues_little_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        prepare(&stream);
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(STALL_TIMEOUT));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
    }
}
