//! Wire: the stream under a WebSocket, shared with the socket that closes it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::Stream;

/// One stream in two hands: the codec reads and writes, the socket watches and hangs up. Both
/// belong to one task, so that neither ever waits for the other.
#[derive(Clone, Debug)]
pub(super) struct Wire(Arc<Mutex<Stream>>);

/// What the codec reads from: first what came together with the handshake.
#[derive(Debug)]
pub(super) struct WireWithRest {
    rest: Bytes,
    wire: Wire,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    pub(super) fn with_rest(&self, rest: Bytes) -> WireWithRest {
        WireWithRest {
            rest,
            wire: self.clone(),
        }
    }

    /// Rises as the peer takes what it is sent.
    pub(super) fn bytes_taken(&self) -> u64 {
        self.stream().bytes_taken()
    }

    /// Rises with whatever the peer sends, be it part of a frame.
    pub(super) fn bytes_heard(&self) -> u64 {
        self.stream().bytes_heard()
    }

    /// Says that nothing more will be sent, then reads on until the peer is done too.
    ///
    /// A socket closed while there is something to read is reset instead, and the peer may
    /// lose what it was sent last.
    pub(super) async fn hang_up(&self) {
        let mut sent = poll_fn(|cx| self.poll(cx, AsyncWrite::poll_shutdown)).await;
        let mut discarded = vec![0; 16 << 10];
        while sent.is_ok() {
            let mut buffer = ReadBuf::new(&mut discarded);
            sent =
                poll_fn(|cx| self.poll(cx, |stream, cx| stream.poll_read(cx, &mut buffer))).await;
            if buffer.filled().is_empty() {
                return;
            }
        }
    }

    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        step: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        step(Pin::new(&mut *self.stream()), cx)
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for WireWithRest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.rest.is_empty() {
            let length = self.rest.len().min(buffer.remaining());
            buffer.put_slice(&self.rest[..length]);
            self.rest.advance(length);
            return Poll::Ready(Ok(()));
        }
        self.wire
            .poll(cx, |stream, cx| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for WireWithRest {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.wire
            .poll(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll(cx, AsyncWrite::poll_shutdown)
    }
}
