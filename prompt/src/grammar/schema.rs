//! JSON schemas made fit for generation.
//!
//! What a client sends describes what it accepts; a grammar also has to say where to stop. So
//! strings, lists and integers without a limit get one, and an object that names its members
//! gets no others. Every value that obeys the result obeys the client's schema too.

use serde_json::{Map, Value, json};

use crate::Bounds;

/// A schema as llguidance takes it.
#[derive(Clone, Debug)]
pub(super) struct Schema {
    root: Value,
    lenient: bool,
}

/// The definition that stands for any value, kept within the bounds.
const ANY_VALUE: &str = "turnwire-any";
/// Integers beyond this lose digits in most JSON parsers.
const SAFE_INTEGER: i64 = 9_007_199_254_740_991;

impl Schema {
    /// Errors are for the client.
    pub(super) fn parse(schema: &[u8], bounds: Bounds) -> Result<Self, String> {
        let root: Value = serde_json::from_slice(schema).map_err(|error| error.to_string())?;
        let mut limiter = Limiter {
            bounds,
            closes_objects: !mentions(&root, "allOf"),
            uses_any: false,
        };
        let mut root = match root {
            Value::Object(_) | Value::Bool(true) => root,
            _ => return Err("a schema is a JSON object.".to_owned()),
        };
        limiter.limit(&mut root, true);
        if limiter.uses_any {
            define_any(&mut root, bounds);
        }
        Ok(Self {
            root,
            lenient: false,
        })
    }

    pub(super) fn any_object(bounds: Bounds) -> Self {
        let mut root = json!({ "type": "object", "additionalProperties": any_value() });
        define_any(&mut root, bounds);
        Self {
            root,
            lenient: false,
        }
    }

    /// Keywords that llguidance cannot enforce are then left to the client instead of refused.
    pub(super) fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// The schema of `{"name": name, arguments_key: <this>}`.
    pub(super) fn as_call(mut self, name: &str, arguments_key: &str) -> Self {
        rebase(&mut self.root, "#/properties/", arguments_key);
        self.root = json!({
            "type": "object",
            "properties": { "name": { "const": name }, arguments_key: self.root },
            "required": ["name", arguments_key],
            "additionalProperties": false,
        });
        self
    }

    pub(super) fn any_of(schemas: Vec<Self>) -> Self {
        let lenient = schemas.iter().any(|schema| schema.lenient);
        let options: Vec<Value> = schemas
            .into_iter()
            .enumerate()
            .map(|(i, mut schema)| {
                rebase(&mut schema.root, "#/anyOf/", &i.to_string());
                schema.root
            })
            .collect();
        Self {
            root: json!({ "anyOf": options }),
            lenient,
        }
    }

    /// The schema as a Lark expression.
    ///
    /// One blank at most may stand behind a comma or colon: models are used to it, and given
    /// more a small one never stops.
    pub(super) fn lark(&self) -> String {
        let mut root = match &self.root {
            Value::Object(members) => members.clone(),
            _ => Map::new(),
        };
        root.insert(
            "x-guidance".to_owned(),
            json!({
                "item_separator": ", ?",
                "key_separator": ": ?",
                "whitespace_flexible": false,
                "coerce_one_of": true,
                "lenient": self.lenient,
            }),
        );
        format!("%json {}", Value::Object(root))
    }
}

fn any_value() -> Value {
    json!({ "$ref": format!("#/$defs/{ANY_VALUE}") })
}

fn define_any(root: &mut Value, bounds: Bounds) {
    let Value::Object(members) = root else {
        return;
    };
    let definitions = members.entry("$defs").or_insert_with(|| json!({}));
    if let Value::Object(definitions) = definitions {
        definitions.insert(
            ANY_VALUE.to_owned(),
            json!({ "anyOf": [
                { "type": "string", "maxLength": bounds.string_chars },
                { "type": "number" },
                { "type": "boolean" },
                { "type": "null" },
                { "type": "array", "items": any_value(), "maxItems": bounds.array_items },
                { "type": "object", "additionalProperties": any_value(), "maxProperties": bounds.array_items },
            ] }),
        );
    }
}

