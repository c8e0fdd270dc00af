//! JSON schemas made fit for generation.
//!
//! What a client sends says what it accepts; a grammar also has to say where to stop. So
//! strings, lists, integers and keys without a limit get one, and an object that names its
//! members gets no others. What obeys the result obeys the client's schema.

use serde_json::{Map, Value, json};

use super::size;
use crate::Bounds;

/// A schema as llguidance takes it.
#[derive(Clone, Debug)]
pub(super) struct Schema {
    root: Map<String, Value>,
    lenient: bool,
}

/// The definition that stands for any value, kept within the bounds.
const ANY_VALUE: &str = "turnwire-any";
/// Integers beyond this lose digits in most JSON parsers.
const SAFE_INTEGER: i64 = 9_007_199_254_740_991;
/// Characters in a key that a schema does not name.
const KEY_CHARS: u32 = 128;
/// Formats that llguidance can enforce. JSON Schema lets a reader ignore all others.
const FORMATS: [&str; 10] = [
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
];

impl Schema {
    /// A schema for an answer. Errors are for the client.
    pub(super) fn parse(schema: &[u8], bounds: Bounds) -> Result<Self, String> {
        Ok(Self::limited(read(schema)?, bounds))
    }

    /// A schema for the arguments of a call, which are an object even if it does not say so.
    pub(super) fn parse_arguments(schema: &[u8], bounds: Bounds) -> Result<Self, String> {
        let mut root = read(schema)?;
        match root.get("type") {
            Some(Value::String(kind)) if kind == "object" => {}
            Some(Value::Array(kinds)) if kinds.iter().any(|kind| kind == "object") => {
                root.insert("type".to_owned(), json!("object"));
            }
            Some(_) => return Err("its type must be \"object\"".to_owned()),
            None if root.contains_key("$ref") => {}
            None => {
                root.insert("type".to_owned(), json!("object"));
            }
        }
        Ok(Self::limited(root, bounds))
    }

    pub(super) fn any_object(bounds: Bounds) -> Self {
        let mut root = Map::new();
        root.insert("type".to_owned(), json!("object"));
        Self::limited(root, bounds)
    }

    fn limited(root: Map<String, Value>, bounds: Bounds) -> Self {
        let closes_objects = !mentions(&root, "allOf");
        let mut limiter = Limiter {
            bounds,
            closes_objects,
            uses_any: false,
        };
        let mut root = root;
        limiter.limit_members(&mut root, true);
        if limiter.uses_any {
            let any = limiter.any_definition();
            let definitions = root.entry("$defs").or_insert_with(|| json!({}));
            if let Value::Object(definitions) = definitions {
                definitions.insert(ANY_VALUE.to_owned(), any);
            }
        }
        Self {
            root,
            lenient: false,
        }
    }

    /// Keywords that llguidance cannot enforce are left to the client instead of refused.
    pub(super) fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// The schema of `{"name": name, arguments_key: …}` around this one.
    pub(super) fn into_call(mut self, name: &str, arguments_key: &str) -> Self {
        rebase(&mut self.root, &format!("#/properties/{arguments_key}"));
        let call = json!({
            "type": "object",
            "properties": { "name": { "const": name }, arguments_key: self.root },
            "required": ["name", arguments_key],
            "additionalProperties": false,
        });
        Self {
            root: into_members(call),
            lenient: self.lenient,
        }
    }

    pub(super) fn any_of(schemas: Vec<Self>) -> Self {
        let lenient = schemas.iter().any(|schema| schema.lenient);
        let options = schemas.into_iter().enumerate().map(|(i, mut schema)| {
            rebase(&mut schema.root, &format!("#/anyOf/{i}"));
            Value::Object(schema.root)
        });
        let options: Vec<Value> = options.collect();
        Self {
            root: into_members(json!({ "anyOf": options })),
            lenient,
        }
    }

    /// The schema as a Lark expression.
    ///
    /// One blank at most may stand behind a comma or colon: models are used to it, and given
    /// more a small one never stops.
    pub(super) fn lark(&self) -> String {
        let mut root = self.root.clone();
        let options = json!({
            "item_separator": ", ?",
            "key_separator": ": ?",
            "whitespace_flexible": false,
            "coerce_one_of": true,
            "lenient": self.lenient,
        });
        root.insert("x-guidance".to_owned(), options);
        format!("%json {}", Value::Object(root))
    }
}

