//! Calls: turns that end in calls of a function, as far as the model can be made to.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::Turn;
use crate::probe::{Feature, function};
use crate::socket::Socket;
use crate::stop::{Stop, skip};

/// Makes the model call one function, with these members besides. Gives out the turn and the
/// `call_id`; without a call the conversation ends without a verdict.
pub(super) async fn call(
    case: &Case,
    socket: &mut Socket,
    members: Value,
) -> Result<(Turn, String), Stop> {
    case.needs(Feature::Functions).await?;
    let mut create = case.create(json!({
        "tools": [function("look")],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": false,
        "input": "What is in the kitchen?",
    }));
    for (name, value) in members.as_object().into_iter().flatten() {
        create[name] = value.clone();
    }
    let turn = socket.turn(create).await?;
    let ids = call_ids(&turn);
    let [id] = &ids[..] else {
        skip!("the model was told to make one call and made {}", ids.len());
    };
    let id = id.clone();
    Ok((turn, id))
}

/// The `call_id` of each call of a turn.
pub(super) fn call_ids(turn: &Turn) -> Vec<String> {
    let calls = turn.calls().into_iter();
    let ids = calls.filter_map(|call| call["call_id"].as_str());
    ids.map(str::to_owned).collect()
}

/// The output of a call.
pub(super) fn output(call_id: &str) -> Value {
    json!({"type": "function_call_output", "call_id": call_id, "output": "A table and a chair."})
}
