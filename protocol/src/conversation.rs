//! Conversation: items that a client puts into one, or takes out of it, without a response.
//!
//! A conversation is a name for the end of a chain. Items that are put into it are a link like
//! that of a response, which made nothing. Taking one out makes another chain: what comes before
//! is shared with the old one, what follows becomes one new link.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::chain::{Carried, Chain, PendingCall};
use crate::create::settings::check_metadata;
use crate::create::{open, read_input};
use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::id::ResponseId;
use crate::item::{Item, ItemKind};
use crate::listing::{Listed, items_of};
use crate::pending;
use crate::reference::References;
use crate::seal::Sealer;
use crate::standing::Standing;
use crate::tool::NotOffered;

/// Documented for one request.
const ITEMS: usize = 20;

const LIST: Path<'_> = Path::Name("items");

/// Items that are to be put into a conversation.
#[derive(Debug)]
pub struct NewItems {
    items: Arc<[Item]>,
    references: Option<References>,
    strict: bool,
}

members! { Members { items, metadata } }

/// Reads the body of a request for a new conversation: its metadata, a JSON object, and its first
/// items. An empty body asks for an empty conversation.
pub fn read_create(
    body: &Bytes,
    sealer: &dyn Sealer,
    strict: bool,
) -> Result<(Bytes, NewItems), Failure> {
    if body.trim_ascii().is_empty() {
        let none = NewItems::read(None, body, sealer, strict)?;
        return Ok((read_metadata(None)?, none));
    }
    let members = read_members(body, strict.then_some(&["items", "metadata"]))?;
    let metadata = read_metadata(
        members
            .metadata
            .and_then(|raw| Field::named("metadata", Some(raw))),
    )?;
    let items = NewItems::read(Field::named("items", members.items), body, sealer, strict)?;
    Ok((metadata, items))
}

/// Reads the body of a request for other metadata, a JSON object.
pub fn read_update(body: &Bytes, strict: bool) -> Result<Bytes, Failure> {
    let members = read_members(body, strict.then_some(&["metadata"]))?;
    if members.metadata.is_none() {
        return Err(Failure::missing_required_parameter("metadata"));
    }
    read_metadata(Field::named("metadata", members.metadata))
}

/// Reads the body of a request for more items.
pub fn read_items(body: &Bytes, sealer: &dyn Sealer, strict: bool) -> Result<NewItems, Failure> {
    let members = read_members(body, strict.then_some(&["items"]))?;
    let items = Field::required("items", members.items)?;
    NewItems::read(Some(items), body, sealer, strict)
}

fn read_members<'a>(body: &'a Bytes, known: Option<&[&str]>) -> Result<Members<'a>, Failure> {
    let text = std::str::from_utf8(body).map_err(Failure::invalid_json)?;
    // Serde would read an array as a struct, too.
    if !text.trim_ascii_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(Failure::invalid_json)?;
        return Err(Failure::invalid_json("it is not an object"));
    }
    let members = serde_json::from_str(text).map_err(Failure::invalid_json)?;
    if let Some(known) = known {
        let all: BTreeMap<String, IgnoredAny> =
            serde_json::from_str(text).map_err(Failure::invalid_json)?;
        if let Some(name) = all.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(Failure::unknown_parameter(Path::Name(name)));
        }
    }
    Ok(members)
}

fn read_metadata(field: Option<Field<'_, '_>>) -> Result<Bytes, Failure> {
    let Some(field) = field else {
        return Ok(Bytes::from_static(b"{}"));
    };
    check_metadata(field)?;
    Ok(Bytes::copy_from_slice(field.text().as_bytes()))
}

impl NewItems {
    fn read(
        field: Option<Field<'_, '_>>,
        body: &Bytes,
        sealer: &dyn Sealer,
        strict: bool,
    ) -> Result<Self, Failure> {
        if let Some(field) = field
            && field.array()?.len() > ITEMS
        {
            return Err(Failure::array_above_max_length("items", ITEMS));
        }
        let items = open(read_input(field, body)?, LIST, sealer)?;
        let is_trigger = |item: &Item| item.kind() == ItemKind::CompactionTrigger;
        if let Some(at) = items.iter().position(is_trigger) {
            let problem = "a conversation is compacted by a response in it, not by an item";
            return Err(Failure::invalid_value(Path::Index(&LIST, at), problem));
        }
        Ok(Self {
            references: References::of(&items),
            items,
            strict,
        })
    }

