//! Prints every event of every test conversation, one JSON object a line, so that validators
//! written in other languages can judge them.
//!
//! `cargo run -q -p turnwire-protocol --example dump_events > events.jsonl`

#[path = "../tests/runner/mod.rs"]
mod runner;

use std::io::{self, Write};

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for conversation in runner::conversations() {
        let events = conversation.play().map_err(io::Error::other)?;
        for event in events {
            out.write_all(&event.json)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}
