//! Compaction: rows 160 to 168.

use crate::rows::{Section, unseen};

pub(super) const SECTION: Section = Section {
    number: "8",
    title: "Compaction",
    conversations: &[unseen!("this version does not judge it yet":
        160 "Crossing compact_threshold puts a compaction item into the response",
        161 "compact_threshold below 1000 is refused",
        162 "A compacted chain continues with only new items",
        163 "A compaction item restores the context on a new socket",
        164 "A tampered encrypted_content is refused",
        165 "compaction_trigger compacts as the last item, and is refused elsewhere",
        166 "POST /responses/compact gives a compaction item and usage",
        167 "Its output works unchanged as the input of a new chain",
        168 "Compacting without model is refused",
    )],
};
