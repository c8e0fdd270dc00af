//! Relay: a TCP relay that counts, so that bytes are those on the wire, headers and all, and that
//! can hold them back for a while, as a long way does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// What may be on its way in one direction of a connection.
const PIECES: usize = 256;
const PIECE_BYTES: usize = 64 << 10;

/// A relay on loopback. It ends when it is dropped, and its connections with it.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// Listens on a free port and forwards to `target`, a host and a port.
    pub(crate) async fn to(target: String) -> io::Result<Self> {
        Self::with_delay(target, Duration::ZERO).await
    }

    /// Every byte is held back for so long, whichever way it goes.
    pub(crate) async fn with_delay(target: String, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(forward(client, target.clone(), delay, Arc::clone(&count)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            sent,
            task,
        })
    }

    /// Bytes that clients have sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(
    client: TcpStream,
    target: String,
    delay: Duration,
    sent: Arc<AtomicU64>,
) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let count = |bytes: usize| {
        sent.fetch_add(bytes as u64, Ordering::Relaxed);
    };
    tokio::try_join!(
        carry(from_client, to_server, delay, count),
        carry(from_server, to_client, delay, |_| {})
    )?;
    Ok(())
}

/// Carries bytes one way until there are no more.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    count: impl Fn(usize),
) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let read = async move {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = from.read(&mut buffer).await?;
            count(read);
            let piece = (Instant::now() + delay, buffer[..read].to_vec());
            if read == 0 || sender.send(piece).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = receiver.recv().await {
            if !delay.is_zero() {
                sleep_until(due).await;
            }
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write)?;
    Ok(())
}
