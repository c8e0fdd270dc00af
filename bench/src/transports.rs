//! WebSocket against HTTP: the same agent loop over four transports, in turn.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::agent::{Agent, Shape};
use crate::relay::Relay;
use crate::transport::{Kind, Transport};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Base URL of the server
    #[arg(default_value = "http://127.0.0.1:8080/v1")]
    url: String,
    /// Model to ask for
    #[arg(long)]
    model: String,
    /// API key, if the server wants one
    #[arg(long, env = "TURNWIRE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Turns of the agent
    #[arg(long, default_value_t = 20)]
    turns: usize,
    /// Bytes of the first message
    #[arg(long, default_value_t = 4_000)]
    start_bytes: usize,
    /// Bytes of each tool's output
    #[arg(long, default_value_t = 400)]
    output_bytes: usize,
    /// Output tokens of a turn at the most
    #[arg(long, default_value_t = 64)]
    max_output_tokens: u32,
    /// Runs over each transport
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// One run of the agent.
#[derive(Clone, Copy, Debug)]
struct Run {
    time: Duration,
    sent: u64,
    prefilled: u64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (host, path) = parse(&args.url)?;
    let shape = Shape {
        model: args.model,
        turns: args.turns,
        start_bytes: args.start_bytes,
        output_bytes: args.output_bytes,
        max_output_tokens: args.max_output_tokens,
    };
    let mut runs: [Vec<Run>; 4] = Default::default();
    for round in 1..=args.rounds {
        for (kind, runs) in Kind::ALL.into_iter().zip(&mut runs) {
            let run = agent(kind, &host, &path, args.api_key.as_deref(), &shape).await;
            let run = run.with_context(|| kind.title())?;
            eprintln!("round {round}, {}: {:?}", kind.title(), run.time);
            runs.push(run);
        }
    }
    println!("{} turns, median of {} runs", shape.turns, args.rounds);
    println!();
    println!("| | time | bytes sent | tokens prefilled |");
    println!("| --- | ---: | ---: | ---: |");
    for (kind, runs) in Kind::ALL.into_iter().zip(&runs) {
        let time = median(runs.iter().map(|run| run.time));
        let sent = median(runs.iter().map(|run| run.sent));
        let prefilled = median(runs.iter().map(|run| run.prefilled));
        println!(
            "| {} | {:.3} s | {sent} | {prefilled} |",
            kind.title(),
            time.as_secs_f64()
        );
    }
    Ok(())
}

async fn agent(
    kind: Kind,
    host: &str,
    path: &str,
    key: Option<&str>,
    shape: &Shape,
) -> anyhow::Result<Run> {
    let relay = Relay::to(host.to_owned()).await?;
    let started = Instant::now();
    let mut transport = Transport::open(kind, relay.address, path, key).await?;
    let mut agent = Agent::new(shape);
    let mut prefilled = 0;
    while !agent.is_done() {
        let response = transport.turn(agent.request(kind.context())).await?;
        let turn = agent.take(&response)?;
        prefilled += turn.input_tokens - turn.cached_tokens;
    }
    Ok(Run {
        time: started.elapsed(),
        sent: relay.sent(),
        prefilled,
    })
}

fn median<T: Ord>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    let middle = values.len() / 2;
    values.swap_remove(middle)
}

/// Host with port, and path, of a base URL. The relay speaks plain TCP, so TLS is not for it.
fn parse(url: &str) -> anyhow::Result<(String, String)> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("ws://"))
        .with_context(|| format!("{url}: the URL must begin with http:// or ws://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:80"),
    };
    let path = path.trim_end_matches('/');
    let slash = if path.is_empty() { "" } else { "/" };
    Ok((host, format!("{slash}{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_taken_apart() {
        let parse = |url| parse(url).expect("a URL");
        let parts = |host: &str, path: &str| (host.to_owned(), path.to_owned());
        assert_eq!(parse("http://127.0.0.1:9/v1"), parts("127.0.0.1:9", "/v1"));
        assert_eq!(parse("ws://host/v1/"), parts("host:80", "/v1"));
        assert_eq!(parse("ws://host"), parts("host:80", ""));
        assert!(super::parse("https://host/v1").is_err());
    }
}
