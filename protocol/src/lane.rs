//! Lane: an ordered queue of creates inside one connection, and what its last turn left behind.
//!
//! A lane is made by the first use of its name and lasts as long as the connection. It runs one
//! turn at a time, first in, first out. It keeps its latest response and its last warm-up, which
//! are all that a connection can continue without a store.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use crate::action::TurnKey;
use crate::chain::Chain;
use crate::create::CreateRequest;
use crate::failure::Failure;
use crate::id::ResponseId;
use crate::steer::Owed;
use crate::tool::NotOffered;

/// The value of `stream_id`: 1 to 256 of `A-Z a-z 0-9 _ . -`, so it never needs escaping. Cloning
/// it copies a pointer. The default lane has none: it is `None` where a lane is an option.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LaneName(Arc<str>);

impl LaneName {
    pub(crate) fn new(text: &str) -> Result<Self, Failure> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if (1..=256).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(Failure::invalid_stream_id())
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a turn from its beginning, and needed at its end.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Keys rise with every create, so they also tell which one came first.
    pub(crate) key: TurnKey,
    pub(crate) id: ResponseId,
    pub(crate) lane: Option<LaneName>,
    pub(crate) parent: Option<ResponseId>,
    /// Empty if the request is refused.
    pub(crate) model: Arc<str>,
    pub(crate) tools_not_offered: NotOffered,
    /// Whether the session made it for the steers of its parent, and no client its create.
    pub(crate) is_automatic: bool,
    /// The steers in front of its input, until its `response.created`, with which they are applied.
    pub(crate) steers: Option<Owed>,
}

/// A create that has not started.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) origin: Origin,
    pub(crate) request: Result<Box<CreateRequest>, Failure>,
    /// The parent as it was when the create came: what exists then may be evicted before the
    /// turn starts, and the turn still gets it.
    pub(crate) pinned: Option<Chain>,
    /// Bytes of the message it came in.
    pub(crate) bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) queue: VecDeque<Waiting>,
    /// The turn that has left the queue and has not ended.
    pub(crate) running: Option<TurnKey>,
    latest: Option<Chain>,
    /// The steers of the latest response, or of one that warm-ups have continued since: for the
    /// next turn that continues it.
    pub(crate) owed: Option<Owed>,
    warm_up: Option<Chain>,
}

impl Waiting {
    /// Whether it is going to take the steers of this response.
    pub(crate) fn takes_steers_of(&self, id: &ResponseId) -> bool {
        let generates = self.request.as_ref().is_ok_and(|request| request.generate);
        generates && self.origin.parent.as_ref() == Some(id)
    }
}

impl Lane {
    /// Makes a response that ended well the one to continue from. Returns the steers that have
    /// nothing left to be applied to; a warm-up takes over those of its parent.
    pub(crate) fn advance(&mut self, chain: Chain, is_warm_up: bool) -> Option<Owed> {
        let takes_over = is_warm_up && chain.parent().is_some_and(|it| self.owes_to(it.id()));
        if is_warm_up {
            self.warm_up = Some(chain.clone());
        }
        self.latest = Some(chain);
        self.owed.take_if(|_| !takes_over)
    }

    /// Forgets a response, if it is this lane's. Returns the steers that were for it.
    pub(crate) fn evict(&mut self, id: &ResponseId) -> Option<Owed> {
        self.warm_up.take_if(|chain| chain.id() == id);
        self.latest.take_if(|chain| chain.id() == id)?;
        self.owed.take()
    }

    /// The steers that a turn which continues the response of this id is to apply.
    pub(crate) fn take_owed(&mut self, id: &ResponseId) -> Option<Owed> {
        let owes = self.owes_to(id);
        self.owed.take_if(|_| owes)
    }

    /// Whether the steers are for this response: their target, or the warm-up that took over.
    fn owes_to(&self, id: &ResponseId) -> bool {
        let is_latest = self.latest.as_ref().is_some_and(|chain| chain.id() == id);
        let is_target = |owed: &Owed| owed.target() == id;
        is_latest || self.owed.as_ref().is_some_and(is_target)
    }

    fn find(&self, id: &ResponseId) -> Option<&Chain> {
        [&self.latest, &self.warm_up]
            .into_iter()
            .flatten()
            .find(|chain| chain.id() == id)
    }
}

/// All lanes of a connection: the unnamed default lane and the named ones.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    default: Lane,
    named: HashMap<LaneName, Lane>,
}

impl Lanes {
    /// The lane of this name, made if it is new and there is room for another name.
    pub(crate) fn open(
        &mut self,
        name: Option<&LaneName>,
        names: usize,
    ) -> Result<&mut Lane, Failure> {
        let Some(name) = name else {
            return Ok(&mut self.default);
        };
        if !self.named.contains_key(name) && self.named.len() >= names {
            return Err(Failure::stream_limit_reached(names));
        }
        Ok(self.named.entry(name.clone()).or_default())
    }

    /// The lane of a turn.
    pub(crate) fn of(&mut self, name: Option<&LaneName>) -> &mut Lane {
        self.get_mut(name)
            .expect("a turn's lane was opened by its create and is never closed")
    }

    /// The lane of this name, if there is one.
    pub(crate) fn get_mut(&mut self, name: Option<&LaneName>) -> Option<&mut Lane> {
        match name {
            None => Some(&mut self.default),
            Some(name) => self.named.get_mut(name),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Option<&LaneName>, &Lane)> {
        let named = self.named.iter().map(|(name, lane)| (Some(name), lane));
        std::iter::once((None, &self.default)).chain(named)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        std::iter::once(&mut self.default).chain(self.named.values_mut())
    }

    /// All that the lanes keep.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Chain> {
        let lanes = std::iter::once(&self.default).chain(self.named.values());
        lanes.flat_map(|lane| lane.latest.iter().chain(&lane.warm_up))
    }

    /// A response that some lane keeps.
    pub(crate) fn find(&self, id: &ResponseId) -> Option<&Chain> {
        self.owner(id).map(|(_, chain)| chain)
    }

    /// A response that some lane keeps, with the lane's name.
    pub(crate) fn owner(&self, id: &ResponseId) -> Option<(Option<&LaneName>, &Chain)> {
        self.iter()
            .find_map(|(name, lane)| Some((name, lane.find(id)?)))
    }
}
