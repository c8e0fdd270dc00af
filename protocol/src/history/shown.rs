//! What a model could be shown of an item, fed to a hash.
//!
//! Only what the server itself understands is read freely: a message, a call, the output of one,
//! a reasoning item. Of everything else nothing but the white space between tokens, the way a
//! string is escaped and the order of an item's own members is taken for granted. Ids and statuses
//! are shown to no model; an absent member and a null are the same to all that reads items.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::slice;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::item::{Item, ItemKind};

/// Members of an object that is taken apart. Those of a known item are fewer than twenty.
const MOST_MEMBERS: usize = 64;

/// Parts of a list that is taken apart.
const MOST_PARTS: usize = 4096;

/// The parts that hold nothing but text.
const TEXT_TYPES: [&str; 4] = ["input_text", "output_text", "reasoning_text", "text"];

/// What stands in front of everything that is fed, so that no two things are fed alike.
#[derive(Clone, Copy)]
enum Tag {
    Item = 1,
    /// Bytes that are not read any further.
    Raw,
    Member,
    /// One of several.
    Part,
    /// Texts that are shown as one.
    Text,
    Value,
    String,
    /// A string that is no text, because half of a surrogate pair is missing.
    BrokenString,
    /// The end of a value, or of the members of an object.
    End,
}

/// Feeds the meaning of one item. What is fed of two items is equal, or no beginning of it is the
/// other: each part says where it ends.
pub(super) fn feed(hash: &mut Sha256, item: &Item) {
    tag(hash, Tag::Item);
    hash.update([item.kind() as u8]);
    bytes(hash, item.call_id().map_or(&[], |id| id.as_bytes()));
    let Some(mut members) = Members::read(item.raw()) else {
        tag(hash, Tag::Raw);
        return bytes(hash, item.raw());
    };
    match item.kind() {
        ItemKind::Message => content(hash, members.take("content")),
        ItemKind::FunctionCallOutput | ItemKind::CustomToolCallOutput => {
            content(hash, members.take("output"));
        }
        ItemKind::Reasoning => thoughts(hash, item, &mut members),
        _ => {}
    }
    let is_named = item.kind() == ItemKind::ItemReference;
    let is_known = item.kind() != ItemKind::Other;
    members.feed(hash, |name| match name {
        "id" => !is_named,
        "type" => is_known,
        // In a place of its own above.
        "call_id" => item.call_id().is_some(),
        "status" => true,
        _ => false,
    });
}

/// The content of a message or the output of a call. A string is the same as one part of text, and
/// so are several of them: models are shown them without anything in between.
fn content(hash: &mut Sha256, content: Option<&RawValue>) {
    parts(hash, content, text);
}

