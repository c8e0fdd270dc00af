//! Steering: rows 139 to 154.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::{Event, Turn};
use crate::probe::{Feature, function};
use crate::rows::calls::output;
use crate::rows::context::{QUESTION, SECRET, bare_tokens, expect_seen, total};
use crate::rows::{Section, conversation, unseen};
use crate::socket::Socket;
use crate::stop::{Held, Stop, ensure, fail, skip};

/// What a successor inherits, as far as a response shows it.
const SETTINGS: [&str; 11] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "model",
    "parallel_tool_calls",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
];

/// Steers sent at once, more than any server is expected to queue.
const MANY: usize = 40;

/// Rows 139 to 141, 154.
async fn steer(case: &Case) -> Held {
    case.needs(Feature::Steering).await?;
    let lane = match case.server.lack_of(Feature::Lanes).await {
        None => Some("steered"),
        Some(lack) => {
            case.skip(154, lack);
            None
        }
    };
    let mut create = case.long(json!({
        "instructions": "Be brief.", "metadata": {"by": "turnwire"}, "temperature": 0.5,
    }));
    if let Some(lane) = lane {
        create["stream_id"] = json!(lane);
    }
    let mut socket = case.connect().await?;
    let target = socket.begin(create).await?;
    let accepted = accepted(&mut socket, &target, "Stop counting and say hello.").await?;
    let id = accepted.json["steer"]["id"].as_str().unwrap_or_default();
    let digits = id.strip_prefix("steer_").unwrap_or_default();
    let hexadecimal = |digit: char| matches!(digit, '0'..='9' | 'a'..='f');
    if digits.len() != 32 || !digits.chars().all(hexadecimal) {
        case.fail(
            139,
            format!("expected `steer_` with 32 hexadecimal digits; {id:?} came"),
        );
    }
    if accepted.json["steer"]["previous_response_id"] != target.as_str() {
        case.fail(
            139,
            format!(
                "expected the notice to name {target}; {} came",
                accepted.json
            ),
        );
    }
    if accepted.lane() != lane {
        case.fail(
            154,
            format!(
                "expected `stream_id` {}; {} came",
                json!(lane),
                accepted.json
            ),
        );
    }
    let end = socket
        .read_until("the end of the steered response", ended)
        .await?;
    let Some(end) = end.last() else {
        fail!("expected the end of the steered response; nothing came");
    };
    let reason = &end.json["response"]["incomplete_details"]["reason"];
    ensure!(
        end.name == "response.completed"
            || (end.name == "response.incomplete" && reason == "steered"),
        "expected the target to end as completed, or as incomplete because it was steered; {} came",
        end.json
    );
    let successor = socket.read_turn().await?;
    let named = &successor.response()["previous_response_id"];
    ensure!(
        named == target.as_str(),
        "expected the successor to continue {target}; its parent is {named}"
    );
    case.pass(140);
    let (before, after) = (&end.json["response"], successor.response());
    let changed = SETTINGS
        .iter()
        .find(|member| before[**member] != after[**member]);
    if let Some(member) = changed {
        let sentence = format!(
            "expected the successor to have the target's `{member}`, {}; it has {}",
            before[*member], after[*member]
        );
        case.fail(141, sentence);
    }
    let strayed = successor.events.iter().find(|event| event.lane() != lane);
    if let Some(event) = strayed {
        case.fail(
            141,
            format!(
                "expected the successor with `stream_id` {}; {} came",
                json!(lane),
                event.json
            ),
        );
    }
    Ok(())
}

