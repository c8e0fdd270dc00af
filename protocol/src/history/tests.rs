use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const PREMISE: Premise<'static> = Premise {
    model: "m",
    store: true,
    truncate: false,
};

fn item(json: &str) -> Item {
    Item::parse(json.to_owned().into()).expect("an item")
}

fn of(items: &[Item]) -> History {
    History::begin(PREMISE).with_prefixes(items).0
}

fn alone(json: &str) -> History {
    of(&[item(json)])
}

#[test]
fn forms_of_one_item_have_one_digest() {
    for forms in [
        &[
            r#"{"type":"message","role":"user","content":[{"type":"input_text","text":"a b"}]}"#,
            r#"{"role":"user","content":"a b"}"#,
            r#"{ "content" : "a\u0020b", "role":"user", "id":null, "status":null }"#,
            r#"{"role":"user","content":[{"text":"a ","type":"text"},{"type":"input_text","text":"b"}]}"#,
        ][..],
        &[
            r#"{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"é","annotations":[],"logprobs":[{"token":"é"}]}]}"#,
            r#"{"role":"assistant","content":[{"type":"output_text","text":"\u00e9","annotations":null}]}"#,
            r#"{"role":"assistant","status":"incomplete","content":"é"}"#,
        ],
        &[
            r#"{"role":"assistant","content":[]}"#,
            r#"{"role":"assistant","content":""}"#,
            r#"{"role":"assistant","content":null}"#,
            r#"{"role":"assistant"}"#,
        ],
        &[
            r#"{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"refusal","refusal":"no"}]}"#,
            r#"{"role":"assistant","content":[{"refusal":"no","type":"refusal"}]}"#,
        ],
        &[
            r#"{"id":"fc_1","type":"function_call","status":"completed","call_id":"c","name":"f","arguments":"{}"}"#,
            r#"{"name":"f","arguments":"{}","call_id":"c","type":"function_call","namespace":null}"#,
        ],
        &[
            r#"{"type":"function_call_output","call_id":"c","output":"42"}"#,
            r#"{"type":"function_call_output","call_id":"c","output":[{"type":"input_text","text":"42"}],"status":"completed","id":"fco_1"}"#,
        ],
        &[
            r#"{"id":"rs_1","type":"reasoning","status":"completed","summary":[],"content":[{"type":"reasoning_text","text":"hm"}],"encrypted_content":"x"}"#,
            r#"{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}]}"#,
        ],
        &[
            r#"{"type":"new_thing","a":{"b":[1,2.0,"c"]},"d":true}"#,
            r#"{"type":"new_thing","status":"completed","d":true,"id":"x","a":{ "b" : [ 1, 2.0, "\u0063" ] }}"#,
        ],
    ] {
        for form in forms {
            assert_eq!(alone(forms[0]), alone(form), "{form}");
        }
    }
}

#[test]
fn what_a_seal_reveals_is_the_same_as_what_was_said() {
    let said = r#"{"id":"rs_1","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}],"encrypted_content":"x"}"#;
    let sealed = r#"{"type":"reasoning","summary":[],"encrypted_content":"x"}"#;
    let revealed = item(sealed).with_revealed("hm");
    assert_eq!(alone(said), of(&[revealed]));
    assert_ne!(alone(said), alone(sealed));
    assert_ne!(alone(said), of(&[item(sealed).with_revealed("ah")]));
    let empty = r#"{"type":"reasoning","content":[ ],"encrypted_content":"x"}"#;
    assert_eq!(alone(said), of(&[item(empty).with_revealed("hm")]));
}

#[test]
fn what_a_seal_reveals_counts_where_nothing_was_said_in_the_open() {
    let silent = r#"{"type":"reasoning","content":[{"type":"reasoning_text","text":""}],"encrypted_content":"x"}"#;
    let silent = item(silent);
    let revealing = |text: &str| of(&[silent.clone().with_revealed(text)]);
    assert_ne!(revealing("hm"), revealing("ah"));
    assert_ne!(revealing("hm"), of(std::slice::from_ref(&silent)));
    let said = r#"{"type":"reasoning","content":[{"type":"reasoning_text","text":""},{"type":"reasoning_text","text":"hm"}]}"#;
    assert_ne!(revealing("hm"), alone(said));
}

