//! Clients: rows 174 to 179.

use serde_json::json;

use crate::case::Case;
use crate::probe::Feature;
use crate::rows::context::{SECRET, user};
use crate::rows::{Section, conversation, unseen};
use crate::stop::{Held, ensure, skip};

/// Turns of the chain whose uploads are compared.
const TURNS: usize = 6;

/// Row 179: the sixth turn of a chain costs what the second did, and its context is larger.
async fn upload(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let mut parent = socket.turn(case.ask(&SECRET.repeat(20))).await?;
    let first = parent.input_tokens();
    let mut uploads = Vec::new();
    for _ in 1..TURNS {
        let before = socket.traffic().sent;
        let create = case.create(json!({
            "previous_response_id": parent.id(), "input": [user("Go on.")],
        }));
        parent = socket.turn(create).await?;
        uploads.push(socket.traffic().sent - before);
    }
    let (Some(first), Some(last)) = (first, parent.input_tokens()) else {
        skip!("the server does not count `input_tokens`, so the context cannot be seen to be kept");
    };
    ensure!(
        last >= first,
        "expected the context to be kept while only new items are sent; `input_tokens` fell from \
         {first} to {last}"
    );
    let largest = uploads.iter().max();
    ensure!(
        largest.is_some_and(|bytes| *bytes < 1000),
        "expected every continuation to be sent in less than 1000 bytes; they took {uploads:?}"
    );
    Ok(())
}

pub(super) const SECTION: Section = Section {
    number: "12",
    title: "Clients",
    conversations: &[
        unseen!("it takes openai-python; tests/clients runs it against Turnwire":
            174 "openai-python runs a tool loop",
        ),
        unseen!("it takes openai-node; tests/clients/node runs it against Turnwire":
            175 "openai-node runs a tool loop",
        ),
        unseen!("it takes openai-agents-python; tests/clients runs it against Turnwire":
            176 "openai-agents-python runs 20 tool calls on one socket",
        ),
        unseen!("it takes Codex CLI, which is not part of a check":
            177 "Codex CLI runs without falling back to HTTP",
        ),
        unseen!("the suite is a program of its own; the rows on schemas judge what it looks at":
            178 "The Open Responses suite passes",
        ),
        conversation!(upload: 179 "Bytes sent per turn follow the new items, not the history"),
    ],
};
