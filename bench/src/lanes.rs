//! Many lanes on one socket against as many sockets: what does sharing a socket cost?
//!
//! Both sides do the same work: on each lane one chain of short turns, the next as soon as the
//! one before has ended.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use turnwire_client::Connection;

use crate::target::Target;
use crate::transport::final_response;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Lanes on the one socket, and sockets beside it
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=32))]
    lanes: u16,
    /// Turns of each lane in a round
    #[arg(long, default_value = "200")]
    turns: NonZeroUsize,
    /// Output tokens of a turn at the most
    #[arg(long, default_value_t = 16)]
    max_output_tokens: u32,
    /// Rounds of each side, in turn
    #[arg(long, default_value = "7")]
    rounds: NonZeroUsize,
}

/// What every turn asks for.
#[derive(Clone, Debug)]
struct Shape {
    model: String,
    turns: usize,
    max_output_tokens: u32,
}

/// One lane of a connection; a socket for itself alone has no need of a name.
#[derive(Debug)]
struct Lane {
    name: Option<String>,
    previous: Option<String>,
    turns_left: usize,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Target {
        url,
        model,
        api_key,
    } = &args.target;
    let shape = Shape {
        model: model.clone(),
        turns: args.turns.get(),
        max_output_tokens: args.max_output_tokens,
    };
    let names: Vec<String> = (0..args.lanes).map(|lane| format!("lane-{lane}")).collect();
    let mut shared = Connection::open(url, api_key.as_deref()).await?;
    let mut own = Vec::new();
    for _ in &names {
        own.push(Connection::open(url, api_key.as_deref()).await?);
    }
    let (mut one, mut many) = (Vec::new(), Vec::new());
    // The first round of each side warms up and is not counted.
    for round in 0..=args.rounds.get() {
        let started = Instant::now();
        let lanes = names.iter().cloned().map(Some);
        converse(&mut shared, lanes, &shape).await?;
        let on_one = started.elapsed();

        let started = Instant::now();
        own = apart(own, &shape).await?;
        let on_many = started.elapsed();
        if round > 0 {
            eprintln!("round {round}: {on_one:?} on one socket, {on_many:?} on many");
            one.push(on_one);
            many.push(on_many);
        }
    }
    report(&args, &one, &many);
    shared.close().await?;
    for connection in own {
        connection.close().await?;
    }
    Ok(())
}

/// The same turns, each lane on a socket of its own and all at once.
async fn apart(connections: Vec<Connection>, shape: &Shape) -> anyhow::Result<Vec<Connection>> {
    let mut running = JoinSet::new();
    for mut connection in connections {
        let shape = shape.clone();
        running.spawn(async move {
            converse(&mut connection, [None], &shape).await?;
            anyhow::Ok(connection)
        });
    }
    running.join_all().await.into_iter().collect()
}

/// Runs the turns of all these lanes on one connection.
async fn converse(
    connection: &mut Connection,
    names: impl IntoIterator<Item = Option<String>>,
    shape: &Shape,
) -> anyhow::Result<()> {
    let mut lanes: Vec<Lane> = names
        .into_iter()
        .map(|name| Lane {
            name,
            previous: None,
            turns_left: shape.turns,
        })
        .collect();
    let mut running = 0;
    for lane in &mut lanes {
        running += usize::from(lane.go_on(connection, shape).await?);
    }
    while running > 0 {
        let event = connection.next().await?;
        if event.is_terminal() {
            let mut lanes = lanes.iter_mut();
            let lane = lanes.find(|lane| lane.name == event.lane);
            let lane = lane.with_context(|| format!("nothing runs on lane {:?}", event.lane))?;
            let response = final_response(event.parse()?)?;
            lane.previous = response["id"].as_str().map(str::to_owned);
            running -= usize::from(!lane.go_on(connection, shape).await?);
        }
    }
    Ok(())
}

impl Lane {
    /// Sends the next create; false if there is none left.
    async fn go_on(&mut self, connection: &mut Connection, shape: &Shape) -> anyhow::Result<bool> {
        if self.turns_left == 0 {
            return Ok(false);
        }
        self.turns_left -= 1;
        let mut create = json!({
            "type": "response.create",
            "model": shape.model,
            "store": false,
            "max_output_tokens": shape.max_output_tokens,
            "previous_response_id": self.previous,
            "input": "And what comes after that?",
        });
        if let Some(name) = &self.name {
            create["stream_id"] = Value::from(name.as_str());
        }
        connection.send(create.to_string()).await?;
        Ok(true)
    }
}

fn report(args: &Args, one: &[Duration], many: &[Duration]) {
    let Args {
        lanes,
        turns,
        rounds,
        ..
    } = args;
    let work = usize::from(*lanes) * turns.get();
    let rate = |time: &Duration| work as f64 / time.as_secs_f64();
    let pairs = one.iter().zip(many);
    let ratio = median(pairs.map(|(one, many)| many.as_secs_f64() / one.as_secs_f64()));
    println!("{lanes} lanes of {turns} turns each, median of {rounds} rounds");
    println!();
    println!("|  | one socket | {lanes} sockets | ratio |");
    println!("| --- | ---: | ---: | ---: |");
    println!(
        "| turns per second | {:.0} | {:.0} | {ratio:.3} |",
        median(one.iter().map(rate)),
        median(many.iter().map(rate)),
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