#[test]
fn whatever_a_model_could_be_shown_makes_a_difference() {
    let items = [
        r#"{"role":"user","content":"a"}"#,
        r#"{"role":"user","content":"b"}"#,
        r#"{"role":"system","content":"a"}"#,
        r#"{"role":"developer","content":"a"}"#,
        r#"{"role":"assistant","content":"a"}"#,
        r#"{"role":"assistant","content":[{"type":"refusal","refusal":"a"}]}"#,
        r#"{"role":"user","content":""}"#,
        r#"{"role":"user","content":1}"#,
        r#"{"role":"user","content":"1"}"#,
        r#"{"role":"user","content":{}}"#,
        r#"{"role":"user","content":"a","phase":"x"}"#,
        r#"{"role":"user","content":[{"type":"input_text","text":"a","note":"x"}]}"#,
        r#"{"role":"user","content":[{"type":"input_text","text":null}]}"#,
        r#"{"role":"user","content":[{"text":"a"}]}"#,
        r#"{"role":"user","content":[{"type":"input_image","image_url":"a"}]}"#,
        r#"{"role":"user","content":[{"type":"input_image","image_url":"b"}]}"#,
        r#"{"role":"user","content":[{"type":"input_image","image_url":"a","detail":"low"}]}"#,
        r#"{"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_image","image_url":"a"}]}"#,
        r#"{"role":"user","content":[{"type":"input_image","image_url":"a"},{"type":"input_text","text":"a"}]}"#,
        r#"{"role":"user","content":[{"type":"input_text","text":"a","text":"b"}]}"#,
        r#"{"role":"user","content":"a","content":"b"}"#,
        r#"{"role":"user","content":"\ud800"}"#,
        r#"{"role":"user","content":"\\ud800"}"#,
        r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}"#,
        r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{ }"}"#,
        r#"{"type":"function_call","call_id":"d","name":"f","arguments":"{}"}"#,
        r#"{"type":"function_call","call_id":"c","name":"g","arguments":"{}"}"#,
        r#"{"type":"function_call","call_id":"c","namespace":"n","name":"f","arguments":"{}"}"#,
        r#"{"type":"custom_tool_call","call_id":"c","name":"f","input":"{}"}"#,
        r#"{"type":"function_call_output","call_id":"c","output":"1"}"#,
        r#"{"type":"function_call_output","call_id":"d","output":"1"}"#,
        r#"{"type":"custom_tool_call_output","call_id":"c","output":"1"}"#,
        r#"{"type":"function_call_output","call_id":"c","output":[{"type":"input_image","image_url":"1"}]}"#,
        r#"{"type":"reasoning","content":[{"type":"reasoning_text","text":"a"}]}"#,
        r#"{"type":"reasoning","content":[{"type":"reasoning_text","text":"b"}]}"#,
        r#"{"type":"reasoning","content":[{"type":"reasoning_text","text":"a"},{"type":"reasoning_text","text":"b"}]}"#,
        r#"{"type":"reasoning","content":[{"type":"reasoning_text","text":"ab"}]}"#,
        r#"{"type":"reasoning","content":"ab"}"#,
        r#"{"type":"reasoning","summary":[{"type":"summary_text","text":"a"}]}"#,
        r#"{"type":"reasoning","content":[{"type":"reasoning_text","text":"a"}],"summary":[{"type":"summary_text","text":"a"}]}"#,
        r#"{"type":"reasoning","encrypted_content":"a"}"#,
        r#"{"type":"reasoning"}"#,
        r#"{"type":"compaction","encrypted_content":"a"}"#,
        r#"{"type":"compaction","encrypted_content":"b"}"#,
        r#"{"type":"item_reference","id":"a"}"#,
        r#"{"type":"item_reference","id":"b"}"#,
        r#"{"type":"additional_tools","tools":[{"type":"function","name":"f","parameters":{"a":1,"b":2}}]}"#,
        r#"{"type":"additional_tools","tools":[{"type":"function","name":"f","parameters":{"b":2,"a":1}}]}"#,
        r#"{"type":"additional_tools","tools":[{"type":"function","name":"f","parameters":{"a":1,"b":null}}]}"#,
        r#"{"type":"configuration_update","reasoning":{"effort":"low"}}"#,
        r#"{"type":"configuration_update","reasoning":{"effort":"high"}}"#,
        r#"{"type":"new_thing","a":1}"#,
        r#"{"type":"new_thing","a":"1"}"#,
        r#"{"type":"new_thing","a":[1]}"#,
        r#"{"type":"new_thing","a":[[1]]}"#,
        r#"{"type":"new_thing","a":11}"#,
        r#"{"type":"new_thing","a":1,"b":1}"#,
        r#"{"type":"newer_thing","a":1}"#,
    ];
    for (at, one) in items.iter().enumerate() {
        for other in &items[..at] {
            assert_ne!(alone(one), alone(other), "{one} and {other}");
        }
    }
}