    /// The ids of what they refer to beside `chain`, the items that are there already. Whoever has
    /// a store looks them up for [`NewItems::append_to`].
    pub fn missing(&mut self, chain: Option<&Chain>) -> Vec<Arc<str>> {
        let Some(references) = &mut self.references else {
            return Vec::new();
        };
        if let Some(chain) = chain {
            references.search_parent(chain);
        }
        references.missing()
    }

    /// The chain of a conversation with these items behind it; the same if there are none.
    /// `found` is what a store knows of what was missing. `max_bytes` is for the whole chain.
    pub fn append_to(
        self,
        chain: Option<Chain>,
        found: Vec<Option<Item>>,
        id: ResponseId,
        max_bytes: u64,
    ) -> Result<Option<Chain>, Failure> {
        let mut items = self.items;
        if let Some(mut references) = self.references {
            references.found_in_store(found);
            items = references.replace(&items, LIST)?;
        }
        if items.is_empty() {
            return Ok(chain);
        }
        let added: usize = items.iter().map(Item::size).sum();
        if chain.as_ref().map_or(0, Chain::bytes) + added as u64 > max_bytes {
            return Err(concerning_items(Failure::chain_too_large(max_bytes)));
        }
        let none = Carried::default();
        let before = chain.as_ref().map_or(&none, Chain::carried);
        let items = pending::name_calls(&before.pending_calls, items, LIST)?;
        let orphan = |kind, call_id: &str| {
            Some(concerning_items(Failure::orphan_tool_output(kind, call_id)))
        };
        let pending_calls = pending::left_open(&before.pending_calls, &items, orphan)?;
        let mut not_offered = NotOffered::default();
        let set = Standing::of_input(&items, LIST, self.strict, &mut not_offered)?;
        let carried = Carried {
            pending_calls,
            standing: before.standing.followed_by(&set),
        };
        let made = Arc::default();
        Ok(Some(Chain::append(chain, id, items, made, carried, None)))
    }
}

fn concerning_items(failure: Failure) -> Failure {
    Failure {
        param: Some("items".into()),
        ..failure
    }
}

/// What is left of a chain without the item that is listed by `item`; none if there is no such
/// item. Every other item is listed by the id that it was listed by. `next_id` names new links.
pub fn without(
    chain: &Chain,
    item: &str,
    mut next_id: impl FnMut() -> ResponseId,
) -> Option<Option<Chain>> {
    let listed = items_of(chain);
    let at = listed.iter().position(|listed| listed.id == item)?;
    let (before, gone, after) = (&listed[..at], &listed[at], &listed[at + 1..]);
    let link = gone.link;
    let own = &before[at - gone.place..];
    if Arc::ptr_eq(link.asked(), link.input()) {
        let kept = own.iter().chain(after);
        return Some(follow(link.parent().cloned(), chain, kept, next_id()));
    }
    // A compaction, which is the first link of its chain. Beside what it was asked, which is only
    // listed, it has found out what of that is to be shown.
    let (own_after, later) =
        after.split_at(link.asked().len() + link.output().len() - own.len() - 1);
    let (asked, made): (Vec<_>, Vec<_>) =
        (own.iter().chain(own_after)).partition(|listed| listed.place < link.asked().len());
    let items = |list: Vec<&Listed<'_>>| list.into_iter().map(Listed::named).collect();
    let shown = link
        .input()
        .iter()
        .filter(|item| item.raw() != gone.item.raw());
    let left = |call: &&PendingCall| gone.item.call_id() != Some(&call.call_id);
    let carried = Carried {
        pending_calls: link.pending_calls().iter().filter(left).cloned().collect(),
        standing: link.carried().standing.clone(),
    };
    let shown = shown.map(Item::detached).collect();
    let first = Chain::compacted(items(asked), next_id(), shown, items(made), carried, None);
    Some(follow(Some(first), chain, later.iter(), next_id()))
}

