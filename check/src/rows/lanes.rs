//! Multiplexing: rows 115 to 138.

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::case::{Case, SHORT};
use crate::event::{Event, Refusal, Turn};
use crate::probe::Feature;
use crate::rows::context::{QUESTION, SECRET, bare_tokens, expect_seen, expect_unseen};
use crate::rows::state::orphan;
use crate::rows::{Section, conversation, unseen};
use crate::socket::{Answer, Socket};
use crate::stop::{Held, Stop, ensure, fail, skip};

const NOT_FOUND: &str = "previous_response_not_found";

/// Documented for one connection, all lanes together.
const RUNNING: usize = 16;

/// Documented for one connection, without the default lane.
const NAMES: usize = 32;

/// Deltas that a first turn has made while a second one has not even begun, from which on the two
/// do not run at the same time.
const DELTAS_ALONE: usize = 200;

/// How long a create that has to wait is watched for signs that it does not.
const SILENCE: Duration = Duration::from_millis(500);

/// Row 115.
async fn side_by_side(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    socket.begin(case.long(on("a"))).await?;
    socket.send(case.long(on("b"))).await?;
    let mut alone = 0;
    let events = socket
        .read_until("the beginning of the second turn", |events| {
            let last = events.last();
            alone += usize::from(last.is_some_and(Event::is_delta));
            alone > DELTAS_ALONE
                || last.is_some_and(|last| last.lane() == Some("b") || last.is_ending())
        })
        .await?;
    let Some(last) = events.last() else {
        return Ok(());
    };
    ensure!(
        alone <= DELTAS_ALONE,
        "expected both turns to run; the first made {alone} deltas and the second did not begin"
    );
    if last.lane() != Some("b") {
        skip!("the model's answer was too short");
    }
    ensure!(
        last.name == "response.created",
        "expected `response.created` of the second turn; `{}` came",
        last.name
    );
    Ok(())
}

/// Rows 116, 117.
async fn names_on_events(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let orphaned = json!({"previous_response_id": "resp_turnwire_never_was"});
    for (row, lane) in [(116, Some("turnwire-lane")), (117, None)] {
        for members in [json!({}), orphaned.clone()] {
            let mut create = case.ask("Say hello.");
            if let Some(lane) = lane {
                create["stream_id"] = json!(lane);
            }
            if let (Some(create), Value::Object(members)) = (create.as_object_mut(), members) {
                create.extend(members);
            }
            socket.send(create).await?;
            for event in socket.read_endings(1).await? {
                let found = event.json.get("stream_id");
                if found != lane.map(|lane| json!(lane)).as_ref() {
                    let name = &event.name;
                    case.fail(
                        row,
                        format!(
                            "expected `stream_id` {} on `{name}`; it is {}",
                            json!(lane),
                            json!(found)
                        ),
                    );
                }
            }
        }
    }
    Ok(())
}

/// Row 118.
async fn one_at_a_time(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    for _ in 0..2 {
        let mut create = case.ask("Say hello.");
        create["stream_id"] = json!("a");
        socket.send(create).await?;
    }
    let events = socket.read_endings(2).await?;
    let mut begun = 0;
    let mut ended = 0;
    for event in events {
        begun += usize::from(event.name == "response.created");
        ended += usize::from(event.is_ending());
        ensure!(
            begun <= ended + 1,
            "expected one turn after the other; the second began before the first had ended"
        );
    }
    Ok(())
}

/// Row 119.
async fn names_of_all_kinds(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    for name in ["a", &"n".repeat(256), "Az_09-x.y"] {
        let turn = socket.turn(ask_on(case, name, "Say hello.")).await?;
        let found = turn.events.first().and_then(Event::lane);
        ensure!(
            found == Some(name),
            "expected events with `stream_id` {name:?}; {} came",
            json!(found)
        );
    }
    Ok(())
}

/// Row 120.
async fn names_outside_the_syntax(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let too_long = json!("n".repeat(257));
    for name in [
        json!(""),
        too_long,
        json!("a b"),
        json!("a/b"),
        json!("é"),
        json!(7),
    ] {
        let mut create = case.ask("Say hello.");
        create["stream_id"] = name;
        let refusal = socket.refusal(create).await?;
        refusal
            .expect_code("invalid_stream_id")?
            .expect_status(400)?;
        ensure!(
            refusal.json.get("stream_id").is_none(),
            "expected no `stream_id` on the error; {} came",
            refusal.json
        );
    }
    socket.turn(ask_on(case, "a", "Say hello.")).await?;
    Ok(())
}

