//! Cancel (extension): rows 155 to 159.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::Event;
use crate::probe::Feature;
use crate::rows::{Section, conversation, unseen};
use crate::socket::Socket;
use crate::stop::{Held, Stop, ensure, skip};

/// Row 155. The watch sees to it that nothing follows the terminal event.
async fn running(case: &Case) -> Held {
    case.needs(Feature::Cancel).await?;
    let mut socket = case.connect().await?;
    let id = socket.begin(case.long(json!({}))).await?;
    cancel(&mut socket, &id).await?;
    socket.turn(case.ask("Say hello.")).await?;
    Ok(())
}

/// Row 156.
async fn parent_stays(case: &Case) -> Held {
    case.needs(Feature::Cancel).await?;
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let parent = socket.turn(case.ask("Say hello.")).await?;
    let long = case.long(json!({"previous_response_id": parent.id()}));
    let id = socket.begin(long).await?;
    cancel(&mut socket, &id).await?;
    socket.turn(case.onto(&parent, "Again.")).await?;
    Ok(())
}

/// Row 157. Whatever was said to the cancels would be read as the beginning of the turn.
async fn unknown_or_finished(case: &Case) -> Held {
    case.needs(Feature::Cancel).await?;
    let mut socket = case.connect().await?;
    let finished = socket.turn(case.ask("Say hello.")).await?;
    for id in [finished.id(), "resp_turnwire_never_was"] {
        socket.send(message(id)).await?;
        let next = socket.turn(case.ask("Say hello.")).await?;
        let first = next.events.first().map(|event| event.name.as_str());
        ensure!(
            first == Some("response.created"),
            "expected nothing to be said to the cancel of {id}; {} came",
            json!(first)
        );
    }
    Ok(())
}

/// Row 158.
async fn other_lane(case: &Case) -> Held {
    case.needs(Feature::Cancel).await?;
    case.needs(Feature::Lanes).await?;
    let mut socket = case.connect().await?;
    let stays = socket
        .begin(case.long(json!({"stream_id": "stays"})))
        .await?;
    let goes = case.long(json!({"stream_id": "goes"}));
    socket.send(goes).await?;
    let mut events = socket
        .read_until("the beginning of a second turn", |events| {
            events
                .iter()
                .any(|event| event.lane() == Some("goes") && event.name == "response.created")
                || ended(events, "stays")
        })
        .await?;
    if ended(&events, "stays") {
        skip!("the model's answer was too short");
    }
    let created = events
        .pop()
        .unwrap_or_else(|| unreachable!("one event was waited for"));
    let goes = created.json["response"]["id"].as_str().unwrap_or_default();
    socket.send(message(goes)).await?;
    let until = |events: &[Event]| ended(events, "goes");
    let events = socket
        .read_until("the end of the cancelled turn", until)
        .await?;
    if ended(&events, "stays") {
        skip!("the model's answer was too short");
    }
    let more = socket.read_until("more of the other lane", |events| {
        events.iter().any(|event| event.lane() == Some("stays"))
    });
    more.await?;
    socket.send(message(&stays)).await?;
    socket
        .read_until("the end of the other turn", |events| ended(events, "stays"))
        .await?;
    Ok(())
}

fn message(id: &str) -> Value {
    json!({"type": "response.cancel", "response_id": id})
}

/// Cancels the only turn that runs, and reads its end.
pub(super) async fn cancel(socket: &mut Socket, id: &str) -> Held {
    socket.send(message(id)).await?;
    let events = socket.read_endings(1).await?;
    let Some(last) = events.last() else {
        return Ok(());
    };
    ensure!(
        last.is_terminal(),
        "expected the cancelled turn to end with a terminal event; `{}` came",
        last.name
    );
    if last.name == "response.completed" {
        return Err(Stop::Skip("the turn was complete before the cancel".into()));
    }
    Ok(())
}

fn ended(events: &[Event], lane: &str) -> bool {
    events
        .iter()
        .any(|event| event.lane() == Some(lane) && event.is_ending())
}

pub(super) const SECTION: Section = Section {
    number: "7.4",
    title: "Cancel (extension)",
    conversations: &[
        conversation!(running:
            155 "response.cancel ends the running turn with one terminal event",
        ),
        conversation!(parent_stays:
            156 "After a cancel the lane continues from the cancelled turn's parent",
        ),
        conversation!(unknown_or_finished: 157 "Cancelling what is unknown or finished is silent"),
        conversation!(other_lane: 158 "Cancelling one lane does not disturb the others"),
        unseen!("whether an engine stops is measured on the server's machine":
            159 "Closing the socket in mid-turn stops the engine",
        ),
    ],
};
