//! Listing: the items of a chain in order, each with an id of its own.
//!
//! Clients need not name their items. One without a name is listed by an id that is derived from
//! its response and its place in it, so it is the same in every listing, and a store finds the
//! item by it.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::chain::Chain;
use crate::id;
use crate::item::Item;

/// An item and the id it is listed by.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    pub id: Cow<'a, str>,
    pub item: &'a Item,
    /// The link that it is part of.
    pub(crate) link: &'a Chain,
    /// Where it stands among the items that the link was asked and made.
    pub(crate) place: usize,
}

/// All items of a chain, input and output, from the first one on. What a compaction has replaced
/// is not among them. No two have the same id: of items with one name, the first keeps it.
pub fn items_of(chain: &Chain) -> Vec<Listed<'_>> {
    let mut links: Vec<_> = chain.ancestry().collect();
    links.reverse();
    let mut named = HashSet::new();
    let mut listed = Vec::new();
    for link in links {
        let items = link.asked().iter().chain(&**link.output());
        for (place, item) in items.enumerate() {
            let id = match item.id().filter(|id| named.insert(*id)) {
                Some(id) => Cow::Borrowed(id),
                None => Cow::Owned(id::of_place(link.id(), place, item.kind())),
            };
            listed.push(Listed {
                id,
                item,
                link,
                place,
            });
        }
    }
    listed
}

/// What the last response of a chain was given: all its items but those that it made itself.
pub fn input_of(chain: &Chain) -> Vec<Listed<'_>> {
    let mut listed = items_of(chain);
    listed.truncate(listed.len() - chain.output().len());
    listed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::chain::Carried;
    use crate::id::ResponseId;

    fn link(parent: Option<Chain>, id: &str, input: &[&str], output: &[&str]) -> Chain {
        let items = |texts: &[&str]| -> Arc<[Item]> {
            let item = |text: &&str| Item::parse((*text).to_owned().into()).expect("an item");
            texts.iter().map(item).collect()
        };
        let id = ResponseId::from(id);
        let carried = Carried::default();
        Chain::append(parent, id, items(input), items(output), carried, None)
    }

    #[test]
    fn items_come_in_order_and_every_one_has_an_id_of_its_own() {
        let user = r#"{"role":"user","content":"a"}"#;
        let said = r#"{"type":"message","id":"msg_said","role":"assistant","content":[]}"#;
        let called = r#"{"type":"function_call_output","call_id":"c","output":""}"#;
        let first = link(None, "resp_1", &[user, user], &[said]);
        // A client that sends everything again repeats the ids it was given.
        let second = link(Some(first), "resp_2", &[said, called], &[said]);
        let listed = items_of(&second);
        let ids: Vec<_> = listed.iter().map(|listed| &*listed.id).collect();
        let input = ["msg_1_0", "msg_1_1", "msg_said", "msg_2_0", "fco_2_1"];
        assert_eq!(ids, [&input[..], &["msg_2_2"]].concat());
        let listed = input_of(&second);
        let ids: Vec<_> = listed.iter().map(|listed| &*listed.id).collect();
        assert_eq!(ids, input);
    }
}