/// Rows 121, 122. Warm-ups name lanes at the least cost.
async fn names_in_number(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let warms_up = case.server.lack_of(Feature::WarmUp).await.is_none();
    for number in 0..NAMES {
        let mut create = ask_on(case, &format!("lane-{number}"), "Say hello.");
        if warms_up {
            create["generate"] = json!(false);
        }
        socket.turn(create).await?;
        if number == 0 {
            socket.turn(case.ask("Say hello.")).await?;
        }
    }
    case.pass(122);
    let refusal = socket
        .refusal(ask_on(case, "one-too-many", "Say hello."))
        .await?;
    refusal
        .expect_code("websocket_stream_limit_reached")?
        .expect_status(400)?;
    ensure!(
        refusal.lane() == Some("one-too-many"),
        "expected the new name as `stream_id` of the error; {} came",
        refusal.json
    );
    socket.turn(ask_on(case, "lane-0", "Say hello.")).await?;
    socket.turn(case.ask("Say hello.")).await?;
    Ok(())
}

/// Rows 123 to 125: fifteen named lanes and the default lane run, and one more waits.
async fn turns_in_number(case: &Case) -> Held {
    case.needs(Feature::Cancel).await?;
    let mut socket = connect(case).await?;
    let first = socket.begin(case.long(json!({}))).await?;
    for number in 1..RUNNING {
        socket
            .send(case.long(on(&format!("lane-{number}"))))
            .await?;
    }
    let events = socket.read_until("the beginning of all turns", |events| {
        let begun = events
            .iter()
            .filter(|event| event.name == "response.created");
        begun.count() == RUNNING - 1 || events.iter().any(Event::is_ending)
    });
    no_ending(&events.await?)?;
    let waiting = "waiting";
    socket.send(ask_on(case, waiting, "Say hello.")).await?;
    let watched_until = Instant::now() + SILENCE;
    while let Some(event) = socket.next_before(watched_until).await? {
        no_ending(std::slice::from_ref(&event))?;
        if event.lane() == Some(waiting) {
            case.fail(
                125,
                format!(
                    "expected nothing of a turn that waits; `{}` came",
                    event.name
                ),
            );
            fail!(
                "expected the 17th turn to wait; `{}` of it came",
                event.name
            );
        }
    }
    socket
        .send(json!({"type": "response.cancel", "response_id": first}))
        .await?;
    let events = socket.read_until("the beginning of the turn that waited", |events| {
        let last = events.last();
        last.is_some_and(|event| event.lane() == Some(waiting))
    });
    let last = events.await?.pop();
    ensure!(
        last.as_ref()
            .is_some_and(|event| event.name == "response.created"),
        "expected the turn that waited to begin with `response.created`; {} came",
        json!(last.map(|event| event.json))
    );
    Ok(())
}

/// Row 126.
async fn a_new_chain(case: &Case) -> Held {
    let bare = bare_tokens(case).await?;
    let mut socket = connect(case).await?;
    socket.turn(ask_on(case, "a", SECRET)).await?;
    let turn = socket.turn(ask_on(case, "a", QUESTION)).await?;
    let named = &turn.response()["previous_response_id"];
    ensure!(
        named.is_null(),
        "expected a create without parent to have none; its response names {named}"
    );
    expect_unseen(&turn, bare, "what was said on the lane before")
}

/// Row 127.
async fn fork(case: &Case) -> Held {
    let bare = bare_tokens(case).await?;
    let mut socket = connect(case).await?;
    let parent = socket.turn(ask_on(case, "a", SECRET)).await?;
    let child = socket.turn(onto(case, "b", &parent, QUESTION)).await?;
    expect_seen(&child, bare, "what was said on the parent's lane")
}

/// Rows 128, 129.
async fn branches(case: &Case) -> Held {
    let bare = bare_tokens(case).await?;
    let mut socket = connect(case).await?;
    let parent = socket.turn(ask_on(case, "trunk", "Say hello.")).await?;
    socket
        .send(onto(case, "branch", &parent, "Say goodbye."))
        .await?;
    let bound = socket.read_until("`response.in_progress` of the fork", |events| {
        let last = events.last();
        last.is_some_and(|event| event.name == "response.in_progress" || event.is_ending())
    });
    let mut events = bound.await?;
    socket
        .send(onto(case, "trunk", &parent, &SECRET.repeat(6)))
        .await?;
    let already = events.iter().filter(|event| event.is_ending()).count();
    events.extend(socket.read_endings(2 - already).await?);
    let mut ends = Turns::of(&events)?;
    let (branch, trunk) = (ends.take("branch")?, ends.take("trunk")?);

    let branch = socket.turn(onto(case, "branch", &branch, QUESTION)).await?;
    let without = unforked(case).await?;
    if let Err(stop) = expect_unseen(&branch, without, "what was said on the other branch") {
        case.decide(129, stop);
    }
    let trunk = socket.turn(onto(case, "trunk", &trunk, QUESTION)).await?;
    if let Err(stop) = expect_seen(&trunk, bare, "what was said on this branch") {
        case.decide(129, stop);
    }
    Ok(())
}

