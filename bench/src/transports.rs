//! WebSocket against HTTP: the same agent loop over four transports, in turn.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::agent::{Agent, Shape};
use crate::relay::Relay;
use crate::target::Target;
use crate::transport::{Kind, Transport};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
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
    let (host, path) = args.target.host_and_path()?;
    let shape = Shape {
        model: args.target.model,
        turns: args.turns,
        start_bytes: args.start_bytes,
        output_bytes: args.output_bytes,
        max_output_tokens: args.max_output_tokens,
    };
    let mut runs: [Vec<Run>; 4] = Default::default();
    for round in 1..=args.rounds {
        for (kind, runs) in Kind::ALL.into_iter().zip(&mut runs) {
            let run = agent(kind, &host, &path, args.target.api_key.as_deref(), &shape).await;
            let run = run.with_context(|| kind.title())?;
            eprintln!("round {round}, {}: {:?}", kind.title(), run.time);
            runs.push(run);
        }
    }
    println!("{} turns, median of {} runs", shape.turns, args.rounds);
    println!();
    row("", &Kind::ALL.map(|kind| kind.title().to_owned()));
    row("---", &[(); 4].map(|()| "---:".to_owned()));
    let medians = runs.each_ref().map(|runs| Run {
        time: median(runs.iter().map(|run| run.time)),
        sent: median(runs.iter().map(|run| run.sent)),
        prefilled: median(runs.iter().map(|run| run.prefilled)),
    });
    let seconds = |run: Run| format!("{:.3} s", run.time.as_secs_f64());
    row("time", &medians.map(seconds));
    row("bytes sent", &medians.map(|run| run.sent.to_string()));
    row(
        "tokens prefilled",
        &medians.map(|run| run.prefilled.to_string()),
    );
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

fn row(title: &str, cells: &[String; 4]) {
    println!("| {title} | {} |", cells.join(" | "));
}

fn median<T: Ord>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    let middle = values.len() / 2;
    values.swap_remove(middle)
}
