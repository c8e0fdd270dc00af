//! The command line. Every flag of `serve` that is worth setting once can also be set by an
//! environment variable.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};
use turnwire_bench::Bench;
use turnwire_protocol::limits::Limits;

use crate::engine::spec::EngineSpec;
use crate::quantity;
use crate::serve::Capacity;
use crate::store::{Retention, StoreSpec};

/// Responses WebSocket mode for any model.
#[derive(Debug, Parser)]
#[command(name = "turnwire", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer /v1/responses, over WebSocket and HTTP
    Serve(Box<ServeArgs>),
    /// Measure a server, this one or another
    #[command(subcommand)]
    Bench(Bench),
    Check(Box<turnwire_check::Args>),
    /// Print the version
    Version,
}

#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Address to listen on; addresses other than loopback need --api-key-file or --no-auth
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "TURNWIRE_LISTEN",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,

    /// What serves a model: llama:NAME, llama:PATH, llama:hf:OWNER/REPO[:FILE], chat:URL (all
    /// models of a /v1/chat/completions server) or scripted[:FILE]; NAME= in front gives the model
    /// its name; may be repeated
    #[arg(long = "engine", value_name = "[NAME=]SPEC", env = "TURNWIRE_ENGINE")]
    pub engines: Vec<EngineSpec>,

    /// Where stored responses live: sqlite[:PATH], a database that is made if it is not there, in
    /// the user's data directory without PATH; postgres://USER@HOST/NAME, a database that several
    /// servers can share; or memory[:BYTES], which ends with the server, and of which the oldest go
    /// above BYTES, 1GiB by default
    #[arg(
        long,
        value_name = "SPEC",
        env = "TURNWIRE_STORE",
        default_value = "sqlite"
    )]
    pub store: StoreSpec,

    /// How long stored responses are kept, and conversations that are not used; 0 for ever
    #[arg(
        long,
        value_name = "TIME",
        env = "TURNWIRE_RETAIN_FOR",
        value_parser = quantity::duration,
        default_value = "30d"
    )]
    retain_for: Duration,

    /// Bytes that the database may have; the oldest responses and conversations go above them
    /// [default: as many as there are]
    #[arg(
        long,
        value_name = "BYTES",
        env = "TURNWIRE_RETAIN_BYTES",
        value_parser = quantity::bytes
    )]
    retain_bytes: Option<u64>,

    /// Keep nothing of what is said: every request is treated as one with `store: false`, there is
    /// no store (whatever --store says), and a crash leaves no core dump
    #[arg(
        long,
        env = "TURNWIRE_ZERO_RETENTION",
        value_parser = FalseyValueParser::new()
    )]
    pub zero_retention: bool,

    /// File of API keys, one per line; each owns the responses it creates
    #[arg(
        long,
        value_name = "FILE",
        env = "TURNWIRE_API_KEY_FILE",
        conflicts_with = "no_auth"
    )]
    pub api_key_file: Option<PathBuf>,

    /// File of the keys that seal what clients keep for the server, such as compaction items;
    /// made if it is not there; servers that share it read each other's [default: in the user's
    /// data directory]
    #[arg(long, value_name = "FILE", env = "TURNWIRE_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,

    /// Serve HTTPS and wss:// only, with this certificate: PEM, the server's own first, then those
    /// that lead to its root
    #[arg(
        long,
        value_name = "FILE",
        env = "TURNWIRE_TLS_CERT",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert: PEM, unencrypted
    #[arg(
        long,
        value_name = "FILE",
        env = "TURNWIRE_TLS_KEY",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Serve everyone who can connect, on any address
    #[arg(long)]
    pub no_auth: bool,

    /// File with the API key for the servers named by --engine chat:URL
    #[arg(long, value_name = "FILE", env = "TURNWIRE_UPSTREAM_KEY_FILE")]
    pub upstream_key_file: Option<PathBuf>,

    #[command(flatten)]
    pub histories: HistoryArgs,

    #[command(flatten)]
    pub limits: LimitArgs,

    #[cfg(feature = "engine-llama")]
    #[command(flatten)]
    pub local: LocalArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Full histories over HTTP")]
