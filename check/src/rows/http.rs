//! HTTP and beta: rows 169 to 173.

use serde_json::{Value, json};

use crate::case::{Case, Reply};
use crate::event::{Event, Refusal};
use crate::probe::Feature;
use crate::rows::context::user;
use crate::rows::{Section, conversation};
use crate::schema;
use crate::stop::{Held, Stop, ensure, fail, skip};
use crate::watch::{Sent, Violations, Watch};

/// Row 169.
async fn create(case: &Case) -> Held {
    case.needs(Feature::HttpCreate).await?;
    let request = case.request(json!({"input": [user("Say hello.")]}));
    let reply = case.post("responses", request.clone()).await?;
    expect_status(&reply, 200, "POST /responses")?;
    let response = &reply.json;
    let mistake = schema::mistake_of_response(response)
        .or_else(|| schema::mistake_of_usage(&response["usage"]));
    if let Some(mistake) = mistake {
        fail!("expected a response object; {mistake} in {response}");
    }
    let (events, _) = case.post_stream("responses", streamed(request)).await?;
    ensure!(
        events.last().is_some_and(Event::is_terminal),
        "expected a stream that ends with a terminal event; its last is {}",
        json!(events.last().map(|event| &event.name))
    );
    // The stream is held to the rules of a socket that carries one turn.
    let violations = Violations::default();
    let mut watch = Watch::new(violations.clone(), case.transcript());
    watch.sent(&Sent::create());
    for event in &events {
        watch.received(&event.json);
    }
    match violations.first() {
        Some((row, violation)) => fail!("over SSE, row {row}: {}", violation.sentence),
        None => Ok(()),
    }
}

/// Row 170.
async fn done(case: &Case) -> Held {
    case.needs(Feature::HttpCreate).await?;
    let request = streamed(case.request(json!({"input": "Say hello."})));
    let (_, done) = case.post_stream("responses", request).await?;
    ensure!(
        done,
        "expected `data: [DONE]` at the end of the stream; it did not come"
    );
    Ok(())
}

