//! Responses in the background: asked for while they are made and afterwards.

use serde_json::{Value, json};
use turnwire::auth::{Access, Tenant};

use crate::support::*;

const SCRIPT: &str = "
    [[reply]]
    user_contains = 'hang'
    steps = [{text = 'well'}, {hang = true}]
    [[reply]]
    user_contains = 'break'
    steps = [{text = 'half'}, {fail = 'internal', message = 'It broke.'}]
    [[reply]]
    steps = [{text = 'done with it'}]
";

fn asked(input: &str) -> Value {
    json!({"model": "scripted", "input": input, "background": true})
}

fn path(response: &Value) -> String {
    format!("/v1/responses/{}", response["id"].as_str().unwrap())
}

async fn begin(server: &TestServer, input: &str) -> Value {
    let begun = server.post(&asked(input)).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    begun.json()
}

/// All events of a stream from this number on, which ends as streams do.
async fn events(server: &TestServer, response: &Value, after: Option<u64>) -> Vec<Value> {
    let after = after.map_or_else(String::new, |after| format!("&starting_after={after}"));
    let path = format!("{}?stream=true{after}", path(response));
    let answer = server.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    read(&answer.text)
}

fn read(stream: &str) -> Vec<Value> {
    let events = stream.strip_suffix("data: [DONE]\n\n").expect("an end");
    let data = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    data.map(|json| serde_json::from_str(json).unwrap())
        .collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect()
}

async fn hang(server: &mut TestServer) -> Value {
    let begun = begin(server, "hang").await;
    let running = server.engine.wait_for(|engine| engine.running == 1).await;
    running.unwrap();
    begun
}

async fn cancel(server: &TestServer, response: &Value) -> Answer {
    let path = path(response) + "/cancel";
    server.send("POST", &path, &json!({})).await
}

#[tokio::test]
async fn a_response_in_the_background_is_queued_and_made_without_its_client() {
    let server = TestServer::start(SCRIPT).await;
    let begun = begin(&server, "x").await;
    assert_eq!(
        (&begun["status"], &begun["background"]),
        (&json!("queued"), &json!(true))
    );
    assert_eq!(begun["output"], json!([]));

    let all = events(&server, &begun, None).await;
    let names = names(&all);
    assert_eq!(
        names[..3],
        [
            "response.created",
            "response.queued",
            "response.in_progress"
        ]
    );
    assert_eq!(names.last(), Some(&"response.completed"));
    for (number, event) in (0..).zip(&all) {
        assert_eq!(event["sequence_number"], json!(number));
        check(event.to_string().as_bytes());
    }
    let made = server.get(&path(&begun)).await.json();
    assert_eq!(made["status"], "completed");
    assert_eq!(all.last().unwrap()["response"], made);
    for after in [0, 3, all.len() - 1] {
        let rest = events(&server, &begun, Some(after as u64)).await;
        assert_eq!(rest, all[after + 1..]);
    }

    let next = json!({"model": "scripted", "previous_response_id": begun["id"], "input": "y"});
    assert_eq!(server.post(&next).await.json()["status"], "completed");
    let items = server.get(&(path(&begun) + "/input_items")).await.json();
    assert_eq!(items["data"].as_array().unwrap().len(), 1);
    // It is too late to cancel, which is no mistake of who tries.
    assert_eq!(cancel(&server, &begun).await.json(), made);
}

#[tokio::test]
async fn a_stream_that_its_client_leaves_is_taken_up_again() {
    let mut server = TestServer::start(SCRIPT).await;
    let mut body = asked("hang");
    body["stream"] = json!(true);
    let post = http().post(server.url("/v1/responses"));
    let mut stream = post.body(body.to_string()).send().await.unwrap();
    let mut begun = Vec::new();
    while !begun.ends_with(b"\n\n") {
        begun.extend_from_slice(&stream.chunk().await.unwrap().expect("an event"));
    }
    drop(stream);
    let begun = String::from_utf8(begun).unwrap();
    let first = begun.lines().find_map(|line| line.strip_prefix("data: "));
    let created: Value = serde_json::from_str(first.unwrap()).unwrap();
    let running = server.engine.wait_for(|engine| engine.running == 1).await;
    running.unwrap();
    let response = &created["response"];
    let status = server.get(&path(response)).await.json()["status"].clone();
    assert!(["queued", "in_progress"].contains(&status.as_str().unwrap()));

    let (rest, cancelled) = tokio::join!(
        events(&server, response, Some(0)),
        cancel(&server, response)
    );
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    let names = names(&rest);
    assert_eq!(
        (names[0], names[names.len() - 1]),
        ("response.queued", "response.incomplete")
    );
    assert_eq!(rest.last().unwrap()["response"], cancelled.json());
}

#[tokio::test]
async fn a_response_that_is_cancelled_stays_so() {
    let mut server = TestServer::start(SCRIPT).await;
    let begun = hang(&mut server).await;
    let cancelled = cancel(&server, &begun).await;
    assert_eq!(
        (cancelled.status, &cancelled.json()["status"]),
        (200, &json!("cancelled"))
    );
    assert_eq!(cancel(&server, &begun).await.json(), cancelled.json());
    assert_eq!(server.get(&path(&begun)).await.json(), cancelled.json());
    let stopped = server.engine.wait_for(|engine| engine.cancelled == 1).await;
    stopped.unwrap();
    let next = json!({"model": "scripted", "previous_response_id": begun["id"], "input": "y"});
    let refused = server.post(&next).await;
    assert_eq!(refused.error_code(), "previous_response_not_found");
}

