//! Judges any server of Responses WebSocket mode, rule by rule.
//!
//! ```no_run
//! # async fn judge() -> Result<(), turnwire_check::Error> {
//! let check = turnwire_check::Check::new("http://127.0.0.1:8080/v1").model("smollm2");
//! let report = check.run().await?;
//! assert!(report.is_clean(), "{}", report.table(false));
//! # Ok(())
//! # }
//! ```
//!
//! A rule *passes*, *fails* or is *skipped*. It is skipped where it cannot be seen from outside,
//! where the model was too slow or did not do what it would take, and where the server says that
//! it has no such thing: by an `error` that names the member, event or value which it does not
//! support, or by HTTP status 404, 405 or 501 for an endpoint. Silence, a member that is ignored
//! and a wrong answer are failures. The wit of the model is never judged.
//!
//! # How a row is written
//!
//! `rows/` has a file for each part of the checklist, and in it a function for each conversation
//! that judges one or more rows, and the table `SECTION` that says which. Such a function takes
//! the `Case` and returns `Held`:
//!
//! * `Ok(())`: every row of the conversation passed that the function has not decided itself;
//! * `Err(Stop::Fail(sentence))`, best by `ensure!(holds, "expected …; … came")` or `fail!`: the
//!   rows that were not decided yet fail. The sentence says what was expected and what came;
//! * `Err(Stop::Skip(reason))`, best by `skip!`: they are skipped;
//! * `case.pass(row)`, `case.fail(row, …)` and `case.skip(row, …)` decide one row, and the
//!   conversation goes on.
//!
//! `case.needs(Feature::…)` comes first where a server may leave the thing out, and skips if it
//! says so. `case.connect()` opens a socket; `case.ask`, `case.onto`, `case.create` and
//! `case.long` make messages; `socket.turn`, `socket.refusal` and `socket.answer` send one and
//! read what it has to lead to. All of them are bounded by the timeout, tell a slow model from a
//! silent server, and end the conversation by `?` where something else comes. Where several lanes
//! are at work, `socket.send` and `socket.read_until` or `read_endings` give all events, and
//! `Turn::all_of` sorts them. `case.get`, `post`, `post_stream` and `delete` are the HTTP side.
//!
//! Rules that hold of every message or of the order of events are judged by `watch.rs` on
//! everything that crosses the wire in a run; a conversation for such a row only makes traffic.
//!
//! Whether a context is seen is judged by `input_tokens`, and by a code word where the model is
//! able to repeat it: see `rows/context.rs`. Codes are those of the specification. Where its
//! sources are silent every sensible answer is taken.

mod args;
mod case;
mod event;
mod junit;
mod probe;
mod report;
mod rows;
mod run;
mod schema;
mod server;
mod socket;
mod stop;
mod table;
mod transcript;
mod watch;

use std::collections::BTreeSet;
use std::time::Duration;

pub use args::Args;
pub use report::{Finding, Report, Status};
pub use transcript::{Line, Sender};

/// A run of the checklist against one server, to be set up and started.
#[derive(Clone, Debug)]
pub struct Check {
    url: String,
    model: Option<String>,
    key: Option<String>,
    timeout: Duration,
    jobs: usize,
    rows: Option<BTreeSet<u16>>,
    age_limit: Option<Duration>,
    root_certificates: Option<Vec<u8>>,
    any_certificate: bool,
}

/// Why a server could not be judged at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no WebSocket could be opened at {url}: {problem}")]
    Unreachable {
        url: String,
        problem: turnwire_client::Error,
    },
    #[error("no model was named, and {url}/models lists none: {problem}")]
    NoModel { url: String, problem: String },
    #[error("the server does not know the model `{0}`")]
    UnknownModel(String),
}

impl Check {
    /// `url` is the base address of the API, with `/v1`; http, https, ws and wss are the same.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: None,
            key: None,
            timeout: Duration::from_secs(30),
            jobs: 8,
            rows: None,
            age_limit: None,
            root_certificates: None,
            any_certificate: false,
        }
    }

    /// The model to ask for. Without it the first one that the server lists.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// How long one turn may take: 30 seconds by default.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many conversations are led at once: 8 by default.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs.max(1);
        self
    }

    /// Judges these rows only.
    #[must_use]
    pub fn rows(mut self, rows: impl IntoIterator<Item = u16>) -> Self {
        self.rows = Some(rows.into_iter().collect());
        self
    }

    /// The age at which the server closes connections, if it is short enough to wait for.
    #[must_use]
    pub fn age_limit(mut self, age: Duration) -> Self {
        self.age_limit = Some(age);
        self
    }

    /// Trusts these certificates besides those of the system. PEM.
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// Takes whatever certificate the server shows.
    #[must_use]
    pub fn accept_any_certificate(mut self, accepted: bool) -> Self {
        self.any_certificate = accepted;
        self
    }

    /// Judges the server.
    pub async fn run(&self) -> Result<Report, Error> {
        run::run(self).await
    }

    /// Number, section and name of each rule.
    pub fn list() -> Vec<(u16, &'static str, &'static str)> {
        run::list()
    }
}
