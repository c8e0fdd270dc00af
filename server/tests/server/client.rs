//! The Rust client against a whole server.

use serde_json::{Value, json};
use turnwire_client::{Connection, Error, Http, Message, Options};

use crate::support::*;

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
