//! What pinned KV is worth: one agent loop, twice, in turn.
//!
//! Twenty turns from 2,000 tokens, each 168 new tokens and exactly 32 generated ones. One
//! engine keeps the conversation's keys and values; the other one drops them before each turn
//! and prefills the very same ids again. Reported are CPU seconds of the process with one
//! model thread, since contention hardly moves those, and prefilled tokens.
//!
//! `TURNWIRE_TEST_MODEL=model.gguf cargo bench -p turnwire-local-engine --bench pinned_kv [-- TURNS]`

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use turnwire_local_engine::{LocalEngine, Options, Tier};
use turnwire_protocol::chain::{Carried, Chain};
use turnwire_protocol::engine::{EngineOutput, TurnRequest, Usage};
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::item::Item;

const START: usize = 2_000;
const NEW: usize = 168;
const GENERATED: u32 = 32;

/// A message of `words` words that are one token each.
fn request(parent: Option<&Chain>, words: usize, generate: bool) -> TurnRequest {
    let raw = format!(
        r#"{{"role":"user","content":"rain{}"}}"#,
        " rain".repeat(words - 1)
    );
    TurnRequest {
        parent: parent.cloned(),
        input: Arc::new([Item::parse(Bytes::from(raw)).expect("an item")]),
        instructions: Some("You are a helpful assistant.".into()),
        parallel_tool_calls: false,
        temperature: 0.0,
        max_output_tokens: Some(GENERATED),
        generate,
        ..TurnRequest::new(ResponseId::from("resp_bench"), "m")
    }
}

struct Cost {
    cpu: f64,
    wall: f64,
    usage: Usage,
}

impl Cost {
    fn prefilled(&self) -> u64 {
        self.usage.input_tokens - self.usage.cached_tokens
    }
}

fn run(engine: &LocalEngine, request: TurnRequest) -> (Cost, Chain) {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let mut outputs = engine.start(request.clone(), CancellationToken::new());
    loop {
        match outputs.blocking_recv().expect("the engine runs") {
            EngineOutput::Finished { usage, state, .. } => {
                let cost = Cost {
                    cpu: cpu_seconds() - cpu,
                    wall: started.elapsed().as_secs_f64(),
                    usage,
                };
                let none: Arc<[Item]> = Arc::new([]);
                let chain = Chain::append(
                    request.parent,
                    request.id,
                    request.input,
                    none,
                    Carried::default(),
                    state,
                );
                return (cost, chain);
            }
            EngineOutput::Failed(failure) => panic!("{failure:?}"),
            _ => {}
        }
    }
}

/// User and system time of all threads of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("a name in parentheses")
        .split_whitespace()
        .collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
    // Ticks of a hundredth of a second on every Linux there is.
    (ticks(11) + ticks(12)) / 100.0
}

fn main() {
    let model =
        std::env::var_os("TURNWIRE_TEST_MODEL").expect("TURNWIRE_TEST_MODEL names a GGUF file");
    let turns = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .next()
        .unwrap_or(20);
    let load = || {
        let options = Options {
            threads: Some(1),
            kv_cells: Some(8192),
            ignore_end: true,
            ..Options::default()
        };
        LocalEngine::load(model.as_ref(), options).expect("the model loads")
    };
    let (pinned, dropped) = (load(), load());

    // How many tokens a message has beside its words: first in a chain, and later.
    let (probe, chain) = run(&pinned, request(None, 10, true));
    let first_words = START - (probe.usage.input_tokens as usize - 10);
    let before = probe.usage.input_tokens + u64::from(GENERATED);
    let (probe, chain) = run(&pinned, request(Some(&chain), 10, true));
    let words = NEW - ((probe.usage.input_tokens - before) as usize - 10);
    drop(chain);

    println!("turn  context | pinned: prefilled    cpu s | dropped: prefilled    cpu s | ratio");
    let (mut a, mut b): (Option<Chain>, Option<Chain>) = (None, None);
    let mut totals = [0.0; 2];
    let mut prefilled = [0; 2];
    for turn in 1..=turns {
        let words = if turn == 1 { first_words } else { words };
        let (kept, next_a) = run(&pinned, request(a.as_ref(), words, true));
        dropped.evict_idle(Tier::Cold);
        let (full, next_b) = run(&dropped, request(b.as_ref(), words, true));
        assert_eq!(kept.usage.output_tokens, u64::from(GENERATED));
        assert_eq!(full.usage.cached_tokens, 0);
        (a, b) = (Some(next_a), Some(next_b));
        totals[0] += kept.cpu;
        totals[1] += full.cpu;
        prefilled[0] += kept.prefilled();
        prefilled[1] += full.prefilled();
        println!(
            "{turn:>4}  {:>7} | {:>17} {:>8.2} | {:>18} {:>8.2} | {:>5.1}   (wall {:.2} / {:.2} s)",
            full.usage.input_tokens,
            kept.prefilled(),
            kept.cpu,
            full.prefilled(),
            full.cpu,
            full.cpu / kept.cpu,
            kept.wall,
            full.wall,
        );
    }
    println!(
        "all           | {:>17} {:>8.2} | {:>18} {:>8.2} | {:>5.1}",
        prefilled[0],
        totals[0],
        prefilled[1],
        totals[1],
        totals[1] / totals[0]
    );

    // A warm-up, then the turn that it prepares; beside it the same turn without.
    let (cold, _) = run(&pinned, request(None, first_words, true));
    let (_, warm_chain) = run(&pinned, request(None, first_words, false));
    let mut open = request(Some(&warm_chain), 1, true);
    open.input = Arc::new([]);
    let (warm, _) = run(&pinned, open);
    println!(
        "first turn    | cold {} prefilled, {:.2} s cpu | after a warm-up {} prefilled, {:.2} s cpu | prefill hidden: {:.1} %",
        cold.prefilled(),
        cold.cpu,
        warm.prefilled(),
        warm.cpu,
        100.0 * (1.0 - warm.prefilled() as f64 / cold.prefilled() as f64),
    );
}
