//! The Responses protocol without I/O, clock or randomness.
//!
//! One [`session::Session`] is the state machine of one connection: WebSocket, SSE and plain
//! JSON requests all drive the same one. It is fed what happens (messages, engine output,
//! store replies, the time) and answers with [`action::Action`]s for its owner to carry out.
//!
//! What is not here: sockets, engines, stores, logging, threads. Ids and time are arguments.

pub mod action;
pub mod chain;
pub mod create;
pub mod engine;
pub mod event;
pub mod failure;
mod field;
pub mod id;
pub mod item;
mod json;
mod lane;
pub mod limits;
mod message;
mod open_item;
mod pending;
mod response;
pub mod session;
pub mod sse;
mod steer;
pub mod tool;
mod turn;
