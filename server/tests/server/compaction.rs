//! Compaction over real sockets and HTTP, with the scripted engine as the model.

use serde_json::{Value, json};

use crate::support::*;

/// Tells what the model was shown last, and is short in a summary.
const SCRIPT: &str = "
[[reply]]
summary = true
steps = [{ reasoning = 'What was it?' }, { text = 'They talked about stars.' }]

[[reply]]
steps = [{ text = '{user} | {items} items' }]
";

/// A little more than a thousand tokens of the scripted engine.
fn long() -> String {
    ["Tell me of stars. ".to_owned(), "*".repeat(4000)].concat()
}

fn compacting(members: Value) -> Value {
    let mut create = create(members);
    create["context_management"] = json!([{"type": "compaction", "compact_threshold": 1000}]);
    create
}

#[tokio::test]
async fn a_response_that_was_compacted_goes_on_everywhere() {
    let server = TestServer::start(SCRIPT).await;
    let mut socket = server.connect().await;
    let events = turn(&mut socket, &compacting(json!({"input": long()}))).await;
    let made = response(&events);
    assert_eq!(made["status"], "completed");
    assert_eq!(made["output"][0]["type"], "compaction");
    let said = text(&made);
    assert!(said.contains("They talked about stars."), "{said}");
    assert!(said.contains("Tell me of stars. *"), "{said}");
    assert!(said.ends_with("| 1 items"), "{said}");

    let id = made["id"].as_str().unwrap();
    let stored = server.get(&format!("/v1/responses/{id}")).await.json();
    assert_eq!(stored["output"], made["output"]);

    // What the request brought is listed, though no model is shown it any more.
    let listed = server.get(&format!("/v1/responses/{id}/input_items")).await;
    let listed = listed.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed["data"][0]["content"][0]["text"], long());

    let more = json!({"previous_response_id": id, "input": "more"});
    let here = response(&turn(&mut socket, &create(more.clone())).await);
    let mut elsewhere = server.connect().await;
    let there = response(&turn(&mut elsewhere, &create(more.clone())).await);
    let over_http = server.post(&create(more)).await.json();
    for continued in [here, there, over_http] {
        assert_eq!(text(&continued), "more | 3 items");
    }
}

#[tokio::test]
async fn a_compacted_window_restores_the_context_on_another_server() {
    let directory = tempfile::tempdir().unwrap();
    let secret = || turnwire::secret::Secret::from_file(&directory.path().join("secret")).unwrap();
    let server = async || {
        let settings = Settings {
            secret: secret(),
            ..Settings::default()
        };
        TestServer::with(SCRIPT, settings).await
    };
    let (first, second) = (server().await, server().await);
    let compact = json!({"model": "scripted", "input": [
        {"role": "user", "content": "What is a star?"},
        {"role": "assistant", "content": "A sun."},
    ]});
    let request_body = http()
        .post(first.url("/v1/responses/compact"))
        .body(compact.to_string());
    let answer = request(request_body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let compacted = answer.json();
    assert_eq!(compacted["object"], "response.compaction");
    assert!(compacted["created_at"].is_u64() && compacted["id"].is_string());
    assert_eq!(
        compacted["usage"]["total_tokens"].as_u64().map(|n| n > 0),
        Some(true)
    );
    let window = compacted["output"].as_array().unwrap();
    assert_eq!(window.len(), 1);
    assert_eq!(window[0]["type"], "compaction");

    let mut input = window.clone();
    input.push(json!({"role": "user", "content": "And a planet?"}));
    let next = create(json!({"input": input, "store": false}));
    let mut socket = second.connect().await;
    let on_socket = response(&turn(&mut socket, &next).await);
    assert_eq!(text(&on_socket), "And a planet? | 2 items");
    let over_http = second.post(&next).await.json();
    assert_eq!(text(&over_http), "And a planet? | 2 items");
    let alone = create(json!({"input": window, "store": false}));
    let said = text(&response(&turn(&mut socket, &alone).await));
    assert!(said.contains("They talked about stars."), "{said}");
    assert!(said.contains("What is a star?"), "{said}");

    // Nothing of the compaction can be named.
    let id = compacted["id"].as_str().unwrap();
    let unknown = first.get(&format!("/v1/responses/{id}")).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn a_trigger_compacts_and_does_nothing_else() {
    let server = TestServer::start(SCRIPT).await;
    let mut socket = server.connect().await;
    let talk = json!({"input": "What is a star?", "store": false});
    let made = response(&turn(&mut socket, &create(talk)).await);
    let trigger = json!({
        "previous_response_id": made["id"],
        "input": [{"type": "compaction_trigger"}],
        "store": false,
    });
    let compacted = response(&turn(&mut socket, &create(trigger)).await);
    let output = compacted["output"].as_array().unwrap();
    assert_eq!(output.len(), 1);
    assert_eq!(output[0]["type"], "compaction");
    let more = json!({"previous_response_id": compacted["id"], "input": [], "store": false});
    let said = text(&response(&turn(&mut socket, &create(more)).await));
    assert!(said.contains("They talked about stars."), "{said}");
}

#[tokio::test]
async fn a_compaction_that_fails_is_an_error_over_http() {
    for (steps, status, code) in [
        ("{fail = 'overloaded'}", 503, "server_is_overloaded"),
        ("{text = 'a'}, {fail = 'internal'}", 500, "server_error"),
        (
            "{text = 'a'}, {fail = 'rate_limited'}",
            429,
            "rate_limit_exceeded",
        ),
        ("{refusal = 'no'}", 500, "server_error"),
    ] {
        let script = format!("[[reply]]\nsummary = true\nsteps = [{steps}]");
        let server = TestServer::start(&script).await;
        let compact = http()
            .post(server.url("/v1/responses/compact"))
            .body(json!({"model": "scripted", "input": "x"}).to_string());
        let answer = request(compact).await;
        assert_eq!((answer.status, answer.error_code()), (status, code.into()));
    }
    let server = TestServer::start("").await;
    let refused = http().post(server.url("/v1/responses/compact")).body("{}");
    let refused = request(refused).await;
    assert_eq!(refused.json()["error"]["param"], "model");
    let wrong = server.get("/v1/responses/compact").await;
    assert_eq!(wrong.status, 405);
}
