//! Item list: items of a response or a conversation, page by page, as the API shows items.
//!
//! Clients may send items in shorter forms than those they get back: without an id, a type or a
//! status, a message with plain text. Only what is missing is added; the rest stays the bytes that
//! it came in.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::failure::Failure;
use turnwire_protocol::item::{Item, ItemKind};

use super::query::Query;
use turnwire_protocol::listing::{Listed, input_of, items_of};

/// Which items are asked for.
#[derive(Debug)]
pub(super) struct Page {
    limit: usize,
    newest_first: bool,
    /// The id of the item before the first one.
    after: Option<String>,
}

#[derive(serde::Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Cow<'a, RawValue>>,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
    has_more: bool,
}

/// The members of a JSON object, in order.
struct Members<'a>(Vec<(String, Cow<'a, RawValue>)>);

impl Page {
    /// `include[]` is accepted and changes nothing: items are shown with all that they have.
    pub(super) fn read(query: Query<'_>) -> Result<Self, Failure> {
        let limit = query.integer("limit", 1..=100)?.unwrap_or(20);
        let newest_first = match query.get("order").as_deref() {
            None | Some("desc") => true,
            Some("asc") => false,
            Some(_) => {
                return Err(Failure::invalid_value(
                    "order",
                    "it must be 'asc' or 'desc'",
                ));
            }
        };
        Ok(Self {
            limit: usize::try_from(limit).expect("the limit is at most 100"),
            newest_first,
            after: query.get("after").map(Cow::into_owned),
        })
    }
}

/// Does what looks at every item of a chain, on a thread where it holds nobody up: there may be
/// many thousand, and a page of them has many megabytes.
pub(super) async fn walk<T: Send + 'static>(
    walk: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let walked = tokio::task::spawn_blocking(walk).await;
    walked.map_err(|_| Failure::server_error("The items could not be read."))
}

/// A page of what a response was given, as JSON.
pub(super) fn input(chain: &Chain, page: &Page) -> Result<Vec<u8>, Failure> {
    list(input_of(chain), page)
}

/// A page of a conversation. Without a chain it has no items.
pub(super) fn conversation(chain: Option<&Chain>, page: &Page) -> Result<Vec<u8>, Failure> {
    list(chain.map(items_of).unwrap_or_default(), page)
}

/// What the last link of a chain has brought, in order.
pub(super) fn last_link(chain: Option<&Chain>) -> Vec<u8> {
    let mut items = chain.map(items_of).unwrap_or_default();
    let own = chain.map_or(0, |chain| chain.asked().len() + chain.output().len());
    write(&items.split_off(items.len() - own), false)
}

/// The item with this id.
pub(super) fn one(chain: &Chain, id: &str) -> Option<Vec<u8>> {
    let items = items_of(chain);
    let listed = items.iter().find(|listed| listed.id == id)?;
    Some(show(&listed.id, listed.item).get().as_bytes().to_vec())
}

fn list(mut items: Vec<Listed<'_>>, page: &Page) -> Result<Vec<u8>, Failure> {
    if page.newest_first {
        items.reverse();
    }
    let begin = match &page.after {
        None => 0,
        Some(after) => {
            let position = items.iter().position(|listed| listed.id == *after);
            let none = "no item of this list has this id";
            1 + position.ok_or_else(|| Failure::invalid_value("after", none))?
        }
    };
    let rest = &items[begin..];
    let shown = &rest[..rest.len().min(page.limit)];
    Ok(write(shown, shown.len() < rest.len()))
}

fn write(shown: &[Listed<'_>], has_more: bool) -> Vec<u8> {
    let list = List {
        object: "list",
        data: shown.iter().map(|it| show(&it.id, it.item)).collect(),
        first_id: shown.first().map(|listed| &*listed.id),
        last_id: shown.last().map(|listed| &*listed.id),
        has_more,
    };
    serde_json::to_vec(&list).expect("strings and raw JSON can be written")
}

/// The item in its full form.
fn show<'a>(id: &str, item: &'a Item) -> Cow<'a, RawValue> {
    let raw = item.raw();
    let raw: &RawValue = serde_json::from_slice(raw).expect("an item is one JSON object");
    let Ok(mut members) = Members::read(raw) else {
        return Cow::Borrowed(raw);
    };
    members.add("type", &kind(item));
    members.set("id", to_raw(id));
    match item.kind() {
        ItemKind::Message => {
            members.add("status", &"completed");
            members.replace("content", parts_of_message);
        }
        ItemKind::FunctionCallOutput | ItemKind::CustomToolCallOutput => {
            members.add("status", &"completed");
            members.replace("output", |output, _| parts(output));
        }
        ItemKind::FunctionCall | ItemKind::CustomToolCall => members.add("status", &"completed"),
        ItemKind::Reasoning => members.add("summary", &[(); 0]),
        _ => {}
    }
    Cow::Owned(to_raw_value(&members).expect("strings and raw JSON can be written"))
}

/// The type of an item that does not say it.
fn kind(item: &Item) -> &'static str {
    match item.kind() {
        ItemKind::ItemReference => "item_reference",
        _ => "message",
    }
}

