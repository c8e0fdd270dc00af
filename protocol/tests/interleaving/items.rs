//! Items that a create of a random play may have beside messages and outputs of calls.

use serde_json::Value;

/// What answers a call that a response has made; none for other items.
pub(crate) fn output_of(item: &Value) -> Option<String> {
    let call_id = item["call_id"].as_str()?;
    let kind = item["type"].as_str()?;
    Some(format!(
        r#"{{"type":"{kind}_output","call_id":"{call_id}","output":"1"}}"#
    ))
}

/// An item that refers to another, or sets something for later turns; mostly none.
pub(crate) fn odd(byte: u8, known: Option<&String>) -> Option<String> {
    let item = match byte {
        0..=19 => {
            let id = known.map_or("msg_none", String::as_str);
            return Some(format!(r#"{{"type":"item_reference","id":"{id}"}}"#));
        }
        20..=24 => r#"{"id":"msg_none"}"#,
        25..=34 => {
            r#"{"type":"additional_tools","role":"developer","tools":[{"type":"custom","name":"c","async":true}]}"#
        }
        35..=39 => {
            r#"{"type":"additional_tools","role":"developer","tools":[{"type":"namespace","name":"n","tools":[{"type":"function","name":"f"},{"type":"function","name":"f"}]}]}"#
        }
        40..=44 => r#"{"type":"configuration_update","reasoning":{"effort":"low"}}"#,
        45..=49 => r#"{"type":"function_call_output","name":"f","output":"1"}"#,
        _ => return None,
    };
    Some(item.to_owned())
}
