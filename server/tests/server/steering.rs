//! Steering with an engine that heeds it: what would go on for ever ends, and the next response
//! has what the user said.

use serde_json::{Value, json};
use turnwire_client::Connection;

use crate::support::*;

const SCRIPT: &str = "
    [[reply]]
    user_contains = 'shorter'
    steps = [{text = 'You said: {user}'}]

    [[reply]]
    after_tool = true
    steps = [{text = '{items} items'}]

    [[reply]]
    user_contains = 'call'
    steps = [{call = '*', arguments = '{}', delay_ms = 1}, {hang = true}]

    [[reply]]
    user_contains = 'think'
    steps = [{reasoning = 'hm ', repeat = 1000000000}]

    [[reply]]
    user_contains = 'wait'
    steps = [{text = 'One moment.'}, {hang = true}]

    [[reply]]
    user_contains = 'pause'
    steps = [{text = 'slow', delay_ms = 1000000000}, {fail = 'internal'}]

    [[reply]]
    steps = [{text = 'and so on ', repeat = 1000000000}]
";

/// Reads up to the next event of this type.
async fn until(connection: &mut Connection, name: &str) -> Value {
    loop {
        let event = connection.next().await.unwrap();
        check(&event.json);
        let event: Value = event.parse().unwrap();
        if event["type"] == name {
            return event;
        }
    }
}

async fn steer(connection: &mut Connection, target: &Value, input: &str) -> Value {
    let steer = json!({
        "type": "response.steer", "previous_response_id": target, "input": input,
    });
    connection.send(steer.to_string()).await.unwrap();
    until(connection, "response.steer.accepted").await
}

#[tokio::test]
async fn whatever_an_engine_is_at_it_comes_to_an_end() {
    let mut server = TestServer::start(SCRIPT).await;
    let mut socket = server.connect().await;
    for (input, kind) in [
        ("go on", "message"),
        ("think", "reasoning"),
        ("wait", "message"),
        ("pause", "message"),
    ] {
        let message = create(json!({"store": false, "temperature": 0.5, "input": input}));
        socket.send(message.to_string()).await.unwrap();
        let created = until(&mut socket, "response.created").await;
        let target = &created["response"]["id"];
        until(&mut socket, "response.output_item.added").await;
        let accepted = steer(&mut socket, target, "shorter").await;
        assert_eq!(accepted["steer"]["previous_response_id"], *target);

        let ended = until(&mut socket, "response.incomplete").await;
        let response = &ended["response"];
        assert_eq!(response["incomplete_details"]["reason"], "steered");
        assert_eq!(response["output"][0]["type"], kind, "{input}");
        assert_eq!(response["output"][0]["status"], "completed", "{input}");

        let created = until(&mut socket, "response.created").await;
        assert_eq!(created["response"]["previous_response_id"], *target);
        assert_eq!(created["response"]["temperature"], 0.5);
        let ended = until(&mut socket, "response.completed").await;
        assert_eq!(text(&ended["response"]), "You said: shorter");
    }
    // Each of them ended by itself.
    let idle = server.engine.wait_for(|engine| engine.running == 0).await;
    assert_eq!(idle.unwrap().cancelled, 0);
}

#[tokio::test]
async fn an_open_call_is_completed_and_its_output_goes_behind_the_steer() {
    let server = TestServer::start(SCRIPT).await;
    let mut socket = server.connect().await;
    let message = create(json!({
        "store": false, "input": "call", "tools": [tool("look", &json!({}))],
    }));
    socket.send(message.to_string()).await.unwrap();
    let created = until(&mut socket, "response.created").await;
    let target = &created["response"]["id"];
    // Before that, the engine would not begin with the call.
    until(&mut socket, "response.output_item.added").await;
    let accepted = steer(&mut socket, target, "look twice").await;
    let ended = until(&mut socket, "response.completed").await;
    let output = &ended["response"]["output"];
    let pending = until(&mut socket, "response.steer.pending").await;
    assert_eq!(pending["steer"], accepted["steer"]);
    let stub = &pending["required_input"][0];
    assert_eq!(stub["call_id"], output[0]["call_id"]);
    assert_eq!(stub["name"], "look");

    let mut answer = stub.clone();
    answer["output"] = json!("nothing");
    let message = create(json!({
        "store": false, "previous_response_id": target, "input": [answer],
    }));
    let events = turn(&mut socket, &message).await;
    // The question, the call, the steer and the output.
    assert_eq!(text(&response(&events)), "4 items");
}