/// What the branch costs where there is no other: measured, because servers count differently
/// what was answered and what is sent again. Other answers may be longer, by what they are kept to.
async fn unforked(case: &Case) -> Result<Option<u64>, Stop> {
    let mut socket = connect(case).await?;
    let parent = socket.turn(ask_on(case, "a", "Say hello.")).await?;
    let branch = socket
        .turn(onto(case, "a", &parent, "Say goodbye."))
        .await?;
    let asked = socket.turn(onto(case, "a", &branch, QUESTION)).await?;
    let counted = bare_tokens(case).await?.and(asked.input_tokens());
    Ok(counted.map(|tokens| tokens + 2 * SHORT))
}

/// Row 130.
async fn failing_fork(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let parent = socket.turn(ask_on(case, "a", "Say hello.")).await?;
    let mut failing = orphan(case, &parent);
    failing["stream_id"] = json!("b");
    socket.refusal(failing).await?;
    socket.turn(onto(case, "a", &parent, "Again.")).await?;
    Ok(())
}

/// Row 131.
async fn failing_continuation(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let parent = socket.turn(ask_on(case, "a", "Say hello.")).await?;
    let mut failing = orphan(case, &parent);
    failing["stream_id"] = json!("a");
    socket.refusal(failing).await?;
    let refusal = socket.refusal(onto(case, "b", &parent, "Again.")).await?;
    refusal.expect_code(NOT_FOUND)?;
    Ok(())
}

/// Row 132. The sources allow a server to keep more, so one that does is not failed.
async fn fork_from_what_was_replaced(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let parent = socket.turn(ask_on(case, "a", "Say hello.")).await?;
    socket.turn(onto(case, "a", &parent, "Again.")).await?;
    match socket.answer(onto(case, "b", &parent, "Again.")).await? {
        Answer::Turn(_) => skip!("the server keeps more than the latest response, which it may"),
        Answer::Refused(refusal) => refusal.expect_code(NOT_FOUND)?,
    };
    Ok(())
}

/// Row 133.
async fn fork_from_what_runs(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let id = socket.begin(case.long(on("a"))).await?;
    let create = json!({"stream_id": "b", "previous_response_id": id, "input": "Again."});
    socket.send(case.create(create)).await?;
    let events = socket.read_until("an `error` event", |events| {
        let last = events.last();
        last.is_some_and(|event| event.lane() == Some("b") || event.is_ending())
    });
    let last = events.await?.pop();
    let Some(last) = last.filter(|event| event.lane() == Some("b")) else {
        skip!("the model's answer was too short");
    };
    ensure!(
        last.name == "error",
        "expected an `error` event; `{}` came",
        last.name
    );
    Refusal { json: last.json }.expect_code(NOT_FOUND)?;
    Ok(())
}

/// Row 134.
async fn pipelined(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let mut long = case.long(on("a"));
    if case.server.takes_max_output_tokens {
        long["max_output_tokens"] = json!(128);
    }
    let id = socket.begin(long).await?;
    let create = json!({"stream_id": "a", "previous_response_id": id, "input": "Thank you."});
    socket.send(case.create(create)).await?;
    let events = socket.read_endings(2).await?;
    let error = events.iter().find(|event| event.name == "error");
    ensure!(
        error.is_none(),
        "expected the second turn to find the first; {} came",
        error.map_or(&Value::Null, |event| &event.json)
    );
    let last = events.last().map(|event| &event.json["response"]);
    let named = last.map(|response| &response["previous_response_id"]);
    ensure!(
        named == Some(&json!(id)),
        "expected the second turn to continue {id}; it continues {}",
        json!(named)
    );
    Ok(())
}

/// Row 135.
async fn error_beside_a_turn(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    let mut long = case.long(on("a"));
    if case.server.takes_max_output_tokens {
        long["max_output_tokens"] = json!(256);
    }
    socket.begin(long).await?;
    let wrong = json!({"stream_id": "b", "temperature": 9, "input": "Say hello."});
    socket.send(case.create(wrong)).await?;
    let events = socket.read_endings(2).await?;
    let endings: Vec<_> = events.iter().filter(|event| event.is_ending()).collect();
    for ending in endings {
        let expected = if ending.lane() == Some("a") {
            ["response.completed", "response.incomplete"].contains(&ending.name.as_str())
        } else {
            ending.name == "error" && ending.lane() == Some("b")
        };
        ensure!(
            expected,
            "expected the error to stay on its lane; `{}` came with `stream_id` {}",
            ending.name,
            json!(ending.lane())
        );
    }
    Ok(())
}

/// Row 136.
async fn over_http(case: &Case) -> Held {
    case.needs(Feature::HttpCreate).await?;
    let request = case.request(json!({"stream_id": "a", "input": "Say hello."}));
    let reply = case.post("responses", request).await?;
    ensure!(
        reply.status == 400,
        "expected HTTP 400 for `stream_id`; {} came",
        reply.status
    );
    Ok(())
}

