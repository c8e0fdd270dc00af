//! Handshake and transport: rows 1 to 28.

use serde_json::json;
use tokio::time::Instant;
use turnwire_client::{Error, Message};

use crate::case::Case;
use crate::event::{Event, Refusal};
use crate::rows::{Section, conversation, unseen};
use crate::socket::{Answer, Socket};
use crate::stop::{Held, Stop, ensure, fail, skip};

/// More than any server in use takes in one message.
const OVERSIZED: usize = 65 << 20;
/// Makes every lifecycle event larger than the largest frame that clients take (row 22).
const LARGE: usize = 17 << 20;

/// Row 1. Whoever opened one connection can open another, so this only says that it was so.
async fn upgrade(case: &Case) -> Held {
    case.connect().await?;
    Ok(())
}

/// Row 2.
async fn refused_without_key(case: &Case) -> Held {
    if !case.server.has_key {
        skip!("no key was given, so the server is taken to be open");
    }
    let keyless = &case.server.keyless;
    for (options, what) in [
        (keyless.clone(), "no key"),
        (
            keyless.clone().key("sk-turnwire-check-wrong"),
            "a wrong key",
        ),
    ] {
        match case.try_connect_with(&case.server.url, &options).await {
            Err(Error::Refused { status, body, .. }) => {
                ensure!(
                    status == 401,
                    "expected HTTP 401 for {what}; HTTP {status} came"
                );
                expect_error_body(&body, &format!("the 401 for {what}"))?;
            }
            Err(error) => return Err(error.into()),
            Ok(_) => fail!("expected HTTP 401 for {what}; the upgrade was accepted"),
        }
    }
    Ok(())
}

/// Row 3. No source says how a GET is refused, so every sensible status will do.
async fn plain_get(case: &Case) -> Held {
    let reply = case.get("responses").await?;
    ensure!(
        matches!(reply.status, 400 | 404 | 405 | 426 | 501),
        "expected HTTP 426 for a GET without upgrade, or 400, 404, 405, 501; HTTP {} came",
        reply.status
    );
    Ok(())
}

/// Rows 4, 6, 8: what a connection has or has not in its handshake does not matter.
async fn bare_headers(case: &Case) -> Held {
    // The client sends neither User-Agent nor OpenAI-Beta by itself.
    say_hello(&mut case.connect().await?, case).await
}

async fn content_type(case: &Case) -> Held {
    let options = case.server.options.clone();
    let options = options.header("Content-Type", "application/json");
    say_hello(&mut case.connect_with(&options).await?, case).await
}

/// Row 5.
async fn beta_headers(case: &Case) -> Held {
    for value in ["responses_websockets=2026-02-06", "turnwire_unknown=v9"] {
        let options = case.server.options.clone();
        let options = options.header("OpenAI-Beta", value);
        say_hello(&mut case.connect_with(&options).await?, case).await?;
    }
    Ok(())
}

/// Row 7.
async fn query_parameters(case: &Case) -> Held {
    let Some((base, query)) = case.server.url.split_once('?') else {
        let url = format!("{}?model=x&turnwire=1", case.server.url);
        let mut socket = case.try_connect_with(&url, &case.server.options).await?;
        return say_hello(&mut socket, case).await;
    };
    let url = format!("{base}?{query}&model=x&turnwire=1");
    let mut socket = case.try_connect_with(&url, &case.server.options).await?;
    say_hello(&mut socket, case).await
}

/// Row 9.
async fn subprotocol(case: &Case) -> Held {
    let options = case.server.options.clone();
    let options = options.subprotocol("turnwire.v1").subprotocol("json");
    let mut socket = case.connect_with(&options).await?;
    let selected = socket.handshake().subprotocol();
    ensure!(
        selected.is_none(),
        "expected no subprotocol to be selected; the server selected {}",
        json!(selected)
    );
    say_hello(&mut socket, case).await
}

/// Row 10. A message that is long and repeats itself is compressed by whoever compresses.
async fn compression(case: &Case) -> Held {
    let options = case.server.options.clone().compression(true);
    let mut socket = case.connect_with(&options).await?;
    if let Some(extensions) = socket.handshake().extensions() {
        ensure!(
            extensions.trim_start().starts_with("permessage-deflate"),
            "expected `permessage-deflate` or no extension; `{extensions}` was agreed on"
        );
    }
    let text = format!("Say hello. {}", "Nothing else matters here. ".repeat(100));
    socket.turn(case.ask(&text)).await?;
    // The window is shared by all messages, so that a second one shows whether it is kept right.
    socket.turn(case.ask(&text)).await?;
    Ok(())
}

/// Row 11. A compressed frame where none was agreed on breaks the connection.
async fn no_compression(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let agreed = socket.handshake().extensions();
    ensure!(
        agreed.is_none(),
        "expected no extension where none was offered; {} was agreed on",
        json!(agreed)
    );
    let text = format!("Say hello. {}", "Nothing else matters here. ".repeat(100));
    socket.turn(case.ask(&text)).await?;
    Ok(())
}

