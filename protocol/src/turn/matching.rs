//! Matching: how a turn whose request brings all of its history continues a chain that holds the
//! beginning of it.
//!
//! The request is checked as it came, whatever is found. So a match changes nothing but what the
//! engine is given: a parent, and the items that are not in it. An engine that refuses that is
//! asked again for the whole, and what it says then is what the client hears.

use std::sync::Arc;

use crate::chain::{Carried, Chain};
use crate::create::Task;
use crate::engine::{EngineFailure, EngineFailureKind, TurnRequest};
use crate::field::Path;
use crate::history::{History, Prefix, Premise};
use crate::item::Item;
use crate::standing::Standing;
use crate::tool::NotOffered;
use crate::turn::{Told, Turn};

/// What a turn would be without its match.
#[derive(Debug)]
pub(super) struct Whole {
    request: Box<TurnRequest>,
    carried: Carried,
}

impl Turn {
    /// Has this turn know the digest of its history. Returns the beginnings of the input that
    /// chains may be known for, the longest first.
    pub(crate) fn begin_history(&mut self) -> Vec<Prefix> {
        let begin = History::begin(self.premise());
        let (history, prefixes) = begin.with_prefixes(&self.request.input);
        self.history = Some(history);
        prefixes
    }

    /// The digest of the chain that this turn has become. None if it is not to be found again: a
    /// turn that only compacts has made what begins another conversation, and one that counts has
    /// made nothing.
    pub(crate) fn history_of(&self, chain: &Chain) -> Option<History> {
        let before = self.history.filter(|_| self.request.task == Task::Answer)?;
        let compacted = self.compacting.as_ref().and_then(|it| it.compacted());
        let (before, input) = match compacted {
            None => (before, &[][..]),
            Some(_) => (History::begin(self.premise()), &**chain.input()),
        };
        let items = input.iter().chain(&**chain.output());
        Some(items.fold(before, History::followed_by))
    }

    fn premise(&self) -> Premise<'_> {
        Premise {
            model: &self.request.model,
            store: self.permit().is_some(),
            truncate: self.request.truncate,
        }
    }

    /// Continues `chain`, which holds the first `items` of the input, and changes what the engine
    /// is to be asked for accordingly. To be called before it is asked.
    pub(crate) fn continue_from(&mut self, chain: Chain, items: usize, asked: &mut TurnRequest) {
        let whole = Whole {
            request: Box::new(asked.clone()),
            carried: self.carried.clone(),
        };
        // They are the smaller part of a message that must not stay alive for their sake.
        let rest: Arc<[Item]> = asked.input[items..].iter().map(Item::detached).collect();
        let standing = self.carried.standing.detached();
        let tools = Standing::of_input(
            &rest,
            Path::Name("input"),
            false,
            &mut NotOffered::default(),
        )
        .map(|update| chain.carried().standing.followed_by(&update).tools);
        self.carried.standing = Standing {
            // Shared with the chain wherever the rest brings none.
            tools: tools.unwrap_or(standing.tools),
            ..standing
        };
        self.request.input = Arc::clone(&rest);
        self.parent = Some(chain.clone());
        asked.input = rest;
        asked.parent = Some(chain);
        self.whole = Some(Box::new(whole));
    }

    /// What to ask the engine for after it has refused to continue a chain that was found. None
    /// if that is no reason for the refusal.
    pub(super) fn without_match(&mut self, failure: &EngineFailure) -> Option<Box<TurnRequest>> {
        let may_be_the_reason = match failure.kind {
            EngineFailureKind::ContextLengthExceeded
            | EngineFailureKind::Unsupported
            | EngineFailureKind::Invalid
            | EngineFailureKind::Internal => true,
            EngineFailureKind::ModelNotFound
            | EngineFailureKind::Overloaded
            | EngineFailureKind::RateLimited { .. } => false,
        };
        if self.told == Told::InProgress || !may_be_the_reason {
            return None;
        }
        let Whole { request, carried } = *self.whole.take()?;
        self.carried = carried;
        self.request.input = Arc::clone(&request.input);
        self.parent = None;
        Some(self.first_run(request))
    }
}

impl Whole {
    /// The input as a model would be shown it that is given no chain.
    pub(super) fn input(&self) -> &Arc<[Item]> {
        &self.request.input
    }
}
