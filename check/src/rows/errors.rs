//! Error events: rows 78 to 82.

use serde_json::json;

use crate::case::Case;
use crate::probe::Feature;
use crate::rows::{Section, conversation, unseen};
use crate::stop::{Held, ensure};

/// Rows 78 to 80: errors of several kinds, each of which the watch judges, and a turn behind each.
async fn errors_and_turns(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let mut wrong_type = case.ask("Say hello.");
    wrong_type["temperature"] = json!("warm");
    let mut no_parent = case.ask("Say hello.");
    no_parent["previous_response_id"] = json!("resp_turnwire_never_was");
    let nothing = json!({"type": "response.create", "model": case.server.model});
    for refused in [
        wrong_type,
        no_parent,
        nothing,
        json!({"no": "type"}),
        json!([]),
    ] {
        socket.refusal(refused).await?;
        socket.turn(case.ask("Say hello.")).await?;
    }
    Ok(())
}

/// Row 81.
async fn lane_of_an_error(case: &Case) -> Held {
    case.needs(Feature::Lanes).await?;
    let mut socket = case.connect().await?;
    for lane in [None, Some("turnwire-a"), None, Some("turnwire-b")] {
        let mut create = case.ask("Say hello.");
        create["previous_response_id"] = json!("resp_turnwire_never_was");
        if let Some(lane) = lane {
            create["stream_id"] = json!(lane);
        }
        let refusal = socket.refusal(create).await?;
        ensure!(
            refusal.json.get("stream_id") == lane.map(|lane| json!(lane)).as_ref(),
            "expected `stream_id` of the error to be that of the create, {}; {} came",
            json!(lane),
            refusal.json
        );
    }
    Ok(())
}

pub(super) const SECTION: Section = Section {
    number: "9",
    title: "Error events",
    conversations: &[
        conversation!(errors_and_turns:
            78 "Every error event has status, type, code and message",
            79 "Error events fit the schemas",
            80 "A refused request leaves connection and lane usable",
        ),
        conversation!(lane_of_an_error:
            81 "An error carries the stream_id of its lane, and none on the default lane",
        ),
        unseen!("no rate limit is reached on request":
            82 "Rate limit errors say retry-after in both places",
        ),
    ],
};
