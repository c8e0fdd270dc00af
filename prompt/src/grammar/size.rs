//! How large a schema may be: what is larger would cost seconds or overflow a stack.
//!
//! A compiler of grammars goes down into a schema by recursion, and follows references from
//! there. JSON itself is read to a depth of 128 only, but a chain of references has no end but
//! this one.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Members of one object. Compiling takes time by the square of them: a tenth of a second here.
const MEMBERS: usize = 1_000;
/// Items of one list.
const ITEMS: usize = 10_000;
/// Levels of JSON that a chain of references may lead through at most. llguidance needs less
/// than 8 MiB of stack for them.
const LEVELS: usize = 2_000;

/// Refuses a schema that is too large to compile. Errors are for the client.
pub(super) fn check(schema: &Map<String, Value>) -> Result<(), String> {
    let mut size = Size::default();
    size.object(schema, 1);
    if size.members > MEMBERS {
        Err(format!("an object in it has more than {MEMBERS} members"))
    } else if size.items > ITEMS {
        Err(format!("a list in it has more than {ITEMS} items"))
    } else if !size.references.is_empty() && (size.references.len() + 1) * size.depth > LEVELS {
        Err("its references are too many for how deep it is".to_owned())
    } else {
        Ok(())
    }
}

#[derive(Default)]
struct Size<'a> {
    /// Of the largest object.
    members: usize,
    /// Of the longest list.
    items: usize,
    depth: usize,
    references: HashSet<&'a str>,
}

impl<'a> Size<'a> {
    fn value(&mut self, value: &'a Value, depth: usize) {
        match value {
            Value::Object(members) => self.object(members, depth),
            Value::Array(items) => {
                self.items = self.items.max(items.len());
                items.iter().for_each(|item| self.value(item, depth + 1));
            }
            _ => {}
        }
    }

    fn object(&mut self, members: &'a Map<String, Value>, depth: usize) {
        self.members = self.members.max(members.len());
        self.depth = self.depth.max(depth);
        for (key, member) in members {
            match member {
                Value::String(target) if key == "$ref" => {
                    self.references.insert(target);
                }
                member => self.value(member, depth + 1),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(schema: Value) -> Result<(), String> {
        let Value::Object(schema) = schema else {
            panic!("a schema is an object")
        };
        check(&schema)
    }

    fn object(members: usize) -> Value {
        (0..members)
            .map(|i| (format!("p{i}"), json!({ "type": "string" })))
            .collect()
    }

    /// `x0` refers to `x1`, that to `x2`, and so on.
    fn chain(links: usize) -> Value {
        let link = |i: usize| json!({ "$ref": format!("#/$defs/x{}", i + 1) });
        let mut definitions: Map<String, Value> =
            (0..links).map(|i| (format!("x{i}"), link(i))).collect();
        definitions.insert(format!("x{links}"), json!({ "type": "string" }));
        json!({ "properties": { "a": { "$ref": "#/$defs/x0" } }, "$defs": definitions })
    }

    #[test]
    fn schemas_of_the_size_that_people_write_pass() {
        assert_eq!(checked(json!({ "properties": object(MEMBERS) })), Ok(()));
        assert_eq!(checked(json!({ "enum": vec![0; ITEMS] })), Ok(()));
        assert_eq!(checked(chain(400)), Ok(()));
        let tree =
            json!({ "$ref": "#/$defs/t", "$defs": { "t": { "items": { "$ref": "#/$defs/t" } } } });
        assert_eq!(checked(tree), Ok(()));
    }

    #[test]
    fn larger_ones_are_refused_wherever_they_are_large() {
        let wide = json!({ "anyOf": [{ "const": object(MEMBERS + 1) }] });
        assert!(checked(wide).unwrap_err().contains("1000 members"));
        let long = json!({ "properties": { "a": { "enum": vec![0; ITEMS + 1] } } });
        assert!(checked(long).unwrap_err().contains("10000 items"));
        assert!(checked(chain(900)).unwrap_err().contains("references"));
    }
}
