//! The Rust client against a whole server.

use serde_json::{Value, json};
use turnwire_client::{
    Connection, Create, Error, Http, Json, Message, Options, Session, Settings, Status, Transport,
    TurnEvent, item,
};

use crate::support::{TestServer, create, events, response, text, tool};
use crate::tls::Identity;

#[tokio::test]
async fn a_handshake_keeps_the_query_and_tells_what_was_agreed_on() {
    let server = TestServer::start("").await;
    let url = format!("ws://{}/v1/?via=a%20test", server.address);
    let plain = Connection::open(&url, None).await.unwrap();
    assert_eq!(plain.handshake().extensions(), None);

    let options = Options::new()
        .compression(true)
        .subprotocol("realtime")
        .header("openai-beta", "one")
        .header("openai-beta", "two");
    let compressed = Connection::open_with(&url, &options).await.unwrap();
    let agreed = compressed.handshake().extensions().unwrap();
    assert!(agreed.starts_with("permessage-deflate"), "{agreed}");
    assert_eq!(compressed.handshake().subprotocol(), None);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_body() {
    let server = TestServer::start("").await;
    let refused = Connection::open(&server.url("/elsewhere"), None).await;
    let Err(Error::Refused { status, body, .. }) = refused else {
        panic!("{refused:?}")
    };
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")));
}

#[tokio::test]
async fn a_message_may_go_out_in_frames_and_as_binary_and_bytes_are_counted() {
    let server = TestServer::start("").await;
    let mut connection = server.connect().await;
    let message = create(json!({"input": "größer"})).to_string();
    connection.send_in_frames(message.clone(), 7).await.unwrap();
    assert_eq!(
        response(&events(&mut connection).await)["status"],
        "completed"
    );
    connection.send_binary(message.clone()).await.unwrap();
    assert_eq!(
        response(&events(&mut connection).await)["status"],
        "completed"
    );

    let before = connection.traffic();
    connection.send(message.clone()).await.unwrap();
    let events = events(&mut connection).await;
    let traffic = connection.traffic();
    // A header of two bytes, a mask of four, and two more for the length.
    let lengths = 2 + 4 + if message.len() > 125 { 2 } else { 0 };
    assert_eq!(traffic.sent - before.sent, (message.len() + lengths) as u64);
    let said: usize = events.iter().map(|event| event.json.len()).sum();
    assert!(traffic.received - before.received > said as u64);
}

#[tokio::test]
async fn what_the_server_closes_with_is_a_message_and_then_an_end() {
    let server = TestServer::start("").await;
    let mut connection = server.connect().await;
    connection.send_text_unchecked(vec![0xFF]).await.unwrap();
    let close = connection.next_message().await.unwrap();
    assert!(
        matches!(
            close,
            Message::Close {
                code: Some(1007),
                ..
            }
        ),
        "{close:?}"
    );
    let ended = connection.next_message().await.unwrap_err();
    assert!(matches!(ended, Error::Closed { code: None, .. }), "{ended}");
}

#[tokio::test]
async fn the_same_is_had_without_a_socket() {
    let server = TestServer::start("").await;
    let http = Http::new(&server.url("/v1"), &Options::new()).unwrap();
    let request = json!({"model": "scripted", "input": "x"});
    let answer = http
        .post_json("responses", request.to_string())
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    let whole: Value = serde_json::from_slice(&answer.body).unwrap();

    let path = format!("responses/{}", whole["id"].as_str().unwrap());
    let stored = http.get(&path).await.unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&stored.body).unwrap(),
        whole
    );

    let request = json!({"model": "scripted", "input": "x", "stream": true});
    let mut stream = http
        .post_sse("responses", request.to_string())
        .await
        .unwrap();
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        events.push(event);
    }
    assert!(stream.saw_done());
    assert_eq!(text(&response(&events)), text(&whole));

    let refused = http.post_sse("responses", "{}").await;
    assert!(
        matches!(refused, Err(Error::Refused { status: 400, .. })),
        "{refused:?}"
    );
}

const SCRIPT: &str = "
[[reply]]
user_contains = 'never end'
steps = [{text = 'well', repeat = 1000000000}]

[[reply]]
has_tools = true
after_tool = false
steps = [{call = '*'}]

[[reply]]
steps = [{text = 'turn {turn}, {items} items, {user}'}]
";

fn session(server: &TestServer, settings: Settings) -> Session {
    Session::new(&server.url("/v1"), settings).unwrap()
}

fn saying(text: &str) -> Create {
    Create::new("scripted").user(text)
}

#[tokio::test]
async fn a_session_runs_many_lanes_and_forks_on_one_socket() {
    let server = TestServer::start(SCRIPT).await;
    let session = session(&server, Settings::default());
    let mut agents = Vec::new();
    for number in 0..16 {
        let session = session.clone();
        agents.push(tokio::spawn(async move {
            let mut lane = session.lane(&format!("agent-{number}")).unwrap();
            let parameters = json!({"at": {"type": "string"}});
            let tools = vec![Json::from(tool("look", &parameters))];
            let create = Create::new("scripted").tools(tools);
            let begin = create.clone().user("look around");
            let response = lane.create(begin).await.unwrap().finish().await.unwrap();
            let [call] = &response.calls()[..] else {
                panic!("{response:?}")
            };
            let answer = create.item(item::function_output(&call.call_id, "a wall"));
            let response = lane.create(answer).await.unwrap().finish().await.unwrap();
            assert_eq!(response.text(), "turn 2, 3 items, look around");

            let mut fork = lane.fork(&format!("fork-{number}")).unwrap();
            let left = lane.create(saying("left")).await.unwrap().finish();
            let right = fork.create(saying("right")).await.unwrap().finish();
            let (left, right) = tokio::join!(left, right);
            assert_eq!(left.unwrap().text(), "turn 3, 5 items, left");
            assert_eq!(right.unwrap().text(), "turn 3, 5 items, right");
        }));
    }
    for agent in agents {
        agent.await.unwrap();
    }
    assert_eq!(server.engine.borrow().cancelled, 0);
}