/// Row 142. What a successor was given shows in a store only.
async fn several(case: &Case) -> Held {
    case.needs(Feature::Steering).await?;
    case.needs(Feature::Stored).await?;
    let mut socket = case.connect().await?;
    let target = socket.begin(case.long(json!({"store": true}))).await?;
    let texts = [
        "Say the word one.",
        "Say the word two.",
        "Say the word three.",
    ];
    for text in texts {
        send_steer(&mut socket, &target, &json!(text)).await?;
    }
    let events = socket
        .read_until("the end of the steered response", ended)
        .await?;
    let accepted = events
        .iter()
        .filter(|event| event.name == "response.steer.accepted")
        .count();
    if accepted < texts.len() {
        skip!(
            "only {accepted} of {} steers came before the answer's end",
            texts.len()
        );
    }
    let successor = socket.read_turn().await?;
    let path = format!("responses/{}/input_items?order=asc", successor.id());
    let items = case.get(&path).await?;
    if let Some(lack) = items.declares_lack_of("GET /responses/{id}/input_items") {
        skip!("{lack}");
    }
    let items = items.json["data"].to_string();
    let places: Vec<_> = texts.iter().map(|text| items.find(text)).collect();
    ensure!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "expected the successor to have the three steers as its input, in order; it has {items}"
    );
    Ok(())
}

/// Rows 143 to 145, 151: what is refused while a response runs.
async fn refused(case: &Case) -> Held {
    case.needs(Feature::Steering).await?;
    let mut socket = case.connect().await?;
    let target = socket.begin(case.long(json!({}))).await?;
    for (member, value) in [
        ("stream_id", json!("a")),
        ("model", json!(case.server.model)),
    ] {
        let mut steer = message(&target, &json!("Say hello."));
        steer[member] = value;
        socket.send(steer).await?;
        expect_failed(&mut socket, "invalid_input").await?;
    }
    case.pass(143);
    let said = |members: Value| {
        let mut message = json!({"role": "user", "content": "Say hello."});
        for (name, value) in members.as_object().into_iter().flatten() {
            message[name] = value.clone();
        }
        json!([message])
    };
    for input in [
        json!(""),
        json!([]),
        said(json!({"role": "assistant"})),
        said(json!({"role": "system"})),
        said(json!({"id": "msg_1"})),
        said(json!({"status": "completed"})),
        json!([output("call_1")]),
    ] {
        send_steer(&mut socket, &target, &input).await?;
        match expect_failed(&mut socket, "invalid_input").await {
            Ok(notice) => expect_echo(case, &notice, &input),
            Err(stop) => {
                case.decide(144, stop);
                break;
            }
        }
    }
    case.pass(144);
    let input = json!("Say hello.");
    send_steer(&mut socket, "resp_turnwire_never_was", &input).await?;
    match expect_failed(&mut socket, "response_not_found").await {
        Ok(notice) => expect_echo(case, &notice, &input),
        Err(stop) => case.decide(145, stop),
    }
    Ok(())
}

/// Row 146.
async fn too_late(case: &Case) -> Held {
    case.needs(Feature::Steering).await?;
    let mut socket = case.connect().await?;
    let turn = socket.turn(case.ask("Say hello.")).await?;
    send_steer(&mut socket, turn.id(), &json!("Say goodbye.")).await?;
    expect_failed(&mut socket, "response_already_completed").await?;
    Ok(())
}

/// Row 147, of what it names the one thing that can be asked of every server.
async fn not_supported(case: &Case) -> Held {
    case.needs(Feature::Steering).await?;
    case.needs(Feature::Compaction).await?;
    let management = json!([{"type": "compaction", "compact_threshold": 100_000}]);
    let mut socket = case.connect().await?;
    let target = socket
        .begin(case.long(json!({"context_management": management})))
        .await?;
    send_steer(&mut socket, &target, &json!("Say hello.")).await?;
    expect_failed(&mut socket, "steering_not_supported").await?;
    Ok(())
}

