//! Opening the `encrypted_content` of items that a client brings back.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::compaction::Compaction;
use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::item::{Item, ItemKind};
use crate::seal::{Content, Sealer};

/// Documented for what a compaction item brings back.
const CHARACTERS: usize = 20 << 20;

members! { SealedMembers { encrypted_content } }

/// The items of `input`, which stands at `list`, with what is sealed in them revealed.
pub(crate) fn open(
    input: Arc<[Item]>,
    list: Path<'_>,
    sealer: &dyn Sealer,
) -> Result<Arc<[Item]>, Failure> {
    if !input.iter().any(may_be_sealed) {
        return Ok(input);
    }
    let items = input.iter().enumerate().map(|(index, item)| {
        if may_be_sealed(item) {
            open_item(item, Path::Index(&list, index), sealer)
        } else {
            Ok(item.clone())
        }
    });
    items.collect()
}

/// An item that was opened before, opened again; as it is, if that cannot be done any more.
pub(crate) fn reveal(item: Item, sealer: &dyn Sealer) -> Item {
    if !may_be_sealed(&item) {
        return item;
    }
    open_item(&item, Path::Name("input"), sealer).unwrap_or(item)
}

fn may_be_sealed(item: &Item) -> bool {
    matches!(item.kind(), ItemKind::Compaction | ItemKind::Reasoning)
}

fn open_item(item: &Item, path: Path<'_>, sealer: &dyn Sealer) -> Result<Item, Failure> {
    let raw: &RawValue = serde_json::from_slice(item.raw()).expect("an item is one JSON object");
    let members: SealedMembers<'_> = Field { raw, path }.object()?;
    let field = Field::member(&path, "encrypted_content", members.encrypted_content);
    let Some(field) = field else {
        return match item.kind() {
            ItemKind::Compaction => {
                let path = Path::Member(&path, "encrypted_content");
                Err(Failure::missing_required_parameter(path))
            }
            _ => Ok(item.clone()),
        };
    };
    let sealed = field.string_up_to(CHARACTERS)?;
    let plain = match item.kind() {
        ItemKind::Compaction => Compaction::open(sealer, &sealed).map(|it| it.text()),
        _ => sealer.open(Content::Reasoning, &sealed),
    };
    match plain {
        Some(plain) => Ok(item.clone().with_revealed(&plain)),
        None => Err(Failure::invalid_encrypted_content(field.path)),
    }
}