#[tokio::test]
async fn a_turn_that_is_cancelled_or_dropped_stops_the_engine_and_the_lane_goes_on() {
    let mut server = TestServer::start(SCRIPT).await;
    let session = session(&server, Settings::default());
    let mut lane = session.default_lane().unwrap();
    let ask = |text| saying(text).store(false);
    lane.create(ask("a")).await.unwrap().finish().await.unwrap();

    let mut turn = lane.create(ask("never end")).await.unwrap();
    while !matches!(
        turn.next().await.unwrap(),
        Some(TurnEvent::TextDelta { .. })
    ) {}
    turn.cancel().await;
    let cancelled = turn.finish().await.unwrap();
    assert_eq!(cancelled.status, Status::Cancelled);

    let mut turn = lane.create(ask("never end")).await.unwrap();
    while !matches!(
        turn.next().await.unwrap(),
        Some(TurnEvent::TextDelta { .. })
    ) {}
    drop(turn);
    server
        .engine
        .wait_for(|engine| engine.cancelled == 2)
        .await
        .unwrap();

    let response = lane.create(ask("b")).await.unwrap().finish().await.unwrap();
    assert_eq!(response.text(), "turn 2, 3 items, b");
}

#[tokio::test]
async fn a_conversation_outlives_its_socket_and_its_server() {
    let server = TestServer::start(SCRIPT).await;
    let session = session(&server, Settings::default());
    let mut lane = session.lane("a").unwrap();
    let mut stored = session.lane("b").unwrap();
    for lane in [&mut lane, &mut stored] {
        let create = saying("a").store(lane.name() == Some("b"));
        lane.create(create).await.unwrap().finish().await.unwrap();
    }
    session.close().await;
    // The one is sent again as a whole; the other is still known.
    let again = lane
        .create(saying("b"))
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    assert_eq!(again.text(), "turn 1, 3 items, b");
    let known = saying("b").store(true);
    let known = stored.create(known).await.unwrap().finish().await.unwrap();
    assert_eq!(known.text(), "turn 2, 3 items, b");

    let other = TestServer::start(SCRIPT).await;
    let elsewhere = Session::new(&other.url("/v1"), Settings::default()).unwrap();
    let mut restored = elsewhere.default_lane().unwrap();
    restored.restore(lane.history().iter().cloned());
    let response = restored
        .create(saying("c"))
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    assert_eq!(response.text(), "turn 1, 5 items, c");
}

#[tokio::test]
async fn a_session_over_http_is_the_same_conversation() {
    let server = TestServer::start(SCRIPT).await;
    let settings = Settings {
        transport: Transport::Http,
        ..Settings::default()
    };
    let session = session(&server, settings);
    let mut lane = session.default_lane().unwrap();
    for (store, expected) in [
        (false, "turn 1, 1 items, x"),
        (true, "turn 1, 3 items, x"),
        (true, "turn 2, 5 items, x"),
    ] {
        let create = saying("x").store(store);
        let response = lane.create(create).await.unwrap().finish().await.unwrap();
        assert_eq!(response.text(), expected);
    }
}

#[tokio::test]
async fn a_refusal_is_told_as_what_it_is() {
    let server = TestServer::start(SCRIPT).await;
    let session = session(&server, Settings::default());
    let mut lane = session.default_lane().unwrap();
    let unknown = Create::new("nobody").user("x");
    let refused = lane
        .create(unknown)
        .await
        .unwrap()
        .finish()
        .await
        .unwrap_err();
    let Error::Answered(failure) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(
        (failure.code.as_deref(), failure.param.as_deref()),
        (Some("model_not_found"), Some("model"))
    );
    let fine = lane
        .create(saying("x"))
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    assert_eq!(fine.usage.unwrap().cached_tokens, 0);
}

#[tokio::test]
async fn a_certificate_is_trusted_only_if_it_is_told_to() {
    let identity = Identity::new();
    let server = identity
        .serve(SCRIPT, crate::support::Settings::default())
        .await;
    let url = server.url("/v1");
    let refused = Connection::open(&url, None).await.unwrap_err();
    let Error::Unreachable { problem, .. } = &refused else {
        panic!("{refused:?}")
    };
    assert!(problem.contains("certificate"), "{problem}");
    for options in [
        identity.options(),
        Options::new().accept_any_certificate(true),
    ] {
        let settings = Settings {
            options,
            ..Settings::default()
        };
        let session = session(&server, settings);
        let mut lane = session.default_lane().unwrap();
        let response = lane
            .create(saying("x"))
            .await
            .unwrap()
            .finish()
            .await
            .unwrap();
        assert_eq!(response.text(), "turn 1, 1 items, x");
    }
}
