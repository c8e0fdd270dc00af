//! Compaction: what a compaction item stands for, and the text that a model is shown of it.
//!
//! Inside the seal is JSON: the summary that a model made, and what is kept word for word. Engines
//! need not know: [`crate::item::Item::revealed`] of a compaction item is the text of one user
//! message that takes the place of everything before it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::chain::Chain;
use crate::item::{Item, ItemKind};
use crate::seal::{Content, Sealer};

const VERSION: u32 = 1;

/// Asks a model for the summary. Plain words, because small models have to follow it as well.
pub(crate) const REQUEST: &str = "\
Summarize our whole conversation for someone who has to continue it and cannot see it. \
Write down what I want, what was done and found out so far, with names, numbers, file paths and \
results exactly as they were, what was decided, and what is still to be done. \
Write plain text, call no tools, and write nothing but the summary.";

/// A conversation in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compaction {
    version: u32,
    /// Made by the model.
    summary: String,
    /// Standing instructions, word for word, oldest first.
    instructions: Vec<String>,
    /// The user's last messages, word for word, oldest first.
    messages: Vec<String>,
}

impl Compaction {
    /// Of all that `parent` and `input` hold. At most `budget` bytes are kept word for word of
    /// the instructions, and as many of the messages, the newest first. One that has no room is
    /// left out, with everything before it; of the newest one the middle is left out instead.
    ///
    /// Walks the chain back to its beginning or to the compaction before this one.
    pub(crate) fn new(
        summary: String,
        parent: Option<&Chain>,
        input: &[Item],
        budget: usize,
        sealer: &dyn Sealer,
    ) -> Self {
        let mut instructions = Kept::new(budget);
        let mut messages = Kept::new(budget);
        for item in parts(parent, input).flatten() {
            match item.kind() {
                ItemKind::Message => match Message::read(item) {
                    Some((Author::User, text)) => messages.keep(text),
                    Some((Author::System | Author::Developer, text)) => instructions.keep(text),
                    Some((Author::Assistant, _)) | None => {}
                },
                ItemKind::Compaction => {
                    if let Some(before) = Self::of(item, sealer) {
                        before
                            .instructions
                            .into_iter()
                            .rev()
                            .for_each(|text| instructions.keep(text));
                        before
                            .messages
                            .into_iter()
                            .rev()
                            .for_each(|text| messages.keep(text));
                    }
                    break;
                }
                _ => {}
            }
        }
        Self {
            version: VERSION,
            summary,
            instructions: instructions.oldest_first(),
            messages: messages.oldest_first(),
        }
    }

    pub(crate) fn seal(&self, sealer: &dyn Sealer) -> String {
        let json = serde_json::to_string(self).expect("strings can be written as JSON");
        sealer.seal(Content::Compaction, &json)
    }

    /// None if it was not sealed for this owner, or by a version that is not known.
    pub(crate) fn open(sealer: &dyn Sealer, sealed: &str) -> Option<Self> {
        let json = sealer.open(Content::Compaction, sealed)?;
        let compaction: Self = serde_json::from_str(&json).ok()?;
        (compaction.version == VERSION).then_some(compaction)
    }

    /// What a compaction item stands for.
    fn of(item: &Item, sealer: &dyn Sealer) -> Option<Self> {
        #[derive(Deserialize)]
        struct Sealed {
            encrypted_content: String,
        }
        let sealed: Sealed = serde_json::from_slice(item.raw()).ok()?;
        Self::open(sealer, &sealed.encrypted_content)
    }

    /// The text of the user message that a model is shown in place of the conversation.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "This is a summary of our conversation so far:\n\n{}\n",
            self.summary.trim()
        );
        for (title, kept) in [
            ("Instructions that still hold:", &self.instructions),
            ("My last messages, word for word:", &self.messages),
        ] {
            if !kept.is_empty() {
                text.extend(["\n", title, "\n"]);
            }
            for message in kept {
                text.extend(["\n<message>\n", message, "\n</message>\n"]);
            }
        }
        text.push_str("\nGo on from there.");
        text
    }
}

/// The items that offer tools, which a summary cannot replace, oldest first, with bytes of their
/// own. Walks as far back as [`Compaction::new`].
pub(crate) fn tools_offered(parent: Option<&Chain>, input: &[Item]) -> Arc<[Item]> {
    let mut found = Vec::new();
    for items in parts(parent, input) {
        let items: Vec<&Item> = items.collect();
        let of_kind = |kind| items.iter().filter(move |item| item.kind() == kind);
        found.extend(of_kind(ItemKind::AdditionalTools).map(|&item| item.detached()));
        if of_kind(ItemKind::Compaction).next().is_some() {
            break;
        }
    }
    found.into_iter().rev().collect()
}

