//! State: rows 83 to 105.

use serde_json::json;

use crate::case::Case;
use crate::probe::Feature;
use crate::rows::context::{QUESTION, SECRET, bare_tokens, expect_seen};
use crate::rows::{Section, conversation, unseen};
use crate::stop::{Held, ensure};

/// Rows 83, 84.
async fn continuation(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let bare = bare_tokens(case).await?;
    let mut socket = case.connect().await?;
    let create = case.create(json!({"store": false, "input": SECRET}));
    let parent = socket.turn(create).await?;
    let child = socket.turn(case.onto(&parent, QUESTION)).await?;
    let named = &child.response()["previous_response_id"];
    ensure!(
        named == parent.id(),
        "expected `previous_response_id` of the child to be {}; it is {named}",
        parent.id()
    );
    expect_seen(&child, bare, "the parent's input")
}

pub(super) const SECTION: Section = Section {
    number: "4",
    title: "State",
    conversations: &[
        conversation!(continuation:
            83 "A continuation with only new input sees the whole context",
            84 "Continuing works with store: false",
        ),
        unseen!("this version does not judge it yet":
            85 "store is true by default, and the response is readable by GET",
            86 "A response with store: false is 404 over HTTP",
            87 "A response with store: false is not found from another socket",
            88 "After reconnecting an unstored parent is not found, and a new chain works",
            89 "After reconnecting a stored parent works",
            90 "An id that never was gives previous_response_not_found and names it",
            91 "Instructions of the parent do not act in a continuation without any",
            92 "Instructions may change from turn to turn",
            93 "Tools of the parent are not offered in a continuation without any",
            94 "An output that no call asked for fails with 400",
            95 "After that failure the unstored parent is gone",
            96 "After that failure a stored parent is still usable",
            97 "Leaving out the output of a pending call fails with 400 and names it",
            98 "The output of an async call may come later",
            99 "Outputs of parallel calls are taken in any order",
            100 "Unstored responses older than the latest are not found",
            101 "An incomplete response can be continued",
            102 "A failed continuation on the parent's lane evicts the parent",
            103 "A failed create without parent evicts nothing",
            104 "Memory of a closed connection is released",
            105 "Nothing of a store: false turn is written to disk",
        ),
    ],
};
