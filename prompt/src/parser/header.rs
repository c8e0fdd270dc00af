//! What stands before a call's arguments, `{"name": "f", "arguments": `, or before the input of a
//! custom tool: `{"name": "f"}` and the end of the line.

/// What is known about a header from what has come of it so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// Well formed so far, but more must come.
    Partial,
    Malformed,
    /// `arguments` is where the arguments' opening brace stands.
    Function {
        name: String,
        arguments: usize,
    },
    /// `input` is where the input begins.
    Custom {
        name: String,
        input: usize,
    },
}

/// Longer than any header: names have at most 128 characters.
const LONGEST: usize = 1024;

pub(super) fn read(bytes: &[u8], arguments_key: &str) -> Header {
    let mut scanner = Scanner { bytes, at: 0 };
    match scanner.header(arguments_key) {
        Ok(header) => header,
        Err(Stop::End) if bytes.len() <= LONGEST => Header::Partial,
        Err(_) => Header::Malformed,
    }
}

/// A whole call in one piece, its members in any order and its arguments possibly as a string
/// that holds JSON. Gives its name and the JSON of its arguments.
pub(super) fn read_whole(call: &[u8], arguments_key: &str) -> Option<(String, String)> {
    let members: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(call).ok()?;
    let name = members.get("name")?.as_str()?.to_owned();
    match members.get(arguments_key)? {
        object @ serde_json::Value::Object(_) => Some((name, object.to_string())),
        serde_json::Value::String(text) => {
            serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).ok()?;
            Some((name, text.clone()))
        }
        _ => None,
    }
}

enum Stop {
    End,
    Malformed,
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn header(&mut self, arguments_key: &str) -> Result<Header, Stop> {
        self.token("{")?;
        self.token("\"name\"")?;
        self.token(":")?;
        let name = self.string()?;
        self.white_space();
        if self.bytes.get(self.at) == Some(&b'}') {
            let input = self.at + 2;
            return match self.bytes.get(self.at + 1) {
                Some(b'\n') => Ok(Header::Custom { name, input }),
                Some(_) => Err(Stop::Malformed),
                None => Err(Stop::End),
            };
        }
        self.token(",")?;
        self.token(&format!("\"{arguments_key}\""))?;
        self.token(":")?;
        self.white_space();
        match self.bytes.get(self.at) {
            Some(b'{') => Ok(Header::Function {
                name,
                arguments: self.at,
            }),
            Some(_) => Err(Stop::Malformed),
            None => Err(Stop::End),
        }
    }

    fn white_space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn token(&mut self, token: &str) -> Result<(), Stop> {
        self.white_space();
        for expected in token.bytes() {
            match self.bytes.get(self.at) {
                Some(&byte) if byte == expected => self.at += 1,
                Some(_) => return Err(Stop::Malformed),
                None => return Err(Stop::End),
            }
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String, Stop> {
        self.white_space();
        let start = self.at;
        self.token("\"")?;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(Stop::End),
                Some(b'\\') => self.at += 2,
                Some(b'"') => break,
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        serde_json::from_slice(&self.bytes[start..self.at]).map_err(|_| Stop::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_known_as_soon_as_it_can_be() {
        let header = br#" { "name" : "get\u005fx", "arguments": {"a""#;
        for length in 0..header.len() - 4 {
            assert_eq!(read(&header[..length], "arguments"), Header::Partial);
        }
        let complete = Header::Function {
            name: "get_x".to_owned(),
            arguments: header.len() - 4,
        };
        assert_eq!(read(header, "arguments"), complete);
        for malformed in [
            "x",
            r#"{"nam_"#,
            r#"{"name": 3"#,
            r#"{"name": "f", "parameters""#,
            r#"{"name": "f", "arguments": ["#,
            r#"{"name": "f"} x"#,
        ] {
            assert_eq!(read(malformed.as_bytes(), "arguments"), Header::Malformed);
        }
        let custom = b"{\"name\": \"f\"}\n\nx";
        assert_eq!(read(&custom[..13], "arguments"), Header::Partial);
        let (name, input) = ("f".to_owned(), 14);
        assert_eq!(read(custom, "arguments"), Header::Custom { name, input });
        let endless = format!("{{\"name\": \"{}", "a".repeat(2000));
        assert_eq!(read(endless.as_bytes(), "arguments"), Header::Malformed);
    }

    #[test]
    fn a_whole_call_may_have_its_members_in_any_order() {
        let call = br#"{"arguments": "{\"a\": 1}", "name": "f"}"#;
        assert_eq!(
            read_whole(call, "arguments"),
            Some(("f".to_owned(), r#"{"a": 1}"#.to_owned()))
        );
        assert_eq!(read_whole(br#"{"name": "f"}"#, "arguments"), None);
    }
}
