//! Sample: one small JSON value that a JSON Schema accepts.
//!
//! Deterministic, and bounded whatever the schema asks for: it comes from a client. `pattern`,
//! `not` and `if` are not heeded.

use std::iter;

use serde_json::{Map, Value};

/// Bounds the work a schema can make: values built and bytes copied.
const BUDGET: usize = 1 << 20;
/// Bounds the nesting, which references can make endless.
const MAX_DEPTH: u32 = 32;

/// A value that `schema` accepts. Past the bounds above it is cut short with nulls.
pub(super) fn sample(schema: &Value) -> Value {
    let mut sampler = Sampler {
        root: schema,
        budget: BUDGET,
    };
    sampler.value(schema, 0)
}

struct Sampler<'a> {
    root: &'a Value,
    budget: usize,
}

impl Sampler<'_> {
    fn value(&mut self, schema: &Value, depth: u32) -> Value {
        self.spend(1);
        if self.budget == 0 || depth > MAX_DEPTH {
            return Value::Null;
        }
        let Value::Object(keywords) = schema else {
            return Value::Null;
        };
        if let Some(parts) = keywords.get("allOf").and_then(Value::as_array) {
            let merged = merged(keywords, parts);
            self.spend(merged.to_string().len());
            return self.value(&merged, depth + 1);
        }
        if let Some(target) = keywords.get("$ref").and_then(Value::as_str) {
            let root = self.root;
            let target = target.strip_prefix('#').and_then(|at| root.pointer(at));
            return target.map_or(Value::Null, |target| self.value(target, depth + 1));
        }
        if let Some(value) = keywords.get("const") {
            return self.copy(value);
        }
        for (keyword, is_schema) in [("enum", false), ("anyOf", true), ("oneOf", true)] {
            let first = keywords.get(keyword).and_then(|choices| choices.get(0));
            match first {
                Some(choice) if is_schema => return self.value(choice, depth + 1),
                Some(choice) => return self.copy(choice),
                None => {}
            }
        }
        match type_name(keywords) {
            "object" => self.object(keywords, depth),
            "array" => self.array(keywords, depth),
            "integer" | "number" => number(keywords),
            "boolean" => Value::Bool(true),
            "null" => Value::Null,
            _ => Value::String(self.string(keywords)),
        }
    }

    fn spend(&mut self, cost: usize) {
        self.budget = self.budget.saturating_sub(cost);
    }

    fn copy(&mut self, value: &Value) -> Value {
        self.spend(value.to_string().len());
        value.clone()
    }

    /// The required properties, and no others.
    fn object(&mut self, keywords: &Map<String, Value>, depth: u32) -> Value {
        let required = keywords.get("required").and_then(Value::as_array);
        let names = required.into_iter().flatten().filter_map(Value::as_str);
        let mut object = Map::new();
        for name in names {
            if self.budget == 0 {
                break;
            }
            let schema = keywords.get("properties").and_then(|all| all.get(name));
            let any = Value::Object(Map::new());
            let value = self.value(schema.unwrap_or(&any), depth + 1);
            object.insert(name.to_owned(), value);
        }
        Value::Object(object)
    }

    /// As few items as allowed.
    fn array(&mut self, keywords: &Map<String, Value>, depth: u32) -> Value {
        let least = keywords
            .get("minItems")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        let any = Value::Object(Map::new());
        let items = keywords.get("items").unwrap_or(&any);
        let mut array = Vec::new();
        while (array.len() as u64) < least && self.budget > 0 {
            let first = keywords
                .get("prefixItems")
                .and_then(|all| all.get(array.len()));
            array.push(self.value(first.unwrap_or(items), depth + 1));
        }
        Value::Array(array)
    }

    fn string(&mut self, keywords: &Map<String, Value>) -> String {
        let text = match keywords.get("format").and_then(Value::as_str) {
            Some("date-time") => return "2026-01-01T00:00:00Z".into(),
            Some("date") => return "2026-01-01".into(),
            Some("time") => return "00:00:00Z".into(),
            Some("duration") => return "P1D".into(),
            Some("email") => return "someone@example.com".into(),
            Some("hostname") => return "example.com".into(),
            Some("ipv4") => return "127.0.0.1".into(),
            Some("ipv6") => return "::1".into(),
            Some("uuid") => return "00000000-0000-4000-8000-000000000000".into(),
            Some("uri") => return "https://example.com/".into(),
            _ => "text",
        };
        let bound = |keyword| keywords.get(keyword).and_then(Value::as_u64);
        let least = bound("minLength").unwrap_or(0).max(text.len() as u64);
        let most = bound("maxLength").unwrap_or(u64::MAX);
        let chars = usize::try_from(least.min(most))
            .unwrap_or(usize::MAX)
            .min(self.budget);
        self.spend(chars);
        text.chars().chain(iter::repeat('x')).take(chars).collect()
    }
}

