//! Peers that break the rules, or bend them.

use serde_json::{Value, json};
use turnwire_client::{Connection, Error, Options};
use turnwire_protocol::limits::Limits;

use crate::raw::{BINARY, CLOSE, FIN, PING, PONG, Raw, TEXT, standstill};
use crate::support::*;

const HANG: &str = "[[reply]]\nsteps = [{text = 'well'}, {hang = true}]";

fn tight() -> Settings {
    let limits = Limits {
        message_bytes: 1000,
        ..Limits::default()
    };
    Settings {
        limits,
        ..Settings::default()
    }
}

/// Reads one event; one text frame holds it.
async fn event(raw: &mut Raw) -> Value {
    let frame = raw.read().await;
    assert_eq!(frame.first_byte, FIN | TEXT);
    check(&frame.payload);
    serde_json::from_slice(&frame.payload).unwrap()
}

/// The connection still answers, and what it answers is about this message.
async fn assert_alive(raw: &mut Raw) {
    raw.frame(FIN | TEXT, b"{}").await;
    let error = event(raw).await;
    assert_eq!(
        error["error"]["code"], "missing_required_parameter",
        "{error}"
    );
}

#[tokio::test]
async fn frames_that_break_the_rules_close_the_connection() {
    let server = TestServer::start("").await;
    const PROTOCOL: u16 = 1002;
    const NOT_UTF8: u16 = 1007;
    for (bytes, code, what) in [
        (
            &[FIN | TEXT, 2, b'{', b'}'][..],
            PROTOCOL,
            "an unmasked frame",
        ),
        (
            &[FIN | 0x40 | TEXT, 0x80, 0, 0, 0, 0],
            PROTOCOL,
            "compression that was not agreed on",
        ),
        (
            &[FIN | 0x20 | TEXT, 0x80, 0, 0, 0, 0],
            PROTOCOL,
            "a reserved bit",
        ),
        (&[FIN | 0x3, 0x80, 0, 0, 0, 0], 1003, "an unknown opcode"),
        (
            &[FIN, 0x80, 0, 0, 0, 0],
            PROTOCOL,
            "a continuation of nothing",
        ),
        (
            &[TEXT, 0x80, 0, 0, 0, 0, TEXT, 0x80, 0, 0, 0, 0],
            PROTOCOL,
            "a message in a message",
        ),
        (&[PING, 0x80, 0, 0, 0, 0], PROTOCOL, "a Ping in pieces"),
        (
            &[FIN | CLOSE, 0x81, 0, 0, 0, 0, 3],
            PROTOCOL,
            "half a close code",
        ),
        (
            &[FIN | TEXT, 0x81, 0, 0, 0, 0, 0xFF],
            NOT_UTF8,
            "text that is not UTF-8",
        ),
        (
            &[FIN | BINARY, 0x81, 0, 0, 0, 0, 0xC3],
            NOT_UTF8,
            "half a character",
        ),
        (
            &[FIN | CLOSE, 0x82, 0, 0, 0, 0, 0x03, 0xE8],
            1000,
            "a Close frame",
        ),
    ] {
        let mut raw = Raw::open(&server).await;
        raw.send(bytes).await;
        assert_eq!(raw.close_code().await, code, "{what}");
    }
    let mut survivor = server.connect().await;
    let fine = turn(&mut survivor, &create(json!({"input": "x"}))).await;
    assert_eq!(response(&fine)["status"], "completed");
}