#[test]
fn a_premise_or_another_order_makes_a_difference() {
    let [a, b] = ["a", "b"].map(|text| item(&format!(r#"{{"role":"user","content":"{text}"}}"#)));
    let ordered = of(&[a.clone(), b.clone()]);
    assert_ne!(ordered, of(&[b.clone(), a.clone()]));
    for premise in [
        Premise {
            model: "n",
            ..PREMISE
        },
        Premise {
            store: false,
            ..PREMISE
        },
        Premise {
            truncate: true,
            ..PREMISE
        },
    ] {
        let other = History::begin(premise).with_prefixes(&[a.clone(), b.clone()]);
        assert_ne!(ordered, other.0, "{premise:?}");
    }
}

#[test]
fn prefixes_are_those_of_the_end_and_leave_an_item() {
    let hi = item(r#"{"role":"user","content":"hi"}"#);
    let items = vec![hi; MOST_PREFIXES + 10];
    let (_, prefixes) = History::begin(PREMISE).with_prefixes(&items);
    let lengths: Vec<usize> = prefixes.iter().map(|prefix| prefix.items).collect();
    let expected: Vec<usize> = (10..MOST_PREFIXES + 10).rev().collect();
    assert_eq!(lengths, expected);
    assert_eq!(prefixes[0].history, of(&items[1..]));
    let (_, none) = History::begin(PREMISE).with_prefixes(&items[..1]);
    assert_eq!(none, []);
}

/// A message, a call or an output, as a server would write it.
fn any_item() -> impl Strategy<Value = Value> {
    let text = "[ab\"\\\\é\n{}]{0,4}";
    let role = prop_oneof![Just("user"), Just("assistant"), Just("system")];
    let texts = proptest::collection::vec(text, 1..3);
    prop_oneof![
        (role, texts).prop_map(|(role, texts)| {
            let part = |text| json!({"type": "output_text", "text": text, "annotations": []});
            let parts: Vec<Value> = texts.into_iter().map(part).collect();
            json!({"type": "message", "id": "i", "status": "completed", "role": role,
                "content": parts})
        }),
        ("[ab]", "[ab]", text).prop_map(|(call_id, name, arguments)| {
            json!({"type": "function_call", "id": "i", "status": "completed",
                "call_id": call_id, "name": name, "arguments": arguments})
        }),
        ("[ab]", text).prop_map(|(call_id, output)| {
            json!({"type": "function_call_output", "id": "i", "call_id": call_id,
                "output": output})
        }),
        (text, text).prop_map(|(a, b)| json!({"type": "new_thing", "a": a, "b": {"c": b}})),
    ]
}

/// What models are shown of such an item.
fn meaning(item: &Value) -> Value {
    let mut item = item.clone();
    let content = item["content"].as_array();
    let texts = content
        .into_iter()
        .flatten()
        .filter_map(|part| part["text"].as_str());
    let text: String = texts.collect();
    let members = item.as_object_mut().expect("an item is an object");
    members.retain(|name, _| !matches!(&**name, "id" | "status" | "content"));
    members.insert("text".into(), text.into());
    item
}

/// The same item as a client may send it back.
fn sent_back(item: &Value, how: u8) -> String {
    let members = item.as_object().expect("an item is an object");
    let mut kept: Vec<(String, Value)> = Vec::new();
    for (name, value) in members {
        let value = match &**name {
            "id" | "status" if how & 1 > 0 => continue,
            "id" | "status" if how & 2 > 0 => Value::Null,
            "type" if how & 4 > 0 && value == "message" => continue,
            "content" if how & 8 > 0 => {
                let parts = value.as_array().into_iter().flatten();
                parts
                    .filter_map(|part| part["text"].as_str())
                    .collect::<String>()
                    .into()
            }
            "output" if how & 8 > 0 => json!([{"text": value, "type": "input_text"}]),
            _ => value.clone(),
        };
        kept.push((name.clone(), value));
    }
    if how & 16 > 0 {
        kept.reverse();
    }
    let item = Value::Object(Map::from_iter(kept));
    match how & 32 > 0 {
        true => serde_json::to_string_pretty(&item).expect("it is JSON"),
        false => item.to_string(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn digests_are_equal_just_where_meanings_are(
        items in proptest::collection::vec((any_item(), any::<u8>()), 1..3),
        others in proptest::collection::vec(any_item(), 1..3),
    ) {
        let read = |item: &Value| self::item(&item.to_string());
        let made: Vec<Item> = items.iter().map(|(item, _)| read(item)).collect();
        let back = items.iter().map(|(item, how)| self::item(&sent_back(item, *how)));
        let back: Vec<Item> = back.collect();
        prop_assert_eq!(of(&made), of(&back));
        let said: Vec<Value> = items.iter().map(|(item, _)| meaning(item)).collect();
        let other: Vec<Value> = others.iter().map(meaning).collect();
        let digest = of(&others.iter().map(read).collect::<Vec<Item>>());
        prop_assert_eq!(said == other, of(&made) == digest);
    }
}