/// A string or a list of parts. `say` feeds them if all of them are texts.
fn parts(
    hash: &mut Sha256,
    content: Option<&RawValue>,
    say: impl Fn(&mut Sha256, &[Cow<'_, str>]),
) {
    let Some(content) = content.filter(|content| content.get() != "null") else {
        return say(hash, &[]);
    };
    if content.get().starts_with('"')
        && let Some(text) = decode(content)
    {
        return say(hash, &[text]);
    }
    match serde_json::from_str(content.get()) {
        Ok(Parts(parts)) => match parts.iter().map(|part| read_part(part)).collect() {
            Some::<Vec<_>>(texts) => say(hash, &texts),
            None => parts.iter().for_each(|part| any_part(hash, part)),
        },
        Err(_) => value(hash, content),
    }
}

/// Texts that are shown as one.
fn text(hash: &mut Sha256, texts: &[Cow<'_, str>]) {
    tag(hash, Tag::Text);
    hash.update(length(texts.iter().map(|text| text.len()).sum()));
    texts.iter().for_each(|text| hash.update(text.as_bytes()));
}

/// A part that may be something else than text.
fn any_part(hash: &mut Sha256, part: &RawValue) {
    tag(hash, Tag::Part);
    match Members::read(part.get().as_bytes()) {
        Some(members) => members.feed(hash, |_| false),
        None => value(hash, part),
    }
}

/// What a reasoning item says. It may say it in the open or sealed, and some clients bring only
/// the seal back; its summary is another matter.
fn thoughts<'a>(hash: &mut Sha256, item: &'a Item, members: &mut Members<'a>) {
    let is_given = |raw: &&RawValue| raw.get() != "null" && !is_empty_list(raw);
    let in_the_open = members.take("content").filter(is_given);
    let summary = members.take("summary").filter(is_given);
    if in_the_open.is_some() || item.revealed().is_some() {
        members.take("encrypted_content");
    }
    let each = |hash: &mut Sha256, texts: &[Cow<'_, str>]| {
        for one in texts {
            text(hash, slice::from_ref(one));
        }
    };
    match (in_the_open, item.revealed()) {
        (Some(list), revealed) if list.get().starts_with('[') => {
            let is_said = Cell::new(false);
            parts(hash, Some(list), |hash, texts| {
                is_said.set(texts.iter().any(|text| !text.is_empty()));
                each(hash, texts);
            });
            // Of a list of nothing the one engine goes by the seal, and the other does not.
            if let Some(revealed) = revealed.filter(|_| !is_said.get()) {
                tag(hash, Tag::String);
                bytes(hash, revealed.as_bytes());
            }
        }
        (Some(other), _) => member(hash, "content", other),
        (None, Some(revealed)) => each(hash, &[revealed.into()]),
        (None, None) => {}
    }
    if let Some(summary) = summary {
        member(hash, "summary", summary);
    }
}

fn is_empty_list(raw: &RawValue) -> bool {
    serde_json::from_str::<[(); 0]>(raw.get()).is_ok()
}

/// The text of a part that has nothing else to show. Where a text was found and how likely it was
/// is shown to no model.
fn read_part(part: &RawValue) -> Option<Cow<'_, str>> {
    let mut members = Members::read(part.get().as_bytes())?;
    let kind = decode(members.take("type")?)?;
    let text = decode(members.take("text")?)?;
    let is_plain = |(name, value): &(Cow<'_, str>, &RawValue)| {
        matches!(&**name, "annotations" | "logprobs") || value.get() == "null"
    };
    let is_text = TEXT_TYPES.contains(&&*kind) && members.0.iter().all(is_plain);
    is_text.then_some(text)
}

fn member(hash: &mut Sha256, name: &str, raw: &RawValue) {
    tag(hash, Tag::Member);
    bytes(hash, name.as_bytes());
    value(hash, raw);
}

/// Any JSON, token by token. The order of members counts: a model may be shown a schema as it was
/// written.
fn value(hash: &mut Sha256, raw: &RawValue) {
    tag(hash, Tag::Value);
    let mut rest = raw.get();
    while let Some(start) = rest.find('"') {
        let (between, quoted) = rest.split_at(start);
        tokens(hash, between);
        let (string, after) = quoted.split_at(string_end(quoted));
        match serde_json::from_str(string) {
            Ok(Text(text)) => {
                tag(hash, Tag::String);
                bytes(hash, text.as_bytes());
            }
            Err(_) => {
                tag(hash, Tag::BrokenString);
                bytes(hash, string.as_bytes());
            }
        }
        rest = after;
    }
    tokens(hash, rest);
    tag(hash, Tag::End);
}

/// Punctuation, numbers and literals. None of them begins with a byte that is a tag.
fn tokens(hash: &mut Sha256, text: &str) {
    for token in text.split_ascii_whitespace() {
        hash.update(token);
    }
}

/// Where the string ends that the text begins with, its quotes included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn tag(hash: &mut Sha256, tag: Tag) {
    hash.update([tag as u8]);
}

/// Bytes behind their length.
fn bytes(hash: &mut Sha256, bytes: &[u8]) {
    hash.update(length(bytes.len()));
    hash.update(bytes);
}

fn length(bytes: usize) -> [u8; 8] {
    (bytes as u64).to_le_bytes()
}

/// The text of a string.
fn decode(raw: &RawValue) -> Option<Cow<'_, str>> {
    let Text(text) = serde_json::from_str(raw.get()).ok()?;
    Some(text)
}

#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The members of an object in the order of their names, no two of which are the same.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// None for what is no object, has very many members, or one of them twice: who reads that
    /// could see either.
    fn read(json: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// Feeds them all but those that are hidden.
    fn feed(&self, hash: &mut Sha256, hidden: impl Fn(&str) -> bool) {
        for (name, value) in &self.0 {
            if !hidden(name) && value.get() != "null" {
                member(hash, name, value);
            }
        }
        tag(hash, Tag::End);
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some((Text(name), value)) = map.next_entry()? {
                    if members.len() == MOST_MEMBERS {
                        return Err(A::Error::custom("it has too many members"));
                    }
                    members.push((name, value));
                }
                members.sort_unstable_by(|(a, _), (b, _)| Ord::cmp(a, b));
                if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                    return Err(A::Error::custom("a member comes twice"));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

/// The elements of a list that is not too long.
struct Parts<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Parts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Parts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = list.next_element()? {
                    if parts.len() == MOST_PARTS {
                        return Err(A::Error::custom("it has too many elements"));
                    }
                    parts.push(part);
                }
                Ok(Parts(parts))
            }
        }

        deserializer.deserialize_seq(Reader)
    }
}
