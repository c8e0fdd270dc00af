//! The chat engine against an upstream that plays its part, well or badly.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::engine::{EngineOutput, FinishReason, Purpose, TurnRequest};
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::item::Item;

use crate::support::*;
use crate::upstream::*;

fn ask(members: Value) -> Value {
    let mut create = create(members);
    create["model"] = "small".into();
    create
}

fn hello() -> Reply {
    Reply::Chunks(vec![
        delta(json!({"role": "assistant", "content": ""})),
        says("Hel"),
        says("lo."),
        finish("stop"),
        usage(10, 2),
    ])
}

fn call(index: u64, id: &str, name: &str, arguments: &str) -> Value {
    delta(json!({"tool_calls": [{
        "index": index, "id": id, "type": "function",
        "function": {"name": name, "arguments": arguments},
    }]}))
}

fn more(index: u64, arguments: &str) -> Value {
    delta(json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}))
}

#[tokio::test]
async fn text_streams_and_the_upstream_gets_the_whole_conversation() {
    let upstream = Upstream::start(vec![hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let first = ask(json!({"input": "one", "instructions": "Be brief.", "temperature": 0.7}));
    let first = response(&turn(&mut connection, &first).await);
    assert_eq!(text(&first), "Hello.");
    let used = &first["usage"];
    assert_eq!(
        (&used["input_tokens"], &used["output_tokens"]),
        (&json!(10), &json!(2))
    );
    assert_eq!(used["input_tokens_details"]["cached_tokens"], 5);
    let asked = upstream.last_asked().await;
    assert_eq!(asked["model"], "small");
    assert_eq!(asked["temperature"], 0.7);
    assert_eq!(asked.get("top_p"), None);

    let second = ask(json!({"previous_response_id": first["id"], "input": [
        {"role": "developer", "content": "Now in French."},
        {"role": "user", "content": [
            {"type": "input_text", "text": "what is this?"},
            {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        ]},
    ]}));
    response(&turn(&mut connection, &second).await);
    assert_eq!(
        upstream.last_asked().await["messages"],
        json!([
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "Hello."},
            {"role": "system", "content": "Now in French."},
            {"role": "user", "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url",
                 "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
            ]},
        ])
    );
}

#[tokio::test]
async fn parallel_calls_come_one_after_the_other_and_their_outputs_go_back() {
    let calls = Reply::Chunks(vec![
        delta(json!({"reasoning_content": "Two of them."})),
        call(0, "a", "look", "{\"at\":"),
        call(1, "b", "look", "{\"at\":\"the"),
        more(0, "\"a {wall\"}"),
        more(1, " floor\"}"),
        finish("tool_calls"),
        usage(20, 9),
    ]);
    let upstream = Upstream::start(vec![calls, hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let tools = json!([
        tool("look", &json!({"at": {"type": "string"}})),
        tool("touch", &json!({})),
    ]);
    let first = ask(json!({
        "input": "look around", "tools": tools, "store": false,
        "tool_choice": {"type": "allowed_tools", "mode": "required",
                        "tools": [{"type": "function", "name": "look"}]},
    }));
    let events = turn(&mut connection, &first).await;
    let first = response(&events);
    let output = first["output"].as_array().unwrap();
    let arguments: Vec<_> = output[1..].iter().map(|call| &call["arguments"]).collect();
    assert_eq!(arguments, [r#"{"at":"a {wall"}"#, r#"{"at":"the floor"}"#]);
    let asked = upstream.last_asked().await;
    assert_eq!(asked["tool_choice"], "required");
    assert_eq!(asked["tools"].as_array().unwrap().len(), 1);

    let outputs: Vec<_> = output[1..]
        .iter()
        .map(|call| json!({"type": "function_call_output", "call_id": call["call_id"], "output": "grey"}))
        .collect();
    let second = ask(json!({"previous_response_id": first["id"], "input": outputs}));
    assert_eq!(
        text(&response(&turn(&mut connection, &second).await)),
        "Hello."
    );
    let messages = &upstream.last_asked().await["messages"];
    assert_eq!(messages[1]["reasoning_content"], "Two of them.");
    assert_eq!(messages[1]["tool_calls"][1]["id"], output[2]["call_id"]);
    assert_eq!(
        messages[1]["tool_calls"][1]["function"]["arguments"],
        r#"{"at":"the floor"}"#
    );
    assert_eq!(
        (
            &messages[2]["role"],
            &messages[2]["tool_call_id"],
            &messages[3]["content"]
        ),
        (&json!("tool"), &output[1]["call_id"], &json!("grey"))
    );
}

#[tokio::test]
async fn a_custom_tool_is_a_function_of_its_input_to_a_chat() {
    let calls = Reply::Chunks(vec![
        call(0, "a", "shell__run", "{\"input\": \"echo \\\"a"),
        more(0, "\\\"\\n\"}"),
        finish("tool_calls"),
    ]);
    let upstream = Upstream::start(vec![calls, hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let tools = json!([{"type": "namespace", "name": "shell", "description": "s", "tools": [
        {"type": "custom", "name": "run", "description": "Runs a line.",
         "format": {"type": "grammar", "syntax": "regex", "definition": "echo .*"}},
    ]}]);
    let first = response(&turn(&mut connection, &ask(json!({"input": "x", "tools": tools}))).await);
    let made = &first["output"][0];
    assert_eq!(made["type"], "custom_tool_call");
    assert_eq!(
        (&made["namespace"], &made["name"]),
        (&json!("shell"), &json!("run"))
    );
    assert_eq!(made["input"], "echo \"a\"\n");
    let function = &upstream.last_asked().await["tools"][0]["function"];
    assert_eq!(function["name"], "shell__run");
    assert!(
        function["description"]
            .as_str()
            .unwrap()
            .ends_with("echo .*")
    );

    let output =
        json!([{"type": "custom_tool_call_output", "call_id": made["call_id"], "output": "a"}]);
    let second = ask(json!({"previous_response_id": first["id"], "input": output}));
    response(&turn(&mut connection, &second).await);
    let again = &upstream.last_asked().await["messages"][1]["tool_calls"][0]["function"];
    assert_eq!(again["name"], "shell__run");
    assert_eq!(again["arguments"], r#"{"input":"echo \"a\"\n"}"#);
}

#[tokio::test]
async fn tools_that_came_as_an_item_are_offered_from_then_on() {
    let upstream = Upstream::start(vec![hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let look = tool("look", &json!({"at": {"type": "string"}}));
    let first = ask(json!({"input": [
        {"type": "additional_tools", "role": "developer", "tools": [look]},
        {"role": "user", "content": "look"},
    ]}));
    let mut parent = response(&turn(&mut connection, &first).await);
    for _ in 0..2 {
        let asked = upstream.last_asked().await;
        assert_eq!(asked["tools"][0]["function"]["name"], "look");
        let next = ask(json!({"previous_response_id": parent["id"], "input": "again"}));
        parent = response(&turn(&mut connection, &next).await);
    }
}

#[tokio::test]
async fn a_cancelled_turn_leaves_its_upstream_at_once() {
    let mut upstream = Upstream::start(vec![Reply::Hang(vec![says("well")]), hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    connection
        .send(ask(json!({"input": "go on"})).to_string())
        .await
        .unwrap();
    while connection.next().await.unwrap().name != "response.output_text.delta" {}
    connection
        .send(r#"{"type":"response.cancel"}"#)
        .await
        .unwrap();
    let left = upstream.dropped.wait_for(|dropped| *dropped == 1);
    timeout(PROMPTLY, left)
        .await
        .expect("it left in time")
        .unwrap();
    assert_eq!(
        response(&events(&mut connection).await)["status"],
        "cancelled"
    );
    let again = turn(&mut connection, &ask(json!({"input": "again"}))).await;
    assert_eq!(response(&again)["status"], "completed");
}

#[tokio::test]
async fn a_warm_up_has_the_prompt_computed_and_says_nothing() {
    let upstream = Upstream::start(vec![hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let warm_up = turn(
        &mut connection,
        &ask(json!({"input": "x", "generate": false})),
    )
    .await;
    let warm_up = response(&warm_up);
    assert_eq!(warm_up["output"], json!([]));
    assert_eq!(warm_up["usage"]["input_tokens"], 10);
    assert_eq!(warm_up["usage"]["output_tokens"], 0);
    assert_eq!(upstream.last_asked().await["max_tokens"], 1);
    // Nothing to compute: the upstream is not even asked.
    let empty = turn(&mut connection, &ask(json!({"generate": false}))).await;
    assert_eq!(response(&empty)["status"], "completed");
    assert_eq!(upstream.asked.lock().await.len(), 1);
}

#[tokio::test]
async fn a_count_is_the_upstreams_own_and_costs_one_token_of_output() {
    let upstream = Upstream::start(vec![hello()]).await;
    let engine = upstream.engine(None).await;
    let item = Item::parse(r#"{"role":"user","content":"x"}"#.into()).unwrap();
    let count = TurnRequest {
        input: [item].into(),
        purpose: Purpose::Count,
        ..TurnRequest::new(ResponseId::from("resp_1"), "small")
    };
    let outputs: Vec<EngineOutput> = engine
        .start(count, CancellationToken::new())
        .collect()
        .await;
    let [
        EngineOutput::Started,
        EngineOutput::Finished { reason, usage, .. },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(*reason, FinishReason::Stop);
    assert_eq!((usage.input_tokens, usage.output_tokens), (10, 0));
    assert_eq!(upstream.last_asked().await["max_tokens"], 1);
}

#[tokio::test]
async fn what_is_cut_is_incomplete() {
    let upstream = Upstream::start(vec![
        Reply::Chunks(vec![says("So"), finish("length")]),
        Reply::Chunks(vec![
            delta(json!({"refusal": "No."})),
            finish("content_filter"),
        ]),
    ])
    .await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    for reason in ["max_output_tokens", "content_filter"] {
        let cut = turn(
            &mut connection,
            &ask(json!({"input": "x", "max_output_tokens": 16})),
        )
        .await;
        let cut = response(&cut);
        assert_eq!(cut["incomplete_details"]["reason"], reason);
        assert_eq!(cut["output"][0]["status"], "incomplete");
    }
    assert_eq!(upstream.last_asked().await["max_tokens"], 16);
}

#[tokio::test]
async fn refusals_keep_their_meaning() {
    let error = |code: &str, message: &str| json!({"error": {"code": code, "message": message}});
    for (reply, status, code) in [
        (
            Reply::Refuse(400, "", error("x", "'seed' is odd")),
            400,
            "invalid_value",
        ),
        (
            Reply::Refuse(400, "", error("context_length_exceeded", "too long")),
            400,
            "context_length_exceeded",
        ),
        (
            Reply::Refuse(401, "", error("x", "who?")),
            500,
            "server_error",
        ),
        (
            Reply::Refuse(404, "", error("x", "gone")),
            404,
            "model_not_found",
        ),
        (
            Reply::Refuse(429, "retry-after: 7\r\n", error("x", "slow")),
            429,
            "rate_limit_exceeded",
        ),
        (
            Reply::Refuse(500, "", error("x", "oh")),
            500,
            "server_error",
        ),
        (
            Reply::Refuse(503, "", json!("down")),
            503,
            "server_is_overloaded",
        ),
    ] {
        let upstream = Upstream::start(vec![reply]).await;
        let server = upstream.behind().await;
        let mut connection = server.connect().await;
        let events = turn(&mut connection, &ask(json!({"input": "x"}))).await;
        assert_eq!(error_code(&events), code);
        let error: Value = events[0].parse().unwrap();
        assert_eq!(error["status"], status);
        if status == 429 {
            assert_eq!(error["headers"]["retry-after"], "7");
        }
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_fail_the_response_and_nothing_else() {
    let broken = [
        Reply::Raw("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".into()),
        Reply::Raw("data: nonsense\n\n".into()),
        Reply::Raw("data: {\"error\":{\"message\":\"boom\"}}\n\n".into()),
        Reply::Chunks(vec![call(0, "a", "", "{}"), finish("tool_calls")]),
        Reply::Raw(String::new()),
    ];
    let upstream = Upstream::start([broken.to_vec(), vec![hello()]].concat()).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    for _ in &broken {
        let failed = response(&turn(&mut connection, &ask(json!({"input": "x"}))).await);
        assert_eq!(failed["status"], "failed");
        assert_eq!(failed["error"]["code"], "server_error");
    }
    let good = turn(&mut connection, &ask(json!({"input": "x"}))).await;
    assert_eq!(text(&response(&good)), "Hello.");
}

#[tokio::test]
async fn an_upstream_that_wants_the_other_name_for_the_limit_gets_it() {
    let message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.";
    let refusal = Reply::Refuse(400, "", json!({"error": {"message": message}}));
    let upstream = Upstream::start(vec![refusal, hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let limited = ask(json!({"input": "x", "max_output_tokens": 16}));
    assert_eq!(
        text(&response(&turn(&mut connection, &limited).await)),
        "Hello."
    );
    assert_eq!(upstream.last_asked().await["max_completion_tokens"], 16);
}

#[tokio::test]
async fn a_name_for_the_limit_that_does_not_help_is_not_kept() {
    // It repeats what a client wrote, and says nothing about this server's request.
    let message = "'max_completion_tokens!' is no name of a tool.";
    let refusal = Reply::Refuse(400, "", json!({"error": {"message": message}}));
    let upstream = Upstream::start(vec![refusal.clone(), refusal.clone(), refusal, hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let limited = ask(json!({"input": "x", "max_output_tokens": 16}));
    let refused = turn(&mut connection, &limited).await;
    assert_eq!(error_code(&refused), "invalid_value");
    // Without a limit there is nothing to name otherwise.
    let refused = turn(&mut connection, &ask(json!({"input": "x"}))).await;
    assert_eq!(error_code(&refused), "invalid_value");
    assert_eq!(upstream.asked.lock().await.len(), 3);
    turn(&mut connection, &limited).await;
    assert_eq!(upstream.last_asked().await["max_tokens"], 16);
}

#[tokio::test]
async fn counts_that_no_one_can_add_up_harm_nobody() {
    let counted = Reply::Chunks(vec![
        says("Hello."),
        finish("stop"),
        usage(u64::MAX, u64::MAX),
    ]);
    let upstream = Upstream::start(vec![counted]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let first = response(&turn(&mut connection, &ask(json!({"input": "x"}))).await);
    assert_eq!(text(&first), "Hello.");
    let next = ask(json!({"input": "y", "previous_response_id": first["id"]}));
    assert_eq!(
        text(&response(&turn(&mut connection, &next).await)),
        "Hello."
    );
}

#[tokio::test]
async fn a_turn_that_is_cancelled_before_its_upstream_answers_leaves_it_at_once() {
    let mut upstream = Upstream::start(vec![Reply::Silence]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let go_on = ask(json!({"input": "go on"})).to_string();
    connection.send(go_on).await.unwrap();
    upstream.is_asked().await;
    let cancel = r#"{"type":"response.cancel"}"#;
    connection.send(cancel).await.unwrap();
    let left = upstream.dropped.wait_for(|dropped| *dropped == 1);
    let left = timeout(PROMPTLY, left).await;
    left.expect("it left in time").unwrap();
}

#[tokio::test]
async fn a_message_of_nothing_but_parts_is_refused_before_it_is_taken_apart() {
    let upstream = Upstream::start(vec![hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    let part = json!({"type": "input_text", "text": ""});
    for (parts, outcome) in [(1_000, None), (100_000, Some("invalid_value"))] {
        let content = vec![part.clone(); parts];
        let input = json!([{"role": "user", "content": content}]);
        let events = turn(&mut connection, &ask(json!({"input": input}))).await;
        let event: Value = events[0].parse().unwrap();
        assert_eq!(event["error"]["code"].as_str(), outcome);
    }
    assert_eq!(upstream.asked.lock().await.len(), 1);
}

#[tokio::test]
async fn files_that_the_upstream_cannot_take_are_refused_by_name() {
    let upstream = Upstream::start(vec![hello()]).await;
    let server = upstream.behind().await;
    let mut connection = server.connect().await;
    for (part, param) in [
        (
            json!({"type": "input_image", "file_id": "f"}),
            "input[0].content[0].file_id",
        ),
        (
            json!({"type": "input_file", "file_url": "u"}),
            "input[0].content[0].file_url",
        ),
    ] {
        let input = json!([{"role": "user", "content": [part]}]);
        let refused = turn(&mut connection, &ask(json!({"input": input}))).await;
        let refused: Value = refused[0].parse().unwrap();
        assert_eq!(refused["error"]["code"], "unsupported_value");
        assert_eq!(refused["error"]["param"], param);
    }
}

#[tokio::test]
async fn all_models_of_the_upstream_are_listed_and_a_name_picks_one() {
    let upstream = Upstream::start(vec![hello()]).await;
    let server = upstream.behind().await;
    let listed = server.get("/v1/models").await.json();
    let ids: Vec<_> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["large", "small"]);
    let mut connection = server.connect().await;
    let unknown = create(json!({"model": "medium", "input": "x"}));
    assert_eq!(
        error_code(&turn(&mut connection, &unknown).await),
        "model_not_found"
    );

    let one = upstream.engine(Some("large")).await;
    assert!(one.serves("large") && !one.serves("small"));
    let url = upstream.url.parse().unwrap();
    let wrong = turnwire::engine::chat::ChatLoading::new(url, Some("x".into()), 0, None).unwrap();
    let complaint = wrong.load().await.unwrap_err().to_string();
    assert!(complaint.contains("large, small"), "{complaint}");
}
