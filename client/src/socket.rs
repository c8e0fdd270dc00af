//! Socket: frames in, messages out, and the other way round. The only file that knows the crate
//! which frames, masks and compresses.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use reqwest::Upgraded;
use yawc::close::CloseCode;
use yawc::streaming::Streaming;
use yawc::{DeflateOptions, Frame, OpCode, Options, Role, WebSocket};

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::handshake::Handshake;
use crate::wire::{Meter, Traffic, Wire};

/// Messages below this go out uncompressed, because they would hardly shrink.
const COMPRESSION_THRESHOLD_BYTES: usize = 256;

/// Bytes of the longest reason that fits into a Close frame.
const REASON_BYTES: usize = 123;

/// What arrives on a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Text(Payload),
    /// A server of Responses WebSocket mode sends none.
    Binary(Payload),
    /// Has been answered already.
    Ping(Bytes),
    Pong(Bytes),
    /// The server's Close frame; without a code if it named none. Nothing follows it.
    Close {
        code: Option<u16>,
        reason: String,
    },
}

/// A message's bytes, put together and inflated. Whether a text is UTF-8 is left to its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    pub bytes: Bytes,
    /// Frames that it came in.
    pub frames: usize,
    /// Bytes of the largest of them, inflated.
    pub largest_frame: usize,
}

pub(crate) struct Socket {
    codec: Streaming<Wire>,
    meter: Arc<Meter>,
    queue: VecDeque<Frame>,
    /// Something was queued that has not left.
    owes: bool,
    /// The message whose frames are coming in, if its first one has.
    assembly: Option<Assembly>,
    limit: usize,
}

struct Assembly {
    binary: bool,
    bytes: BytesMut,
    frames: usize,
    largest_frame: usize,
}

impl Socket {
    pub(crate) fn new(
        stream: Upgraded,
        handshake: &Handshake,
        endpoint: &Endpoint,
    ) -> Result<Self, Error> {
        let limit = endpoint.limit;
        let deflate = DeflateOptions {
            compression_threshold: COMPRESSION_THRESHOLD_BYTES,
            ..DeflateOptions::balanced()
        };
        // The codec refuses what is as large as its limit.
        let frame_limit = limit.saturating_add(1);
        let options = Options {
            compression: endpoint.compression.then_some(deflate),
            ..Options::default().with_limits(frame_limit, frame_limit)
        };
        let (wire, meter) = Wire::new(stream);
        let codec = WebSocket::from_stream_with_extensions(
            wire,
            Role::Client,
            handshake.extensions(),
            options,
        )
        .map_err(|error| Error::WrongHandshake(error.to_string()))?
        .into_streaming();
        Ok(Self {
            codec,
            meter,
            queue: VecDeque::new(),
            owes: false,
            assembly: None,
            limit,
        })
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.meter.read()
    }

    /// Whether something that was queued has not left.
    pub(crate) fn owes(&self) -> bool {
        self.owes
    }

    fn push(&mut self, frame: Frame) {
        self.owes = true;
        self.queue.push_back(frame);
    }

    /// Queues one text message. It leaves as [`Socket::poll_send`] is polled.
    pub(crate) fn queue_text(&mut self, text: Bytes) {
        self.push(Frame::text(text));
    }

    pub(crate) fn queue_binary(&mut self, bytes: Bytes) {
        self.push(Frame::binary(bytes));
    }

    /// Queues a text message as this many frames; the last ones are empty if it is too short.
    pub(crate) fn queue_pieces(&mut self, mut text: Bytes, pieces: usize) {
        let piece = text.len().div_ceil(pieces.max(1));
        for number in 1..=pieces.max(1) {
            let payload = text.split_to(text.len().min(piece));
            let frame = match number {
                1 => Frame::text(payload),
                _ => Frame::continuation(payload),
            };
            self.push(frame.with_fin(number == pieces.max(1)));
        }
    }

    pub(crate) fn queue_ping(&mut self, payload: Bytes) {
        self.push(Frame::ping(payload));
    }

    pub(crate) fn queue_pong(&mut self, payload: Bytes) {
        self.push(Frame::pong(payload));
    }

    /// Queues a Close frame. A reason that is too long for one is cut.
    pub(crate) fn queue_close(&mut self, code: u16, reason: &str) {
        let mut end = reason.len().min(REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        self.push(Frame::close(CloseCode::from(code), &reason[..end]));
    }

    /// Ready when everything that was queued has been handed to the operating system.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let failed = |error| Error::from_codec(error, self.limit);
        loop {
            ready!(self.codec.poll_ready_unpin(cx)).map_err(failed)?;
            let Some(frame) = self.queue.pop_front() else {
                break;
            };
            self.codec.start_send_unpin(frame).map_err(failed)?;
        }
        ready!(self.codec.poll_flush_unpin(cx)).map_err(failed)?;
        self.owes = false;
        Poll::Ready(Ok(()))
    }

    /// The next message. Pings and a Close are answered as this is polled.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Error>> {
        loop {
            let frame = ready!(self.codec.poll_next_frame(cx));
            let frame = frame.map_err(|error| Error::from_codec(error, self.limit))?;
            if let Some(message) = self.take_in(frame)? {
                return Poll::Ready(Ok(message));
            }
        }
    }

    /// Gives out a message with its last frame.
    fn take_in(&mut self, frame: Frame) -> Result<Option<Message>, Error> {
        let close_code = frame.close_code().map(u16::from);
        let reason = frame.close_reason().ok().flatten().map(str::to_owned);
        let (opcode, last, payload) = frame.into_parts();
        match opcode {
            OpCode::Ping => return Ok(Some(Message::Ping(payload))),
            OpCode::Pong => return Ok(Some(Message::Pong(payload))),
            OpCode::Close => {
                return Ok(Some(Message::Close {
                    code: close_code,
                    reason: reason.unwrap_or_default(),
                }));
            }
            OpCode::Text | OpCode::Binary | OpCode::Continuation => {}
        }
        let mut assembly = match (self.assembly.take(), opcode) {
            (Some(assembly), OpCode::Continuation) => assembly,
            (None, OpCode::Text | OpCode::Binary) => Assembly {
                binary: opcode == OpCode::Binary,
                bytes: BytesMut::new(),
                frames: 0,
                largest_frame: 0,
            },
            _ => return Err(Error::BrokenFrames("a frame out of order".to_owned())),
        };
        if assembly.bytes.len() + payload.len() > self.limit {
            return Err(Error::TooLarge { limit: self.limit });
        }
        assembly.frames += 1;
        assembly.largest_frame = assembly.largest_frame.max(payload.len());
        if !last {
            assembly.bytes.extend_from_slice(&payload);
            self.assembly = Some(assembly);
            return Ok(None);
        }
        let bytes = if assembly.frames == 1 {
            payload
        } else {
            assembly.bytes.extend_from_slice(&payload);
            mem::take(&mut assembly.bytes).freeze()
        };
        let payload = Payload {
            bytes,
            frames: assembly.frames,
            largest_frame: assembly.largest_frame,
        };
        Ok(Some(match assembly.binary {
            true => Message::Binary(payload),
            false => Message::Text(payload),
        }))
    }
}
