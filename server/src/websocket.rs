//! Socket: a WebSocket as the rest of the server sees it. The only file that knows the crate
//! which frames, masks and compresses.
//!
//! One task owns a socket. Reading and writing go on together in [`Socket::poll_next`], so that
//! neither waits for the other: a peer that writes a large message while it is sent one is not
//! left hanging. Pings are answered by the codec as they are read.

mod handshake;
mod wire;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use yawc::close::CloseCode;
use yawc::streaming::Streaming;
use yawc::{
    CompressionLevel, DeflateOptions, DeflatePool, Frame, OpCode, Options, Role, WebSocket,
    WebSocketError,
};

use crate::stream::Stream;
use wire::{Wire, WireWithRest};

pub(crate) use handshake::{Handshake, NotAWebSocket};

/// Codex refuses frames above 16 MiB, so larger messages go out in pieces.
const MAX_FRAME_BYTES: usize = 8 << 20;

/// Small, because every idle connection holds both. They grow with a large message and shrink
/// again behind it.
const BUFFER_BYTES: usize = 256;

/// Bytes of small messages that leave in one write, so that a stream of tokens is not a system
/// call for each. The codec gathers as much before it writes, and keeps a buffer of this size.
const BATCH_BYTES: usize = 8 << 10;

/// Messages below this go out uncompressed: a token's event gains nothing.
const COMPRESSION_THRESHOLD_BYTES: usize = 1 << 10;

/// Messages and Pings that are read beyond what the peer takes of what it is owed. Each makes
/// at least one answer, so that reading has to end for a peer that does not read. It ends sooner
/// where answers are large: some repeat what they answer.
const READ_AHEAD: usize = 64;

/// How long closing may take: first to send what is queued, then to see the peer's answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// What all sockets of a server share.
#[derive(Debug)]
pub(crate) struct SocketSettings {
    message_limit: usize,
    options: Options,
}

pub(crate) struct Socket {
    codec: Streaming<WireWithRest>,
    wire: Wire,
    message_limit: usize,
    message: Assembly,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    /// What was queued since everything was handed over: messages, and their bytes.
    batch: usize,
    batch_bytes: usize,
    /// Messages and Pings read, less the messages handed over since.
    read_ahead: usize,
    sent_all: bool,
}

/// What arrives on a socket.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A whole message, text or binary, that is valid UTF-8.
    Message(Bytes),
    /// A message beyond the limit; what was kept of it is gone.
    Oversized,
    /// A message that is not UTF-8.
    NotUtf8,
    /// The peer closes, or broke the rules of framing: the codec has its Close frame ready.
    Closing,
    /// The connection broke.
    Lost,
}

/// The frames of a message so far.
#[derive(Debug)]
enum Assembly {
    Between,
    Within(BytesMut),
    /// Beyond the limit already; the rest is skipped.
    Oversized,
}

impl SocketSettings {
    /// Messages above `message_limit` are reported as oversized. The codec holds one frame in
    /// memory before it can be looked at, so frames of more than twice the limit close the
    /// connection with 1009.
    pub(crate) fn new(message_limit: usize) -> Self {
        let frame_limit = message_limit.saturating_mul(2).saturating_add(1);
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let deflate = DeflateOptions {
            level: CompressionLevel::fast(),
            server_no_context_takeover: true,
            client_no_context_takeover: true,
            compression_threshold: COMPRESSION_THRESHOLD_BYTES,
            pool: Some(DeflatePool::new(2 * workers)),
            ..DeflateOptions::default()
        };
        let options = Options {
            compression: Some(deflate),
            ..Options::default()
                .with_limits(frame_limit, frame_limit)
                .with_read_buffer_capacity(BUFFER_BYTES)
                .with_write_buffer_capacity(BUFFER_BYTES)
                .with_backpressure_boundary(BATCH_BYTES)
        };
        Self {
            message_limit,
            options,
        }
    }
}

