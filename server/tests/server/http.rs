//! The HTTP surface beyond creating responses.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use turnwire::engine::scripted::{Script, ScriptedEngine};
use turnwire::engine::{Engine, Engines};
use turnwire_protocol::limits::Limits;

use crate::support::*;

#[tokio::test]
async fn the_tokens_of_a_prompt_are_counted() {
    let server = TestServer::start("").await;
    let count = async |body: Value| {
        server
            .send("POST", "/v1/responses/input_tokens", &body)
            .await
    };
    let prompt = json!({"model": "scripted", "input": "one two three", "instructions": "four"});
    let counted = count(prompt.clone()).await;
    let made = server.post(&prompt).await.json();
    let tokens = made["usage"]["input_tokens"].as_u64().unwrap();
    assert!(tokens > 0);
    let expected = json!({"object": "response.input_tokens", "input_tokens": tokens});
    assert_eq!((counted.status, counted.json()), (200, expected));
    let behind = json!({"model": "scripted", "input": "x", "previous_response_id": made["id"]});
    let behind = count(behind).await.json()["input_tokens"].as_u64().unwrap();
    assert!(behind > tokens);
    for (wrong, status, code) in [
        (json!({"input": "x"}), 400, "missing_required_parameter"),
        (json!({"model": "other"}), 404, "model_not_found"),
        (
            json!({"model": "scripted", "previous_response_id": "resp_1"}),
            400,
            "previous_response_not_found",
        ),
    ] {
        let refused = count(wrong).await;
        assert_eq!(
            (refused.status, refused.error_code()),
            (status, code.into())
        );
    }
}

const HANG: &str = "[[reply]]\nsteps = [{text = 'well'}, {hang = true}]";

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let server = TestServer::start("").await;
    let client = http();
    for (asked, status, code) in [
        (client.get(server.url("/")), 404, "not_found"),
        (client.get(server.url("/v1/embeddings")), 404, "not_found"),
        (
            client.get(server.url("/v1/responses/a/b")),
            404,
            "not_found",
        ),
        (
            client.get(server.url("/v1/responses/resp_1?stream=true")),
            404,
            "response_not_found",
        ),
        (
            client.get(server.url("/v1/models/other")),
            404,
            "model_not_found",
        ),
        (
            client.put(server.url("/v1/responses")),
            405,
            "method_not_allowed",
        ),
        (
            client.post(server.url("/health")),
            405,
            "method_not_allowed",
        ),
        (
            client.get(server.url("/v1/responses?model=x")),
            426,
            "upgrade_required",
        ),
        (
            client.post(server.url("/v1/responses")).body("no json"),
            400,
            "invalid_json",
        ),
        (
            client
                .post(server.url("/v1/responses"))
                .header("content-encoding", "gzip, zstd")
                .body("x"),
            415,
            "unsupported_content_encoding",
        ),
    ] {
        let answer = request(asked).await;
        assert_eq!((answer.status, answer.error_code()), (status, code.into()));
        assert!(
            answer.headers["x-request-id"]
                .to_str()
                .unwrap()
                .starts_with("req_")
        );
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers.contains_key("allow"), status == 405);
        assert_eq!(
            answer.headers.contains_key("accept-encoding"),
            status == 415
        );
        assert_eq!(
            answer
                .headers
                .get("upgrade")
                .is_some_and(|to| to == "websocket"),
            status == 426
        );
    }
}

