//! Requests over HTTP that bring all of their history.

use serde_json::{Value, json};
use turnwire::auth::{Access, Tenant};
use turnwire::histories::Histories;

use crate::binary::started;
use crate::support::*;

/// Calls a tool where one is required, and says something where none is offered.
const AGENT: &str = "
    [[reply]]
    has_tools = false
    steps = [{reasoning = 'hm'}, {text = 'I have seen {items} items.'}]
";

/// A client that sends everything with every request, and what it has so far.
struct Agent {
    url: String,
    key: Option<&'static str>,
    store: bool,
    history: Vec<Value>,
}

impl Agent {
    fn new(server: &TestServer) -> Self {
        Self {
            url: server.url("/v1"),
            key: None,
            store: false,
            history: Vec::new(),
        }
    }

    /// Sends its history with this behind it, and takes up what is answered.
    async fn send(&mut self, item: Value, tools: &[Value]) -> Value {
        self.history.push(item);
        let body = create(json!({
            "input": self.history,
            "store": self.store,
            "tools": tools,
            "tool_choice": if tools.is_empty() { "auto" } else { "required" },
        }));
        let mut post = http().post(format!("{}/responses", self.url));
        if let Some(key) = self.key {
            post = post.bearer_auth(key);
        }
        let response = request(post.body(body.to_string())).await.json();
        assert_eq!(response["status"], "completed", "{response}");
        for item in response["output"].as_array().unwrap() {
            self.history.push(shortened(item));
        }
        response
    }

    /// A message, the call it leads to, and the call's output.
    async fn look(&mut self, text: &str) -> [Value; 2] {
        let tools = [tool("look", &json!({}))];
        let message = json!({"role": "user", "content": text});
        let called = self.send(message, &tools).await;
        let call_id = &called["output"][0]["call_id"];
        let output = json!({"type": "function_call_output", "call_id": call_id, "output": "dark"});
        [called, self.send(output, &[]).await]
    }
}

/// The item as a client sends it back that knows what it needs of it.
fn shortened(item: &Value) -> Value {
    match item["type"].as_str().unwrap() {
        "message" => json!({"role": "assistant", "content": item["content"][0]["text"]}),
        _ => {
            let mut item = item.clone();
            let members = item.as_object_mut().unwrap();
            members.retain(|name, _| !matches!(&**name, "id" | "status"));
            item
        }
    }
}

fn tokens(response: &Value) -> (u64, u64) {
    let usage = &response["usage"];
    let cached = &usage["input_tokens_details"]["cached_tokens"];
    (
        usage["input_tokens"].as_u64().unwrap(),
        cached.as_u64().unwrap(),
    )
}

/// A response without what differs from one server to another.
fn comparable(response: &Value) -> Value {
    let mut response = response.clone();
    let members = response.as_object_mut().unwrap();
    members.retain(|name, _| !matches!(&**name, "id" | "created_at" | "completed_at" | "usage"));
    without_ids(&mut response["output"]);
    response
}

/// Items as they mean the same, whatever they are called.
fn without_ids(items: &mut Value) {
    for item in items.as_array_mut().unwrap() {
        let members = item.as_object_mut().unwrap();
        members.retain(|name, _| !matches!(&**name, "id" | "call_id" | "status"));
        for part in item["content"].as_array_mut().into_iter().flatten() {
            let part = part.as_object_mut().unwrap();
            part.retain(|name, _| matches!(&**name, "text"));
        }
    }
}

async fn without_matching(script: &str) -> TestServer {
    let histories = Histories::none();
    let settings = Settings {
        histories,
        ..Settings::default()
    };
    TestServer::with(script, settings).await
}

