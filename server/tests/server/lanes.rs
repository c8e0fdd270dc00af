//! Many lanes on one socket: each has its share of it, whatever the others do.

use serde_json::{Value, json};

use turnwire::engine::scripted::Activity;

use crate::raw::{FIN, Raw, TEXT, standstill};
use crate::support::*;

/// A create on a lane, which is also what the script goes by.
fn on_lane(lane: &str) -> String {
    create(json!({"stream_id": lane, "store": false, "input": lane})).to_string()
}

/// The `type` of the next event, and its lane.
async fn next(raw: &mut Raw) -> (String, String) {
    loop {
        let frame = raw.read().await;
        // The clock runs while it is paused, so that there are Pings as well.
        if frame.first_byte == FIN | TEXT {
            let event: Value = serde_json::from_slice(&frame.payload).unwrap();
            let member = |name| event[name].as_str().unwrap().to_owned();
            return (member("type"), member("stream_id"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_lane_waits_for_one_message_and_then_lanes_take_turns() {
    let large = "x".repeat(64 << 10);
    let script = format!(
        "chunk_chars = {}
        [[reply]]
        user_contains = 'large'
        steps = [{{text = '{large}', repeat = 1000000}}]
        [[reply]]
        user_contains = 'small'
        steps = [{{text = 'y', repeat = 20}}]",
        large.len(),
    );
    let mut server = TestServer::start(&script).await;
    let mut peer = Raw::open_narrow(&server).await;
    peer.frame(FIN | TEXT, on_lane("large").as_bytes()).await;
    let started = server.engine.wait_for(|engine| engine.outputs > 2);
    started.await.unwrap();
    standstill().await;
    // Without what is no delta: the start of the turn and of its item.
    let made = server.engine.borrow().outputs - 2;

    // A lane that is held back holds no other back: this one finishes, while that one waits.
    peer.frame(FIN | TEXT, on_lane("small").as_bytes()).await;
    let finished = |engine: &Activity| engine.outputs == made + 2 + 24;
    server.engine.wait_for(finished).await.unwrap();
    standstill().await;
    assert!(finished(&server.engine.borrow()));
    assert_eq!(server.engine.borrow().running, 1);

    // Of what the large lane had made, only what had been handed over goes first: not what waited.
    let mut handed_over = 0;
    let mut lane = String::new();
    while lane != "small" {
        let (name, of) = next(&mut peer).await;
        handed_over += usize::from(of == "large" && name == "response.output_text.delta");
        lane = of;
    }
    assert_eq!(handed_over, made - 1);

    let (mut between, mut large, mut small) = (0, 0, 1);
    loop {
        let (name, lane) = next(&mut peer).await;
        if lane == "large" {
            between += 1;
            large += 1;
            assert!(between <= 1, "a small event waits for two large ones");
        } else {
            between = 0;
            small += 1;
        }
        if name == "response.completed" {
            break;
        }
    }
    // created, in_progress, added, added, 20 deltas, done, done, done, completed
    assert_eq!(small, 28);
    assert!(large > small / 2, "the large lane goes on: {large}");
}

#[tokio::test]
async fn sixteen_fast_engines_leave_their_connection_and_others_time_to_be_heard() {
    let script = "[[reply]]
        user_contains = 'lane'
        steps = [{text = 'all the time', repeat = 1000000000}]";
    let server = TestServer::start(script).await;
    let mut busy = server.connect().await;
    for lane in 0..16 {
        let create = on_lane(&format!("lane{lane}"));
        busy.send(create).await.unwrap();
    }
    // Until each of them is under way; by then none has been served much more than another.
    let mut served = [0; 16];
    while served.contains(&0) {
        let event: Value = busy.next().await.unwrap().parse().unwrap();
        let lane = event["stream_id"]
            .as_str()
            .and_then(|lane| lane.strip_prefix("lane"));
        let lane: usize = lane.unwrap().parse().unwrap();
        served[lane] += 1;
    }
    let mut other = server.connect().await;
    let fine = turn(&mut other, &create(json!({"input": "x"}))).await;
    assert_eq!(response(&fine)["status"], "completed");
    // More messages than are read ahead of a peer that does not read.
    for _ in 0..200 {
        busy.send(r#"{"type":"response.processed"}"#).await.unwrap();
    }
    for lane in 0..16 {
        let cancel = json!({"type": "response.cancel", "stream_id": format!("lane{lane}")});
        busy.send(cancel.to_string()).await.unwrap();
    }
    let mut cancelled = 0;
    while cancelled < 16 {
        cancelled += usize::from(busy.next().await.unwrap().name == "response.incomplete");
    }
}
