//! Responses in conversations, over HTTP and on sockets.

use serde_json::{Value, json};

use crate::support::*;

const SCRIPT: &str = "
[[reply]]
user_contains = 'wait'
steps = [{ text = 'Well' }, { hang = true }]

[[reply]]
user_contains = 'fail'
steps = [{ text = 'No' }, { fail = 'internal', message = 'It broke.' }]

[[reply]]
steps = [{ text = '{user} | {items} items' }]
";

/// A conversation with one item, on a server of its own.
async fn conversation() -> (TestServer, String) {
    let server = TestServer::start(SCRIPT).await;
    let body = json!({"items": [{"role": "user", "content": "first"}]});
    let created = server.send("POST", "/v1/conversations", &body).await;
    let id = created.json()["id"].as_str().unwrap().to_owned();
    (server, id)
}

async fn items(server: &TestServer, id: &str) -> usize {
    let path = format!("/v1/conversations/{id}/items?limit=100");
    let list = server.get(&path).await.json();
    list["data"].as_array().unwrap().len()
}

fn in_conversation(id: &str, input: &str) -> Value {
    create(json!({"conversation": id, "input": input}))
}

#[tokio::test]
async fn both_transports_go_on_with_a_conversation() {
    let (server, id) = conversation().await;
    let mut socket = server.connect().await;
    let over_http = server.post(&in_conversation(&id, "a")).await.json();
    assert_eq!(text(&over_http), "a | 2 items");
    assert_eq!(over_http["conversation"], json!({"id": id}));
    assert_eq!(over_http["previous_response_id"], Value::Null);

    let on_socket = response(&turn(&mut socket, &in_conversation(&id, "b")).await);
    assert_eq!(text(&on_socket), "b | 4 items");
    assert_eq!(items(&server, &id).await, 5);

    let path = format!("/v1/responses/{}", on_socket["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), on_socket);

    // What continues a response of it by its id leaves it as it is.
    let aside = json!({"previous_response_id": on_socket["id"], "input": "aside"});
    let aside = server.post(&create(aside)).await.json();
    assert_eq!(text(&aside), "aside | 6 items");
    assert_eq!(aside.get("conversation"), None);
    assert_eq!(items(&server, &id).await, 5);

    let failed = server.post(&in_conversation(&id, "fail")).await.json();
    assert_eq!(failed["status"], "failed");
    assert_eq!(items(&server, &id).await, 5);

    let unknown = server.post(&in_conversation("conv_x", "a")).await;
    assert_eq!(
        (unknown.status, unknown.error_code()),
        (404, "conversation_not_found".into())
    );
}

#[tokio::test]
async fn a_conversation_is_locked_until_its_turn_has_ended() {
    let (mut server, id) = conversation().await;
    let mut socket = server.connect().await;
    let wait = in_conversation(&id, "wait").to_string();
    socket.send(wait.clone()).await.unwrap();
    let started = server.engine.wait_for(|engine| engine.outputs > 2);
    started.await.unwrap();

    let locked = server.post(&in_conversation(&id, "a")).await;
    assert_eq!(
        (locked.status, locked.error_code()),
        (409, "conversation_locked".into())
    );
    // Counting its tokens disturbs nobody.
    let count = json!({"model": "scripted", "conversation": id, "input": "a"});
    let counted = server.send("POST", "/v1/responses/input_tokens", &count);
    assert_eq!(counted.await.status, 200);

    let cancel = json!({"type": "response.cancel"});
    socket.send(cancel.to_string()).await.unwrap();
    assert_eq!(response(&events(&mut socket).await)["status"], "cancelled");
    let next = server.post(&in_conversation(&id, "a")).await.json();
    assert_eq!(text(&next), "a | 2 items");

    // Nor does a client keep it that has gone.
    socket.send(wait).await.unwrap();
    let started = server.engine.wait_for(|engine| engine.running == 1);
    started.await.unwrap();
    drop(socket);
    let stopped = server.engine.wait_for(|engine| engine.running == 0);
    stopped.await.unwrap();
    let next = server.post(&in_conversation(&id, "b")).await.json();
    assert_eq!(text(&next), "b | 4 items");
}
