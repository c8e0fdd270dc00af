//! How a model writes a call of a function.

/// The text around a call's name and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallStyle {
    /// Hermes, Qwen and others:
    /// `<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>`.
    Hermes {
        /// White space behind `<tool_call>`, before `</tool_call>`, and between two calls.
        inside: [String; 2],
        between: String,
    },
    /// Llama 3: `{"name": "f", "parameters": {}}`, possibly behind `<|python_tag|>`, is the
    /// whole message.
    Llama {
        /// Whether the model has `<|python_tag|>` as a control token.
        tag: bool,
    },
}

pub(crate) const CALL_OPEN: &str = "<tool_call>";
pub(crate) const CALL_CLOSE: &str = "</tool_call>";
pub(crate) const RESULT_OPEN: &str = "<tool_response>";
pub(crate) const RESULT_CLOSE: &str = "</tool_response>";
pub(crate) const PYTHON_TAG: &str = "<|python_tag|>";
pub(crate) const THINK_OPEN: &str = "<think>";
pub(crate) const THINK_CLOSE: &str = "</think>";

impl CallStyle {
    /// What a model is told to write that knows no calls of its own.
    pub(crate) fn taught() -> Self {
        Self::Hermes {
            inside: ["\n".to_owned(), "\n".to_owned()],
            between: "\n".to_owned(),
        }
    }

    /// The name of the member that holds the arguments.
    pub(crate) fn arguments_key(&self) -> &'static str {
        match self {
            Self::Hermes { .. } => "arguments",
            Self::Llama { .. } => "parameters",
        }
    }

    /// What stands before a call's JSON object.
    pub(crate) fn before_call(&self) -> String {
        match self {
            Self::Hermes { inside, .. } => format!("{CALL_OPEN}{}", inside[0]),
            Self::Llama { .. } => String::new(),
        }
    }

    /// What stands behind it.
    pub(crate) fn after_call(&self) -> String {
        match self {
            Self::Hermes { inside, .. } => format!("{}{CALL_CLOSE}", inside[1]),
            Self::Llama { .. } => String::new(),
        }
    }

    /// What stands between two calls.
    pub(crate) fn between_calls(&self) -> &str {
        match self {
            Self::Hermes { between, .. } => between,
            Self::Llama { .. } => "; ",
        }
    }

    /// The style of two rendered calls of `name` without arguments, if it is a known one.
    pub(super) fn detect(rendered: &str, name: &str, has_tag: bool) -> Option<Self> {
        let bare: String = rendered.split_whitespace().collect();
        let hermes = format!(r#"{CALL_OPEN}{{"name":"{name}","arguments":{{}}}}{CALL_CLOSE}"#);
        if bare.contains(&hermes) {
            let white_space_at = |open: &str, close: &str| {
                let from = rendered.find(open)? + open.len();
                let length = rendered[from..].find(close)?;
                let between = &rendered[from..from + length];
                between.trim().is_empty().then(|| between.to_owned())
            };
            return Some(Self::Hermes {
                inside: [
                    white_space_at(CALL_OPEN, "{")?,
                    white_space_at("{}}", CALL_CLOSE)?,
                ],
                between: white_space_at(CALL_CLOSE, CALL_OPEN).unwrap_or_else(|| "\n".to_owned()),
            });
        }
        let llama = format!(r#"{{"name":"{name}","parameters":{{}}}}"#);
        bare.contains(&llama)
            .then_some(Self::Llama { tag: has_tag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_styles_are_recognised_by_their_text() {
        let hermes = "x<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>y";
        assert_eq!(
            CallStyle::detect(hermes, "f", false),
            Some(CallStyle::taught())
        );
        let tight = r#"<tool_call>{"name":"f","arguments":{}}</tool_call>"#;
        assert_eq!(
            CallStyle::detect(tight, "f", false),
            Some(CallStyle::Hermes {
                inside: [String::new(), String::new()],
                between: "\n".to_owned()
            })
        );
        assert_eq!(
            CallStyle::detect(r#"{"name": "f", "parameters": {}}"#, "f", true),
            Some(CallStyle::Llama { tag: true })
        );
        assert_eq!(
            CallStyle::detect("<tool_call>\n<function=f>\n</function>", "f", false),
            None
        );
    }
}