/// A chain and one more link with these items, if there are any. They were part of `old`.
fn follow<'l, 'c: 'l>(
    chain: Option<Chain>,
    old: &Chain,
    listed: impl Iterator<Item = &'l Listed<'c>>,
    id: ResponseId,
) -> Option<Chain> {
    let items: Arc<[Item]> = listed.map(Listed::named).collect();
    if items.is_empty() {
        return chain;
    }
    let none = Carried::default();
    let before = chain.as_ref().map_or(&none, Chain::carried);
    let orphans_are_fine = |_, _: &str| None;
    let open = pending::left_open(&before.pending_calls, &items, orphans_are_fine);
    // Of its calls the old chain knows more than their items say.
    let known = |call: &PendingCall| {
        let same = |old: &&PendingCall| old.call_id == call.call_id && old.kind == call.kind;
        old.pending_calls()
            .iter()
            .find(same)
            .unwrap_or(call)
            .clone()
    };
    let mut not_offered = NotOffered::default();
    let set = Standing::of_input(&items, LIST, false, &mut not_offered);
    let carried = Carried {
        pending_calls: match open {
            Ok(open) => open.iter().map(known).collect(),
            Err(_) => old.pending_calls().clone(),
        },
        // These items were taken once, so that they can be read again.
        standing: match set {
            Ok(set) => before.standing.followed_by(&set),
            Err(_) => old.carried().standing.clone(),
        },
    };
    Some(Chain::append(
        chain,
        id,
        items,
        Arc::default(),
        carried,
        None,
    ))
}