/// The keywords beside `allOf` and those of its parts as one schema.
fn merged(keywords: &Map<String, Value>, parts: &[Value]) -> Value {
    let mut merged = keywords.clone();
    merged.remove("allOf");
    for part in parts.iter().filter_map(Value::as_object) {
        for (keyword, value) in part {
            match (merged.get_mut(keyword), value) {
                (Some(Value::Object(known)), Value::Object(more)) => known.extend(more.clone()),
                (Some(Value::Array(known)), Value::Array(more)) if keyword == "required" => {
                    known.extend(more.iter().cloned());
                }
                _ => {
                    merged.insert(keyword.clone(), value.clone());
                }
            }
        }
    }
    Value::Object(merged)
}

/// The type a schema names, the first but null of several, or the one its keywords are about.
fn type_name(keywords: &Map<String, Value>) -> &str {
    match keywords.get("type") {
        Some(Value::String(name)) => name,
        Some(Value::Array(names)) => {
            let mut names = names.iter().filter_map(Value::as_str);
            names.find(|name| *name != "null").unwrap_or("null")
        }
        _ if keywords.contains_key("properties") => "object",
        _ if keywords.contains_key("items") || keywords.contains_key("prefixItems") => "array",
        _ => "string",
    }
}

/// The allowed number nearest to 1 from above, or the greatest allowed one.
fn number(keywords: &Map<String, Value>) -> Value {
    let bound = |keyword| keywords.get(keyword).and_then(Value::as_f64);
    let integer = type_name(keywords) == "integer";
    let step = bound("multipleOf")
        .filter(|step| *step > 0.0)
        .or(integer.then_some(1.0));
    // How far to stay away from a bound that is not itself allowed.
    let gap = step.unwrap_or(0.5);
    let least = f64::max(
        bound("minimum").unwrap_or(f64::MIN),
        bound("exclusiveMinimum").map_or(f64::MIN, |least| least + gap),
    );
    let most = f64::min(
        bound("maximum").unwrap_or(f64::MAX),
        bound("exclusiveMaximum").map_or(f64::MAX, |most| most - gap),
    );
    let wanted = f64::max(1.0, least);
    let number = match step {
        Some(step) if wanted > most => (most / step).floor() * step,
        Some(step) => (wanted / step).ceil() * step,
        None => wanted.min(most),
    };
    if integer {
        // Saturates where a bound is beyond what an integer holds.
        return Value::from(number as i64);
    }
    Value::from(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_required_is_filled_in() {
        let schema = json!({
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 6},
                "days": {"type": "integer", "minimum": 3},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
                "note": {"type": ["null", "string"], "maxLength": 2},
                "unused": {"type": "string"},
            },
            "required": ["city", "days", "unit", "tags", "note", "undeclared"],
        });
        let expected = json!({
            "city": "textxx", "days": 3, "unit": "celsius", "tags": [true, true], "note": "te",
            "undeclared": "text",
        });
        assert_eq!(sample(&schema), expected);
        assert_eq!(sample(&json!({"type": "object"})), json!({}));
    }

    #[test]
    fn references_and_combinations_are_followed() {
        let schema = json!({
            "$defs": {"id": {"type": "string", "format": "uuid"}},
            "allOf": [
                {"properties": {"a": {"$ref": "#/$defs/id"}}, "required": ["a"]},
                {"properties": {"b": {"anyOf": [{"const": 7}, {"type": "null"}]}}, "required": ["b"]},
            ],
        });
        let expected = json!({"a": "00000000-0000-4000-8000-000000000000", "b": 7});
        assert_eq!(sample(&schema), expected);
    }

    #[test]
    fn numbers_keep_within_their_bounds() {
        for (schema, expected) in [
            (json!({"type": "integer"}), json!(1)),
            (json!({"type": "integer", "maximum": -3}), json!(-3)),
            (
                json!({"type": "integer", "exclusiveMinimum": 4, "multipleOf": 5}),
                json!(10),
            ),
            (json!({"type": "number", "exclusiveMaximum": 1}), json!(0.5)),
            (json!({"type": "number", "minimum": 2.25}), json!(2.25)),
        ] {
            assert_eq!(sample(&schema), expected, "{schema}");
        }
    }

    #[test]
    fn a_hostile_schema_costs_little() {
        let endless = json!({
            "type": "object",
            "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}},
            "required": ["a", "b"],
        });
        assert!(sample(&endless).is_object());
        let names: Vec<_> = (0..100_000).map(|index| index.to_string()).collect();
        let again = |name: &String| (name.clone(), json!({"$ref": "#"}));
        let properties: Map<_, _> = names.iter().map(again).collect();
        let wide = json!({"type": "object", "properties": properties, "required": names});
        assert!(sample(&wide).to_string().len() < 20 * BUDGET);
        let huge = json!({"type": "array", "minItems": u64::MAX, "items": {"minLength": u64::MAX}});
        assert!(sample(&huge).to_string().len() < 2 * BUDGET);
    }
}