/// Row 171. Where an endpoint is missing the others are judged all the same, and the row is
/// skipped if they are right.
async fn endpoints(case: &Case) -> Held {
    let mut missing = Vec::new();
    for (name, judged) in [
        ("GET /models", models(case).await),
        (
            "GET, DELETE /responses/{id} and input_items",
            stored(case).await,
        ),
        ("POST /responses/{id}/cancel", cancel(case).await),
        ("POST /responses with background", background(case).await),
        ("POST /responses/input_tokens", input_tokens(case).await),
        ("/conversations", conversations(case).await),
    ] {
        match judged {
            Ok(()) => {}
            Err(Stop::Skip(reason)) => missing.push(reason),
            Err(Stop::Fail(sentence)) => fail!("{name}: {sentence}"),
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => skip!("{}", missing.join("; ")),
    }
}

async fn models(case: &Case) -> Held {
    case.needs(Feature::Models).await?;
    let list = case.get("models").await?;
    expect_members(&list, "object:string data:array")?;
    let ours = list.json["data"].as_array().into_iter().flatten();
    let ours = ours
        .filter(|model| model["id"] == case.server.model.as_str())
        .count();
    ensure!(
        ours == 1,
        "expected `{}` once in the list; it is there {ours} times",
        case.server.model
    );
    let model = case.get(&format!("models/{}", case.server.model)).await?;
    if let Some(lack) = model.declares_lack_of("GET /models/{id}") {
        skip!("{lack}");
    }
    expect_members(
        &model,
        "id:string object:string created:index owned_by:string",
    )?;
    let unknown = case.get("models/turnwire-check-no-such-model").await?;
    expect_status(&unknown, 404, "an unknown model")?;
    ensure!(
        unknown.code() == Some("model_not_found"),
        "expected `model_not_found` for an unknown model; {} came",
        unknown.json
    );
    Ok(())
}

async fn stored(case: &Case) -> Held {
    case.needs(Feature::Stored).await?;
    let mut socket = case.connect().await?;
    let create = case.create(json!({"store": true, "input": [user("Say hello.")]}));
    let turn = socket.turn(create).await?;
    let path = format!("responses/{}", turn.id());
    let found = case.get(&path).await?;
    expect_status(&found, 200, "GET of a stored response")?;
    ensure!(
        found.json["id"] == turn.id() && found.json["output"] == turn.response()["output"],
        "expected GET to give the response as it ended; {} came",
        found.json
    );
    let items = case.get(&format!("{path}/input_items")).await?;
    if let Some(lack) = items.declares_lack_of("GET /responses/{id}/input_items") {
        skip!("{lack}");
    }
    expect_members(
        &items,
        "object:string data:array first_id:string|null last_id:string|null has_more:bool",
    )?;
    let input = items.json["data"].as_array().map_or(0, Vec::len);
    ensure!(
        input == 1,
        "expected the one input item in the list; {} came",
        items.json
    );
    let deleted = case.delete(&path).await?;
    if matches!(deleted.status, 405 | 501) {
        skip!(
            "the server has no DELETE /responses/{{id}} (HTTP {})",
            deleted.status
        );
    }
    expect_members(&deleted, "id:string object:string deleted:bool")?;
    expect_status(&case.get(&path).await?, 404, "GET of a deleted response")
}

/// Only a background response can be cancelled, so that an ordinary one gives 400.
async fn cancel(case: &Case) -> Held {
    case.needs(Feature::Stored).await?;
    let create = case.create(json!({"store": true, "input": "Say hello."}));
    let turn = case.connect().await?.turn(create).await?;
    let reply = case
        .post(&format!("responses/{}/cancel", turn.id()), json!({}))
        .await?;
    if let Some(lack) = reply.declares_lack_of("POST /responses/{id}/cancel") {
        skip!("{lack}");
    }
    expect_status(
        &reply,
        400,
        "cancelling what does not run in the background",
    )
}

/// A response in the background exists before it is made. By the time it is cancelled it may be
/// over, which both ends with.
async fn background(case: &Case) -> Held {
    case.needs(Feature::HttpCreate).await?;
    let request = json!({"input": "Say hello.", "background": true, "store": true});
    let begun = case.post("responses", case.request(request)).await?;
    if begun.status == 400 && begun.json["error"]["param"] == "background" {
        skip!("the server makes no responses in the background");
    }
    expect_status(&begun, 200, "a response in the background")?;
    let status = begun.json["status"].as_str().unwrap_or_default();
    ensure!(
        matches!(status, "queued" | "in_progress" | "completed"),
        "expected the response to be queued; {} came",
        begun.json
    );
    let path = format!(
        "responses/{}",
        begun.json["id"].as_str().unwrap_or_default()
    );
    expect_status(&case.get(&path).await?, 200, "GET while it is made")?;
    let cancelled = case.post(&format!("{path}/cancel"), json!({})).await?;
    if let Some(lack) = cancelled.declares_lack_of("POST /responses/{id}/cancel") {
        skip!("{lack}");
    }
    expect_status(&cancelled, 200, "cancelling a response in the background")?;
    let found = case.get(&path).await?;
    ensure!(
        found.json["status"] == "cancelled" || found.json["status"] == "completed",
        "expected the response to be cancelled or completed; {} came",
        found.json
    );
    let again = case.post(&format!("{path}/cancel"), json!({})).await?;
    ensure!(
        again.status != 200 || again.json["status"] == found.json["status"],
        "expected nothing to change when it is cancelled again; {} came",
        again.json
    );
    Ok(())
}

async fn input_tokens(case: &Case) -> Held {
    let body = json!({"model": case.server.model, "input": "Say hello."});
    let reply = case.post("responses/input_tokens", body).await?;
    if let Some(lack) = reply.declares_lack_of("POST /responses/input_tokens") {
        skip!("{lack}");
    }
    expect_members(&reply, "object:string input_tokens:index")?;
    ensure!(
        reply.json["object"] == "response.input_tokens",
        "expected `object` to be `response.input_tokens`; {} came",
        reply.json
    );
    Ok(())
}

async fn conversations(case: &Case) -> Held {
    let made = case
        .post("conversations", json!({"metadata": {"by": "turnwire"}}))
        .await?;
    if let Some(lack) = made.declares_lack_of("POST /conversations") {
        skip!("{lack}");
    }
    expect_members(
        &made,
        "id:string object:string created_at:index metadata:any",
    )?;
    let path = format!(
        "conversations/{}",
        made.json["id"].as_str().unwrap_or_default()
    );
    let found = case.get(&path).await?;
    ensure!(
        found.json["id"] == made.json["id"],
        "expected GET to give the conversation; {} came",
        found.json
    );
    conversation_items(case, &format!("{path}/items")).await?;
    let deleted = case.delete(&path).await?;
    expect_members(&deleted, "id:string object:string deleted:bool")?;
    expect_status(
        &case.get(&path).await?,
        404,
        "GET of a deleted conversation",
    )
}

/// `path` is that of the items of an empty conversation.
async fn conversation_items(case: &Case, path: &str) -> Held {
    let list = "object:string data:array first_id:string|null last_id:string|null has_more:bool";
    let items = json!({"items": [user("One."), user("Two.")]});
    let added = case.post(path, items).await?;
    if let Some(lack) = added.declares_lack_of("POST /conversations/{id}/items") {
        skip!("{lack}");
    }
    expect_members(&added, list)?;
    let page = case.get(&format!("{path}?order=asc&limit=1")).await?;
    expect_members(&page, list)?;
    let (first, more) = (&page.json["data"][0], &page.json["has_more"]);
    ensure!(
        *first == added.json["data"][0] && *more == true,
        "expected a page of the first item that was added, and more behind it; {} came",
        page.json
    );
    let item = format!("{path}/{}", first["id"].as_str().unwrap_or_default());
    let found = case.get(&item).await?;
    expect_status(&found, 200, "GET of an item")?;
    ensure!(
        found.json == *first,
        "expected GET to give the item; {} came",
        found.json
    );
    let left = case.delete(&item).await?;
    expect_members(
        &left,
        "id:string object:string created_at:index metadata:any",
    )?;
    expect_status(&case.get(&item).await?, 404, "GET of a deleted item")
}

/// Row 172.
async fn inject(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let output = json!({"type": "function_call_output", "call_id": "call_1", "output": "A wall."});
    let inject = json!({
        "type": "response.inject", "response_id": "resp_turnwire_never_was", "input": [output],
    });
    socket.send(inject).await?;
    let event = socket
        .next("`response.inject.failed` or an `error`")
        .await?;
    match event.name.as_str() {
        "response.inject.failed" => {}
        "error" => {
            let refusal = Refusal { json: event.json };
            refusal.expect_status(400)?;
        }
        other => fail!("expected `response.inject.failed` or an `error` event; `{other}` came"),
    }
    socket.turn(case.ask("Say hello.")).await?;
    Ok(())
}

/// Row 173. The header that would opt in is not sent.
async fn multi_agent(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let mut create = case.ask("Say hello.");
    create["multi_agent"] = json!({"enabled": true});
    socket.refusal(create).await?.expect_status(400)?;
    socket.turn(case.ask("Say hello.")).await?;
    Ok(())
}

fn streamed(mut request: Value) -> Value {
    request["stream"] = json!(true);
    request
}

fn expect_status(reply: &Reply, status: u16, what: &str) -> Held {
    ensure!(
        reply.status == status,
        "expected HTTP {status} for {what}; HTTP {} came",
        reply.status
    );
    Ok(())
}

/// A good answer with these members, in the notation of the schema.
fn expect_members(reply: &Reply, members: &str) -> Held {
    expect_status(reply, 200, "a good request")?;
    match schema::mistake_of_members(members, &reply.json) {
        None => Ok(()),
        Some(mistake) => fail!("{mistake} in {}", reply.json),
    }
}

pub(super) const SECTION: Section = Section {
    number: "10",
    title: "HTTP and beta",
    conversations: &[
        conversation!(create: 169 "POST /responses fits the schemas, as JSON and as SSE"),
        conversation!(done: 170 "SSE ends with [DONE]"),
        conversation!(endpoints: 171 "The other endpoints behave as specified"),
        conversation!(inject:
            172 "response.inject is refused without harm where it is not supported",
        ),
        conversation!(multi_agent: 173 "multi_agent is refused where it is not supported"),
    ],
};