/// Rows 148, 149.
async fn waits_for_output(case: &Case) -> Held {
    let bare = bare_tokens(case).await?;
    let (mut socket, target) = calling(case).await?;
    let steer = SECRET.repeat(2);
    accepted(&mut socket, &target, &steer).await?;
    let (turn, call_id) = called(&mut socket).await?;
    let notice = socket.next("`response.steer.pending`").await?;
    ensure!(
        notice.name == "response.steer.pending",
        "expected `response.steer.pending` behind a response that waits for an output; `{}` came",
        notice.name
    );
    let stub = json!({"type": "function_call_output", "call_id": call_id, "name": "look"});
    ensure!(
        notice.json["required_input"] == json!([stub])
            && notice.json["reason"] == "waiting_for_required_input"
            && notice.json["steer"]["previous_response_id"] == target.as_str(),
        "expected the notice to ask for the output of {call_id} of {target}; {} came",
        notice.json
    );
    // A successor that nobody asked for would begin before this one.
    let create = case.create(json!({
        "previous_response_id": target,
        "tools": [function("look")],
        "tool_choice": "none",
        "metadata": {"by": "turnwire"},
        "input": [output(&call_id), {"role": "user", "content": QUESTION}],
    }));
    let answer = socket.turn(create).await?;
    let ours = &answer.response()["metadata"]["by"];
    ensure!(
        ours.is_null() || ours == "turnwire",
        "expected no successor before the output came; {} began by itself",
        answer.id()
    );
    let output_tokens = 40;
    let without = bare
        .zip(total(&turn))
        .map(|(bare, turn)| bare + turn + output_tokens);
    case.pass(148);
    expect_seen(&answer, without, "the steering input")
}

/// Row 150.
async fn output_before_notice(case: &Case) -> Held {
    let (mut socket, target) = calling(case).await?;
    accepted(&mut socket, &target, "Say hello.").await?;
    let events = socket.read_until("the end of the call", |events| {
        let last = events.last();
        last.is_some_and(|event| event.name == "response.output_item.done" || event.is_ending())
    });
    let events = events.await?;
    let call_id = events
        .last()
        .and_then(|event| event.json["item"]["call_id"].as_str());
    let Some(call_id) = call_id else {
        skip!("the model made no call although it was told to");
    };
    let create = case.create(json!({
        "previous_response_id": target, "input": [output(call_id)],
    }));
    socket.send(create).await?;
    socket
        .read_until("the end of the steered response", ended)
        .await?;
    socket.read_turn().await?;
    Ok(())
}

/// Row 152. A call is made to its end before a steer takes effect, so steers pile up behind it.
async fn too_many(case: &Case) -> Held {
    let (mut socket, target) = calling(case).await?;
    for _ in 0..MANY {
        send_steer(&mut socket, &target, &json!("Say hello.")).await?;
    }
    let notice = |event: &&Event| {
        ["response.steer.accepted", "response.steer.failed"].contains(&event.name.as_str())
    };
    let events = socket.read_until("an answer to each steer", |events| {
        events.iter().filter(notice).count() == MANY
    });
    let events = events.await?;
    let failed = events
        .iter()
        .filter(|event| event.name == "response.steer.failed");
    let codes: Vec<_> = failed
        .map(|event| event.json["error"]["code"].clone())
        .collect();
    if codes.iter().any(|code| code == "too_many_pending_steers") {
        return Ok(());
    }
    // The limit is the server's own, and the target may end while steers still come.
    let ended = ["response_already_completed", "response_not_found"];
    match codes
        .iter()
        .find(|code| ended.iter().all(|ended| code != ended))
    {
        Some(code) => fail!("expected `too_many_pending_steers`; {code} came"),
        None => skip!("the server took {} steers of {MANY}", MANY - codes.len()),
    }
}

/// A socket with a response that is about to call a function with long arguments.
async fn calling(case: &Case) -> Result<(Socket, String), Stop> {
    case.needs(Feature::Steering).await?;
    case.needs(Feature::Functions).await?;
    let mut socket = case.connect().await?;
    let target = socket.begin(case.long(json!({
        "tools": [function("look")],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": false,
        "input": "Look at a place that is called by all numbers from 1 to 300, in words.",
    })));
    let target = target.await?;
    Ok((socket, target))
}

