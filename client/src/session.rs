//! Session: a way to a server that outlives its sockets.

use std::collections::HashSet;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::http::Http;
use crate::lane::Lane;
use crate::link::Link;
use crate::options::Options;
use crate::reconnect::Backoff;

/// How a session uses its connections.
#[derive(Clone, Debug)]
pub struct Settings {
    pub options: Options,
    pub transport: Transport,
    /// Age at which a socket takes no more turns: 55 minutes, because servers end them at 60.
    /// None lets it come to that.
    pub rotate_after: Option<Duration>,
    pub reconnect: Backoff,
    pub repeat: Repeat,
    /// Bytes of events of one turn that wait for their reader: 4 MiB, or one event that is
    /// larger. When there are that many, nothing more is read from the socket, for any lane,
    /// until the reader takes some. So whoever reads turns of several lanes reads them at the
    /// same time, not one after the other.
    pub buffered_bytes: usize,
}

/// How turns travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// On a socket. Where a server refuses that with status 426, over HTTP.
    #[default]
    Socket,
    /// Each as a POST that is answered by a stream of events.
    Http,
}

/// Whether a turn whose connection was lost is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repeat {
    Never,
    /// If nothing that the model said has been given out yet.
    #[default]
    BeforeOutput,
    /// Whatever was given out; [`TurnEvent::Restarted`](crate::TurnEvent::Restarted) says that it
    /// is void.
    Always,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            options: Options::new(),
            transport: Transport::default(),
            rotate_after: Some(Duration::from_secs(55 * 60)),
            reconnect: Backoff::default(),
            repeat: Repeat::default(),
            buffered_bytes: 4 << 20,
        }
    }
}

/// A way to a server, on which any number of [`Lane`]s take turns at the same time.
///
/// It connects when the first turn is sent. All lanes share one socket, or two for a while: when
/// one has become old, new turns go to a new one, and the old one closes when its last turn has
/// ended. A clone is the same session.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    settings: Settings,
    /// Held while connecting, so that lanes that lost one socket do not open several.
    state: Mutex<State>,
    /// The lanes that exist.
    lanes: StdMutex<HashSet<Option<String>>>,
}

#[derive(Debug)]
struct State {
    link: Option<Arc<Link>>,
    /// Turns go over HTTP, for good.
    http: bool,
    /// Sockets opened so far.
    opened: u64,
}

/// How the next turn travels.
pub(crate) enum Way {
    Socket(Arc<Link>),
    Http,
}

impl Session {
    /// `url` is the base address of the API, which includes `/v1`.
    pub fn new(url: &str, settings: Settings) -> Result<Self, Error> {
        let state = State {
            link: None,
            http: settings.transport == Transport::Http,
            opened: 0,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                endpoint: Endpoint::new(url, &settings.options)?,
                settings,
                state: Mutex::new(state),
                lanes: StdMutex::default(),
            }),
        })
    }

    /// The lane without a name.
    ///
    /// # Errors
    ///
    /// [`Error::LaneTaken`] while it exists already.
    pub fn default_lane(&self) -> Result<Lane, Error> {
        self.take_lane(None)
    }

    /// The lane of this name, which has 1 to 256 characters out of ASCII letters, digits, `_`,
    /// `-` and `.`. Where a server allows no further name on a socket, usually after 32, another
    /// socket is opened.
    ///
    /// # Errors
    ///
    /// [`Error::LaneTaken`] while it exists already, and [`Error::InvalidOption`] for another
    /// name.
    pub fn lane(&self, name: &str) -> Result<Lane, Error> {
        let fits = (1..=256).contains(&name.len());
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if !fits || !name.bytes().all(known) {
            return Err(Error::InvalidOption {
                option: "lane name".to_owned(),
                problem: "use 1 to 256 ASCII letters, digits, `_`, `-` and `.`".to_owned(),
            });
        }
        self.take_lane(Some(name.to_owned()))
    }

    fn take_lane(&self, name: Option<String>) -> Result<Lane, Error> {
        let mut lanes = self
            .inner
            .lanes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !lanes.insert(name.clone()) {
            return Err(Error::LaneTaken { name });
        }
        Ok(Lane::new(self.clone(), name))
    }

    pub(crate) fn give_back_lane(&self, name: &Option<String>) {
        let mut lanes = self
            .inner
            .lanes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lanes.remove(name);
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Connects if there is no connection, which the first turn does otherwise.
    pub async fn connect(&self) -> Result<(), Error> {
        self.way(0).await.map(drop)
    }

    /// Whether turns go over HTTP, by choice or because the server refused the socket.
    pub async fn is_http(&self) -> bool {
        self.inner.state.lock().await.http
    }

    /// Closes the socket, with a Close frame if no turn runs on it. The next turn opens another.
    pub async fn close(&self) {
        let link = self.inner.state.lock().await.link.take();
        if let Some(link) = link {
            link.close().await;
        }
    }

    pub(crate) fn http(&self) -> Http {
        Http::at(self.inner.endpoint.clone())
    }

    /// The way for the next turn, connecting if need be. `losses` counts the connections that the
    /// turn has lost before.
    pub(crate) async fn way(&self, losses: u32) -> Result<Way, Error> {
        let Inner {
            endpoint, settings, ..
        } = &*self.inner;
        let mut state = self.inner.state.lock().await;
        if state.http {
            return Ok(Way::Http);
        }
        if let Some(link) = &state.link
            && link.takes_turns(settings.rotate_after)
        {
            return Ok(Way::Socket(Arc::clone(link)));
        }
        let lost = state.link.take().and_then(|link| link.loss().cloned());
        let mut failed = losses.saturating_sub(1);
        // A turn that begins need not wait for what was lost before it.
        if let Some(lost) = lost.filter(|_| losses > 0) {
            self.pause(failed, lost).await?;
            failed += 1;
        }
        let connection = loop {
            match Connection::open_at(endpoint).await {
                Ok(connection) => break connection,
                Err(Error::Refused { status: 426, .. }) => {
                    state.http = true;
                    return Ok(Way::Http);
                }
                // Where there has never been a server, there is none to wait for.
                Err(error @ Error::Unreachable { .. }) if state.opened == 0 => return Err(error),
                Err(error) => self.pause(failed, error).await?,
            }
            failed += 1;
        };
        state.opened += 1;
        let link = Arc::new(Link::over(connection, state.opened));
        state.link = Some(Arc::clone(&link));
        Ok(Way::Socket(link))
    }

    /// Waits before another try, or gives out the error if there shall be none.
    pub(crate) async fn pause(&self, failed: u32, error: Error) -> Result<(), Error> {
        let backoff = &self.settings().reconnect;
        match backoff.pause(failed, &error, fastrand::f64()) {
            Some(pause) => sleep(pause).await,
            None => return Err(error),
        }
        Ok(())
    }
}
