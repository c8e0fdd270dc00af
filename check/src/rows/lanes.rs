//! Multiplexing: rows 115 to 138.

use crate::rows::{Section, unseen};

pub(super) const SECTION: Section = Section {
    number: "6",
    title: "Multiplexing",
    conversations: &[unseen!("this version does not judge it yet":
        115 "Two lanes run at the same time",
        116 "Every event of a named lane has its stream_id",
        117 "Events of the default lane have no stream_id",
        118 "Requests on one lane never overlap",
        119 "Names of 1 and 256 characters, and with _ - . are accepted",
        120 "Names outside the syntax give invalid_stream_id",
        121 "32 names work, and the 33rd gives websocket_stream_limit_reached",
        122 "The default lane does not count toward the 32",
        123 "16 turns run, and the 17th waits in silence",
        124 "The default lane counts toward the 16",
        125 "A waiting turn says nothing before it starts",
        126 "A lane used again without parent starts a new chain",
        127 "A fork sees the context of its parent on another lane",
        128 "After the fork's response.in_progress the source lane may advance",
        129 "Branches do not see each other's items",
        130 "A failing fork leaves the parent usable on its lane",
        131 "After a failing continuation forks from that parent fail",
        132 "A fork from an unstored parent that was replaced is not found",
        133 "A fork from a response that still runs is not found",
        134 "A create on the same lane may name the running response",
        135 "An error on one lane does not disturb the others",
        136 "stream_id over HTTP is refused",
        137 "A client that stops reading does not cost unbounded memory",
        138 "A slow lane does not hold up the others",
    )],
};