/// Moves a schema to `prefix` + `name` of another one, by way of its own references.
fn rebase(value: &mut Value, prefix: &str, name: &str) {
    match value {
        Value::Object(members) => {
            for (key, member) in members.iter_mut() {
                match member {
                    Value::String(target) if key == "$ref" => {
                        if let Some(path) = target.strip_prefix('#') {
                            *target = format!("{prefix}{name}{path}");
                        }
                    }
                    member => rebase(member, prefix, name),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                rebase(item, prefix, name);
            }
        }
        _ => {}
    }
}

fn mentions(value: &Value, keyword: &str) -> bool {
    match value {
        Value::Object(members) => members
            .iter()
            .any(|(key, member)| key == keyword || mentions(member, keyword)),
        Value::Array(items) => items.iter().any(|item| mentions(item, keyword)),
        _ => false,
    }
}

struct Limiter {
    bounds: Bounds,
    /// Whether objects may be closed: not where several schemas describe one object together.
    closes_objects: bool,
    uses_any: bool,
}

impl Limiter {
    /// `alone` is false for a schema whose value another schema describes too.
    fn limit(&mut self, schema: &mut Value, alone: bool) {
        let Value::Object(members) = schema else {
            if *schema == Value::Bool(true) {
                *schema = any_value();
                self.uses_any = true;
            }
            return;
        };
        if members.keys().all(|key| is_annotation(key)) {
            members.insert("$ref".to_owned(), json!(format!("#/$defs/{ANY_VALUE}")));
            self.uses_any = true;
        }
        let composed = ["anyOf", "oneOf", "allOf", "$ref", "not", "if"]
            .iter()
            .any(|keyword| members.contains_key(*keyword));
        let has_properties = members.contains_key("properties");

        for (key, member) in members.iter_mut() {
            match (key.as_str(), member) {
                (
                    "properties" | "patternProperties" | "$defs" | "definitions",
                    Value::Object(schemas),
                ) => {
                    for schema in schemas.values_mut() {
                        self.limit(schema, true);
                    }
                }
                ("anyOf" | "oneOf" | "allOf", Value::Array(schemas)) => {
                    for schema in schemas {
                        self.limit(schema, alone && !has_properties);
                    }
                }
                ("prefixItems" | "items", Value::Array(schemas)) => {
                    for schema in schemas {
                        self.limit(schema, true);
                    }
                }
                ("items" | "additionalProperties" | "additionalItems", schema) => {
                    self.limit(schema, true);
                }
                _ => {}
            }
        }
        if composed || members.contains_key("enum") || members.contains_key("const") {
            return;
        }
        if allows(members, "string")
            && !["maxLength", "pattern", "format"]
                .iter()
                .any(|keyword| members.contains_key(*keyword))
        {
            let least = members.get("minLength").and_then(Value::as_u64);
            let most = u64::from(self.bounds.string_chars).max(least.unwrap_or(0));
            members.insert("maxLength".to_owned(), json!(most));
        }
        if allows(members, "array") {
            if !members.contains_key("maxItems") {
                let least = members.get("minItems").and_then(Value::as_u64);
                let most = u64::from(self.bounds.array_items).max(least.unwrap_or(0));
                members.insert("maxItems".to_owned(), json!(most));
            }
            if !members.contains_key("items") && !members.contains_key("prefixItems") {
                members.insert("items".to_owned(), any_value());
                self.uses_any = true;
            }
        }
        if members.get("type") == Some(&json!("integer")) {
            let low = ["minimum", "exclusiveMinimum"];
            let high = ["maximum", "exclusiveMaximum"];
            if !low.iter().any(|keyword| members.contains_key(*keyword)) {
                members.insert("minimum".to_owned(), json!(-SAFE_INTEGER));
            }
            if !high.iter().any(|keyword| members.contains_key(*keyword)) {
                members.insert("maximum".to_owned(), json!(SAFE_INTEGER));
            }
        }
        if allows(members, "object")
            && !members.contains_key("additionalProperties")
            && !members.contains_key("patternProperties")
        {
            if !has_properties {
                members.insert("additionalProperties".to_owned(), any_value());
                self.uses_any = true;
            } else if alone && self.closes_objects {
                members.insert("additionalProperties".to_owned(), json!(false));
            }
        }
    }
}

fn is_annotation(keyword: &str) -> bool {
    matches!(
        keyword,
        "$schema"
            | "$id"
            | "$comment"
            | "$defs"
            | "definitions"
            | "title"
            | "description"
            | "default"
            | "examples"
            | "deprecated"
            | "readOnly"
            | "writeOnly"
    )
}

fn allows(schema: &Map<String, Value>, kind: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(only)) => only == kind,
        Some(Value::Array(kinds)) => kinds.iter().any(|k| k == kind),
        // Without a type, the keywords of a type speak for it.
        _ => match kind {
            "object" => schema.contains_key("properties"),
            "array" => schema.contains_key("items") || schema.contains_key("prefixItems"),
            "string" => schema.contains_key("minLength"),
            _ => false,
        },
    }
}
