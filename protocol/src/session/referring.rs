//! Turns whose input refers to items, from their parent to their whole input.

use crate::action::{Action, TurnKey};
use crate::chain::Chain;
use crate::create::CreateRequest;
use crate::field::Path;
use crate::id::IdSource;
use crate::item::Item;
use crate::lane::Origin;
use crate::reference::References;
use crate::session::{Now, Running, Session, Stage, StoreUnavailable};
use crate::standing::Standing;
use crate::tool::NotOffered;

/// A turn that waits for items from the store.
#[derive(Debug)]
pub(super) struct Referring {
    request: Box<CreateRequest>,
    parent: Option<Chain>,
    references: References,
}

impl Session {
    /// Goes on with a turn whose parent is there, as soon as all that its input refers to is.
    pub(super) fn begin(
        &mut self,
        now: Now,
        origin: Origin,
        request: Box<CreateRequest>,
        parent: Option<Chain>,
    ) {
        let Some(mut references) = References::of(&request.input) else {
            return self.make(now, origin, request, parent);
        };
        if let Some(parent) = &parent {
            references.search_parent(parent);
        }
        for chain in self.lanes.kept() {
            references.search_chain(chain);
        }
        let ids = references.missing();
        let referring = Referring {
            request,
            parent,
            references,
        };
        if ids.is_empty() {
            return self.end_referring(now, origin, referring);
        }
        let turn = origin.key;
        self.actions.push_back(Action::LoadItems { turn, ids });
        let stage = Stage::Referring(Box::new(referring));
        self.running.insert(turn, Running { origin, stage });
    }

    /// The answer to [`Action::LoadItems`]: for each id its item, if there is one for this
    /// credential.
    pub fn handle_items(
        &mut self,
        now: Now,
        _ids: &mut dyn IdSource,
        turn: TurnKey,
        items: Result<Vec<Option<Item>>, StoreUnavailable>,
    ) {
        self.grow_old(now);
        match self.running.remove(&turn) {
            Some(Running {
                origin,
                stage: Stage::Referring(mut referring),
            }) => match items {
                Ok(items) => {
                    referring.references.found_in_store(items);
                    self.end_referring(now, origin, *referring);
                }
                Err(unavailable) => self.refuse(origin, unavailable.into()),
            },
            Some(running) => drop(self.running.insert(turn, running)),
            None => {}
        }
        self.go_on(now);
    }

    fn end_referring(&mut self, now: Now, origin: Origin, referring: Referring) {
        let Referring {
            mut request,
            parent,
            references,
        } = referring;
        let whole = references
            .replace(&request.input, Path::Name("input"))
            .and_then(|input| {
                // A short reference may name a long item, and many may name the same one. None of
                // that is read before it is known to be bounded.
                self.check_chain_bytes(parent.as_ref(), &input)?;
                // An item that was referred to may offer tools, or change settings.
                let mut known = NotOffered::default();
                let standing = Standing::of_input(
                    &input,
                    Path::Name("input"),
                    self.limits.strict,
                    &mut known,
                )?;
                Ok((input, standing))
            });
        match whole {
            Ok((input, standing)) => {
                request.input = input;
                request.standing = standing;
                self.make(now, origin, request, parent);
            }
            Err(failure) => self.refuse(origin, failure),
        }
    }
}
