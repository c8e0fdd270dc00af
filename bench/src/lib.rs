//! Benchmarks that run against any server of Responses WebSocket mode, ours or another's.
//!
//! Every figure is a ratio to a control in the same run, and the sides take turns, so that a
//! noisy machine troubles both. They need nothing but a URL: what a server did is read from
//! its `usage`, what crossed the wire is counted by a relay in between.

mod agent;
mod chain;
mod lanes;
mod relay;
mod storing;
mod target;
mod transport;
mod transports;

use clap::Subcommand;

/// A benchmark and its settings.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// One agent loop over WebSocket and three ways of HTTP: time, bytes sent, tokens prefilled
    Transports(transports::Args),
    /// One chain over one socket: the time of a turn as the chain grows
    Chain(chain::Args),
    /// Many lanes on one socket against as many sockets: turns per second
    Lanes(lanes::Args),
    /// Turns that are stored against turns that are not, some milliseconds away from the server
    Storing(storing::Args),
}

impl Bench {
    /// Runs the benchmark and prints its table.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Transports(args) => transports::run(args).await,
            Self::Chain(args) => chain::run(args).await,
            Self::Lanes(args) => lanes::run(args).await,
            Self::Storing(args) => storing::run(args).await,
        }
    }
}
