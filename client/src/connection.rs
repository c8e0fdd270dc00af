//! Connection: one socket, as it is. What reconnects and continues is a
//! [`Session`](crate::Session).

use std::fmt;
use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::event::Event;
use crate::handshake::{Handshake, shake_hands};
use crate::options::Options;
use crate::socket::{Message, Socket};
use crate::wire::Traffic;

/// How long closing waits, first for what is queued to be sent, then for the server's answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// A connection to `responses`, used from one task.
///
/// Messages go out and events come in as the JSON they are. Pings are answered while something
/// is awaited. Dropping it ends the TCP connection without a Close frame.
pub struct Connection {
    pub(crate) socket: Socket,
    handshake: Handshake,
}

impl Connection {
    /// `url` is the base address of the API, `ws://127.0.0.1:8080/v1` or with `http`, `https` or
    /// `wss`.
    pub async fn open(url: &str, key: Option<&str>) -> Result<Self, Error> {
        let options = Options::new();
        let options = match key {
            Some(key) => options.key(key),
            None => options,
        };
        Self::open_with(url, &options).await
    }

    /// A query string of `url` is kept: `…/v1?x=y` opens `…/v1/responses?x=y`.
    pub async fn open_with(url: &str, options: &Options) -> Result<Self, Error> {
        Self::open_at(&Endpoint::new(url, options)?).await
    }

    pub(crate) async fn open_at(endpoint: &Endpoint) -> Result<Self, Error> {
        // Boxed: an HTTP client's future is large, and everything that opens would carry it.
        let (stream, handshake) = Box::pin(shake_hands(endpoint)).await?;
        let socket = Socket::new(stream, &handshake, endpoint)?;
        Ok(Self { socket, handshake })
    }

    /// What the server answered to the handshake.
    pub fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// What went over the wire so far.
    pub fn traffic(&self) -> Traffic {
        self.socket.traffic()
    }

    /// Sends one JSON message, as one text frame.
    pub async fn send(&mut self, json: impl Into<Bytes>) -> Result<(), Error> {
        self.send_text_unchecked(json).await
    }

    /// Sends one text message, whatever its bytes are.
    pub async fn send_text_unchecked(&mut self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        self.socket.queue_text(bytes.into());
        self.flush().await
    }

    /// Sends one binary message.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        self.socket.queue_binary(bytes.into());
        self.flush().await
    }

    /// Sends one JSON message in this many frames of about the same size, cut without regard to
    /// characters.
    pub async fn send_in_frames(
        &mut self,
        json: impl Into<Bytes>,
        frames: usize,
    ) -> Result<(), Error> {
        self.socket.queue_pieces(json.into(), frames);
        self.flush().await
    }

    /// Sends a Ping, of at most 125 bytes. The server's Pong comes as a [`Message`].
    pub async fn ping(&mut self, payload: impl Into<Bytes>) -> Result<(), Error> {
        self.socket.queue_ping(payload.into());
        self.flush().await
    }

    /// Sends a Pong that nobody asked for, of at most 125 bytes.
    pub async fn pong(&mut self, payload: impl Into<Bytes>) -> Result<(), Error> {
        self.socket.queue_pong(payload.into());
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.socket.poll_send(cx)).await
    }

    /// The next message of any kind. After [`Message::Close`] there is only
    /// [`Error::Closed`].
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn next_message(&mut self) -> Result<Message, Error> {
        let message = poll_fn(|cx| self.socket.poll_message(cx)).await?;
        if let Message::Close { .. } = message {
            self.answer_close().await;
        }
        Ok(message)
    }

    /// Sends our own Close frame, which reading on does. A peer that takes nothing does not get
    /// it.
    pub(crate) async fn answer_close(&mut self) {
        let answered = poll_fn(|cx| self.socket.poll_message(cx));
        let _ = timeout(CLOSE_PATIENCE, answered).await;
    }

    /// The next event; Pings and Pongs are passed over.
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            match self.next_message().await? {
                Message::Text(payload) | Message::Binary(payload) => {
                    return Event::read(payload.bytes);
                }
                Message::Close { code, reason } => return Err(Error::Closed { code, reason }),
                Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    }

    /// Says goodbye with code 1000, and waits until the server has done so too.
    pub async fn close(self) -> Result<(), Error> {
        self.close_with(1000, "").await
    }

    /// Says goodbye with this code, and waits until the server has done so too: two seconds at
    /// most, and what still arrives is dropped. A reason of more than 123 bytes is cut.
    pub async fn close_with(mut self, code: u16, reason: &str) -> Result<(), Error> {
        self.socket.queue_close(code, reason);
        match timeout(CLOSE_PATIENCE, self.flush()).await {
            Ok(sent) => sent?,
            Err(_) => return Ok(()),
        }
        let answered = async {
            loop {
                match poll_fn(|cx| self.socket.poll_message(cx)).await {
                    Ok(Message::Close { .. }) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        let _ = timeout(CLOSE_PATIENCE, answered).await;
        Ok(())
    }

    /// Sends a Close frame and nothing after it. The server's own can be awaited with
    /// [`Connection::next_message`].
    pub async fn send_close(&mut self, code: u16, reason: &str) -> Result<(), Error> {
        self.socket.queue_close(code, reason);
        self.flush().await
    }

    /// Ends the TCP connection without a word, as a process that is killed does.
    pub fn abort(self) {}
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("handshake", &self.handshake)
            .finish_non_exhaustive()
    }
}