pub struct HistoryArgs {
    /// Continue nothing that a request over HTTP does not name, even where it brings a whole
    /// history that is known; so it is with --zero-retention
    #[arg(
        long,
        env = "TURNWIRE_NO_HISTORY_MATCHING",
        value_parser = FalseyValueParser::new()
    )]
    pub no_history_matching: bool,

    /// Bytes of memory for histories that requests may bring again; the oldest go above that
    #[arg(long, value_name = "BYTES", env = "TURNWIRE_HISTORY_BYTES", value_parser = quantity::bytes, default_value = "256MiB")]
    pub history_bytes: u64,

    /// How long a history is kept that nobody brings again
    #[arg(long, value_name = "TIME", env = "TURNWIRE_HISTORY_IDLE", value_parser = quantity::duration, default_value = "5m")]
    pub history_idle: Duration,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at once; more are answered 503
    #[arg(long, value_name = "COUNT", default_value = "10000")]
    pub max_connections: NonZeroUsize,

    /// Responses made in the background at once; more are refused
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    max_background: usize,

    /// Bytes of one message or request body
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes, default_value = "64MiB")]
    max_message_bytes: u64,

    /// Bytes of memory for the history of one conversation; more is refused
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes, default_value = "256MiB")]
    max_chain_bytes: u64,

    /// Age at which a WebSocket connection is closed; 0 for no limit
    #[arg(long, value_name = "TIME", value_parser = quantity::duration, default_value = "60m")]
    connection_age: Duration,

    /// What turns that run at that age still get
    #[arg(long, value_name = "TIME", value_parser = quantity::duration, default_value = "5m")]
    age_grace: Duration,

    /// How long a running response may send nothing before an event that says it still runs;
    /// 0 for never
    #[arg(long, value_name = "TIME", value_parser = quantity::duration, default_value = "15s")]
    keep_alive: Duration,

    /// Responses running at once on one connection; more wait
    #[arg(long, value_name = "COUNT", default_value = "16")]
    max_running: NonZeroUsize,

    /// Responses waiting on one connection; more are refused
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    max_queued: usize,

    /// Steers waiting for one response to end; more are refused
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    max_steers: usize,

    /// Bytes of the messages waiting on one connection; more are refused
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes, default_value = "256MiB")]
    max_queued_bytes: u64,

    /// Distinct stream_ids of one connection
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    max_lanes: usize,

    /// Tools offered in one request, those of earlier requests included; more are refused
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    max_tools: usize,

    /// Refuse unknown members of a request instead of ignoring them
    #[arg(long)]
    strict: bool,
}

#[cfg(feature = "engine-llama")]
#[derive(Args, Debug)]
#[command(next_help_heading = "Embedded engine")]
pub struct LocalArgs {
    /// Threads that compute [default: one less than cores]
    #[arg(long, value_name = "COUNT", env = "TURNWIRE_THREADS")]
    pub threads: Option<u32>,

    /// Tokens of all conversations kept ready at once [default: by memory]
    #[arg(long, value_name = "TOKENS", env = "TURNWIRE_KV_CELLS")]
    pub kv_cells: Option<u32>,

    /// Memory for conversations that are not ready but can be taken up again without computing
    /// [default: a quarter of memory]
    #[arg(long, value_name = "BYTES", env = "TURNWIRE_KV_RAM", value_parser = quantity::bytes)]
    pub kv_ram: Option<u64>,
}

impl ServeArgs {
    pub fn retention(&self) -> Retention {
        Retention {
            age: Some(self.retain_for).filter(|age| !age.is_zero()),
            bytes: self.retain_bytes,
        }
    }
}

impl LimitArgs {
    pub fn capacity(&self) -> Capacity {
        Capacity {
            connections: self.max_connections.get(),
            background: self.max_background,
        }
    }

    pub fn limits(&self) -> Limits {
        Limits {
            connection_age: Some(self.connection_age).filter(|age| !age.is_zero()),
            age_grace: self.age_grace,
            keep_alive: Some(self.keep_alive).filter(|interval| !interval.is_zero()),
            running_responses: self.max_running.get(),
            lane_names: self.max_lanes,
            queued_creates: self.max_queued,
            pending_steers: self.max_steers,
            queued_bytes: usize::try_from(self.max_queued_bytes).unwrap_or(usize::MAX),
            message_bytes: usize::try_from(self.max_message_bytes).unwrap_or(usize::MAX),
            chain_bytes: self.max_chain_bytes,
            tools: self.max_tools,
            strict: self.strict,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn serve(flags: &[&str]) -> Result<ServeArgs, clap::Error> {
        let words = ["turnwire", "serve"].iter().chain(flags);
        match Cli::try_parse_from(words)?.command {
            Command::Serve(args) => Ok(*args),
            other => unreachable!("the words say serve, not {other:?}"),
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_those_of_the_protocol() {
        let args = serve(&[]).unwrap();
        assert_eq!(
            format!("{:?}", args.limits.limits()),
            format!("{:?}", Limits::default())
        );
        assert!(args.listen.ip().is_loopback());
        assert_eq!(args.store, "sqlite".parse().unwrap());
    }

    #[test]
    fn limits_can_be_set_and_lifted() {
        let lifted = ["--connection-age", "0", "--keep-alive", "0"];
        let args = serve(&[&lifted[..], &["--max-message-bytes", "1MiB"]].concat()).unwrap();
        let limits = args.limits.limits();
        assert_eq!((limits.connection_age, limits.keep_alive), (None, None));
        assert_eq!(limits.message_bytes, 1 << 20);
    }

    #[test]
    fn a_wrong_flag_is_a_usage_error_that_names_it() {
        for (flags, named) in [
            (["--store", "mysql:x"], "memory:BYTES"),
            (["--store", "memory:0"], "--store"),
            (["--engine", "vllm:x"], "--engine"),
            (["--connection-age", "1w"], "--connection-age"),
            (["--listen", "8080"], "--listen"),
            (["--max-running", "0"], "--max-running"),
            (["--tls-cert", "cert.pem"], "--tls-key"),
            (["--tls-key", "key.pem"], "--tls-cert"),
        ] {
            let error = serve(&flags).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
