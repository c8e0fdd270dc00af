//! The whole server over real sockets, with the scripted engine behind it.

#![expect(clippy::unwrap_used, reason = "a test ends where something is amiss")]

mod auth;
mod background;
mod binary;
mod chat;
mod check;
mod client;
mod compaction;
mod conversations;
mod conversing;
mod drain;
mod hostile;
mod http;
mod lanes;
mod matching;
mod patience;
mod raw;
mod sealed;
mod steering;
mod stored;
mod support;
mod tls;
mod transports;
mod turns;
mod upstream;
mod zero_retention;