#[tokio::test]
async fn models_are_listed_and_found_by_name() {
    let engine = |name: &str| {
        let script = format!("model = '{name}'").parse().unwrap();
        Arc::new(ScriptedEngine::new(script, 1_700_000_000)) as Arc<dyn Engine>
    };
    let engines = Engines::ready([engine("a"), engine("Owner/Model 1")]);
    let (_, activity) = tokio::sync::watch::channel(Default::default());
    let (server, _) = TestServer::serving(engines, activity, Settings::default()).await;
    let model = |name: &str| json!({"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "turnwire"});
    let list = json!({"object": "list", "data": [model("a"), model("Owner/Model 1")]});
    assert_eq!(server.get("/v1/models").await.json(), list);
    for path in ["/v1/models/Owner/Model%201", "/v1/models/Owner%2FModel%201"] {
        assert_eq!(server.get(path).await.json(), model("Owner/Model 1"));
    }
}

#[tokio::test]
async fn turns_wait_outside_until_the_model_has_loaded() {
    let engine = Arc::new(ScriptedEngine::new(Script::default(), 0));
    let settings = Settings::default();
    let (server, inside) = TestServer::serving(
        Engines::expected([Some("scripted".into())]),
        engine.activity(),
        settings,
    )
    .await;
    let request = json!({"model": "scripted", "input": "x"});
    let mut connection = server.connect().await;

    let unhealthy = server.get("/health").await;
    assert_eq!(unhealthy.status, 503);
    assert!(unhealthy.headers.contains_key("retry-after"));
    let early = server.post(&request).await;
    assert_eq!(
        (early.status, early.error_code()),
        (503, "server_is_overloaded".into())
    );
    assert!(early.headers.contains_key("retry-after"));
    let early = turn(&mut connection, &create(request.clone())).await;
    assert_eq!(error_code(&early), "server_is_overloaded");
    let unknown = server.post(&json!({"model": "other", "input": "x"})).await;
    assert_eq!(unknown.status, 404);

    inside.engines().put(0, engine);
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.post(&request).await.status, 200);
    assert_eq!(
        response(&turn(&mut connection, &create(request)).await)["status"],
        "completed"
    );
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let limits = Limits {
        message_bytes: 1000,
        ..Limits::default()
    };
    let settings = Settings {
        limits,
        ..Settings::default()
    };
    let server = TestServer::with("", settings).await;
    for size in [1001, 2000, 1 << 20] {
        let answer = server.post(&Value::String("x".repeat(size - 2))).await;
        assert_eq!(
            (answer.status, answer.error_code()),
            (413, "request_too_large".into())
        );
    }
    let fits = json!({"model": "scripted", "input": "x".repeat(900)});
    assert_eq!(server.post(&fits).await.status, 200);
}

#[tokio::test]
async fn a_compressed_body_is_worth_what_it_says() {
    let limits = Limits {
        message_bytes: 100_000,
        ..Limits::default()
    };
    let settings = Settings {
        limits,
        ..Settings::default()
    };
    let server = TestServer::with("", settings).await;
    let gzip = |body: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |body: &[u8]| zstd::encode_all(body, 3).unwrap();
    let post = |encoding: &str, body: Vec<u8>| {
        let post = http().post(server.url("/v1/responses")).body(body);
        request(post.header("content-encoding", encoding))
    };
    let fits = json!({"model": "scripted", "input": "x".repeat(90_000)}).to_string();
    let bomb = vec![b' '; 50_000_000];
    for (encoding, encode) in [
        ("gzip", &gzip as &dyn Fn(&[u8]) -> Vec<u8>),
        ("zstd", &zstd),
    ] {
        let answer = post(encoding, encode(fits.as_bytes())).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.json()["status"], "completed");

        let large = post(encoding, encode(&bomb)).await;
        assert_eq!(
            (large.status, large.error_code()),
            (413, "request_too_large".into())
        );
        for broken in [
            fits.clone().into_bytes(),
            encode(fits.as_bytes())[..50].into(),
        ] {
            let broken = post(encoding, broken).await;
            assert_eq!(
                (broken.status, broken.error_code()),
                (400, "invalid_body".into())
            );
            assert!(broken.text.contains(encoding), "{}", broken.text);
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let mut server = TestServer::start(HANG).await;
    for (cancelled, stream) in [(1, true), (2, false)] {
        let body = json!({"model": "scripted", "input": "x", "stream": stream}).to_string();
        let request = http().post(server.url("/v1/responses")).body(body).send();
        let request = tokio::spawn(async move {
            let mut response = request.await.unwrap();
            while response.chunk().await.unwrap().is_some() {}
        });
        server
            .engine
            .wait_for(|engine| engine.running == 1)
            .await
            .unwrap();
        request.abort();
        server
            .engine
            .wait_for(|engine| engine.cancelled == cancelled)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let settings = Settings {
        capacity: Capacity {
            connections: 1,
            background: 1,
        },
        ..Settings::default()
    };
    let server = TestServer::with("", settings).await;
    let held = server.connect().await;
    let refused = server.get("/health").await;
    assert_eq!(
        (refused.status, refused.error_code()),
        (503, "too_many_connections".into())
    );
    assert!(refused.headers.contains_key("retry-after"));
    held.close().await.unwrap();
}
