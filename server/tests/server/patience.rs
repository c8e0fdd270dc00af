//! What happens when nothing happens. The clock is paused: it jumps ahead whenever every task
//! waits for it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use turnwire_client::Error;
use turnwire_protocol::limits::Limits;

use crate::raw::{CLOSE, FIN, PING, PONG, Raw, TEXT, standstill};
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn an_idle_socket_is_pinged_and_closes_at_the_age_limit() {
    let limits = Limits {
        connection_age: Some(Duration::from_secs(3600)),
        ..Limits::default()
    };
    let settings = Settings {
        limits,
        ..Settings::default()
    };
    let server = TestServer::with("", settings).await;
    let opened = Instant::now();
    let mut connection = server.connect().await;
    let error = connection.next().await.unwrap();
    assert_eq!(error_code(&[error]), "websocket_connection_limit_reached");
    let closed = connection.next().await.unwrap_err();
    assert!(
        matches!(
            closed,
            Error::Closed {
                code: Some(1001),
                ..
            }
        ),
        "{closed}"
    );
    assert_eq!(opened.elapsed().as_secs(), 3600);
}

#[tokio::test(start_paused = true)]
async fn a_silent_response_shows_that_it_runs_over_a_socket_and_over_http() {
    let script = "[[reply]]\nsteps = [{text = 'well'}, {hang = true}]";
    let mut server = TestServer::start(script).await;
    let mut connection = server.connect_and_hang().await;
    let began = Instant::now();
    let mut numbers = Vec::new();
    while numbers.len() < 4 {
        let event: Value = connection.next().await.unwrap().parse().unwrap();
        if event["type"] == "response.in_progress" {
            numbers.push(event["sequence_number"].as_u64().unwrap());
        }
    }
    // The second event, and then those that follow the only item of the response.
    assert_eq!(numbers, [1, 8, 9, 10]);
    assert_eq!(began.elapsed().as_secs(), 45);

    let began = Instant::now();
    let body = create(json!({"input": "x", "stream": true}));
    let request = http()
        .post(server.url("/v1/responses"))
        .body(body.to_string());
    let mut answer = request.send().await.unwrap();
    let mut text = String::new();
    while text.matches("event: response.in_progress").count() < 4 {
        text += std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap();
    }
    assert_eq!(began.elapsed().as_secs(), 45);
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_do_not_pile_up_for_a_peer_that_does_not_read() {
    let flood = "[[reply]]\nsteps = [{text = 'a lot of text', repeat = 1000000000}]";
    let mut server = TestServer::start(flood).await;
    let mut raw = Raw::open(&server).await;
    let message = create(json!({"input": "x"})).to_string();
    raw.frame(FIN | TEXT, message.as_bytes()).await;
    server
        .engine
        .wait_for(|engine| engine.outputs > 2)
        .await
        .unwrap();
    standstill().await;
    let made = server.engine.borrow().outputs;
    sleep(Duration::from_secs(600)).await;
    let mut signs = 0;
    for _ in 0..made {
        let frame = raw.read().await;
        if frame.first_byte == FIN | TEXT {
            let event: Value = serde_json::from_slice(&frame.payload).unwrap();
            signs += usize::from(event["type"] == "response.in_progress");
        }
    }
    assert_eq!(signs, 1, "its turn had events to be read all the time");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_given_up_after_a_quarter_of_an_hour() {
    let server = TestServer::start("").await;
    let mut raw = Raw::open(&server).await;
    let opened = Instant::now();
    let mut pings = 0;
    while opened.elapsed() < Duration::from_secs(870) {
        assert_eq!(raw.read().await.first_byte, FIN | PING);
        pings += 1;
    }
    assert_eq!(pings, 29);
    raw.assert_ended().await;
    assert_eq!(opened.elapsed().as_secs(), 900);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up_however_alive_it_is() {
    let flood = "[[reply]]\nsteps = [{text = 'a lot of text', repeat = 1000000000}]";
    let mut server = TestServer::start(flood).await;
    let mut raw = Raw::open(&server).await;
    let began = Instant::now();
    let message = create(json!({"input": "x"})).to_string();
    raw.frame(FIN | TEXT, message.as_bytes()).await;
    let chatter = async {
        loop {
            raw.frame(FIN | PONG, b"").await;
            sleep(Duration::from_secs(60)).await;
        }
    };
    tokio::select! {
        cancelled = server.engine.wait_for(|engine| engine.cancelled == 1) => drop(cancelled),
        () = chatter => {}
    }
    let waited = began.elapsed().as_secs();
    // From the last that the kernels took, which is seen by the next Ping or the one after.
    assert!((900..=990).contains(&waited), "{waited} s");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_is_not_waited_for_for_long() {
    let server = TestServer::start("").await;
    let mut raw = Raw::connect(&server).await;
    let began = Instant::now();
    raw.send(b"GET /health HTTP/1.1\r\nhost: ").await;
    raw.assert_ended().await;
    assert!(began.elapsed() < Duration::from_secs(120));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_a_close_is_left() {
    let server = TestServer::start("").await;
    let mut raw = Raw::open(&server).await;
    let stopped = server.stop();
    let close = raw.read().await;
    assert_eq!(
        (close.first_byte, &close.payload[..2]),
        (FIN | CLOSE, &1001_u16.to_be_bytes()[..])
    );
    let asked = Instant::now();
    stopped.await.unwrap();
    assert!(asked.elapsed() <= Duration::from_secs(5));
}
