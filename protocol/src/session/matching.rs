//! Turns whose request brings all of its history, while a chain is looked for that holds the
//! beginning of it.

use crate::action::{Action, TurnKey};
use crate::chain::Chain;
use crate::engine::{Purpose, TurnRequest};
use crate::id::IdSource;
use crate::lane::Origin;
use crate::session::{Now, Running, Session, Stage};
use crate::turn::Turn;

/// A turn that waits for the answer to [`Action::Match`].
#[derive(Debug)]
pub(super) struct Matching {
    making: Box<Turn>,
    asked: Box<TurnRequest>,
}

impl Session {
    /// Has the histories that come with requests looked for, and those that are made kept. For
    /// HTTP: on a socket a client names what it continues.
    pub fn match_histories(&mut self) {
        self.matches_histories = true;
    }

    /// Looks for what a turn could continue whose request names nothing.
    pub(super) fn look_for_history(
        &mut self,
        origin: Origin,
        mut making: Box<Turn>,
        asked: Box<TurnRequest>,
    ) {
        // A count is of the request as it is, whatever is known at the time.
        let prefixes = match asked.purpose {
            Purpose::Count => Vec::new(),
            Purpose::Answer | Purpose::Summary => making.begin_history(),
        };
        if prefixes.is_empty() {
            return self.ask(origin, making, asked);
        }
        let turn = origin.key;
        self.actions.push_back(Action::Match { turn, prefixes });
        let stage = Stage::Matching(Box::new(Matching { making, asked }));
        self.running.insert(turn, Running { origin, stage });
    }

    /// The answer to [`Action::Match`]: a chain of this credential that was kept for the history
    /// of one of the prefixes, and how many items that has.
    pub fn handle_matched(
        &mut self,
        now: Now,
        _ids: &mut dyn IdSource,
        turn: TurnKey,
        found: Option<(usize, Chain)>,
    ) {
        self.grow_old(now);
        match self.running.remove(&turn) {
            Some(Running {
                origin,
                stage: Stage::Matching(matching),
            }) => {
                let Matching {
                    mut making,
                    mut asked,
                } = *matching;
                if let Some((items, chain)) = found
                    && (1..asked.input.len()).contains(&items)
                    && self
                        .check_chain_bytes(Some(&chain), &asked.input[items..])
                        .is_ok()
                {
                    making.continue_from(chain, items, &mut asked);
                }
                self.ask(origin, making, asked);
            }
            Some(running) => drop(self.running.insert(turn, running)),
            None => {}
        }
        self.go_on(now);
    }
}
