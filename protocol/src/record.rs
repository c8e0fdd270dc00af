//! Record: a link of a chain as bytes, for stores. Its parents are not in it.
//!
//! Items are in it as the bytes they came in. What can be found out from them again is not; what
//! is carried from link to link is, as far as it is not the parent's. What engines keep is not.
//!
//! The form: a version byte; the counts of items asked, shown and made; for each item the length
//! of its text and whether it answers a call that it does not name; the length of the JSON of
//! [`Margin`]; the texts of the items; that JSON. Numbers are of four bytes, the low one first.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::chain::{CallKind, Carried, Chain, PendingCall};
use crate::create::reveal;
use crate::engine::TextFormat;
use crate::id::ResponseId;
use crate::item::{Item, ItemKind};
use crate::seal::Sealer;
use crate::standing::Standing;
use crate::tool::{CustomFormat, Tool, ToolKind, ToolName};

const VERSION: u8 = 1;

/// These bytes are no record, or one of a later version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record of a response is damaged, or of a later version")]
pub struct Damaged;

/// What a record says beside the items.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Margin {
    /// The calls that items answer without naming them, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bound: Vec<Arc<str>>,
    /// None if they are the parent's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<Vec<PendingRecord>>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    standing: Option<StandingRecord>,
}

#[derive(Serialize, Deserialize)]
struct PendingRecord {
    call_id: Arc<str>,
    custom: bool,
    name: Arc<str>,
    may_wait: bool,
}

#[derive(Serialize, Deserialize)]
struct StandingRecord {
    tools: Vec<ToolRecord>,
    effort: Option<Arc<str>>,
    format: Option<FormatRecord>,
}

