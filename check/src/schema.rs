//! Schema: which events there are, and which members they must have.
//!
//! A member is written `name:type`. A type is `string`, `index` (an integer from 0), `number`,
//! `bool`, `object`, `array` or `any`; `|null` allows null as well, and `?` allows the member to
//! be left out. Members that are not listed are allowed everywhere.

use serde_json::Value;

/// One kind of event: its name, its members, and the row that is broken if they are wrong.
struct Kind {
    name: &'static str,
    row: u16,
    members: &'static str,
}

const fn kind(name: &'static str, row: u16, members: &'static str) -> Kind {
    Kind { name, row, members }
}

const ITEM: &str = "item_id:string output_index:index";
const PART: &str = "item_id:string output_index:index content_index:index part:object";
const SUMMARY: &str = "item_id:string output_index:index summary_index:index";

/// Every event of the catalogue. Where one row judges a family, the family is one entry: a name
/// that ends in `*` stands for all that begin like it, and comes after the exact names.
const KINDS: &[Kind] = &[
    kind(
        "error",
        79,
        "status:index error:object stream_id:string? sequence_number:index? headers:object?",
    ),
    kind("response.created", 71, "response:object"),
    kind("response.queued", 71, "response:object"),
    kind("response.in_progress", 71, "response:object"),
    kind("response.completed", 71, "response:object"),
    kind("response.incomplete", 71, "response:object"),
    kind("response.failed", 71, "response:object"),
    kind(
        "response.output_item.added",
        57,
        "output_index:index item:object",
    ),
    kind(
        "response.output_item.done",
        57,
        "output_index:index item:object",
    ),
    kind("response.content_part.added", 58, PART),
    kind("response.content_part.done", 58, PART),
    kind(
        "response.output_text.delta",
        58,
        "item_id:string output_index:index content_index:index delta:string obfuscation:string?",
    ),
    kind(
        "response.output_text.done",
        58,
        "item_id:string output_index:index content_index:index text:string",
    ),
    kind(
        "response.output_text.annotation.added",
        58,
        "item_id:string output_index:index content_index:index annotation_index:index annotation:object",
    ),
    kind(
        "response.refusal.delta",
        75,
        "item_id:string output_index:index content_index:index delta:string",
    ),
    kind(
        "response.refusal.done",
        75,
        "item_id:string output_index:index content_index:index refusal:string",
    ),
    kind(
        "response.reasoning_text.delta",
        65,
        "item_id:string output_index:index content_index:index delta:string",
    ),
    kind(
        "response.reasoning_text.done",
        65,
        "item_id:string output_index:index content_index:index text:string",
    ),
    kind(
        "response.reasoning.delta",
        65,
        "item_id:string output_index:index content_index:index delta:string",
    ),
    kind(
        "response.reasoning.done",
        65,
        "item_id:string output_index:index content_index:index text:string",
    ),
    kind(
        "response.reasoning_summary_part.added",
        64,
        "item_id:string output_index:index summary_index:index part:object",
    ),
    kind(
        "response.reasoning_summary_part.done",
        64,
        "item_id:string output_index:index summary_index:index part:object",
    ),
    kind(
        "response.reasoning_summary_text.delta",
        64,
        "item_id:string output_index:index summary_index:index delta:string",
    ),
    kind(
        "response.reasoning_summary_text.done",
        64,
        "item_id:string output_index:index summary_index:index text:string",
    ),
    kind("response.reasoning_summary.delta", 64, SUMMARY),
    kind("response.reasoning_summary.done", 64, SUMMARY),
    kind(
        "response.function_call_arguments.delta",
        62,
        "item_id:string output_index:index delta:string obfuscation:string?",
    ),
    kind(
        "response.function_call_arguments.done",
        62,
        "item_id:string output_index:index arguments:string",
    ),
    kind(
        "response.custom_tool_call_input.delta",
        63,
        "item_id:string output_index:index delta:string",
    ),
    kind(
        "response.custom_tool_call_input.done",
        63,
        "item_id:string output_index:index input:string",
    ),
    kind(
        "response.image_generation_call.partial_image",
        21,
        "item_id:string output_index:index partial_image_b64:string partial_image_index:index",
    ),
    kind("response.image_generation_call.*", 21, ITEM),
    kind(
        "response.code_interpreter_call_code.delta",
        21,
        "item_id:string output_index:index delta:string",
    ),
    kind(
        "response.code_interpreter_call_code.done",
        21,
        "item_id:string output_index:index code:string",
    ),
    kind("response.code_interpreter_call.*", 21, ITEM),
    kind("response.file_search_call.*", 21, ITEM),
    kind("response.web_search_call.*", 21, ITEM),
    kind(
        "response.mcp_call_arguments.delta",
        21,
        "item_id:string output_index:index delta:string",
    ),
    kind(
        "response.mcp_call_arguments.done",
        21,
        "item_id:string output_index:index arguments:string",
    ),
    kind("response.mcp_call.*", 21, ITEM),
    kind("response.mcp_list_tools.*", 21, ITEM),
    kind(
        "response.shell_call_command.*",
        21,
        "output_index:index command_index:index",
    ),
    kind(
        "response.shell_call_output_content.*",
        21,
        "item_id:string output_index:index command_index:index",
    ),
    kind("response.compaction.compacting", 160, ITEM),
    kind("response.audio.*", 21, ""),
    kind("response.steer.accepted", 139, "steer:object"),
    kind(
        "response.steer.pending",
        148,
        "steer:object reason:string required_input:array",
    ),
    kind("response.steer.failed", 151, "steer:object error:object"),
    kind("response.inject.created", 172, "response_id:string"),
    kind(
        "response.inject.failed",
        172,
        "response_id:string error:object",
    ),
];