/// The input, then the links of the chain, each of them from its newest item to its oldest.
fn parts<'i>(
    parent: Option<&'i Chain>,
    input: &'i [Item],
) -> impl Iterator<Item = impl Iterator<Item = &'i Item>> {
    let links = parent.into_iter().flat_map(Chain::ancestry);
    let links = links.map(|link| (&**link.input(), &**link.output()));
    let parts = std::iter::once((input, &[][..])).chain(links);
    parts.map(|(input, output)| output.iter().rev().chain(input.iter().rev()))
}

/// Texts within a budget, the newest first.
struct Kept {
    texts: Vec<String>,
    /// Bytes that may still be kept.
    room: usize,
}

impl Kept {
    fn new(budget: usize) -> Self {
        Self {
            texts: Vec::new(),
            room: budget,
        }
    }

    fn keep(&mut self, text: String) {
        if text.trim().is_empty() {
            return;
        }
        if text.len() <= self.room {
            self.room -= text.len();
            self.texts.push(text);
        } else if self.texts.is_empty() {
            self.texts.push(cut(&text, self.room));
            self.room = 0;
        } else {
            // What is older must not be kept where this is not.
            self.room = 0;
        }
    }

    fn oldest_first(mut self) -> Vec<String> {
        self.texts.reverse();
        self.texts
    }
}

/// The beginning and the end of a text, `room` bytes together.
fn cut(text: &str, room: usize) -> String {
    let head = text.floor_char_boundary(room / 2);
    let tail = text.ceil_char_boundary(text.len() - room / 2);
    [&text[..head], "\n[…]\n", &text[tail..]].concat()
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Author {
    User,
    Assistant,
    System,
    Developer,
}

#[derive(Deserialize)]
struct Message {
    role: Author,
    content: Text,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

impl Message {
    /// Who says what. Images and files are left out.
    fn read(item: &Item) -> Option<(Author, String)> {
        let message: Self = serde_json::from_slice(item.raw()).ok()?;
        let text = match message.content {
            Text::Whole(text) => text,
            Text::Parts(parts) => {
                let texts = parts.into_iter().map(|part| part.text);
                texts
                    .filter(|text| !text.is_empty())
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        };
        Some((message.role, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Carried;
    use crate::id::ResponseId;
    use crate::seal::Transparent;

    fn message(role: &str, text: &str) -> Item {
        let raw = serde_json::json!({"role": role, "content": text}).to_string();
        Item::parse(raw.into()).expect("a message")
    }

    fn chain(parent: Option<Chain>, input: Vec<Item>, output: Vec<Item>) -> Chain {
        let id = ResponseId::from("resp_x");
        let carried = Carried::default();
        Chain::append(parent, id, input.into(), output.into(), carried, None)
    }

    fn compaction(parent: Option<&Chain>, input: &[Item], budget: usize) -> Compaction {
        Compaction::new("short".into(), parent, input, budget, &Transparent)
    }

    #[test]
    fn the_newest_messages_are_kept_as_far_as_there_is_room() {
        let old = [message("developer", "rules"), message("user", "first")];
        let old = chain(None, old.into(), vec![message("assistant", "yes")]);
        let input = [message("user", "second"), message("user", "third")];
        let all = compaction(Some(&old), &input, 100);
        assert_eq!(all.messages, ["first", "second", "third"]);
        assert_eq!(all.instructions, ["rules"]);
        let some = compaction(Some(&old), &input, 12);
        assert_eq!(some.messages, ["second", "third"]);
        assert_eq!(some.instructions, ["rules"]);
        // A message that would fit is not kept without those after it.
        let newest = compaction(Some(&old), &input, 10);
        assert_eq!(newest.messages, ["third"]);
    }

    #[test]
    fn of_a_huge_message_the_middle_is_left_out() {
        let text = ["é".repeat(500), "x".repeat(500)].concat();
        let cut = compaction(None, &[message("user", &text)], 101).messages;
        assert_eq!(
            cut,
            [["é".repeat(25), "\n[…]\n".into(), "x".repeat(50)].concat()]
        );
    }

    #[test]
    fn what_was_kept_once_is_kept_by_the_next_compaction() {
        let first = compaction(
            None,
            &[message("system", "rules"), message("user", "task")],
            100,
        );
        let mut raw = serde_json::json!({"type": "compaction"});
        raw["encrypted_content"] = first.seal(&Transparent).into();
        let item = Item::parse(raw.to_string().into()).expect("a compaction item");
        let before = chain(None, vec![message("user", "forgotten")], Vec::new());
        let chain = chain(Some(before), Vec::new(), vec![item]);
        let second = compaction(Some(&chain), &[message("user", "and this")], 100);
        assert_eq!(second.messages, ["task", "and this"]);
        assert_eq!(second.instructions, ["rules"]);
    }
}