/// Rows 12, 19, 20, 21, which the watch judges on all traffic. What follows the first turn is read
/// with the second.
async fn some_traffic(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    say_hello(&mut socket, case).await?;
    say_hello(&mut socket, case).await
}

/// Row 13, which a server may leave out if it says so.
async fn binary_message(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    socket
        .send_binary(case.ask("Say hello.").to_string())
        .await?;
    match socket.read_answer().await? {
        Answer::Turn(turn) => turn.expect_usable().map(|_| ()),
        Answer::Refused(refusal) => skip!("the server takes no binary messages: {refusal}"),
    }
}

/// Row 14. Seven pieces, which also cut the characters of more than one byte.
async fn fragments(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let create = case.ask("Say hello. «äöü» «日本語» «🙂🙂🙂🙂🙂🙂🙂🙂»");
    socket.send_in_frames(create, 7).await?;
    socket.read_turn().await?;
    Ok(())
}

/// Events that may have been on their way when a Ping was sent.
const ANSWERED_WITHIN: usize = 100;

/// Row 15.
async fn ping_in_mid_turn(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    socket.begin(case.long(json!({}))).await?;
    socket.ping("turnwire").await?;
    let deadline = socket.deadline();
    let mut events = 0;
    loop {
        match socket.next_message(deadline).await? {
            Some(Message::Pong(payload)) if payload.as_ref() == b"turnwire" => return Ok(()),
            Some(Message::Pong(payload)) => {
                fail!("expected the Pong to carry the Ping's payload; it carries {payload:?}")
            }
            Some(Message::Text(payload)) => {
                let ended = serde_json::from_slice(&payload.bytes)
                    .ok()
                    .and_then(Event::new)
                    .is_some_and(|event| event.is_ending());
                events += 1;
                if ended && events < ANSWERED_WITHIN {
                    skip!("the model's answer was too short");
                }
                ensure!(
                    !ended,
                    "expected a Pong before the turn's end; the end came first"
                );
            }
            Some(_) => {}
            None => fail!("expected a Pong in mid-turn; none came before the timeout"),
        }
    }
}

/// Row 16.
async fn unsolicited_pong(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    socket.pong("nobody asked").await?;
    say_hello(&mut socket, case).await
}

/// Row 17. Whether the turn behind it was cancelled shows inside the server only.
async fn close_in_mid_turn(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    socket.begin(case.long(json!({}))).await?;
    socket.send_close().await?;
    let (code, reason) = socket.read_close().await?;
    ensure!(
        code.is_some(),
        "expected a Close frame in answer to ours; the connection ended without one {reason}"
    );
    say_hello(&mut case.connect().await?, case).await
}

/// Row 18. Here too only the rest of the server can be seen.
async fn dropped_in_mid_turn(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    socket.begin(case.long(json!({}))).await?;
    socket.abort();
    say_hello(&mut case.connect().await?, case).await
}

/// Row 22.
async fn large_frames(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let create = case.create(json!({
        "generate": false,
        "instructions": "Be brief. ".repeat(LARGE / 10),
        "input": "Say hello.",
    }));
    match socket.answer(create).await {
        Ok(Answer::Turn(turn)) if turn.response().to_string().len() > LARGE => Ok(()),
        Ok(Answer::Turn(_)) => {
            skip!("the server does not echo instructions, so no large message could be provoked")
        }
        Ok(Answer::Refused(refusal)) => {
            skip!("no large message could be provoked, the server refused: {refusal}")
        }
        Err(Stop::Fail(problem)) => skip!("no large message could be provoked: {problem}"),
        Err(skipped) => Err(skipped),
    }
}

/// Row 23.
async fn oversized_message(case: &Case) -> Held {
    let mut bystander = case.connect().await?;
    let mut socket = case.connect().await?;
    let mut create = case.ask(&"x".repeat(OVERSIZED));
    create["generate"] = json!(false);
    // The server may end the connection while the message is still on its way.
    let sent = socket.send(create).await;
    let deadline = socket.deadline();
    let answer = loop {
        match socket.next_message(deadline).await {
            Ok(Some(Message::Ping(_) | Message::Pong(_))) => {}
            answer => break answer,
        }
    };
    match answer {
        Ok(Some(Message::Close { code, reason })) => ensure!(
            code == Some(1009),
            "expected an `error` event or Close 1009; a Close {} {reason} came",
            named(code)
        ),
        Ok(Some(Message::Text(payload) | Message::Binary(payload))) => {
            let json: serde_json::Value =
                serde_json::from_slice(&payload.bytes).unwrap_or_default();
            if json["type"] != "error" {
                skip!("the server takes messages of {} MiB", OVERSIZED >> 20);
            }
        }
        Ok(_) => match sent {
            Err(stop) => return Err(stop),
            Ok(()) => fail!("expected an `error` event or Close 1009; nothing came"),
        },
        Err(error) => fail!("expected an `error` event or Close 1009; {error}"),
    }
    say_hello(&mut bystander, case).await
}

