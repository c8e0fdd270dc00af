//! A WebSocket client that sends whatever bytes it is told to.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::TestServer;

pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;
/// The bit that ends a message.
pub(crate) const FIN: u8 = 0x80;

pub(crate) struct Raw(Box<dyn Wire>);

/// What bytes can travel on.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

/// Ready when nobody can do anything any more. A paused clock moves when every task waits, and
/// once more for what the sockets bring at that moment, so that one step would not be enough.
pub(crate) async fn standstill() {
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A frame of the server.
pub(crate) struct Frame {
    pub(crate) first_byte: u8,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(server: &TestServer) -> Self {
        Self::over(TcpStream::connect(server.address).await.unwrap())
    }

    pub(crate) fn over(wire: impl Wire + 'static) -> Self {
        Self(Box::new(wire))
    }

    /// Connects and completes the handshake. Little is on its way to this peer while it does not
    /// read: some tens of kilobytes.
    pub(crate) async fn open_narrow(server: &TestServer) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        // A frame is two writes; the second must not wait for an answer to the first.
        socket.set_nodelay(true).unwrap();
        let mut raw = Self::over(socket.connect(server.address).await.unwrap());
        raw.handshake().await;
        raw
    }

    /// Connects and completes the handshake.
    pub(crate) async fn open(server: &TestServer) -> Self {
        let mut raw = Self::connect(server).await;
        raw.handshake().await;
        raw
    }

    pub(crate) async fn handshake(&mut self) {
        self.send(
            b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
              sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
        let head = self.head().await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Sends one masked frame. The mask is all zeros: it has to be there, not to hide anything.
    pub(crate) async fn frame(&mut self, first_byte: u8, payload: &[u8]) {
        self.frame_head(first_byte, payload.len() as u64).await;
        self.send(payload).await;
    }

    /// Sends a frame; false if nobody takes it. Needs a paused clock.
    pub(crate) async fn frame_unless_stuck(&mut self, first_byte: u8, payload: &[u8]) -> bool {
        tokio::select! {
            () = self.frame(first_byte, payload) => true,
            () = standstill() => false,
        }
    }

    /// Announces a masked frame of this length.
    pub(crate) async fn frame_head(&mut self, first_byte: u8, length: u64) {
        let mut head = vec![first_byte];
        match length {
            0..=125 => head.push(0x80 | length as u8),
            126..=0xFFFF => {
                head.push(0x80 | 126);
                head.extend((length as u16).to_be_bytes());
            }
            _ => {
                head.push(0x80 | 127);
                head.extend(length.to_be_bytes());
            }
        }
        head.extend([0; 4]);
        self.send(&head).await;
    }

    /// The head of an HTTP response.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    pub(crate) async fn read(&mut self) -> Frame {
        let first_byte = self.0.read_u8().await.unwrap();
        let length = match self.0.read_u8().await.unwrap() {
            126 => u64::from(self.0.read_u16().await.unwrap()),
            127 => self.0.read_u64().await.unwrap(),
            length => u64::from(length),
        };
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        Frame {
            first_byte,
            payload,
        }
    }

    /// Reads up to the server's Close frame and gives out its code. The end of the connection
    /// has to follow it once it was answered.
    pub(crate) async fn close_code(&mut self) -> u16 {
        loop {
            let frame = self.read().await;
            if frame.first_byte == FIN | CLOSE {
                self.frame(FIN | CLOSE, &frame.payload[..2]).await;
                self.assert_ended().await;
                return u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
            }
        }
    }

    pub(crate) async fn assert_ended(&mut self) {
        let mut rest = Vec::new();
        let ended = self.0.read_to_end(&mut rest).await;
        assert_eq!((ended.unwrap(), rest.len()), (0, 0));
    }

    /// Reads whatever comes, up to the end of the connection.
    pub(crate) async fn broken_off(&mut self) {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest).await;
    }

    /// Nothing more will be sent; what comes can still be read.
    pub(crate) async fn shut_down(&mut self) {
        self.0.shutdown().await.unwrap();
    }
}
