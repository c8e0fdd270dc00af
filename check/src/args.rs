//! Args: the command line of a run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use crate::Check;
use crate::rows::COUNT;

/// What is skipped and what fails, for `--help`.
const RULE: &str = "\
A rule is skipped where it cannot be seen from outside, where the model was too slow or did not do \
what it takes, and where the server says that it has no such thing: by an error that names the \
member, event or value it does not support, or by HTTP status 404, 405 or 501 for an endpoint. \
Silence, a member that is ignored and a wrong answer are failures.

Exit code: 0 if nothing failed, 1 if something did, 2 if the server could not be judged.";

/// Judge any server of Responses WebSocket mode, rule by rule
#[derive(Debug, clap::Args)]
#[command(after_help = RULE)]
pub struct Args {
    /// Base URL of the server, with /v1; http, https, ws or wss
    #[arg(default_value = "http://127.0.0.1:8080/v1")]
    url: String,

    /// Model to ask for [default: the first of GET /models]
    #[arg(long)]
    model: Option<String>,

    /// API key, if the server wants one
    #[arg(long, env = "TURNWIRE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,

    /// Judge these rows only: numbers and ranges
    #[arg(long, value_name = "1-28,121")]
    rows: Option<Rows>,

    /// List the rules and judge nothing
    #[arg(long)]
    list: bool,

    /// How long one turn may take
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s")]
    timeout: Duration,

    /// Conversations led at once
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    jobs: usize,

    /// Age at which the server closes connections, if it was started with a short one
    #[arg(long, value_name = "TIME", value_parser = time)]
    age_limit: Option<Duration>,

    /// Certificate to trust besides those of the system, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Take whatever certificate the server shows
    #[arg(long)]
    insecure: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Write a JUnit report too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// A selection of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rows(BTreeSet<u16>);

impl Args {
    /// Judges the server and prints what was found. An error means that it could not be judged.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = io::stdout().lock();
        if self.list {
            for (row, section, name) in Check::list() {
                writeln!(out, "{row:>3}  {section:<4} {name}")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let report = self.check()?.run().await?;
        if let Some(file) = &self.junit {
            let written = fs::write(file, report.to_junit());
            written.with_context(|| format!("--junit {}: cannot be written", file.display()))?;
        }
        if self.json {
            writeln!(out, "{}", report.to_json())?;
        } else {
            let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            out.write_all(report.table(colours).as_bytes())?;
        }
        Ok(match report.is_clean() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    fn check(&self) -> anyhow::Result<Check> {
        let mut check = Check::new(&self.url)
            .timeout(self.timeout)
            .jobs(self.jobs)
            .accept_any_certificate(self.insecure);
        if let Some(model) = &self.model {
            check = check.model(model);
        }
        if let Some(key) = &self.api_key {
            check = check.key(key);
        }
        if let Some(Rows(rows)) = &self.rows {
            check = check.rows(rows.iter().copied());
        }
        if let Some(age) = self.age_limit {
            check = check.age_limit(age);
        }
        if let Some(file) = &self.ca {
            let pem = fs::read(file);
            let pem = pem.with_context(|| format!("--ca {}: cannot be read", file.display()))?;
            check = check.root_certificates(pem);
        }
        Ok(check)
    }
}

impl FromStr for Rows {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rows = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let row = |text: &str| {
                let number = text.trim().parse().ok();
                number.filter(|row| (1..=COUNT).contains(row))
            };
            match (row(first), row(last)) {
                (Some(first), Some(last)) if first <= last => rows.extend(first..=last),
                _ => {
                    return Err(format!(
                        "`{part}` is no row and no range of rows between 1 and {COUNT}"
                    ));
                }
            }
        }
        Ok(Self(rows))
    }
}

/// `500ms`, `30s` or `2m`.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number = digits.parse::<u64>();
    let milliseconds = match &text[digits.len()..] {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let time = number.ok().zip(milliseconds);
    let time = time.and_then(|(number, unit)| number.checked_mul(unit));
    match time.filter(|time| *time > 0) {
        Some(time) => Ok(Duration::from_millis(time)),
        None => Err(format!(
            "`{text}` is no time; write for example 500ms, 30s or 2m"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbers_and_ranges() {
        let rows = |text: &str| text.parse().map(|Rows(rows)| Vec::from_iter(rows));
        assert_eq!(rows("3,1-2,179"), Ok(vec![1, 2, 3, 179]));
        for wrong in ["", "0", "180", "5-3", "1-", "one"] {
            assert!(rows(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "30", "0s", "1d", "ms", "99999999999999999999m"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
