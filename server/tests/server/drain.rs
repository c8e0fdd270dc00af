//! Shutting down.

use serde_json::json;
use turnwire_client::Error;

use crate::support::*;

const HANG: &str = "[[reply]]\nsteps = [{text = 'well'}, {hang = true}]";

#[tokio::test]
async fn sockets_close_with_1001_whether_or_not_they_are_busy() {
    let mut server = TestServer::start(HANG).await;
    let mut busy = server.connect_and_hang().await;
    let mut idle = server.connect().await;
    let mut engine = server.engine.clone();
    let stopped = server.stop();
    for connection in [&mut busy, &mut idle] {
        let closed = loop {
            match connection.next().await {
                Ok(event) => check(&event.json),
                Err(error) => break error,
            }
        };
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
    }
    engine.wait_for(|engine| engine.running == 0).await.unwrap();
    // The clients have not closed their side; they are not waited for in vain.
    drop((busy, idle));
    stopped.await.unwrap();
}

#[tokio::test]
async fn requests_under_way_end_and_idle_connections_are_let_go() {
    let mut server = TestServer::start(HANG).await;
    let client = http();
    let request = |stream: bool| {
        let body = json!({"model": "scripted", "input": "x", "stream": stream}).to_string();
        client.post(server.url("/v1/responses")).body(body).send()
    };
    let idle = client.get(server.url("/health")).send().await.unwrap();
    assert_eq!(idle.status(), 200);
    let (one, stream) = (tokio::spawn(request(false)), tokio::spawn(request(true)));
    server
        .engine
        .wait_for(|engine| engine.running == 2)
        .await
        .unwrap();
    let stopped = server.stop();
    assert!(
        stream
            .await
            .unwrap()
            .unwrap()
            .text()
            .await
            .unwrap()
            .ends_with("[DONE]\n\n")
    );
    let one = one.await.unwrap().unwrap();
    assert!(one.text().await.unwrap().contains("shutting down"));
    stopped.await.unwrap();
}