/// The members that Open Responses requires of every response object.
const RESPONSE: &str = "id:string object:string created_at:number completed_at:number|null \
    status:string incomplete_details:object|null model:string previous_response_id:string|null \
    instructions:any output:array error:object|null tools:array tool_choice:any \
    truncation:string parallel_tool_calls:bool text:object top_p:number presence_penalty:number \
    frequency_penalty:number top_logprobs:index temperature:number reasoning:object|null \
    usage:object|null max_output_tokens:index|null max_tool_calls:index|null store:bool \
    background:bool service_tier:string metadata:any safety_identifier:string|null \
    prompt_cache_key:string|null";

const USAGE: &str = "input_tokens:index input_tokens_details:object output_tokens:index \
    output_tokens_details:object total_tokens:index";

const ERROR: &str = "type:string code:string message:string param:string|null? headers:object?";

const FUNCTION: &str = "type:string name:string description:string|null \
    parameters:object|null strict:bool|null";

/// What is wrong with an event, and the row that it breaks. `None` for an event that is fine.
pub(crate) fn mistake_of_event(name: &str, event: &Value) -> Option<(u16, String)> {
    let Some(kind) = kind_of(name) else {
        return Some((21, format!("`{name}` is no event of the catalogue")));
    };
    let mistake = mistake_of_members(kind.members, event)
        .map(|mistake| (kind.row, format!("{mistake} in `{name}`")));
    let of_error = || {
        let mistake = mistake_of_members(ERROR, &event["error"]);
        mistake.map(|mistake| (79, format!("{mistake} in the `error` of `error`")))
    };
    match name {
        "error" => mistake.or_else(of_error),
        _ => mistake,
    }
}

/// What is wrong with the members of a response object (row 71).
pub(crate) fn mistake_of_response(response: &Value) -> Option<String> {
    let format = || {
        let named = response["text"]["format"]["type"].is_string();
        (!named).then(|| "`text.format.type` is missing".to_owned())
    };
    mistake_of_members(RESPONSE, response).or_else(format)
}

/// What is wrong with the `usage` of a response that ended (row 70).
pub(crate) fn mistake_of_usage(usage: &Value) -> Option<String> {
    mistake_of_members(USAGE, usage)
        .or_else(|| mistake_of_members("cached_tokens:index", &usage["input_tokens_details"]))
        .or_else(|| mistake_of_members("reasoning_tokens:index", &usage["output_tokens_details"]))
}

/// What is wrong with a function tool in a response object (row 73).
pub(crate) fn mistake_of_function(tool: &Value) -> Option<String> {
    mistake_of_members(FUNCTION, tool)
}

/// What is wrong with an object, given its members in the notation of this module.
pub(crate) fn mistake_of_members(members: &str, object: &Value) -> Option<String> {
    let Some(object) = object.as_object() else {
        return Some(format!("{object} is not an object"));
    };
    members.split_ascii_whitespace().find_map(|member| {
        let (name, kind) = member.split_once(':').expect("members are name:type");
        let (kind, optional) = match kind.strip_suffix('?') {
            Some(kind) => (kind, true),
            None => (kind, false),
        };
        match object.get(name) {
            None if optional => None,
            None => Some(format!("`{name}` is missing")),
            Some(value) if kind.split('|').any(|kind| is(kind, value)) => None,
            Some(value) => Some(format!("`{name}` is {value} and should be {kind}")),
        }
    })
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "any" => true,
        "null" => value.is_null(),
        "string" => value.is_string(),
        "index" => value.is_u64(),
        "number" => value.is_number(),
        "bool" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        other => unreachable!("`{other}` is no type of this notation"),
    }
}

fn kind_of(name: &str) -> Option<&'static Kind> {
    let named = |kind: &&Kind| match kind.name.strip_suffix('*') {
        Some(family) => name.starts_with(family),
        None => name == kind.name,
    };
    KINDS.iter().find(named)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mistake_names_the_member_and_breaks_the_row_of_its_event() {
        let mut event = json!({"status": 400, "error": {
            "type": "invalid_request_error", "code": "x", "message": "y", "param": null,
        }});
        assert_eq!(mistake_of_event("error", &event), None);
        event["stream_id"] = Value::Null;
        let (row, mistake) = mistake_of_event("error", &event).expect("null is no lane");
        assert_eq!(row, 79);
        assert!(mistake.contains("`stream_id` is null"), "{mistake}");
        let unknown = mistake_of_event("keepalive", &json!({}));
        assert_eq!(unknown.map(|(row, _)| row), Some(21));
        let family = mistake_of_event("response.web_search_call.searching", &json!({}));
        assert_eq!(family.map(|(row, _)| row), Some(21));
    }

    #[test]
    fn every_type_of_the_tables_is_one_that_is_known() {
        let tables = [RESPONSE, USAGE, ERROR, FUNCTION];
        for members in KINDS.iter().map(|kind| kind.members).chain(tables) {
            for member in members.split_ascii_whitespace() {
                let (name, kinds) = member.split_once(':').expect("members are name:type");
                assert!(!name.is_empty(), "{members}");
                for kind in kinds.trim_end_matches('?').split('|') {
                    is(kind, &Value::Null);
                }
            }
        }
    }
}
