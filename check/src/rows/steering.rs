//! Steering: rows 139 to 154.

use crate::rows::{Section, unseen};

pub(super) const SECTION: Section = Section {
    number: "7.1",
    title: "Steering",
    conversations: &[unseen!("this version does not judge it yet":
        139 "Steering a running response is accepted with an id",
        140 "The target ends, and a successor follows by itself",
        141 "The successor has the target's lane and settings",
        142 "Several steers are applied in order",
        143 "A steer with stream_id or another extra field is invalid_input",
        144 "Input that is empty or no user message is invalid_input",
        145 "An unknown target is response_not_found",
        146 "A target that ended is response_already_completed",
        147 "What cannot be steered is steering_not_supported",
        148 "A pending call makes the steer wait, without a successor",
        149 "The create with the outputs takes the steering input first",
        150 "That create may come before the notice",
        151 "steer.failed echoes the input, and has an id only if accepted before",
        152 "Too many steers are too_many_pending_steers",
        153 "A disconnect drops queued steering",
        154 "Steer events carry the stream_id of a named lane",
    )],
};
