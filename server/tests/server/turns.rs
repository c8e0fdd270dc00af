//! Turns on a socket: chains, lanes, cancellation, large messages.

use serde_json::{Value, json};
use turnwire_client::{Connection, Message, Options};

use crate::support::*;

const HANG: &str = "[[reply]]\nsteps = [{text = 'well'}, {hang = true}]";
const ECHO: &str = "[[reply]]\nsteps = [{text = 'turn {turn}, {items} items, {user}'}]";

#[tokio::test]
async fn twenty_calls_in_a_row_each_continue_with_only_the_output_of_the_last() {
    let server = TestServer::start("").await;
    let mut connection = server.connect().await;
    let tools = json!([tool("look", &json!({"at": {"type": "string"}}))]);
    let mut next = create(json!({"input": "look around"}));
    let mut context = 0;
    for _ in 0..20 {
        let members = next.as_object_mut().unwrap();
        members.extend([
            ("store".into(), json!(false)),
            ("tools".into(), tools.clone()),
            ("tool_choice".into(), json!("required")),
        ]);
        let response = response(&turn(&mut connection, &next).await);
        let call = &response["output"][0];
        assert_eq!(call["name"], "look");
        assert_eq!(call["arguments"], r#"{"at":"text"}"#);
        assert_eq!(
            response["usage"]["input_tokens_details"]["cached_tokens"],
            context
        );
        context = response["usage"]["total_tokens"].as_u64().unwrap();
        next = create(json!({
            "previous_response_id": response["id"],
            "input": [{
                "type": "function_call_output", "call_id": call["call_id"], "output": "a wall",
            }],
        }));
    }
}

#[tokio::test]
async fn a_stored_response_is_continued_from_anywhere_and_an_unstored_one_only_where_it_was_made() {
    let server = TestServer::start(ECHO).await;
    let mut here = server.connect().await;
    let mut there = server.connect().await;
    let stored = response(&turn(&mut here, &create(json!({"input": "a"}))).await);
    let unstored = create(json!({"input": "b", "store": false}));
    let unstored = response(&turn(&mut here, &unstored).await);
    let onto = |parent: &Value, input: &str| {
        create(json!({"previous_response_id": parent["id"], "input": input}))
    };

    let continued = response(&turn(&mut there, &onto(&stored, "c")).await);
    assert_eq!(text(&continued), "turn 2, 3 items, c");
    let mut over_http = onto(&stored, "d");
    over_http.as_object_mut().unwrap().remove("type");
    assert_eq!(
        text(&server.post(&over_http).await.json()),
        "turn 2, 3 items, d"
    );
    let found = server
        .get(&format!("/v1/responses/{}", stored["id"].as_str().unwrap()))
        .await;
    assert_eq!((found.status, found.json()), (200, stored));

    let lost = turn(&mut there, &onto(&unstored, "e")).await;
    assert_eq!(error_code(&lost), "previous_response_not_found");
    let missing = server
        .get(&format!(
            "/v1/responses/{}",
            unstored["id"].as_str().unwrap()
        ))
        .await;
    assert_eq!(
        (missing.status, missing.error_code()),
        (404, "response_not_found".into())
    );
    let continued = response(&turn(&mut here, &onto(&unstored, "f")).await);
    assert_eq!(text(&continued), "turn 2, 3 items, f");
}

#[tokio::test]
async fn a_lane_that_hangs_does_not_hold_up_another() {
    let script = "[[reply]]\nuser_contains = 'hang'\nsteps = [{hang = true}]";
    let mut server = TestServer::start(script).await;
    let mut connection = server.connect().await;
    let hang = create(json!({"stream_id": "a", "input": "hang"}));
    connection.send(hang.to_string()).await.unwrap();
    server
        .engine
        .wait_for(|engine| engine.running == 1)
        .await
        .unwrap();
    let events = turn(
        &mut connection,
        &create(json!({"stream_id": "b", "input": "go"})),
    )
    .await;
    let last: Value = events.last().unwrap().parse().unwrap();
    assert_eq!(
        (&last["type"], &last["stream_id"]),
        (&json!("response.completed"), &json!("b"))
    );
}

#[tokio::test]
async fn a_ping_is_answered_while_a_turn_runs() {
    let mut server = TestServer::start(HANG).await;
    let mut connection = server.connect_and_hang().await;
    connection.ping("still there?").await.unwrap();
    let pong = loop {
        if let Message::Pong(payload) = connection.next_message().await.unwrap() {
            break payload;
        }
    };
    assert_eq!(pong, "still there?");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_turn() {
    let mut server = TestServer::start(HANG).await;
    let killed = server.connect_and_hang().await;
    drop(killed);
    server
        .engine
        .wait_for(|engine| engine.cancelled == 1)
        .await
        .unwrap();

    let closed = server.connect_and_hang().await;
    closed.close().await.unwrap();
    server
        .engine
        .wait_for(|engine| engine.cancelled == 2)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_failure_ends_the_turn_and_not_the_connection() {
    let script = "
        [[reply]]
        user_contains = 'refuse'
        steps = [{fail = 'rate_limited', retry_after_seconds = 3}]
        [[reply]]
        user_contains = 'break'
        steps = [{text = 'so far'}, {fail = 'internal', message = 'and then'}]
    ";
    let server = TestServer::start(script).await;
    let mut connection = server.connect().await;
    let refused = turn(&mut connection, &create(json!({"input": "refuse"}))).await;
    assert_eq!(error_code(&refused), "rate_limit_exceeded");
    let broken = response(&turn(&mut connection, &create(json!({"input": "break"}))).await);
    assert_eq!(
        (&broken["status"], text(&broken)),
        (&json!("failed"), "so far".into())
    );
    let fine = response(&turn(&mut connection, &create(json!({"input": "go"}))).await);
    assert_eq!(fine["status"], "completed");
}

#[tokio::test]
async fn large_messages_go_both_ways_with_and_without_compression() {
    let server =
        TestServer::start("chunk_chars = 100000000\n[[reply]]\nsteps = [{text = '{user}'}]").await;
    // Above the size from which an event is sent in several frames.
    let said = "0123456789abcdef".repeat(600_000);
    let message = create(json!({"input": said, "store": false})).to_string();
    for compressed in [false, true] {
        let url = server.url("/v1");
        let options = Options::new().compression(compressed);
        let mut connection = Connection::open_with(&url, &options).await.unwrap();
        connection.send(message.clone()).await.unwrap();
        let response = response(&events(&mut connection).await);
        assert!(text(&response) == said, "the text came back whole");
    }
}

#[tokio::test]
async fn small_and_large_messages_mix_on_a_compressed_socket() {
    let server = TestServer::start(ECHO).await;
    let mut connection =
        Connection::open_with(&server.url("/v1"), &Options::new().compression(true))
            .await
            .unwrap();
    for said in [
        "a".repeat(10),
        "b".repeat(10_000),
        "c".into(),
        "d".repeat(2_000),
    ] {
        let response = response(&turn(&mut connection, &create(json!({"input": said}))).await);
        assert_eq!(text(&response), format!("turn 1, 1 items, {said}"));
    }
}
