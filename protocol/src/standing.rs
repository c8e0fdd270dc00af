//! Standing: what items of a conversation set for all that follows, until another item changes it.
//!
//! `additional_tools` items offer tools besides those of each request, `configuration_update`
//! items change settings. Both are carried from link to link, so that nobody has to look for them
//! in a chain, and a turn that brings none of them shares its parent's.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use crate::create::settings::{read_effort, read_format};
use crate::engine::TextFormat;
use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::item::{Item, ItemKind};
use crate::tool::{NotOffered, Tool, Tools, ToolsRead};

/// What the items of a chain have set.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The tools of `additional_tools` items. Of equal names the latest.
    pub tools: Arc<[Tool]>,
    /// `reasoning.effort` of the last `configuration_update` that says something of it.
    pub reasoning_effort: Option<Arc<str>>,
    /// `text.format`, likewise.
    pub format: Option<TextFormat>,
}

members! { UpdateMembers { reasoning, text } }

impl Standing {
    /// What the items of one input set, which stands at `list`. Strict mode refuses tools that
    /// cannot be run.
    pub(crate) fn of_input(
        input: &[Item],
        list: Path<'_>,
        strict: bool,
        not_offered: &mut NotOffered,
    ) -> Result<Self, Failure> {
        let mut standing = Self::default();
        let mut tools = Vec::new();
        for (index, item) in input.iter().enumerate() {
            match item.kind() {
                ItemKind::AdditionalTools => {
                    let read = ToolsRead::of_item(item, Path::Index(&list, index), strict)?;
                    not_offered.join(&read.not_offered);
                    tools.extend(read.tools.offered.iter().cloned());
                }
                ItemKind::ConfigurationUpdate => {
                    standing =
                        standing.followed_by(&Self::of_update(item, Path::Index(&list, index))?);
                }
                _ => {}
            }
        }
        standing.tools = latest(tools.into_iter());
        Ok(standing)
    }

    fn of_update(item: &Item, path: Path<'_>) -> Result<Self, Failure> {
        let field = item.field(path)?;
        let members: UpdateMembers<'_> = field.object()?;
        let reasoning = Field::member(&field.path, "reasoning", members.reasoning);
        let text = Field::member(&field.path, "text", members.text);
        Ok(Self {
            tools: Arc::default(),
            reasoning_effort: match reasoning {
                Some(reasoning) => read_effort(reasoning)?.map(Arc::from),
                None => None,
            },
            format: match text {
                Some(text) => read_format(text, item.raw())?,
                None => None,
            },
        })
    }

    /// Whether nothing was set.
    pub(crate) fn is_empty(&self) -> bool {
        self.tools.is_empty() && self.reasoning_effort.is_none() && self.format.is_none()
    }

    /// This, as far as `later` does not say otherwise.
    #[must_use]
    pub(crate) fn followed_by(&self, later: &Self) -> Self {
        let earlier_effort = || self.reasoning_effort.clone();
        let earlier_format = || self.format.clone();
        Self {
            tools: join(&self.tools, &later.tools),
            reasoning_effort: later.reasoning_effort.clone().or_else(earlier_effort),
            format: later.format.clone().or_else(earlier_format),
        }
    }

    /// The same with bytes of its own, for when the items that it was read from are dropped.
    pub(crate) fn detached(&self) -> Self {
        let format = self.format.as_ref().map(|format| match format {
            TextFormat::JsonSchema { schema } => TextFormat::JsonSchema {
                schema: Bytes::copy_from_slice(schema),
            },
            plain => plain.clone(),
        });
        Self {
            tools: self.tools.iter().map(Tool::detached).collect(),
            format,
            reasoning_effort: self.reasoning_effort.clone(),
        }
    }

    /// Its tools without those that a request has replaced by its own.
    pub(crate) fn tools_beside(&self, requested: &Tools) -> Arc<[Tool]> {
        if self.tools.is_empty() || requested.offered.is_empty() {
            return Arc::clone(&self.tools);
        }
        let names = requested.offered.iter().map(|tool| tool.name.qualified());
        let names: HashSet<Arc<str>> = names.collect();
        let free = |tool: &&Tool| !names.contains(&tool.name.qualified());
        self.tools.iter().filter(free).cloned().collect()
    }

    /// Bytes of memory that it takes, without what it shares with `parent`. Schemas are slices of
    /// items, which count themselves.
    pub(crate) fn size_beside(&self, parent: Option<&Self>) -> usize {
        if parent.is_some_and(|parent| Arc::ptr_eq(&self.tools, &parent.tools)) {
            return 0;
        }
        let texts = self.tools.iter().map(|tool| {
            tool.description.as_deref().map_or(0, str::len) + tool.name.name.len() + tool.path.len()
        });
        mem::size_of_val(&*self.tools) + texts.sum::<usize>()
    }
}

/// The very list, not a copy, if nothing is to be added.
fn join(earlier: &Arc<[Tool]>, later: &Arc<[Tool]>) -> Arc<[Tool]> {
    match (&**earlier, &**later) {
        (_, []) => Arc::clone(earlier),
        ([], _) => Arc::clone(later),
        _ => latest(earlier.iter().chain(&**later).cloned()),
    }
}

/// Of tools that a model calls by the same name only the latest, in the place of the first.
fn latest(tools: impl Iterator<Item = Tool>) -> Arc<[Tool]> {
    let mut kept: Vec<Tool> = Vec::new();
    let mut places = HashMap::new();
    for tool in tools {
        match places.entry(tool.name.qualified()) {
            Entry::Occupied(place) => kept[*place.get()] = tool,
            Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push(tool);
            }
        }
    }
    kept.into()
}