/// Reads on to the end of a response that called a function, and gives out the `call_id`.
async fn called(socket: &mut Socket) -> Result<(Turn, String), Stop> {
    let events = socket.read_until("the end of the call", ended).await?;
    let turn = Turn { events };
    let id = turn
        .calls()
        .first()
        .and_then(|call| call["call_id"].as_str());
    match id.map(str::to_owned) {
        Some(id) if turn.status() == "completed" => Ok((turn, id)),
        _ => skip!("the model made no whole call although it was told to"),
    }
}

fn ended(events: &[Event]) -> bool {
    events.last().is_some_and(Event::is_ending)
}

fn message(target: &str, input: &Value) -> Value {
    json!({"type": "response.steer", "previous_response_id": target, "input": input})
}

async fn send_steer(socket: &mut Socket, target: &str, input: &Value) -> Held {
    socket.send(message(target, input)).await
}

/// Sends a steer that has to be accepted, unless the response ends before.
async fn accepted(socket: &mut Socket, target: &str, input: &str) -> Result<Event, Stop> {
    send_steer(socket, target, &json!(input)).await?;
    let notice = read_notice(socket).await?;
    if notice.json["error"]["code"] == "response_already_completed" {
        skip!("the model's answer ended before it was steered");
    }
    ensure!(
        notice.name == "response.steer.accepted",
        "expected `response.steer.accepted`; {} came",
        notice.json
    );
    Ok(notice)
}

async fn expect_failed(socket: &mut Socket, code: &str) -> Result<Event, Stop> {
    const ENDED: &str = "response_already_completed";
    let notice = read_notice(socket).await?;
    if notice.json["error"]["code"] == ENDED && code != ENDED {
        skip!("the model's answer ended before it was steered");
    }
    ensure!(
        notice.name == "response.steer.failed" && notice.json["error"]["code"] == code,
        "expected `response.steer.failed` with code `{code}`; {} came",
        notice.json
    );
    Ok(notice)
}

async fn read_notice(socket: &mut Socket) -> Result<Event, Stop> {
    let events = socket.read_until("an answer to the steer", |events| {
        let last = events.last();
        last.is_some_and(|event| event.name.starts_with("response.steer.") || event.name == "error")
    });
    match events.await?.pop() {
        Some(notice) => Ok(notice),
        None => fail!("expected an answer to the steer; nothing came"),
    }
}

/// A refused steer comes back with its input, and without an id, which it was never given.
fn expect_echo(case: &Case, notice: &Event, input: &Value) {
    let steer = &notice.json["steer"];
    if steer["input"] != *input || steer.get("id").is_some() {
        let sentence = format!(
            "expected the input {input} back and no id; {} came",
            notice.json
        );
        case.fail(151, sentence);
    }
}

pub(super) const SECTION: Section = Section {
    number: "7.1",
    title: "Steering",
    conversations: &[
        conversation!(steer:
            139 "Steering a running response is accepted with an id",
            140 "The target ends, and a successor follows by itself",
            141 "The successor has the target's lane and settings",
            154 "Steer events carry the stream_id of a named lane",
        ),
        conversation!(several: 142 "Several steers are applied in order"),
        conversation!(refused:
            143 "A steer with stream_id or another extra field is invalid_input",
            144 "Input that is empty or no user message is invalid_input",
            145 "An unknown target is response_not_found",
            151 "steer.failed echoes the input, and has an id only if accepted before",
        ),
        conversation!(too_late: 146 "A target that ended is response_already_completed"),
        conversation!(not_supported: 147 "What cannot be steered is steering_not_supported"),
        conversation!(waits_for_output:
            148 "A pending call makes the steer wait, without a successor",
            149 "The create with the outputs takes the steering input first",
        ),
        conversation!(output_before_notice: 150 "That create may come before the notice"),
        conversation!(too_many: 152 "Too many steers are too_many_pending_steers"),
        unseen!("what a server forgets with a connection cannot be seen from outside":
            153 "A disconnect drops queued steering",
        ),
    ],
};
