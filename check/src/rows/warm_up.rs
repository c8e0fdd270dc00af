//! Warm-up: rows 106 to 114.

use crate::rows::{Section, unseen};

pub(super) const SECTION: Section = Section {
    number: "5",
    title: "Warm-up",
    conversations: &[unseen!("this version does not judge it yet":
        106 "generate: false completes without output and counts its input",
        107 "A warm-up has no item or delta events",
        108 "The next turn sees the warm-up's input",
        109 "The next turn may have empty input",
        110 "A later turn may name the warm-up again",
        111 "prompt_cache_options.prewarm is a warm-up, even with generate: true",
        112 "A warm-up in the middle of a chain can be continued",
        113 "An invalid warm-up is refused like any create",
        114 "A turn after a warm-up starts sooner",
    )],
};