fn read(schema: &[u8]) -> Result<Map<String, Value>, String> {
    let root = serde_json::from_slice(schema).map_err(|error| error.to_string())?;
    size::check(&root)?;
    Ok(root)
}

fn into_members(schema: Value) -> Map<String, Value> {
    match schema {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// Turns references to the root of a schema into references to where that schema now stands.
fn rebase(members: &mut Map<String, Value>, place: &str) {
    for (key, member) in members.iter_mut() {
        match member {
            Value::String(target) if key == "$ref" => {
                if let Some(path) = target.strip_prefix('#') {
                    *target = format!("{place}{path}");
                }
            }
            Value::Object(members) => rebase(members, place),
            Value::Array(items) => {
                for item in items {
                    if let Value::Object(members) = item {
                        rebase(members, place);
                    }
                }
            }
            _ => {}
        }
    }
}

fn mentions(members: &Map<String, Value>, keyword: &str) -> bool {
    members.iter().any(|(key, member)| {
        key == keyword
            || match member {
                Value::Object(members) => mentions(members, keyword),
                Value::Array(items) => items.iter().any(
                    |item| matches!(item, Value::Object(members) if mentions(members, keyword)),
                ),
                _ => false,
            }
    })
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
        match schema {
            Value::Bool(true) => *schema = self.any(),
            Value::Object(members) => self.limit_members(members, alone),
            _ => {}
        }
    }

    fn limit_members(&mut self, members: &mut Map<String, Value>, alone: bool) {
        if members.keys().all(|key| is_annotation(key)) {
            self.uses_any = true;
            members.insert("$ref".to_owned(), json!(any_reference()));
        }
        self.limit_inner(members, alone);
        let composed = ["$ref", "allOf", "anyOf", "oneOf", "const", "enum"];
        if composed
            .iter()
            .any(|keyword| members.contains_key(*keyword))
        {
            return;
        }
        if allows(members, "string") {
            self.limit_string(members);
        }
        if allows(members, "array") {
            self.limit_array(members);
        }
        if members.get("type") == Some(&json!("integer")) {
            limit_integer(members);
        }
        if allows(members, "object") {
            self.limit_object(members, alone);
        }
    }

    /// The schemas inside a schema.
    fn limit_inner(&mut self, members: &mut Map<String, Value>, alone: bool) {
        let has_properties = members.contains_key("properties");
        for (key, member) in members.iter_mut() {
            match (key.as_str(), member) {
                (
                    "properties" | "patternProperties" | "$defs" | "definitions",
                    Value::Object(schemas),
                ) => schemas.values_mut().for_each(|s| self.limit(s, true)),
                ("anyOf" | "oneOf" | "allOf", Value::Array(schemas)) => {
                    let alone = alone && !has_properties;
                    schemas.iter_mut().for_each(|s| self.limit(s, alone));
                }
                ("prefixItems" | "items", Value::Array(schemas)) => {
                    schemas.iter_mut().for_each(|s| self.limit(s, true));
                }
                ("items" | "additionalItems", schema) => self.limit(schema, true),
                // `true` here says that the client would not mind, not that it wants more.
                ("additionalProperties", schema) if schema.is_object() => self.limit(schema, true),
                _ => {}
            }
        }
    }

    fn limit_string(&self, members: &mut Map<String, Value>) {
        let unknown_format = matches!(members.get("format"), Some(Value::String(format))
            if !FORMATS.contains(&format.as_str()));
        if unknown_format {
            members.remove("format");
        }
        let limits = ["maxLength", "pattern", "format"];
        if !limits.iter().any(|keyword| members.contains_key(*keyword)) {
            let most = at_least(members, "minLength", self.bounds.string_chars);
            members.insert("maxLength".to_owned(), most);
        }
    }

    fn limit_array(&mut self, members: &mut Map<String, Value>) {
        if !members.contains_key("maxItems") {
            let most = at_least(members, "minItems", self.bounds.array_items);
            members.insert("maxItems".to_owned(), most);
        }
        if !members.contains_key("items") && !members.contains_key("prefixItems") {
            members.insert("items".to_owned(), self.any());
        }
    }

    fn limit_object(&mut self, members: &mut Map<String, Value>, alone: bool) {
        if members.contains_key("patternProperties") {
            return;
        }
        let others = members.get("additionalProperties");
        if members.contains_key("properties") {
            let names_all = matches!(others, None | Some(Value::Bool(true)));
            if names_all && alone && self.closes_objects {
                members.insert("additionalProperties".to_owned(), json!(false));
            }
            return;
        }
        if others == Some(&json!(false)) {
            return;
        }
        let member = match others {
            Some(schema @ Value::Object(_)) => schema.clone(),
            _ => self.any(),
        };
        let Some(key) = self.key_pattern(members) else {
            members.insert("additionalProperties".to_owned(), member);
            return;
        };
        members.remove("propertyNames");
        members.insert("patternProperties".to_owned(), json!({ key: member }));
        members.insert("additionalProperties".to_owned(), json!(false));
        if !members.contains_key("maxProperties") {
            let most = at_least(members, "minProperties", self.bounds.array_items);
            members.insert("maxProperties".to_owned(), most);
        }
    }

    /// A regular expression for the keys of an object that names none; none if its
    /// `propertyNames` ask for more than that can say.
    fn key_pattern(&self, members: &Map<String, Value>) -> Option<String> {
        let most = KEY_CHARS.min(self.bounds.string_chars);
        let names = match members.get("propertyNames") {
            None => return Some(format!("^.{{1,{most}}}$")),
            Some(names) => names.as_object()?,
        };
        let known = ["type", "pattern", "minLength", "maxLength"];
        if !names
            .keys()
            .all(|key| known.contains(&key.as_str()) || is_annotation(key))
        {
            return None;
        }
        if let Some(pattern) = names.get("pattern") {
            let lengths = names.contains_key("minLength") || names.contains_key("maxLength");
            return (!lengths).then(|| pattern.as_str().map(str::to_owned))?;
        }
        let length = |keyword: &str| names.get(keyword).and_then(Value::as_u64);
        let least = length("minLength").unwrap_or(1);
        let most = length("maxLength").unwrap_or_else(|| least.max(u64::from(most)));
        Some(format!("^.{{{least},{most}}}$"))
    }

    fn any(&mut self) -> Value {
        self.uses_any = true;
        json!({ "$ref": any_reference() })
    }

    fn any_definition(&mut self) -> Value {
        let mut kinds: Vec<Value> = ["string", "number", "boolean", "null", "array", "object"]
            .iter()
            .map(|kind| json!({ "type": kind }))
            .collect();
        kinds.iter_mut().for_each(|kind| self.limit(kind, true));
        json!({ "anyOf": kinds })
    }
}

fn any_reference() -> String {
    format!("#/$defs/{ANY_VALUE}")
}

/// `limit`, or what `keyword` asks for if that is more.
fn at_least(members: &Map<String, Value>, keyword: &str, limit: u32) -> Value {
    let least = members.get(keyword).and_then(Value::as_u64);
    json!(least.unwrap_or(0).max(u64::from(limit)))
}

fn limit_integer(members: &mut Map<String, Value>) {
    for (inclusive, exclusive, limit) in [
        ("minimum", "exclusiveMinimum", -SAFE_INTEGER),
        ("maximum", "exclusiveMaximum", SAFE_INTEGER),
    ] {
        if !members.contains_key(inclusive) && !members.contains_key(exclusive) {
            members.insert(inclusive.to_owned(), json!(limit));
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
            | "example"
            | "examples"
            | "deprecated"
            | "readOnly"
            | "writeOnly"
    )
}

/// Whether a schema speaks of values of this kind. One without a type speaks of those whose
/// keywords it uses.
fn allows(members: &Map<String, Value>, kind: &str) -> bool {
    match members.get("type") {
        Some(Value::String(only)) => only == kind,
        Some(Value::Array(kinds)) => kinds.iter().any(|k| k == kind),
        _ => match kind {
            "object" => members.contains_key("properties"),
            "array" => members.contains_key("items"),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        string_chars: 20,
        array_items: 3,
        calls: 1,
    };

    fn limited(schema: &Value) -> Value {
        let schema = Schema::parse(schema.to_string().as_bytes(), BOUNDS).unwrap();
        Value::Object(schema.root)
    }

    #[test]
    fn what_has_no_limit_gets_one() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "z": { "type": "string", "description": "Free." },
                "short": { "type": "string", "maxLength": 2 },
                "long": { "type": ["string", "null"], "minLength": 30 },
                "day": { "type": "string", "format": "date" },
                "odd": { "type": "string", "format": "int32" },
                "kind": { "enum": ["a", "b"] },
                "list": { "type": "array", "items": { "type": "integer", "minimum": 0 } },
                "sub": { "$ref": "#/$defs/sub" },
            },
            "required": ["z"],
            "$defs": { "sub": { "type": "object", "properties": {} } },
        });
        let expected = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "z": { "type": "string", "description": "Free.", "maxLength": 20 },
                "short": { "type": "string", "maxLength": 2 },
                "long": { "type": ["string", "null"], "minLength": 30, "maxLength": 30 },
                "day": { "type": "string", "format": "date" },
                "odd": { "type": "string", "maxLength": 20 },
                "kind": { "enum": ["a", "b"] },
                "list": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": SAFE_INTEGER }, "maxItems": 3 },
                "sub": { "$ref": "#/$defs/sub" },
            },
            "required": ["z"],
            "$defs": { "sub": { "type": "object", "properties": {}, "additionalProperties": false } },
            "additionalProperties": false,
        });
        // As text, for the order of keys counts: it is the order of generation.
        assert_eq!(limited(&schema).to_string(), expected.to_string());
    }

    #[test]
    fn schemas_that_describe_one_object_together_are_not_closed() {
        let schema = json!({
            "type": "object",
            "properties": { "kind": { "const": "a" } },
            "anyOf": [{ "properties": { "b": { "const": 1 } } }, { "required": ["c"] }],
        });
        assert_eq!(limited(&schema), schema);
        let schema = json!({ "allOf": [
            { "type": "object", "properties": { "a": { "const": 1 } } },
            { "type": "object", "properties": { "b": { "const": 1 } } },
        ] });
        assert_eq!(limited(&schema), schema);
    }

    #[test]
    fn open_objects_and_any_values_stay_within_bounds() {
        let schema = json!({ "properties": { "any": {}, "map": {
            "type": "object",
            "propertyNames": { "type": "string", "maxLength": 4 },
            "additionalProperties": { "type": "boolean" },
        } } });
        let limited = limited(&schema);
        let properties = &limited["properties"];
        assert_eq!(properties["any"], json!({ "$ref": "#/$defs/turnwire-any" }));
        assert_eq!(
            properties["map"],
            json!({
                "type": "object",
                "additionalProperties": false,
                "patternProperties": { "^.{1,4}$": { "type": "boolean" } },
                "maxProperties": 3,
            })
        );
        let any = &limited["$defs"]["turnwire-any"]["anyOf"];
        assert_eq!(any[0], json!({ "type": "string", "maxLength": 20 }));
        assert_eq!(any[4]["maxItems"], 3);
        assert_eq!(
            any[5]["patternProperties"]["^.{1,20}$"],
            json!({ "$ref": "#/$defs/turnwire-any" })
        );
    }

    #[test]
    fn references_follow_a_schema_to_its_new_place() {
        let schema = json!({ "type": "object", "properties": { "t": { "$ref": "#" }, "d": { "$ref": "#/$defs/d" } }, "$defs": { "d": { "const": 1 } } });
        let schema = Schema::parse_arguments(schema.to_string().as_bytes(), BOUNDS).unwrap();
        let either = Schema::any_of(vec![schema.into_call("f", "parameters")]).root;
        let properties = &either["anyOf"][0]["properties"]["parameters"]["properties"];
        assert_eq!(properties["t"]["$ref"], "#/anyOf/0/properties/parameters");
        assert_eq!(
            properties["d"]["$ref"],
            "#/anyOf/0/properties/parameters/$defs/d"
        );
    }

    #[test]
    fn arguments_are_an_object() {
        let parse = |schema: &str| Schema::parse_arguments(schema.as_bytes(), BOUNDS);
        assert_eq!(parse("{}").unwrap().root["type"], "object");
        assert_eq!(
            parse(r#"{"type":["object","null"]}"#).unwrap().root["type"],
            "object"
        );
        assert!(parse(r#"{"type":"string"}"#).is_err());
        assert!(parse("true").is_err());
    }
}
