//! The whole server over real sockets, with the scripted engine behind it.

mod auth;
mod drain;
mod hostile;
mod http;
mod patience;
mod raw;
mod support;
mod transports;
mod turns;
