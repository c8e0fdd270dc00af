//! The Responses protocol without I/O, clock or randomness.
//!
//! One [`session::Session`] is the state machine of one connection: WebSocket, SSE and plain
//! JSON requests all drive the same one. It is fed what happens (messages, engine output,
//! store replies, the time) and answers with [`action::Action`]s for its owner to carry out.
//!
//! What is not here: sockets, engines, stores, logging, threads. Ids and time are arguments.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use turnwire_protocol::action::Action;
//! use turnwire_protocol::engine::{EngineOutput, FinishReason, Usage};
//! use turnwire_protocol::id::IdSource;
//! use turnwire_protocol::limits::Limits;
//! use turnwire_protocol::seal::Transparent;
//! use turnwire_protocol::session::{Now, Session, Transport};
//!
//! struct Ids(u128);
//! impl IdSource for Ids {
//!     fn mint(&mut self) -> u128 {
//!         self.0 += 1;
//!         self.0
//!     }
//! }
//!
//! let now = Now { elapsed: Duration::ZERO, unix_seconds: 1_800_000_000 };
//! let mut ids = Ids(0);
//! let sealer = Arc::new(Transparent);
//! // No permit: nothing of it may be stored.
//! let mut session = Session::new(Transport::WebSocket, Limits::default(), sealer, None, now);
//!
//! let message = r#"{"type":"response.create","model":"m","input":"hi","store":false}"#;
//! session.handle_message(now, &mut ids, message.into());
//! let mut sent = Vec::new();
//! while let Some(action) = session.poll_action() {
//!     match action {
//!         // A real engine says more, and later.
//!         Action::Start { turn, .. } => {
//!             session.handle_output(now, &mut ids, turn, EngineOutput::Started);
//!             let (reason, usage, state) = (FinishReason::Stop, Usage::default(), None);
//!             let finished = EngineOutput::Finished { reason, usage, state };
//!             session.handle_output(now, &mut ids, turn, finished);
//!         }
//!         Action::Send(event) => sent.push(event.name),
//!         _ => {}
//!     }
//! }
//! assert_eq!(sent, ["response.created", "response.in_progress", "response.completed"]);
//! ```

pub mod action;
pub mod chain;
mod compaction;
pub mod conversation;
pub mod create;
pub mod engine;
pub mod event;
pub mod failure;
mod field;
pub mod history;
pub mod id;
mod inject;
pub mod item;
mod json;
pub mod lane;
pub mod limits;
pub mod listing;
mod message;
mod open_item;
mod pending;
pub mod record;
mod reference;
mod response;
pub mod seal;
pub mod session;
pub mod sse;
pub mod standing;
mod steer;
pub mod stored;
pub mod tool;
mod turn;