/// The content of a message as parts, be it text only.
fn parts_of_message(content: &RawValue, message: &Members<'_>) -> Option<Box<RawValue>> {
    if !content.get().starts_with('"') {
        return parts(content);
    }
    let is_output = message.get("role") == Some(r#""assistant""#);
    let kind = if is_output {
        "output_text"
    } else {
        "input_text"
    };
    let mut part = Members(vec![("type".into(), to_raw(kind))]);
    part.0.push(("text".into(), Cow::Borrowed(content)));
    part.complete_part();
    to_raw_value(&[part]).ok()
}

/// Parts with everything that a part has; none if there is nothing to add.
fn parts(content: &RawValue) -> Option<Box<RawValue>> {
    let parts: Vec<&RawValue> = serde_json::from_str(content.get()).ok()?;
    let complete = parts.into_iter().map(|part| {
        let mut members = Members::read(part).ok()?;
        members.complete_part();
        Some(members)
    });
    let complete: Option<Vec<_>> = complete.collect();
    to_raw_value(&complete?).ok()
}

fn to_raw<'a>(value: &(impl Serialize + ?Sized)) -> Cow<'a, RawValue> {
    Cow::Owned(to_raw_value(value).expect("what is added here can be written"))
}

impl<'a> Members<'a> {
    fn read(object: &'a RawValue) -> serde_json::Result<Self> {
        serde_json::from_str(object.get())
    }

    /// The JSON text of a member.
    fn get(&self, name: &str) -> Option<&str> {
        let member = self.0.iter().find(|(written, _)| written == name)?;
        Some(member.1.get())
    }

    /// Sets a member unless it is there. Null counts as absent.
    fn add(&mut self, name: &str, value: &impl Serialize) {
        if self.get(name).is_none_or(|text| text == "null") {
            self.set(name, to_raw(value));
        }
    }

    fn set(&mut self, name: &str, value: Cow<'a, RawValue>) {
        match self.0.iter_mut().find(|(written, _)| written == name) {
            Some(member) => member.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Replaces a member that is there by what is made of it, if anything is.
    fn replace(
        &mut self,
        name: &str,
        make: impl FnOnce(&RawValue, &Self) -> Option<Box<RawValue>>,
    ) {
        let member = self.0.iter().find(|(written, _)| written == name);
        if let Some(made) = member.and_then(|(_, value)| make(value, self)) {
            self.set(name, Cow::Owned(made));
        }
    }

    fn complete_part(&mut self) {
        match self.get("type") {
            Some(r#""output_text""#) => {
                self.add("annotations", &[(); 0]);
                self.add("logprobs", &[(); 0]);
            }
            Some(r#""input_image""#) => {
                self.add("image_url", &());
                self.add("detail", &"auto");
            }
            _ => {}
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Vec<(String, Cow<'de, RawValue>)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    members.push((name, Cow::Borrowed(value)));
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Object).map(Members)
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(item: &Value) -> Value {
        let item = Item::parse(item.to_string().into()).unwrap();
        let shown = show("given", &item);
        serde_json::from_str(shown.get()).unwrap()
    }

    #[test]
    fn short_forms_are_shown_in_full() {
        let output_text =
            json!({"type": "output_text", "text": "t", "annotations": [], "logprobs": []});
        let image =
            json!({"type": "input_image", "file_id": "f", "image_url": null, "detail": "auto"});
        for (sent, listed) in [
            (
                json!({"role": "user", "content": "t", "id": null}),
                json!({"type": "message", "role": "user", "status": "completed", "content": [{"type": "input_text", "text": "t"}]}),
            ),
            (
                json!({"role": "assistant", "content": "t"}),
                json!({"type": "message", "role": "assistant", "status": "completed", "content": [output_text]}),
            ),
            (
                json!({"role": "assistant", "status": "incomplete", "content": [{"type": "output_text", "text": "t"}]}),
                json!({"type": "message", "role": "assistant", "status": "incomplete", "content": [output_text]}),
            ),
            (
                json!({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "file_id": "f"}]}),
                json!({"type": "function_call_output", "call_id": "c", "status": "completed", "output": [image]}),
            ),
            (
                json!({"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}", "novel": [1]}),
                json!({"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}", "novel": [1], "status": "completed"}),
            ),
            (
                json!({"type": "reasoning", "encrypted_content": "x"}),
                json!({"type": "reasoning", "encrypted_content": "x", "summary": []}),
            ),
            (
                json!({"type": "novelty", "a": {"b": null}}),
                json!({"type": "novelty", "a": {"b": null}}),
            ),
        ] {
            let mut expected = listed;
            expected["id"] = json!("given");
            assert_eq!(shown(&sent), expected);
        }
    }

    #[test]
    fn an_item_nested_beyond_all_measure_is_listed_too() {
        let depth = 100_000;
        let deep = "[".repeat(depth) + &"]".repeat(depth);
        let raw = format!(r#"{{"type":"novelty","a":{deep}}}"#);
        let item = Item::parse(raw.into()).unwrap();
        let shown = show("given", &item);
        assert!(shown.get().contains(&deep) && shown.get().contains("given"));
    }
}
