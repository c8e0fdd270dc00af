//! Telemetry: what is logged, and where to.
//!
//! Our own lines hold nothing of what was said. Other crates print frames and headers at their
//! finer levels, so they are capped at `info` whatever `RUST_LOG` says. What a panic says may
//! quote a client, so it is told by its place alone.

use std::env;
use std::io::{self, IsTerminal};
use std::panic::{self, PanicHookInfo};

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

/// Logs to standard error what `RUST_LOG` names, and every panic by its place.
pub fn init() {
    let wanted = env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| DEFAULT.to_owned());
    let wanted = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse_lossy(wanted);
    subscriber(wanted, io::stderr).init();
    panic::set_hook(Box::new(log_panic));
}

/// The message of a panic stays out of the log: a string that is cut in the middle of a character
/// prints itself, and a failed comparison what it compared.
fn log_panic(panic: &PanicHookInfo<'_>) {
    tracing::error!(place = panic.location().map(display), "panicked");
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
    use std::thread;

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

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
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
        let written = written.text();
        assert!(!written.contains("secret"), "{written}");
        assert!(
            written.contains("plain notice") && written.contains("own detail"),
            "{written}"
        );
    }

    #[tokio::test]
    async fn a_panic_is_told_by_its_place_and_not_by_its_message() {
        // The hook is the process's: panics of other tests go where they would have gone.
        let (elsewhere, here) = (panic::take_hook(), thread::current().id());
        panic::set_hook(Box::new(move |panic| {
            if thread::current().id() == here {
                log_panic(panic);
            } else {
                elsewhere(panic);
            }
        }));
        let written = Written::default();
        let writer = written.clone();
        let subscriber = subscriber(EnvFilter::new("info"), move || writer.clone());
        let _logging = tracing::subscriber::set_default(subscriber);
        let said = "sécret";
        let line = line!() + 1;
        let cut = tokio::spawn(async move { said[..2].len() });
        assert!(cut.await.unwrap_err().is_panic());
        let written = written.text();
        let place = format!("panicked place={}:{line}:", file!());
        assert!(written.contains(&place), "{written}");
        assert_eq!(written.lines().count(), 1, "{written}");
        assert!(!written.contains("cret"), "{written}");
    }
}