#[tokio::test]
async fn ten_turns_that_send_everything_cost_what_is_new_and_say_the_same() {
    let matching = TestServer::start(AGENT).await;
    let plain = without_matching(AGENT).await;
    for store in [false, true] {
        let mut agents = [&matching, &plain].map(Agent::new);
        let mut before = 0;
        for turn in 0..5 {
            let [one, other] = &mut agents;
            (one.store, other.store) = (store, store);
            let text = format!("look for the {turn}th time");
            let (made, expected) = (one.look(&text).await, other.look(&text).await);
            for (made, expected) in made.iter().zip(&expected) {
                assert_eq!(comparable(made), comparable(expected));
                assert_eq!(tokens(expected).1, 0);
                let (input, cached) = tokens(made);
                assert!(cached >= before && cached < input, "{cached} of {input}");
                before = input;
            }
        }
    }
}

#[tokio::test]
async fn a_response_on_top_of_a_match_is_stored_and_listed_as_any_other() {
    let matching = TestServer::start(AGENT).await;
    let plain = without_matching(AGENT).await;
    let mut lists = Vec::new();
    for server in [&matching, &plain] {
        let mut agent = Agent::new(server);
        agent.store = true;
        agent.look("look").await;
        let [_, last] = agent.look("look again").await;
        let id = last["id"].as_str().unwrap();
        let path = format!("/v1/responses/{id}");
        let stored = server.get(&path).await.json();
        assert_eq!(stored, last);
        assert_eq!(stored["previous_response_id"], Value::Null);
        let list = server.get(&format!("{path}/input_items?order=asc")).await;
        let mut list = list.json()["data"].take();
        without_ids(&mut list);
        lists.push(list);
        let next = create(json!({"input": "and?", "previous_response_id": id}));
        assert_eq!(server.post(&next).await.status, 200);
    }
    assert_eq!(lists[0], lists[1]);
    assert_eq!(lists[0].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn a_match_makes_nothing_known_that_was_not() {
    let server = TestServer::start(AGENT).await;
    let mut agent = Agent::new(&server);
    let [first, _] = agent.look("look").await;
    let (_, cached) = tokens(&agent.look("look again").await[1]);
    assert!(cached > 0);
    let id = first["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/responses/{id}")).await.status, 404);
    let named = create(json!({"input": "and?", "previous_response_id": id}));
    assert_eq!(
        server.post(&named).await.error_code(),
        "previous_response_not_found"
    );
    // Not even by what is stored from now on.
    agent.store = true;
    let [stored, _] = agent.look("and store that").await;
    assert_eq!(tokens(&stored).1, 0);
    let item = first["output"][0]["id"].as_str().unwrap();
    let reference = create(json!({"input": [{"type": "item_reference", "id": item}]}));
    assert_eq!(server.post(&reference).await.error_code(), "item_not_found");
}

#[tokio::test]
async fn nothing_is_found_of_another_owner() {
    let keys = ["sk-1", "sk-2"];
    let tenants = keys.map(|key| Tenant::of_key(key.as_bytes()));
    let settings = Settings {
        access: Access::Keys(tenants.into()),
        ..Settings::default()
    };
    let server = TestServer::with(AGENT, settings).await;
    let mut agents = keys.map(|key| Agent {
        key: Some(key),
        ..Agent::new(&server)
    });
    agents[0].look("look").await;
    agents[1].history = agents[0].history.clone();
    assert_eq!(tokens(&agents[1].look("look again").await[0]).1, 0);
    assert!(tokens(&agents[0].look("look again").await[0]).1 > 0);
}

#[tokio::test]
async fn flags_switch_it_off() {
    for (flags, matches) in [
        (&[][..], true),
        (&["--no-history-matching"], false),
        (&["--history-bytes", "100"], false),
        (&["--zero-retention"], false),
    ] {
        let (_program, url, _log) = started(flags).await;
        let mut history = vec![json!({"role": "user", "content": "hi"})];
        let post = async |history: &[Value]| {
            let body = create(json!({"input": history, "store": false})).to_string();
            request(http().post(format!("{url}/responses")).body(body)).await
        };
        let first = post(&history).await.json();
        history.extend(first["output"].as_array().unwrap().iter().cloned());
        history.push(json!({"role": "user", "content": "more"}));
        let second = post(&history).await.json();
        assert_eq!(tokens(&second).1 > 0, matches, "{flags:?}");
    }
}
