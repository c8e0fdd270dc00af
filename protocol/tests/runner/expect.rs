//! What a line expects of some JSON: members with their values, and members that must be absent.

use std::collections::BTreeMap;

use serde_json::Value;

#[derive(Debug)]
pub(crate) struct Expected<'a> {
    members: Vec<(&'a str, Want<'a>)>,
}

#[derive(Debug)]
enum Want<'a> {
    Equal(Value),
    /// Anything, to be known under this name from now on.
    Name(&'a str),
    Absent,
}

impl<'a> Expected<'a> {
    /// Reads `a.b=1 c[0]="x y" d=$name !e`. A value is JSON, or a word taken as a string.
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        let mut members = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let end = rest.find([' ', '=']).unwrap_or(rest.len());
            let path = &rest[..end];
            if let Some(path) = path.strip_prefix('!') {
                members.push((path, Want::Absent));
                rest = rest[end..].trim_start();
                continue;
            }
            let value = rest[end..]
                .strip_prefix('=')
                .ok_or_else(|| format!("'{path}' has no value"))?;
            let (want, length) = read_value(value)?;
            members.push((path, want));
            rest = value[length..].trim_start();
        }
        Ok(Self { members })
    }

    pub(crate) fn check(
        &self,
        json: &Value,
        names: &mut BTreeMap<String, String>,
    ) -> Result<(), String> {
        for (path, want) in &self.members {
            let found = look_up(json, path);
            match (want, found) {
                (Want::Absent, None) => {}
                (Want::Equal(value), Some(found)) if value == found => {}
                (Want::Name(name), Some(Value::String(found))) => {
                    names.insert((*name).to_owned(), found.clone());
                }
                _ => {
                    return Err(format!(
                        "{path}: expected {want:?}, got {found:?} in {json}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The value at the start of `text`, and how long it is.
fn read_value(text: &str) -> Result<(Want<'_>, usize), String> {
    if text.starts_with(['"', '{', '[']) {
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let value = stream.next().ok_or("a value is missing")?;
        let value = value.map_err(|error| format!("{text}: {error}"))?;
        return Ok((Want::Equal(value), stream.byte_offset()));
    }
    let end = text.find(' ').unwrap_or(text.len());
    let word = &text[..end];
    let want = match word.strip_prefix('$') {
        Some(name) => Want::Name(name),
        None => Want::Equal(serde_json::from_str(word).unwrap_or(Value::String(word.to_owned()))),
    };
    Ok((want, end))
}

fn look_up<'v>(json: &'v Value, path: &str) -> Option<&'v Value> {
    path.split(['.', '['])
        .try_fold(json, |value, step| match step.strip_suffix(']') {
            Some(index) => value.get(index.parse::<usize>().ok()?),
            None => value.get(step),
        })
}