#[tokio::test]
async fn a_response_that_is_deleted_while_it_is_made_does_not_come_back() {
    let mut server = TestServer::start(SCRIPT).await;
    let begun = hang(&mut server).await;
    let deleted = server.delete(&path(&begun)).await;
    assert_eq!(
        (deleted.status, &deleted.json()["deleted"]),
        (200, &json!(true))
    );
    let stopped = server.engine.wait_for(|engine| engine.running == 0).await;
    stopped.unwrap();
    for query in ["", "?stream=true"] {
        let gone = server.get(&(path(&begun) + query)).await;
        assert_eq!(
            (gone.status, gone.error_code()),
            (404, "response_not_found".into())
        );
    }
}

#[tokio::test]
async fn a_response_that_fails_is_stored_as_failed() {
    let server = TestServer::start(SCRIPT).await;
    let begun = begin(&server, "break").await;
    let all = events(&server, &begun, None).await;
    assert_eq!(all.last().unwrap()["type"], "response.failed");
    let stored = server.get(&path(&begun)).await.json();
    assert_eq!(
        (&stored["status"], text(&stored)),
        (&json!("failed"), "half".into())
    );
    assert_eq!(
        stored["error"],
        json!({"code": "server_error", "message": "It broke."})
    );
}

#[tokio::test]
async fn what_cannot_be_made_in_the_background_is_refused() {
    let server = TestServer::start(SCRIPT).await;
    let mut unstored = asked("x");
    unstored["store"] = json!(false);
    let mut orphan = asked("x");
    orphan["previous_response_id"] = json!("resp_1");
    for (body, code) in [
        (unstored, "unsupported_parameter"),
        (orphan, "previous_response_not_found"),
        (json!({"background": true}), "missing_required_parameter"),
    ] {
        let refused = server.post(&body).await;
        assert_eq!((refused.status, refused.error_code()), (400, code.into()));
    }
    let plain = server
        .post(&json!({"model": "scripted", "input": "x"}))
        .await
        .json();
    for query in ["?stream=true", "?stream=true&starting_after=3"] {
        let refused = server.get(&(path(&plain) + query)).await;
        assert_eq!(refused.json()["error"]["param"], "stream");
    }
    let begun = begin(&server, "x").await;
    for after in ["-1", "many"] {
        let path = format!("{}?stream=true&starting_after={after}", path(&begun));
        let refused = server.get(&path).await;
        assert_eq!(refused.json()["error"]["param"], "starting_after");
    }
}

#[tokio::test]
async fn only_so_many_are_made_at_once() {
    let settings = Settings {
        capacity: Capacity {
            connections: 100,
            background: 1,
        },
        ..Settings::default()
    };
    let mut server = TestServer::with(SCRIPT, settings).await;
    let begun = hang(&mut server).await;
    let refused = server.post(&asked("x")).await;
    let code = "too_many_background_responses";
    assert_eq!((refused.status, refused.error_code()), (429, code.into()));
    assert!(refused.headers.contains_key("retry-after"));
    cancel(&server, &begun).await;
    begin(&server, "x").await;
}

#[tokio::test]
async fn a_response_in_the_background_is_its_owners_only() {
    let keys = [b"one", b"two"].map(|key| Tenant::of_key(key));
    let settings = Settings {
        access: Access::Keys(keys.into()),
        ..Settings::default()
    };
    let mut server = TestServer::with(SCRIPT, settings).await;
    let ask = |method: &str, path: &str, key: &str| {
        let method = method.parse().unwrap();
        let ask = http().request(method, server.url(path)).bearer_auth(key);
        request(ask.body(asked("hang").to_string()))
    };
    let begun = ask("POST", "/v1/responses", "one").await.json();
    let path = path(&begun);
    for (method, path) in [
        ("GET", path.clone()),
        ("GET", path.clone() + "?stream=true"),
        ("POST", path.clone() + "/cancel"),
        ("DELETE", path.clone()),
    ] {
        assert_eq!(ask(method, &path, "two").await.status, 404);
    }
    let cancelled = ask("POST", &(path + "/cancel"), "one").await;
    assert_eq!(cancelled.json()["status"], "cancelled");
    let stopped = server.engine.wait_for(|engine| engine.running == 0).await;
    stopped.unwrap();
}

#[tokio::test]
async fn a_server_that_shuts_down_fails_what_it_makes() {
    let mut server = TestServer::start(SCRIPT).await;
    let begun = hang(&mut server).await;
    let follow = http().get(server.url(&(path(&begun) + "?stream=true")));
    let stream = follow.send().await.unwrap();
    let stopped = server.stop();
    let all = read(&stream.text().await.unwrap());
    let last = all.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    let message = last["response"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("shutting down"), "{message}");
    stopped.await.unwrap();
}
