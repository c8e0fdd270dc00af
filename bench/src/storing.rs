//! Storing against not storing: what does a client that is some way off notice of it?
//!
//! Two agents, each on a socket of its own behind a relay with a delay, take turns turn by turn.
//! One of them has its responses stored.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::agent::{Agent, Context, Shape};
use crate::relay::Relay;
use crate::target::Target;
use crate::transport::{Kind, Transport};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Turns of each agent
    #[arg(long, default_value = "100")]
    turns: NonZeroUsize,
    /// Bytes of the first message
    #[arg(long, default_value_t = 4_000)]
    start_bytes: usize,
    /// Bytes of each tool's output
    #[arg(long, default_value_t = 20_000)]
    output_bytes: usize,
    /// Output tokens of a turn at the most
    #[arg(long, default_value_t = 64)]
    max_output_tokens: u32,
    /// Milliseconds that every byte is held back, on its way there and on its way back
    #[arg(long, default_value_t = 20)]
    delay_ms: u64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (host, path) = args.target.host_and_path()?;
    let key = args.target.api_key.as_deref();
    let shape = Shape {
        model: args.target.model.clone(),
        turns: args.turns.get(),
        start_bytes: args.start_bytes,
        output_bytes: args.output_bytes,
        max_output_tokens: args.max_output_tokens,
    };
    let relay = Relay::with_delay(host, Duration::from_millis(args.delay_ms)).await?;
    let mut sides = Vec::new();
    for stores in [false, true] {
        let transport = Transport::open(Kind::WebSocket, relay.address, &path, key).await?;
        sides.push((stores, transport, Agent::new(&shape), Vec::new()));
    }
    for _ in 0..shape.turns {
        for (stores, transport, agent, times) in &mut sides {
            let mut request = agent.request(Context::Held);
            request["store"] = (*stores).into();
            let began = Instant::now();
            let response = transport.turn(request).await?;
            times.push(began.elapsed());
            agent.take(&response)?;
        }
        // Whoever comes second may find the server still busy with the other.
        sides.reverse();
    }
    sides.sort_by_key(|(stores, ..)| *stores);
    let mut medians = sides.iter_mut().map(|(_, _, _, times)| median(times));
    let (without, with) = medians.next().zip(medians.next()).context("two sides")?;
    println!("| a turn that is not stored | that is stored | ratio |");
    println!("| ---: | ---: | ---: |");
    println!(
        "| {:.3} ms | {:.3} ms | {:.3} |",
        without.as_secs_f64() * 1e3,
        with.as_secs_f64() * 1e3,
        with.as_secs_f64() / without.as_secs_f64()
    );
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
