//! One implementation of the protocol: WebSocket, SSE and JSON say the same.

use serde_json::{Value, json};

use crate::support::*;

const EVERYTHING: &str = "
    [[reply]]
    steps = [
        {reasoning = 'let me think about it'},
        {text = 'some text that takes a few deltas'},
        {call = 'look'},
        {call = 'look', arguments = '{\"at\":\"the sky\"}'},
        {refusal = 'no more than that'},
    ]
";

/// A response without what differs from one to the next: ids and times.
fn same_every_time(mut response: Value) -> Value {
    fn blank(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match name.as_str() {
                        "id" | "call_id" | "item_id" | "created_at" | "completed_at" => {
                            assert!(!value.is_null() || name == "completed_at", "{name} is null");
                            *value = Value::Null;
                        }
                        _ => blank(value),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(blank),
            _ => {}
        }
    }
    blank(&mut response);
    response
}

/// The events of a stream, which ends as it should.
fn events_of(stream: &str) -> Vec<Value> {
    let stream = stream
        .strip_suffix("data: [DONE]\n\n")
        .expect("a sentinel at the end");
    let blocks = stream.split_terminator("\n\n");
    let events = blocks.map(|block| {
        let (name, data) = block.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("the name of the event");
        let data = data.strip_prefix("data: ").expect("its data");
        check(data.as_bytes());
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(event["type"], name);
        event
    });
    events.collect()
}

#[tokio::test]
async fn the_same_request_makes_the_same_response_on_every_transport() {
    let server = TestServer::start(EVERYTHING).await;
    let mut request = json!({
        "model": "scripted",
        "input": [{"role": "user", "content": "go"}],
        "instructions": "be brief",
        "tools": [tool("look", &json!({"at": {"type": "string"}}))],
        "metadata": {"a": "b"},
        "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
    });
    let socket = turn(&mut server.connect().await, &create(request.clone())).await;
    let socket: Vec<Value> = socket.iter().map(|event| event.parse().unwrap()).collect();
    let one = server.post(&request).await;
    request["stream"] = json!(true);
    let stream = server.post(&request).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert_eq!(stream.headers["x-accel-buffering"], "no");

    let stream = events_of(&stream.text);
    assert_eq!(socket.len(), stream.len());
    for (from_socket, from_stream) in socket.iter().zip(stream) {
        let same = same_every_time(from_socket.clone());
        assert_eq!(same, same_every_time(from_stream));
    }
    let last = socket.last().unwrap()["response"].clone();
    assert_eq!(last["output"].as_array().unwrap().len(), 5);
    assert_eq!(one.status, 200);
    assert_eq!(same_every_time(last), same_every_time(one.json()));
}

#[tokio::test]
async fn a_request_that_is_refused_fails_the_same_way_on_every_transport() {
    let script = "[[reply]]\nuser_contains = 'late'\nsteps = [{fail = 'rate_limited', retry_after_seconds = 7}]";
    let server = TestServer::start(script).await;
    for (wrong, status, code) in [
        (
            json!({"model": "other", "input": "x"}),
            404,
            "model_not_found",
        ),
        (
            json!({"model": "scripted"}),
            400,
            "missing_required_parameter",
        ),
        (
            json!({"model": "scripted", "input": "x", "temperature": 3}),
            400,
            "decimal_above_max_value",
        ),
        (
            json!({"model": "scripted", "input": "late"}),
            429,
            "rate_limit_exceeded",
        ),
        (
            json!({"model": "scripted", "input": "x", "previous_response_id": "resp_1"}),
            400,
            "previous_response_not_found",
        ),
    ] {
        let mut message = wrong.clone();
        message["type"] = json!("response.create");
        let events = turn(&mut server.connect().await, &message).await;
        assert_eq!(error_code(&events), code);
        for stream in [false, true] {
            let mut request = wrong.clone();
            request["stream"] = json!(stream);
            let answer = server.post(&request).await;
            assert_eq!((answer.status, answer.error_code()), (status, code.into()));
            let waits = answer
                .headers
                .get("retry-after")
                .is_some_and(|delay| delay == "7");
            assert_eq!(waits, status == 429);
        }
    }
}

#[tokio::test]
async fn a_failure_in_the_middle_ends_a_stream_with_the_failed_response() {
    let script = "[[reply]]\nsteps = [{text = 'so far'}, {fail = 'internal', message = 'broken'}]";
    let server = TestServer::start(script).await;
    let request = json!({"model": "scripted", "input": "x"});
    let one = server.post(&request).await;
    assert_eq!((one.status, &one.json()["status"]), (200, &json!("failed")));
    let stream = server
        .post(&json!({"model": "scripted", "input": "x", "stream": true}))
        .await;
    let last = events_of(&stream.text).pop().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(
        same_every_time(last["response"].clone()),
        same_every_time(one.json())
    );
}
