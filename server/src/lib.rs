//! See ARCHITECTURE.md.

pub mod auth;
mod background;
pub mod cli;
mod clock;
mod connection;
mod core_dumps;
mod data_directory;
pub mod engine;
mod exchange;
pub mod histories;
mod http;
mod locks;
pub mod model_files;
mod quantity;
mod runner;
pub mod secret;
pub mod serve;
pub mod start;
pub mod store;
mod stream;
pub mod telemetry;
pub mod tls;
mod websocket;