#[derive(Serialize, Deserialize)]
struct ToolRecord {
    namespace: Option<Arc<str>>,
    name: Arc<str>,
    description: Option<Arc<str>>,
    kind: KindRecord,
    may_wait: bool,
    path: Arc<str>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindRecord {
    Function {
        parameters: Option<String>,
        strict: bool,
    },
    Text,
    Lark(Arc<str>),
    Regex(Arc<str>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FormatRecord {
    Text,
    JsonObject,
    JsonSchema(String),
}

/// The last link of a chain as a record.
pub fn encode(chain: &Chain) -> Bytes {
    let asked: &[Item] = match Arc::ptr_eq(chain.asked(), chain.input()) {
        true => &[],
        false => chain.asked(),
    };
    let lists = [asked, chain.input(), chain.output()];
    let items = || lists.into_iter().flatten();
    let margin = Margin::of(chain, items());
    let margin = serde_json::to_vec(&margin).expect("plain values can be written as JSON");
    let texts: usize = items().map(|item| item.raw().len()).sum();
    let mut record =
        BytesMut::with_capacity(1 + 4 * 4 + 5 * items().count() + texts + margin.len());
    record.put_u8(VERSION);
    for list in lists {
        record.put_u32_le(size(list.len()));
    }
    for item in items() {
        record.put_u32_le(size(item.raw().len()));
        record.put_u8(u8::from(item.is_bound()));
    }
    record.put_u32_le(size(margin.len()));
    for item in items() {
        record.put_slice(item.raw());
    }
    record.put_slice(&margin);
    record.freeze()
}

/// The items of a link: those of its request, and those it made.
#[derive(Clone, Debug)]
pub struct OwnItems {
    pub asked: Arc<[Item]>,
    pub output: Arc<[Item]>,
}

/// The link of a record behind its parent, of which nothing may be missing. Items are slices of
/// `record`. What was sealed and opens no more stays sealed.
pub fn decode(
    parent: Option<Chain>,
    id: ResponseId,
    record: Bytes,
    sealer: &dyn Sealer,
) -> Result<Chain, Damaged> {
    let Parts {
        asked,
        input,
        output,
        pending,
        standing,
    } = Parts::read(record, sealer)?;
    let inherited = || parent.as_ref().map(Chain::carried);
    let pending_calls = match pending {
        Some(calls) => calls.into_iter().map(PendingCall::from).collect(),
        None => inherited()
            .map(|it| it.pending_calls.clone())
            .unwrap_or_default(),
    };
    let standing = match standing {
        Some(standing) => standing.into(),
        None => inherited()
            .map(|it| it.standing.clone())
            .unwrap_or_default(),
    };
    let carried = Carried {
        pending_calls,
        standing,
    };
    Ok(match asked.is_empty() {
        true => Chain::append(parent, id, input, output, carried, None),
        false => Chain::compacted(asked, id, input, output, carried, None),
    })
}

/// The items of a record, without its parents.
pub fn decode_items(record: Bytes, sealer: &dyn Sealer) -> Result<OwnItems, Damaged> {
    let parts = Parts::read(record, sealer)?;
    let asked = match &*parts.asked {
        [] => parts.input,
        _ => parts.asked,
    };
    let output = parts.output;
    Ok(OwnItems { asked, output })
}

/// What a record says.
struct Parts {
    asked: Arc<[Item]>,
    input: Arc<[Item]>,
    output: Arc<[Item]>,
    pending: Option<Vec<PendingRecord>>,
    standing: Option<StandingRecord>,
}

impl Parts {
    fn read(mut record: Bytes, sealer: &dyn Sealer) -> Result<Self, Damaged> {
        if record.try_get_u8().map_err(|_| Damaged)? != VERSION {
            return Err(Damaged);
        }
        let mut number = || record.try_get_u32_le().map_err(|_| Damaged);
        let counts = [number()?, number()?, number()?].map(|count| count as usize);
        let count = counts.into_iter().sum::<usize>();
        // Each takes five bytes, so a wrong count is told before anything is reserved for it.
        if record.remaining() < count.saturating_mul(5) {
            return Err(Damaged);
        }
        let mut heads = Vec::with_capacity(count);
        for _ in 0..count {
            heads.push((record.get_u32_le() as usize, record.get_u8() != 0));
        }
        let margin_length = record.try_get_u32_le().map_err(|_| Damaged)? as usize;
        let texts: usize = heads.iter().map(|(length, _)| length).sum();
        if record.len() != texts.saturating_add(margin_length) {
            return Err(Damaged);
        }
        let margin = record.split_off(texts);
        let margin: Margin = serde_json::from_slice(&margin).map_err(|_| Damaged)?;
        let mut bound = margin.bound.into_iter();
        let mut items = heads.into_iter().map(|(length, is_bound)| {
            let item = Item::parse(record.split_to(length)).map_err(|_| Damaged)?;
            let item = reveal(item, sealer);
            match is_bound {
                true => Ok(item.with_call_id(bound.next().ok_or(Damaged)?)),
                false => Ok(item),
            }
        });
        let mut list =
            |count| -> Result<Arc<[Item]>, Damaged> { items.by_ref().take(count).collect() };
        Ok(Self {
            asked: list(counts[0])?,
            input: list(counts[1])?,
            output: list(counts[2])?,
            pending: margin.pending,
            standing: margin.standing,
        })
    }
}

/// Messages, and so items and lists of them, are far smaller than four gigabytes.
fn size(length: usize) -> u32 {
    u32::try_from(length).expect("what fits a message fits four bytes")
}

impl Margin {
    fn of<'i>(chain: &Chain, items: impl Iterator<Item = &'i Item> + Clone) -> Self {
        let parent = chain.parent().map(Chain::carried);
        let Carried {
            pending_calls,
            standing,
        } = chain.carried();
        let same_calls = match parent {
            Some(parent) => parent.pending_calls == *pending_calls,
            None => pending_calls.is_empty(),
        };
        // A link that sets nothing stands as its parent does.
        let sets = |item: &Item| {
            let kind = item.kind();
            kind == ItemKind::AdditionalTools || kind == ItemKind::ConfigurationUpdate
        };
        let same_standing = match parent {
            Some(_) => !items.clone().any(sets),
            None => standing.is_empty(),
        };
        let bound = items.filter(|item| item.is_bound());
        Self {
            bound: bound.filter_map(|item| item.call_id().cloned()).collect(),
            pending: (!same_calls).then(|| pending_calls.iter().map(PendingRecord::from).collect()),
            standing: (!same_standing).then(|| StandingRecord::from(standing)),
        }
    }
}

impl From<&PendingCall> for PendingRecord {
    fn from(call: &PendingCall) -> Self {
        Self {
            call_id: Arc::clone(&call.call_id),
            custom: call.kind == CallKind::Custom,
            name: Arc::clone(&call.name),
            may_wait: call.may_wait,
        }
    }
}

impl From<PendingRecord> for PendingCall {
    fn from(call: PendingRecord) -> Self {
        Self {
            call_id: call.call_id,
            kind: match call.custom {
                true => CallKind::Custom,
                false => CallKind::Function,
            },
            name: call.name,
            may_wait: call.may_wait,
        }
    }
}

impl From<&Standing> for StandingRecord {
    fn from(standing: &Standing) -> Self {
        Self {
            tools: standing.tools.iter().map(ToolRecord::from).collect(),
            effort: standing.reasoning_effort.clone(),
            format: standing.format.as_ref().map(|format| match format {
                TextFormat::Text => FormatRecord::Text,
                TextFormat::JsonObject => FormatRecord::JsonObject,
                TextFormat::JsonSchema { schema } => FormatRecord::JsonSchema(text(schema)),
            }),
        }
    }
}

impl From<StandingRecord> for Standing {
    fn from(standing: StandingRecord) -> Self {
        Self {
            tools: standing.tools.into_iter().map(Tool::from).collect(),
            reasoning_effort: standing.effort,
            format: standing.format.map(|format| match format {
                FormatRecord::Text => TextFormat::Text,
                FormatRecord::JsonObject => TextFormat::JsonObject,
                FormatRecord::JsonSchema(schema) => TextFormat::JsonSchema {
                    schema: schema.into(),
                },
            }),
        }
    }
}

impl From<&Tool> for ToolRecord {
    fn from(tool: &Tool) -> Self {
        Self {
            namespace: tool.name.namespace.clone(),
            name: Arc::clone(&tool.name.name),
            description: tool.description.clone(),
            kind: match &tool.kind {
                ToolKind::Function { parameters, strict } => KindRecord::Function {
                    parameters: parameters.as_ref().map(text),
                    strict: *strict,
                },
                ToolKind::Custom(CustomFormat::Text) => KindRecord::Text,
                ToolKind::Custom(CustomFormat::Lark(grammar)) => KindRecord::Lark(grammar.clone()),
                ToolKind::Custom(CustomFormat::Regex(regex)) => KindRecord::Regex(regex.clone()),
            },
            may_wait: tool.may_wait,
            path: Arc::clone(&tool.path),
        }
    }
}

impl From<ToolRecord> for Tool {
    fn from(tool: ToolRecord) -> Self {
        Self {
            name: ToolName {
                namespace: tool.namespace,
                name: tool.name,
            },
            description: tool.description,
            kind: match tool.kind {
                KindRecord::Function { parameters, strict } => ToolKind::Function {
                    parameters: parameters.map(Bytes::from),
                    strict,
                },
                KindRecord::Text => ToolKind::Custom(CustomFormat::Text),
                KindRecord::Lark(grammar) => ToolKind::Custom(CustomFormat::Lark(grammar)),
                KindRecord::Regex(regex) => ToolKind::Custom(CustomFormat::Regex(regex)),
            },
            may_wait: tool.may_wait,
            path: tool.path,
        }
    }
}

/// JSON that was checked when it came in.
fn text(json: &Bytes) -> String {
    String::from_utf8_lossy(json).into_owned()
}
