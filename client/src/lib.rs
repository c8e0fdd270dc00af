//! A client of Responses WebSocket mode.
//!
//! [`Connection`] is one socket, as it is: messages go out and events come in as JSON. [`Http`] is
//! the same API without a socket.

mod connection;
mod endpoint;
mod error;
mod event;
mod handshake;
mod http;
mod options;
mod socket;
pub mod sse;
mod wire;

pub use bytes::Bytes;
pub use reqwest::header;

pub use connection::Connection;
pub use error::Error;
pub use event::Event;
pub use handshake::Handshake;
pub use http::{Answer, Events, Http};
pub use options::Options;
pub use socket::{Message, Payload};
pub use wire::Traffic;
