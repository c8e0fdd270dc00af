//! Wire: the TCP stream under a WebSocket, shared with the socket that closes it.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One stream in two hands: the codec reads and writes, the socket watches and hangs up.
#[derive(Clone, Debug)]
pub(super) struct Wire(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    stream: TcpStream,
    /// Bytes that the kernel has taken from us.
    taken: AtomicU64,
    /// Bytes that have come from the peer.
    heard: AtomicU64,
}

/// What the codec reads from: first what came together with the handshake.
#[derive(Debug)]
pub(super) struct WireWithRest {
    rest: Bytes,
    wire: Wire,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Ends {
            stream,
            taken: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        }))
    }

    pub(super) fn with_rest(&self, rest: Bytes) -> WireWithRest {
        WireWithRest {
            rest,
            wire: self.clone(),
        }
    }

    /// Rises as the peer takes what it is sent.
    pub(super) fn bytes_taken(&self) -> u64 {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Rises with whatever the peer sends, be it part of a frame.
    pub(super) fn bytes_heard(&self) -> u64 {
        self.0.heard.load(Ordering::Relaxed)
    }

    /// Says that nothing more will be sent, then reads on until the peer is done too.
    ///
    /// A socket closed while there is something to read is reset instead, and the peer may
    /// lose what it was sent last.
    pub(super) async fn hang_up(&self) {
        if SockRef::from(&self.0.stream)
            .shutdown(Shutdown::Write)
            .is_err()
        {
            return;
        }
        let mut discarded = vec![0; 16 << 10];
        while self.0.stream.readable().await.is_ok() {
            match self.0.stream.try_read(&mut discarded) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
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
        let Ends { stream, heard, .. } = &*self.wire.0;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read_buf(buffer) {
                Ok(length) => {
                    heard.fetch_add(length as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for WireWithRest {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Ends { stream, taken, .. } = &*self.wire.0;
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_write(bytes) {
                Ok(length) => {
                    taken.fetch_add(length as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.wire.0.stream).shutdown(Shutdown::Write))
    }
}