/// Row 24.
async fn invalid_utf8(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    socket
        .send_text(&b"{\"type\":\"response.create\",\"input\":\"\xff\xfe\"}"[..])
        .await?;
    let (code, reason) = socket.read_close().await?;
    ensure!(
        code == Some(1007),
        "expected Close 1007 for a text that is not UTF-8; a Close {} {reason} came",
        named(code)
    );
    Ok(())
}

/// Rows 25 and 26: the connection is idle when its time comes.
async fn age_limit(case: &Case) -> Held {
    let Some(age) = case.server.age_limit else {
        skip!("an hour is too long to wait; give --age-limit for a server with a shorter one");
    };
    let mut socket = case.connect().await?;
    let deadline = Instant::now() + age + case.server.timeout;
    let Some(event) = socket.next_before(deadline).await? else {
        fail!("expected `websocket_connection_limit_reached` at an age of {age:?}; nothing came");
    };
    let refusal = Refusal { json: event.json };
    refusal
        .expect_code("websocket_connection_limit_reached")?
        .expect_status(400)?;
    ensure!(
        refusal.lane().is_none() && refusal.param().is_none(),
        "expected neither `stream_id` nor `param`; {} came",
        refusal.json
    );
    socket.read_close().await?;
    Ok(())
}

fn named(code: Option<u16>) -> String {
    code.map_or("without a code".to_owned(), |code| format!("{code}"))
}

/// A turn of a few words.
async fn say_hello(socket: &mut Socket, case: &Case) -> Held {
    socket.turn(case.ask("Say hello.")).await?;
    Ok(())
}

fn expect_error_body(body: &[u8], what: &str) -> Held {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let members = ["message", "type", "param", "code"];
    let missing = members
        .iter()
        .find(|member| json["error"].get(member).is_none());
    match missing {
        None => Ok(()),
        Some(member) => fail!("expected a JSON error body with `{member}` in {what}; {json} came"),
    }
}

pub(super) const SECTION: Section = Section {
    number: "1",
    title: "Handshake and transport",
    conversations: &[
        conversation!(upgrade: 1 "An upgrade with a valid key is answered with 101"),
        conversation!(refused_without_key: 2 "No key or a wrong one gives HTTP 401 with an error body"),
        conversation!(plain_get: 3 "A GET without upgrade is refused, with HTTP 426 at best"),
        conversation!(bare_headers:
            4 "The upgrade needs no OpenAI-Beta header",
            8 "The upgrade needs no User-Agent",
        ),
        conversation!(beta_headers: 5 "Known and unknown OpenAI-Beta values are accepted"),
        conversation!(content_type: 6 "Content-Type on the upgrade is accepted"),
        conversation!(query_parameters: 7 "Unknown query parameters are ignored"),
        conversation!(subprotocol: 9 "Of offered subprotocols none is selected"),
        conversation!(compression: 10 "permessage-deflate works both ways or is left out"),
        conversation!(no_compression: 11 "Nothing is compressed where compression was not offered"),
        conversation!(some_traffic:
            12 "Every message is a text frame with one JSON object",
            19 "[DONE] is never sent on the socket",
            20 "Every message has a string type, and none of the reserved names",
            21 "No event is outside the catalogue",
        ),
        conversation!(binary_message: 13 "A binary message with JSON is taken like a text, or refused"),
        conversation!(fragments: 14 "A message in several frames is put together"),
        conversation!(ping_in_mid_turn: 15 "A Ping in mid-turn is answered before the turn's end"),
        conversation!(unsolicited_pong: 16 "A Pong that nobody asked for is ignored"),
        conversation!(close_in_mid_turn: 17 "A Close in mid-turn is answered with a Close"),
        conversation!(dropped_in_mid_turn: 18 "A connection lost in mid-turn does the server no harm"),
        conversation!(large_frames: 22 "Frames are at most 16 MiB"),
        conversation!(oversized_message:
            23 "A message that is too large gives an error or Close 1009, and harms no other connection",
        ),
        conversation!(invalid_utf8: 24 "A text that is not UTF-8 closes with 1007"),
        conversation!(age_limit:
            25 "At the age limit comes websocket_connection_limit_reached, then a Close",
            26 "An idle connection has an age limit too",
        ),
        unseen!("how a server is configured cannot be seen from outside":
            27 "Age limit, 16 running turns and 32 names can be configured",
        ),
        unseen!("a check does not shut down the server that it judges":
            28 "A server that shuts down closes with 1001 or 1012",
        ),
    ],
};
