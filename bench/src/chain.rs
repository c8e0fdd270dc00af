//! One chain, turn after turn: does a turn cost more the longer the chain is?
//!
//! For counts instead of times, run the server under callgrind and compare two lengths.

use std::time::{Duration, Instant};

use serde_json::json;
use turnwire_client::Connection;

use crate::target::Target;
use crate::transport::final_response;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Turns of the chain
    #[arg(long, default_value_t = 10_000)]
    turns: usize,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Target {
        url,
        model,
        api_key,
    } = &args.target;
    let mut connection = Connection::open(url, api_key.as_deref()).await?;
    let mut times = Vec::with_capacity(args.turns);
    let mut previous = None::<String>;
    for _ in 0..args.turns {
        let request = json!({
            "type": "response.create",
            "model": model,
            "store": false,
            "previous_response_id": previous,
            "input": "And what comes after that?",
        });
        let started = Instant::now();
        connection.send(request.to_string()).await?;
        let response = loop {
            let event = connection.next().await?;
            if event.is_terminal() {
                break final_response(serde_json::from_slice(&event.json)?)?;
            }
        };
        times.push(started.elapsed());
        previous = response["id"].as_str().map(str::to_owned);
    }
    println!("| turns of context | median round trip |");
    println!("| ---: | ---: |");
    let mut depth = 10;
    while depth <= times.len() {
        // The last tenth before this depth, ten turns at least.
        let window = &mut times[depth - (depth / 10).max(10)..depth];
        let middle = window.len() / 2;
        let (_, median, _): (_, &mut Duration, _) = window.select_nth_unstable(middle);
        println!("| {depth} | {:.0} µs |", median.as_secs_f64() * 1e6);
        depth *= 10;
    }
    connection.close().await?;
    Ok(())
}
