//! Cancel (extension): rows 155 to 159.

use crate::rows::{Section, unseen};

pub(super) const SECTION: Section = Section {
    number: "7.4",
    title: "Cancel (extension)",
    conversations: &[unseen!("this version does not judge it yet":
        155 "response.cancel ends the running turn with one terminal event",
        156 "After a cancel the lane continues from the cancelled turn's parent",
        157 "Cancelling what is unknown or finished is silent",
        158 "Cancelling one lane does not disturb the others",
        159 "Closing the socket in mid-turn stops the engine",
    )],
};