#[tokio::test]
async fn messages_come_whole_however_they_are_cut() {
    let server = TestServer::start("").await;
    let mut raw = Raw::open(&server).await;
    let message = create(json!({"input": "größer"})).to_string().into_bytes();
    let middle = message.iter().position(|byte| *byte == 0xC3).expect("a ö") + 1;
    // Cut within a character, with a Ping in between, the last piece empty, and all of it binary.
    raw.frame(BINARY, &message[..middle]).await;
    raw.frame(FIN | PING, b"hello").await;
    raw.frame(FIN | PONG, b"nobody asked").await;
    raw.frame(0, &message[middle..]).await;
    raw.frame(FIN, b"").await;
    let pong = raw.read().await;
    assert_eq!(
        (pong.first_byte, pong.payload),
        (FIN | PONG, b"hello".to_vec())
    );
    assert_eq!(event(&mut raw).await["type"], "response.created");
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_and_the_connection_lives_on() {
    let server = TestServer::with("", tight()).await;
    let mut raw = Raw::open(&server).await;
    raw.frame(FIN | TEXT, &[b' '; 1001]).await;
    assert_eq!(event(&mut raw).await["error"]["code"], "request_too_large");
    // In pieces it may be of any size: nothing of it is kept.
    raw.frame(TEXT, &[b' '; 900]).await;
    for _ in 0..100 {
        raw.frame(0, &[b' '; 900]).await;
    }
    raw.frame(FIN, b"").await;
    assert_eq!(event(&mut raw).await["error"]["code"], "request_too_large");
    assert_alive(&mut raw).await;
}

#[tokio::test]
async fn a_frame_far_beyond_the_limit_closes_with_1009_before_it_has_come() {
    let server = TestServer::with("", tight()).await;
    let mut raw = Raw::open(&server).await;
    raw.frame_head(FIN | TEXT, u64::MAX >> 1).await;
    assert_eq!(raw.close_code().await, 1009);
}

#[tokio::test]
async fn a_message_that_inflates_far_beyond_the_limit_is_not_inflated() {
    let server = TestServer::with("", tight()).await;
    let mut connection =
        Connection::open_with(&server.url("/v1"), &Options::new().compression(true))
            .await
            .unwrap();
    connection.send(" ".repeat(10 << 20)).await.unwrap();
    let closed = connection.next().await.unwrap_err();
    assert!(
        matches!(
            closed,
            Error::Closed {
                code: Some(1009),
                ..
            }
        ),
        "{closed}"
    );
}

#[tokio::test]
async fn a_body_in_malformed_chunks_is_the_fault_of_its_sender() {
    let server = TestServer::start("").await;
    let mut raw = Raw::connect(&server).await;
    raw.send(
        b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n",
    )
    .await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
}

#[tokio::test]
async fn a_half_closed_connection_is_gone() {
    let mut server = TestServer::start(HANG).await;
    let mut raw = Raw::open(&server).await;
    raw.frame(
        FIN | TEXT,
        create(json!({"input": "x"})).to_string().as_bytes(),
    )
    .await;
    server
        .engine
        .wait_for(|engine| engine.running == 1)
        .await
        .unwrap();
    raw.shut_down().await;
    server
        .engine
        .wait_for(|engine| engine.cancelled == 1)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_holds_its_engine_back() {
    const EVENT_BYTES: usize = 64 << 10;
    const EVENTS: usize = 4000;
    let script = format!(
        "chunk_chars = {EVENT_BYTES}\n[[reply]]\nsteps = [{{text = '{}', repeat = {EVENTS}}}]",
        "x".repeat(EVENT_BYTES)
    );
    let mut server = TestServer::start(&script).await;
    let mut lazy = Raw::open(&server).await;
    lazy.frame(
        FIN | TEXT,
        create(json!({"input": "x"})).to_string().as_bytes(),
    )
    .await;
    server
        .engine
        .wait_for(|engine| engine.outputs > 2)
        .await
        .unwrap();
    standstill().await;
    let made = server.engine.borrow().outputs;
    assert!(made < EVENTS / 8, "{made} events wait for a reader");
    // It goes on where it was as soon as the peer reads.
    let mut read = 0;
    while read < 2 * made {
        // The clock runs while it is paused, so that there are Pings as well.
        read += usize::from(lazy.read().await.first_byte == FIN | TEXT);
    }
    assert!(server.engine.borrow().outputs > made);
}

#[tokio::test(start_paused = true)]
async fn large_answers_to_a_peer_that_does_not_read_are_few() {
    let limits = Limits {
        message_bytes: 1 << 20,
        ..Limits::default()
    };
    let settings = Settings {
        limits,
        ..Settings::default()
    };
    let server = TestServer::with("", settings).await;
    let mut raw = Raw::open(&server).await;
    // The answer shows its input again.
    let steer = json!({
        "type": "response.steer",
        "previous_response_id": "resp_none",
        "input": "x".repeat(1_000_000),
    });
    let steer = steer.to_string().into_bytes();
    let mut written = 0;
    while raw.frame_unless_stuck(FIN | TEXT, &steer).await {
        written += 1;
        // The kernel holds some of them on their way, and of the answers.
        assert!(written < 40, "{written} answers pile up");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_only_writes_is_not_read_for_ever() {
    let server = TestServer::start("").await;
    let mut raw = Raw::open(&server).await;
    let mut written = 0;
    // Each of these is answered, with more bytes than it has itself.
    while raw.frame_unless_stuck(FIN | TEXT, b"[]").await
        && raw.frame_unless_stuck(FIN | PING, &[b'x'; 100]).await
    {
        written += 2;
        assert!(
            written < 500_000,
            "everything is read, and the answers pile up"
        );
    }
    assert!(written > 1000, "{written}");
    // Nothing is lost when the peer reads at last.
    let mut answered = 0;
    while answered < written {
        answered += usize::from(raw.read().await.first_byte != FIN | PING);
    }
}
