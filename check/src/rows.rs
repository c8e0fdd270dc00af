//! Rows: every rule, its name, and the conversation that judges it.
//!
//! One file for each part of the checklist. Each ends in a `SECTION`, the table of its rows.

mod accepting;
mod calls;
mod cancel;
mod clients;
mod compaction;
mod context;
mod errors;
mod events;
mod handshake;
mod http;
mod lanes;
mod state;
mod steering;
mod warm_up;

use futures_util::future::BoxFuture;

use crate::case::Case;
use crate::stop::Held;

/// How many rows the checklist has.
pub(crate) const COUNT: u16 = 179;

pub(crate) const SECTIONS: &[&Section] = &[
    &handshake::SECTION,
    &accepting::SECTION,
    &events::SECTION,
    &errors::SECTION,
    &state::SECTION,
    &warm_up::SECTION,
    &lanes::SECTION,
    &steering::SECTION,
    &cancel::SECTION,
    &compaction::SECTION,
    &http::SECTION,
    &clients::SECTION,
];

/// A part of the checklist.
pub(crate) struct Section {
    /// Number of the specification's section that states the rules.
    pub(crate) number: &'static str,
    pub(crate) title: &'static str,
    pub(crate) conversations: &'static [Conversation],
}

/// What is said to a server, and the rows that it judges.
pub(crate) struct Conversation {
    pub(crate) rows: &'static [Row],
    pub(crate) judge: Judge,
}

pub(crate) struct Row {
    pub(crate) number: u16,
    pub(crate) name: &'static str,
}

pub(crate) enum Judge {
    /// Ends with `Ok` where every row that it has not decided passed; a `Stop` decides all rows
    /// that it has not.
    Conversation(for<'c> fn(&'c Case) -> BoxFuture<'c, Held>),
    /// Cannot be seen from outside: why.
    Unseen(&'static str),
}

/// `conversation!(function: 1 "name of row 1", 2 "name of row 2")`
macro_rules! conversation {
    ($function:path: $($number:literal $name:literal),+ $(,)?) => {
        $crate::rows::Conversation {
            rows: &[$($crate::rows::Row { number: $number, name: $name }),+],
            judge: $crate::rows::Judge::Conversation(|case| Box::pin($function(case))),
        }
    };
}

/// `unseen!("why": 1 "name of row 1")`
macro_rules! unseen {
    ($reason:literal: $($number:literal $name:literal),+ $(,)?) => {
        $crate::rows::Conversation {
            rows: &[$($crate::rows::Row { number: $number, name: $name }),+],
            judge: $crate::rows::Judge::Unseen($reason),
        }
    };
}

pub(crate) use {conversation, unseen};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_checklist_is_there_once() {
        let conversations = SECTIONS.iter().flat_map(|section| section.conversations);
        let rows = conversations.flat_map(|conversation| conversation.rows);
        let mut numbers: Vec<_> = rows.map(|row| row.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=COUNT).collect::<Vec<_>>());
    }
}