impl Listed<'_> {
    /// The item as one that has the id it is listed by, with bytes of its own: those of what is
    /// taken out of a conversation must not live on beside it.
    fn named(&self) -> Item {
        match self.item.id() == Some(&*self.id) {
            true => self.item.detached(),
            false => self.item.with_id(&self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Transparent;

    /// A conversation of one link for each of these lists of items.
    fn conversation(links: &[&str]) -> Chain {
        let mut chain = None;
        for (number, items) in links.iter().enumerate() {
            let body = Bytes::from(format!(r#"{{"items":{items}}}"#));
            let new = read_items(&body, &Transparent, false).expect("items");
            let id = ResponseId::from(format!("resp_{number}").as_str());
            chain = new
                .append_to(chain, Vec::new(), id, u64::MAX)
                .expect("a chain");
        }
        chain.expect("a link")
    }

    fn listed(chain: &Chain) -> Vec<(String, String)> {
        let pair = |it: &Listed<'_>| {
            (
                it.id.to_string(),
                String::from_utf8_lossy(it.item.raw()).into_owned(),
            )
        };
        items_of(chain).iter().map(pair).collect()
    }

    fn remove(chain: &Chain, item: &str) -> Option<Chain> {
        let mut next = 100;
        without(chain, item, || {
            next += 1;
            ResponseId::from(format!("resp_{next}").as_str())
        })
        .expect("the item is there")
    }

    const SAID: &str = r#"{"role":"user","content":"a"}"#;

    #[test]
    fn what_is_left_keeps_its_ids_and_shares_what_was_before() {
        let null = r#"{ "id" : null ,"type":"x"}"#;
        let named = r#"{"id":"mine","type":"x"}"#;
        let chain = conversation(&[
            &format!("[{SAID}]"),
            &format!("[{SAID},{null},{named}]"),
            &format!("[{SAID},{named}]"),
        ]);
        let before = listed(&chain);
        let left = remove(&chain, "msg_1_0").expect("items are left");
        let ids = |list: &[(String, String)]| -> Vec<String> {
            list.iter().map(|(id, _)| id.clone()).collect()
        };
        let mut expected = ids(&before);
        expected.remove(1);
        assert_eq!(ids(&listed(&left)), expected);
        assert!(
            left.parent().expect("a parent").is(chain
                .parent()
                .and_then(Chain::parent)
                .expect("the first link"))
        );
        let texts: Vec<String> = listed(&left).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts[1], r#"{ "id" : "item_1_1" ,"type":"x"}"#);
        assert_eq!(texts[2], named);
        assert_eq!(texts[3], r#"{"id":"msg_2_0","role":"user","content":"a"}"#);
        assert_eq!(texts[4], r#"{"id":"item_2_1","type":"x"}"#);
    }

    #[test]
    fn a_conversation_can_lose_all_of_its_items() {
        let chain = conversation(&[&format!("[{SAID},{SAID}]")]);
        let left = remove(&chain, "msg_0_0").expect("one is left");
        assert_eq!(listed(&left).len(), 1);
        assert!(remove(&left, "msg_0_1").is_none());
        assert!(without(&left, "msg_0_0", || ResponseId::from("resp_x")).is_none());
    }

    #[test]
    fn calls_are_open_until_they_are_answered_or_taken_out() {
        let call = r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}"#;
        let output = r#"{"type":"function_call_output","call_id":"c","output":"o"}"#;
        let chain = conversation(&[&format!("[{SAID},{call}]"), &format!("[{output}]")]);
        assert_eq!(chain.required_calls().count(), 0);
        let open = remove(&chain, "fco_1_0").expect("items are left");
        assert_eq!(open.required_calls().count(), 1);
        let closed = remove(&open, "fc_0_1").expect("items are left");
        assert_eq!(closed.required_calls().count(), 0);
        let orphan = remove(&chain, "fc_0_1").expect("items are left");
        assert_eq!(
            (listed(&orphan).len(), orphan.required_calls().count()),
            (2, 0)
        );
    }

    #[test]
    fn a_compaction_loses_what_it_lists_and_what_it_shows() {
        let item = |raw: &str| Item::parse(raw.to_owned().into()).expect("an item");
        let (offer, summary) = (
            r#"{"type":"additional_tools","tools":[]}"#,
            r#"{"type":"compaction","id":"cmp_1"}"#,
        );
        let asked = [item(SAID), item(offer)];
        let id = ResponseId::from("resp_0");
        let carried = Carried::default();
        let made = [item(summary), item(SAID)];
        let chain = Chain::compacted(
            asked.into(),
            id,
            [item(offer)].into(),
            made.into(),
            carried,
            None,
        );
        let later = Chain::append(
            Some(chain),
            ResponseId::from("resp_1"),
            [item(SAID)].into(),
            Arc::default(),
            Carried::default(),
            None,
        );
        let ids = ["msg_0_0", "item_0_1", "cmp_1", "msg_0_3", "msg_1_0"];
        for (at, id) in ids.iter().enumerate() {
            let left = remove(&later, id).expect("items are left");
            let left_ids: Vec<_> = listed(&left).into_iter().map(|(id, _)| id).collect();
            let mut expected = ids.to_vec();
            expected.remove(at);
            assert_eq!(left_ids, expected);
            let shown = left.ancestry().last().expect("a first link").input().len();
            assert_eq!(shown, usize::from(*id != "item_0_1"));
        }
    }

    #[test]
    fn what_is_wrong_with_items_is_told_by_their_place() {
        let long = format!("[{}]", vec![SAID; 21].join(","));
        for (items, code, param) in [
            (&*long, "array_above_max_length", "items"),
            (
                r#"[{"type":"compaction_trigger"}]"#,
                "invalid_value",
                "items[0]",
            ),
            (r#"[1]"#, "invalid_type", "items[0]"),
            (r#"{}"#, "invalid_type", "items"),
            (r#"null"#, "missing_required_parameter", "items"),
            (
                r#"[{"type":"compaction"}]"#,
                "missing_required_parameter",
                "items[0].encrypted_content",
            ),
            (
                r#"[{"type":"configuration_update","reasoning":1}]"#,
                "invalid_type",
                "items[0].reasoning",
            ),
            (
                r#"[{"type":"function_call_output","call_id":"c","output":""}]"#,
                "orphan_tool_output",
                "items",
            ),
            (
                r#"[{"type":"function_call_output","name":"f","output":""}]"#,
                "missing_required_parameter",
                "items[0].call_id",
            ),
            (r#"[{"id":"elsewhere"}]"#, "item_not_found", "items[0].id"),
        ] {
            let body = Bytes::from(format!(r#"{{"items":{items}}}"#));
            let refused = read_items(&body, &Transparent, false).and_then(|mut new| {
                let found = vec![None; new.missing(None).len()];
                new.append_to(None, found, ResponseId::from("resp_1"), u64::MAX)
            });
            let failure = refused.expect_err(items);
            assert_eq!(
                (failure.code, failure.param.as_deref()),
                (code, Some(param))
            );
        }
    }
}
