//! Create: what a turn is asked for with.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::item;
use crate::json::Json;

/// A `response.create`: the members that a caller usually sets by name, and all others by
/// [`Create::member`].
///
/// The items are those that are new. What came before is added by the [`Lane`](crate::Lane), as
/// are `type`, `stream_id` and `previous_response_id`. Instructions and tools are not inherited
/// from the turn before, so they are in every create; a clone of a create is a good beginning of
/// the next.
///
/// ```
/// use turnwire_client::{Create, item};
///
/// let create = Create::new("gpt-6-astra")
///     .instructions("Answer in one sentence.")
///     .item(item::user("What is a lane?"))
///     .member("temperature", serde_json::json!(0.2));
/// ```
#[derive(Clone, Debug)]
pub struct Create {
    model: String,
    pub(crate) input: Vec<Json>,
    pub(crate) store: bool,
    pub(crate) generate: bool,
    /// In the order in which they were first set.
    members: Vec<(String, Json)>,
}

impl Create {
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            input: Vec::new(),
            store: false,
            generate: true,
            members: Vec::new(),
        }
    }

    /// Adds one item to the input.
    #[must_use]
    pub fn item(mut self, item: Json) -> Self {
        self.input.push(item);
        self
    }

    /// Adds items to the input.
    #[must_use]
    pub fn items(mut self, items: impl IntoIterator<Item = Json>) -> Self {
        self.input.extend(items);
        self
    }

    /// Adds a message of the user.
    #[must_use]
    pub fn user(self, text: &str) -> Self {
        self.item(item::user(text))
    }

    #[must_use]
    pub fn instructions(self, text: &str) -> Self {
        self.member("instructions", text)
    }

    #[must_use]
    pub fn tools(self, tools: Vec<Json>) -> Self {
        self.member("tools", tools)
    }

    /// `auto`, `required`, `none`, or an object that names a tool.
    #[must_use]
    pub fn tool_choice(self, choice: impl Into<Json>) -> Self {
        self.member("tool_choice", choice)
    }

    #[must_use]
    pub fn max_output_tokens(self, tokens: u64) -> Self {
        self.member("max_output_tokens", tokens)
    }

    /// Whether the server keeps the response beyond the connection: not by default, other than
    /// the API's own default. What is not stored is lost with its socket, and the lane then sends
    /// the whole history again.
    #[must_use]
    pub fn store(mut self, store: bool) -> Self {
        self.store = store;
        self
    }

    /// False for a warm-up: the server prepares the context and says nothing.
    #[must_use]
    pub fn generate(mut self, generate: bool) -> Self {
        self.generate = generate;
        self
    }

    /// Sets any other member, or one of the above in another form. The last value counts.
    ///
    /// The members that the lane sets (`type`, `stream`, `stream_id`, `previous_response_id`) and
    /// those with a method and a field of their own (`model`, `input`, `store`, `generate`) are
    /// passed over.
    #[must_use]
    pub fn member(mut self, name: &str, value: impl Into<Json>) -> Self {
        let value = value.into();
        match self.members.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.members.push((name.to_owned(), value)),
        }
        self
    }
}

/// Members that are not taken from [`Create::member`].
const RESERVED: [&str; 8] = [
    "type",
    "stream",
    "stream_id",
    "previous_response_id",
    "model",
    "input",
    "store",
    "generate",
];

/// A create with all that its lane adds, ready to be sent.
pub(crate) struct Request<'a> {
    pub(crate) create: &'a Create,
    /// The body of a POST, rather than a message on a socket.
    pub(crate) over_http: bool,
    pub(crate) lane: Option<&'a str>,
    pub(crate) parent: Option<&'a str>,
    /// What stands before the new items.
    pub(crate) before: Vec<&'a Json>,
}

impl Serialize for Request<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Create {
            model,
            input,
            store,
            generate,
            members,
        } = self.create;
        let mut map = serializer.serialize_map(None)?;
        if self.over_http {
            map.serialize_entry("stream", &true)?;
        } else {
            map.serialize_entry("type", "response.create")?;
            if let Some(lane) = self.lane {
                map.serialize_entry("stream_id", lane)?;
            }
        }
        map.serialize_entry("model", model)?;
        map.serialize_entry("store", store)?;
        if let Some(parent) = self.parent {
            map.serialize_entry("previous_response_id", parent)?;
        }
        if !generate {
            map.serialize_entry("generate", &false)?;
        }
        for (name, value) in members {
            if !RESERVED.contains(&name.as_str()) {
                map.serialize_entry(name, value)?;
            }
        }
        let input: Vec<&Json> = self.before.iter().copied().chain(input).collect();
        map.serialize_entry("input", &input)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent(create: &Create, over_http: bool) -> String {
        let before = item::user("before");
        let request = Request {
            create,
            over_http,
            lane: Some("a"),
            parent: Some("resp_1"),
            before: vec![&before],
        };
        serde_json::to_string(&request).expect("a request is JSON")
    }

    #[test]
    fn a_request_keeps_the_order_and_the_text_of_what_it_is_given() {
        let tool = Json::parse(r#"{"type":"function","name":"z", "a":1.0}"#).expect("JSON");
        let create = Create::new("m")
            .tools(vec![tool])
            .member("text", json!({"verbosity": "low"}))
            .member("stream_id", "another")
            .item(Json::parse(r#"{"role": "user","content":"new"}"#).expect("JSON"));
        assert_eq!(
            sent(&create, false),
            r#"{"type":"response.create","stream_id":"a","model":"m","store":false,"#.to_owned()
                + r#""previous_response_id":"resp_1","#
                + r#""tools":[{"type":"function","name":"z", "a":1.0}],"#
                + r#""text":{"verbosity":"low"},"#
                + r#""input":[{"type":"message","role":"user","content":"before"},"#
                + r#"{"role": "user","content":"new"}]}"#
        );
    }

    #[test]
    fn over_http_there_is_no_lane_and_a_stream_is_asked_for() {
        let create = Create::new("m").store(true);
        assert_eq!(
            sent(&create, true),
            r#"{"stream":true,"model":"m","store":true,"previous_response_id":"resp_1","#
                .to_owned()
                + r#""input":[{"type":"message","role":"user","content":"before"}]}"#
        );
    }
}
