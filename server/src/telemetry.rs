//! Telemetry: what is logged, and where to.
//!
//! Our own lines hold nothing of what was said. Other crates print frames and headers at their
//! finer levels, so they are capped at `info` whatever `RUST_LOG` says.

use std::env;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Prefix of the targets of all of our crates.
const OURS: &str = "turnwire";

/// What is logged when `RUST_LOG` says nothing. llama.cpp describes a model in 150 lines of
/// `info`, and warns of cells for more than one conversation.
const DEFAULT: &str = "info,llama-cpp-2=error,llama_cpp_2=error";

/// Logs to standard error what `RUST_LOG` names.
pub fn init() {
    let wanted = env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| DEFAULT.to_owned());
    let wanted = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse_lossy(wanted);
    subscriber(wanted, io::stderr).init();
}

fn subscriber<W>(wanted: EnvFilter, writer: W) -> impl Subscriber + SubscriberInitExt
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(writer)
        .with_filter(wanted.and(filter_fn(is_fit_to_print)));
    tracing_subscriber::registry().with(lines)
}

fn is_fit_to_print(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(OURS) || *metadata.level() <= Level::INFO
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn dependencies_are_capped_whatever_is_asked_for() {
        let written = Written::default();
        let writer = written.clone();
        let wanted = EnvFilter::new("trace,yawc=trace,hyper::proto=debug");
        tracing::subscriber::with_default(subscriber(wanted, move || writer.clone()), || {
            tracing::trace!(target: "yawc::native", "secret frame");
            tracing::debug!(target: "hyper::proto::h1", "secret header");
            tracing::debug!(target: "log", "secret record of a crate that uses log");
            tracing::info!(target: "hyper::proto::h1", "plain notice");
            tracing::trace!(target: "turnwire::connection", "own detail");
        });
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(!written.contains("secret"), "{written}");
        assert!(
            written.contains("plain notice") && written.contains("own detail"),
            "{written}"
        );
    }
}