impl Socket {
    /// Takes over a connection whose handshake has been answered.
    pub(crate) fn open(
        upgraded: Upgraded,
        handshake: &Handshake,
        settings: &Arc<SocketSettings>,
    ) -> Self {
        let parts = upgraded.downcast::<TokioIo<Stream>>();
        let parts = parts.expect("every connection is served on a stream of ours");
        let wire = Wire::new(parts.io.into_inner());
        // A copy, as a rule of nothing: the bytes themselves hold the buffer of the HTTP connection.
        let rest = Bytes::copy_from_slice(&parts.read_buf);
        let codec = WebSocket::from_stream_with_extensions(
            wire.with_rest(rest),
            Role::Server,
            handshake.extensions.as_deref(),
            settings.options.clone(),
        );
        Self {
            codec: codec
                .expect("compression is configured if it was agreed on")
                .into_streaming(),
            wire,
            message_limit: settings.message_limit,
            message: Assembly::Between,
            queue: VecDeque::new(),
            queued_bytes: 0,
            batch: 0,
            batch_bytes: 0,
            read_ahead: 0,
            sent_all: true,
        }
    }

    /// Whether a message of so many bytes would wait for nothing: what was queued before has been
    /// handed over, or leaves in one write with this.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        self.batch == 0 || self.batch_bytes + bytes <= BATCH_BYTES
    }

    /// Queues one text message. It leaves as [`Socket::poll_next`] is polled.
    pub(crate) fn queue(&mut self, mut text: Bytes) {
        self.sent_all = false;
        self.queued_bytes += text.len();
        self.batch += 1;
        self.batch_bytes += text.len();
        let first = text.split_to(text.len().min(MAX_FRAME_BYTES));
        self.queue
            .push_back(Frame::text(first).with_fin(text.is_empty()));
        while !text.is_empty() {
            let next = text.split_to(text.len().min(MAX_FRAME_BYTES));
            self.queue
                .push_back(Frame::continuation(next).with_fin(text.is_empty()));
        }
    }

    /// Queues a Ping, unless the peer is behind with what it was sent before.
    pub(crate) fn ping(&mut self) {
        if self.sent_all {
            self.queue.push_back(Frame::ping(""));
        }
    }

    /// Whether something waits for the peer to take it.
    pub(crate) fn owes(&self) -> bool {
        !self.sent_all
    }

    /// Rises as the peer takes what it is sent.
    pub(crate) fn bytes_taken(&self) -> u64 {
        self.wire.bytes_taken()
    }

    /// Rises with whatever the peer sends, be it a Pong or a part of a large frame.
    pub(crate) fn bytes_heard(&self) -> u64 {
        self.wire.bytes_heard()
    }

    /// Sends what is queued as far as the peer takes it, and reads what has come. `waiting_bytes`
    /// are those of messages for the peer that are still to be queued.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        waiting_bytes: usize,
    ) -> Poll<Incoming> {
        match self.poll_send(cx) {
            Poll::Ready(Ok(())) if waiting_bytes == 0 => self.read_ahead = 0,
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Incoming::Lost),
        }
        let owed_bytes = self.queued_bytes + waiting_bytes;
        while self.read_ahead < READ_AHEAD && owed_bytes / 2 <= self.message_limit {
            let frame = match ready!(self.codec.poll_next_frame(cx)) {
                Ok(frame) => frame,
                Err(WebSocketError::ConnectionClosed | WebSocketError::IoError(_)) => {
                    return Poll::Ready(Incoming::Lost);
                }
                Err(_) => return Poll::Ready(Incoming::Closing),
            };
            match frame.opcode() {
                OpCode::Close => return Poll::Ready(Incoming::Closing),
                OpCode::Ping => self.read_ahead += 1,
                OpCode::Pong => {}
                OpCode::Text | OpCode::Binary | OpCode::Continuation => {
                    if let Some(incoming) = self.take_in(frame) {
                        self.read_ahead += 1;
                        return Poll::Ready(incoming);
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Ready when nothing is owed to the peer any more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WebSocketError>> {
        self.sent_all = false;
        loop {
            ready!(self.codec.poll_ready_unpin(cx))?;
            let Some(frame) = self.queue.pop_front() else {
                break;
            };
            if !frame.opcode().is_control() {
                self.queued_bytes -= frame.payload().len();
            }
            self.codec.start_send_unpin(frame)?;
        }
        ready!(self.codec.poll_flush_unpin(cx))?;
        self.sent_all = true;
        self.read_ahead = self.read_ahead.saturating_sub(self.batch);
        (self.batch, self.batch_bytes) = (0, 0);
        Poll::Ready(Ok(()))
    }

    /// Adds a data frame to its message; gives out the message with its last frame.
    fn take_in(&mut self, frame: Frame) -> Option<Incoming> {
        let (opcode, last, payload) = frame.into_parts();
        let begins = opcode != OpCode::Continuation;
        let so_far = match (mem::replace(&mut self.message, Assembly::Between), begins) {
            (Assembly::Between, true) => Some(BytesMut::new()),
            (Assembly::Within(bytes), false) => Some(bytes),
            (Assembly::Oversized, false) => None,
            _ => {
                self.break_off(CloseCode::Protocol, "a frame out of order");
                return Some(Incoming::Closing);
            }
        };
        let room = |bytes: &BytesMut| bytes.len() + payload.len() <= self.message_limit;
        let whole = match so_far.filter(room) {
            None if last => return Some(Incoming::Oversized),
            None => {
                self.message = Assembly::Oversized;
                return None;
            }
            // A copy: the items of a chain keep their message alive, and the codec's buffer is
            // up to twice as large as what it holds.
            Some(bytes) if last && bytes.is_empty() => Bytes::copy_from_slice(&payload),
            Some(mut bytes) => {
                bytes.extend_from_slice(&payload);
                if !last {
                    self.message = Assembly::Within(bytes);
                    return None;
                }
                Bytes::copy_from_slice(&bytes)
            }
        };
        Some(match std::str::from_utf8(&whole) {
            Ok(_) => Incoming::Message(whole),
            Err(_) => Incoming::NotUtf8,
        })
    }

    /// Drops what is queued and queues a Close frame instead.
    fn break_off(&mut self, code: CloseCode, reason: &str) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.queue.push_back(Frame::close(code, reason));
    }

    /// Sends what is queued and a Close frame, waits for the peer's, and hangs up.
    ///
    /// The wait matters: a client that inflates in the background loses the last message if
    /// the connection ends right behind it.
    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        self.queue.push_back(Frame::close(code.into(), reason));
        let sent = timeout(CLOSE_PATIENCE, poll_fn(|cx| self.poll_send(cx))).await;
        if matches!(sent, Ok(Ok(()))) {
            let answered = async { while !self.sees_close().await {} };
            let _ = timeout(CLOSE_PATIENCE, answered).await;
        }
        self.hang_up().await;
    }

    /// Reads one frame and drops it; true if no more will come.
    async fn sees_close(&mut self) -> bool {
        let frame = poll_fn(|cx| self.codec.poll_next_frame(cx)).await;
        frame.map_or(true, |frame| frame.opcode() == OpCode::Close)
    }

    /// After [`Incoming::Closing`]: sends the Close frame that is ready, and hangs up.
    pub(crate) async fn finish(&mut self) {
        // Nothing but that frame may be sent any more.
        self.queue.retain(|frame| frame.opcode() == OpCode::Close);
        let _ = timeout(CLOSE_PATIENCE, poll_fn(|cx| self.poll_send(cx))).await;
        self.hang_up().await;
    }

    async fn hang_up(&self) {
        let _ = timeout(CLOSE_PATIENCE, self.wire.hang_up()).await;
    }
}