/// Row 138.
async fn beside_a_long_turn(case: &Case) -> Held {
    let mut socket = connect(case).await?;
    socket.begin(case.long(on("long"))).await?;
    socket.send(ask_on(case, "short", "Say hello.")).await?;
    let mut deltas = 0;
    let events = socket
        .read_until("the end of the short turn", |events| {
            let last = events.last();
            let of_long = |event: &Event| event.lane() == Some("long") && event.is_delta();
            deltas += usize::from(last.is_some_and(of_long));
            last.is_some_and(Event::is_ending)
        })
        .await?;
    if events.last().and_then(Event::lane) == Some("short") {
        return Ok(());
    }
    if deltas < DELTAS_ALONE {
        skip!("the model's answer was too short");
    }
    fail!("expected the short turn to end beside the long one; the long one ended first");
}

/// The turns of several lanes, each to be taken once.
struct Turns(Vec<Turn>);

impl Turns {
    fn of(events: &[Event]) -> Result<Self, Stop> {
        let error = events.iter().find(|event| event.name == "error");
        if let Some(error) = error {
            fail!("expected both turns to end well; {} came", error.json);
        }
        Ok(Self(Turn::all_of(events)))
    }

    fn take(&mut self, lane: &str) -> Result<Turn, Stop> {
        let of_lane = |turn: &Turn| turn.events.first().and_then(Event::lane) == Some(lane);
        match self.0.iter().position(of_lane) {
            Some(at) => Ok(self.0.swap_remove(at)),
            None => fail!("expected a turn on the lane {lane:?}; none came"),
        }
    }
}

fn no_ending(events: &[Event]) -> Held {
    match events.iter().find(|event| event.is_ending()) {
        Some(event) if event.name == "error" => {
            fail!(
                "expected {RUNNING} turns to run at once; {} came",
                event.json
            )
        }
        Some(_) => skip!("the model's answer was too short"),
        None => Ok(()),
    }
}

async fn connect(case: &Case) -> Result<Socket, Stop> {
    case.needs(Feature::Lanes).await?;
    case.connect().await
}

fn on(lane: &str) -> Value {
    json!({"stream_id": lane})
}

fn ask_on(case: &Case, lane: &str, text: &str) -> Value {
    case.create(json!({"stream_id": lane, "input": text}))
}

fn onto(case: &Case, lane: &str, parent: &Turn, text: &str) -> Value {
    let mut create = case.onto(parent, text);
    create["stream_id"] = json!(lane);
    create
}

pub(super) const SECTION: Section = Section {
    number: "6",
    title: "Multiplexing",
    conversations: &[
        conversation!(side_by_side: 115 "Two lanes run at the same time"),
        conversation!(names_on_events:
            116 "Every event of a named lane has its stream_id",
            117 "Events of the default lane have no stream_id",
        ),
        conversation!(one_at_a_time: 118 "Requests on one lane never overlap"),
        conversation!(names_of_all_kinds:
            119 "Names of 1 and 256 characters, and with _ - . are accepted",
        ),
        conversation!(names_outside_the_syntax:
            120 "Names outside the syntax give invalid_stream_id",
        ),
        conversation!(names_in_number:
            121 "32 names work, and the 33rd gives websocket_stream_limit_reached",
            122 "The default lane does not count toward the 32",
        ),
        conversation!(turns_in_number:
            123 "16 turns run, and the 17th waits in silence",
            124 "The default lane counts toward the 16",
            125 "A waiting turn says nothing before it starts",
        ),
        conversation!(a_new_chain: 126 "A lane used again without parent starts a new chain"),
        conversation!(fork: 127 "A fork sees the context of its parent on another lane"),
        conversation!(branches:
            128 "After the fork's response.in_progress the source lane may advance",
            129 "Branches do not see each other's items",
        ),
        conversation!(failing_fork: 130 "A failing fork leaves the parent usable on its lane"),
        conversation!(failing_continuation:
            131 "After a failing continuation forks from that parent fail",
        ),
        conversation!(fork_from_what_was_replaced:
            132 "A fork from an unstored parent that was replaced is not found",
        ),
        conversation!(fork_from_what_runs: 133 "A fork from a response that still runs is not found"),
        conversation!(pipelined: 134 "A create on the same lane may name the running response"),
        conversation!(error_beside_a_turn:
            135 "An error on one lane does not disturb the others",
        ),
        conversation!(over_http: 136 "stream_id over HTTP is refused"),
        unseen!("memory is measured on the server's machine":
            137 "A client that stops reading does not cost unbounded memory",
        ),
        conversation!(beside_a_long_turn: 138 "A slow lane does not hold up the others"),
    ],
};
