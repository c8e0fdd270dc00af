//! Reading `input`: a string, or items that are kept as the bytes they came in.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::item::{Item, ItemKind, NotAnItem};

/// Documented for an `input` string and for the output of a tool.
const CHARACTERS: usize = 10_485_760;

/// The items of `input`; none for an absent one.
pub(crate) fn read_input(
    field: Option<Field<'_, '_>>,
    message: &Bytes,
) -> Result<Arc<[Item]>, Failure> {
    let Some(field) = field else {
        return Ok(Arc::new([]));
    };
    if field.text().starts_with('"') {
        field.string_up_to(CHARACTERS)?;
        return Ok(Arc::new([user_message(field)?]));
    }
    if !field.text().starts_with('[') {
        return Err(field.expected("a string or an array of items"));
    }
    let slices = field.array()?;
    // A link lives as long as its chain. Where the items are the smaller part of the message,
    // it must not keep the rest of it, be it tools or white space, alive as well.
    let length: usize = slices.iter().map(|raw| raw.get().len()).sum();
    let mut copy = (length * 2 < message.len()).then(|| BytesMut::with_capacity(length));
    let mut items = Vec::with_capacity(slices.len());
    for (index, raw) in slices.into_iter().enumerate() {
        let path = Path::Index(&field.path, index);
        let bytes = match &mut copy {
            Some(copy) => {
                copy.extend_from_slice(raw.get().as_bytes());
                copy.split().freeze()
            }
            None => message.slice_ref(raw.get().as_bytes()),
        };
        items.push(read_item(Field { raw, path }, bytes)?);
    }
    Ok(items.into())
}

/// The input without the trigger that may end it, and whether one does.
pub(crate) fn take_trigger(
    input: Arc<[Item]>,
    generate: bool,
) -> Result<(Arc<[Item]>, bool), Failure> {
    let is_trigger = |item: &Item| item.kind() == ItemKind::CompactionTrigger;
    let Some(at) = input.iter().position(is_trigger) else {
        return Ok((input, false));
    };
    let refuse = |problem| {
        let path = Path::Index(&Path::Name("input"), at);
        Err(Failure::invalid_value(path, problem))
    };
    if at + 1 < input.len() {
        return refuse("a compaction_trigger must be the last item");
    }
    if !generate {
        return refuse("a warm-up makes no output, so it cannot compact");
    }
    Ok((input[..at].into(), true))
}

/// A plain string is the text of one user message.
fn user_message(text: Field<'_, '_>) -> Result<Item, Failure> {
    let before = r#"{"type":"message","role":"user","content":[{"type":"input_text","text":"#;
    let raw = [before, text.text(), "}]}"].concat();
    Item::parse(raw.into()).map_err(|_| text.expected("a string"))
}

fn read_item(field: Field<'_, '_>, bytes: Bytes) -> Result<Item, Failure> {
    if !field.text().starts_with('{') {
        return Err(field.expected("an object"));
    }
    let item = Item::parse(bytes).map_err(|error| match error {
        NotAnItem::Untyped => {
            Failure::missing_required_parameter(Path::Member(&field.path, "type"))
        }
        NotAnItem::Malformed(_) => malformed(field),
        NotAnItem::UnknownRole => {
            let path = Path::Member(&field.path, "role");
            Failure::invalid_value(path, "it must be one of user, assistant, system, developer")
        }
    })?;
    let is_call = matches!(
        item.kind(),
        ItemKind::FunctionCall | ItemKind::CustomToolCall
    );
    let is_output = matches!(
        item.kind(),
        ItemKind::FunctionCallOutput | ItemKind::CustomToolCallOutput
    );
    if (is_call || is_output) && item.call_id().is_none() {
        let members: OutputMembers<'_> = field.object()?;
        let name = Field::member(&field.path, "name", members.name);
        // The output of a function may name the function instead, if that was called only once.
        if item.kind() != ItemKind::FunctionCallOutput || name.is_none() {
            let path = Path::Member(&field.path, "call_id");
            return Err(Failure::missing_required_parameter(path));
        }
    }
    if item.kind() == ItemKind::ItemReference && item.id().is_none() {
        let path = Path::Member(&field.path, "id");
        return Err(Failure::missing_required_parameter(path));
    }
    if is_output && field.text().len() > CHARACTERS {
        let members: OutputMembers<'_> = field.object()?;
        let output = Field::member(&field.path, "output", members.output);
        if let Some(output) = output.filter(|output| output.quoted().is_some()) {
            output.string_up_to(CHARACTERS)?;
        }
    }
    Ok(item)
}

members! { OutputMembers { name, output } }
members! { HeaderMembers { kind = "type", role, id, call_id } }

/// What keeps an object from being an item: a member of the wrong type, or one that comes twice.
fn malformed(field: Field<'_, '_>) -> Failure {
    let wrong = || {
        let members: HeaderMembers<'_> = field.object()?;
        for (name, raw) in [
            ("type", members.kind),
            ("role", members.role),
            ("id", members.id),
            ("call_id", members.call_id),
        ] {
            Field::member(&field.path, name, raw)
                .map(Field::string)
                .transpose()?;
        }
        Ok(())
    };
    match wrong() {
        Err(failure) => failure,
        Ok(()) => field.expected("an item"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Members;

    fn items(message: &Bytes) -> Arc<[Item]> {
        let members: Members<'_> = serde_json::from_slice(message).unwrap();
        read_input(Field::named("input", members.input), message).unwrap()
    }

    #[test]
    fn items_share_their_message_only_if_they_are_most_of_it() {
        let text = "text ".repeat(10);
        let long = "long ".repeat(100);
        let space = " ".repeat(100);
        for (instructions, space, shared) in [
            ("short", "", true),
            (&*long, "", false),
            ("", &*space, false),
        ] {
            let message = format!(
                r#"{{"instructions":"{instructions}","input":[ {{"role":"user","content":"{text}"}} ,{space} {{"id":"b"}} ]}}"#
            );
            let message = Bytes::from(message);
            let items = items(&message);
            let first = format!(r#"{{"role":"user","content":"{text}"}}"#);
            assert_eq!(items[0].raw(), &first);
            assert_eq!(items[1].raw(), r#"{"id":"b"}"#);
            for item in &*items {
                assert_eq!(
                    message.as_ptr_range().contains(&item.raw().as_ptr()),
                    shared
                );
            }
        }
    }

    #[test]
    fn an_input_string_is_limited_in_characters_not_bytes() {
        let message = |text: &str| Bytes::from(format!(r#"{{"input":"{text}"}}"#));
        assert_eq!(items(&message(&"é".repeat(CHARACTERS))).len(), 1);
        let too_long = message(&"a".repeat(CHARACTERS + 1));
        let members: Members<'_> = serde_json::from_slice(&too_long).unwrap();
        let failure = read_input(Field::named("input", members.input), &too_long).unwrap_err();
        assert_eq!(failure.code, "string_above_max_length");
    }
}
