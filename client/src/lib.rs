//! A client of Responses WebSocket mode.
//!
//! A [`Session`] is a way to a server that outlives its sockets; its [`Lane`]s are conversations,
//! which take turns at the same time and send only what is new. It reconnects, sends everything
//! again where the server has forgotten, leaves a socket before that becomes too old, and goes
//! over HTTP where a server refuses sockets.
//!
//! ```no_run
//! use turnwire_client::{Create, Error, Session, Settings, TurnEvent, item};
//!
//! # async fn run() -> Result<(), Error> {
//! let session = Session::new("http://127.0.0.1:8080/v1", Settings::default())?;
//! let mut lane = session.lane("planner")?;
//! let create = Create::new("smollm2").instructions("You are terse.");
//!
//! let mut turn = lane.create(create.clone().user("What is a lane?")).await?;
//! while let Some(event) = turn.next().await? {
//!     match event {
//!         TurnEvent::TextDelta { delta, .. } => print!("{delta}"),
//!         TurnEvent::Restarted => println!("\n(once more)"),
//!         _ => {}
//!     }
//! }
//! drop(turn);
//!
//! // Only the new question goes over the wire.
//! let response = lane.create(create.clone().user("And a turn?")).await?.finish().await?;
//! let outputs = response.calls().into_iter().map(|call| {
//!     item::function_output(&call.call_id, "the result")
//! });
//! lane.create(create.items(outputs)).await?.finish().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Below it, [`Connection`] is one socket, as it is: messages go out and events come in as JSON.
//! [`Http`] is the same API without a socket.
//!
//! What the API is made of is read as far as a caller acts on it. All else is passed on as it
//! came: items and members as [`Json`], events as [`TurnEvent::Other`].

mod connection;
mod create;
mod endpoint;
mod error;
mod event;
mod failure;
mod handshake;
mod http;
pub mod item;
mod json;
mod lane;
mod link;
mod mailbox;
mod options;
mod reconnect;
mod response;
mod session;
mod socket;
pub mod sse;
mod turn;
mod turn_event;
mod wire;

pub use bytes::Bytes;
pub use reqwest::header;

pub use connection::Connection;
pub use create::Create;
pub use error::{Error, Remedy};
pub use event::Event;
pub use failure::Failure;
pub use handshake::Handshake;
pub use http::{Answer, Events, Http};
pub use item::Call;
pub use json::Json;
pub use lane::Lane;
pub use options::Options;
pub use reconnect::Backoff;
pub use response::{Response, Status, Usage};
pub use session::{Repeat, Session, Settings, Transport};
pub use socket::{Message, Payload};
pub use turn::Turn;
pub use turn_event::{SteerNotice, TurnEvent};
pub use wire::Traffic;
