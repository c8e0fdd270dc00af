//! What an engine says in a conversation.

use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, ItemStart, TokenLogprob,
    TopLogprob, Usage,
};
use turnwire_protocol::tool::ToolName;

/// Reads `started; message; text "a"; done; finished`.
pub(crate) fn parse(text: &str) -> Result<Vec<EngineOutput>, String> {
    let mut outputs = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (words, after) = words(rest)?;
        outputs.extend(phrase(&words)?);
        rest = after;
    }
    Ok(outputs)
}

/// The words up to the next semicolon, quotes taken off, and what follows it.
fn words(text: &str) -> Result<(Vec<String>, &str), String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix(';') {
            return Ok((words, after.trim_start()));
        }
        if rest.is_empty() {
            return Ok((words, rest));
        }
        let end = if rest.starts_with('"') {
            let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let word = stream.next().ok_or("a string must end")?;
            words.push(word.map_err(|error| error.to_string())?);
            stream.byte_offset()
        } else {
            let end = rest.find([' ', ';']).unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            end
        };
        rest = rest[end..].trim_start();
    }
}

fn phrase(words: &[String]) -> Result<Vec<EngineOutput>, String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words[..] {
        ["started"] => vec![EngineOutput::Started],
        ["message"] => vec![EngineOutput::ItemStarted(ItemStart::Message)],
        ["reasoning"] => vec![EngineOutput::ItemStarted(ItemStart::Reasoning)],
        ["call", name] => vec![call(name)],
        ["custom", name] => vec![custom(name)],
        ["text", text] => vec![text_delta(text, Vec::new())],
        ["text", text, "times", count] => {
            let count = count.parse().map_err(|_| "a count is a number")?;
            vec![text_delta(&text.repeat(count), Vec::new())]
        }
        ["args", text, "times", count] => {
            let count = count.parse().map_err(|_| "a count is a number")?;
            let text = text.repeat(count);
            vec![EngineOutput::ArgumentsDelta { text }]
        }
        ["text", text, "logprob", logprob] => {
            let logprob = logprob
                .parse()
                .map_err(|_| "a log probability is a number")?;
            vec![text_delta(text, vec![token(text, logprob)])]
        }
        ["refusal", text] => vec![EngineOutput::RefusalDelta { text: text.into() }],
        ["think", text] => vec![EngineOutput::ReasoningDelta { text: text.into() }],
        ["input", text] => vec![EngineOutput::InputDelta { text: text.into() }],
        ["args", text] => vec![EngineOutput::ArgumentsDelta { text: text.into() }],
        ["done"] => vec![EngineOutput::ItemDone],
        ["finished", ref details @ ..] => vec![finished(details)?],
        ["failed", kind, message, ref param @ ..] => vec![failed(kind, message, param)?],
        ["says", text] => vec![
            EngineOutput::Started,
            EngineOutput::ItemStarted(ItemStart::Message),
            text_delta(text, Vec::new()),
            EngineOutput::ItemDone,
            finished(&[])?,
        ],
        ["calls", name, arguments] => vec![
            EngineOutput::Started,
            call(name),
            EngineOutput::ArgumentsDelta {
                text: arguments.into(),
            },
            EngineOutput::ItemDone,
            finished(&[])?,
        ],
        ["customs", name, input] => vec![
            EngineOutput::Started,
            custom(name),
            EngineOutput::InputDelta { text: input.into() },
            EngineOutput::ItemDone,
            finished(&[])?,
        ],
        _ => return Err(format!("an engine cannot say {words:?}")),
    })
}

fn call(name: &str) -> EngineOutput {
    let tool = tool(name);
    EngineOutput::ItemStarted(ItemStart::FunctionCall { tool })
}

fn custom(name: &str) -> EngineOutput {
    let tool = tool(name);
    EngineOutput::ItemStarted(ItemStart::CustomToolCall { tool })
}

/// A tool by its name, behind its namespace and a dot if it has one.
fn tool(name: &str) -> ToolName {
    match name.split_once('.') {
        Some((namespace, name)) => ToolName {
            namespace: Some(namespace.into()),
            name: name.into(),
        },
        None => name.into(),
    }
}

fn text_delta(text: &str, logprobs: Vec<TokenLogprob>) -> EngineOutput {
    EngineOutput::TextDelta {
        text: text.into(),
        logprobs,
    }
}

fn token(text: &str, logprob: f32) -> TokenLogprob {
    TokenLogprob {
        token: text.into(),
        bytes: text.into(),
        logprob,
        top: vec![TopLogprob {
            token: text.into(),
            bytes: text.into(),
            logprob,
        }],
    }
}

fn finished(details: &[&str]) -> Result<EngineOutput, String> {
    let mut usage = Usage {
        input_tokens: 12,
        cached_tokens: 5,
        output_tokens: 3,
        reasoning_tokens: 0,
    };
    let mut reason = FinishReason::Stop;
    for detail in details {
        match detail.split_once('=') {
            Some((name, value)) => {
                let value = value.parse().map_err(|_| "usage is in numbers")?;
                match name {
                    "input" => usage.input_tokens = value,
                    "cached" => usage.cached_tokens = value,
                    "output" => usage.output_tokens = value,
                    "reasoning" => usage.reasoning_tokens = value,
                    other => return Err(format!("usage has no {other}")),
                }
            }
            None => {
                reason = match *detail {
                    "max_output_tokens" => FinishReason::MaxOutputTokens,
                    "content_filter" => FinishReason::ContentFilter,
                    "context_threshold" => FinishReason::ContextThreshold,
                    "wrapped_up" => FinishReason::WrappedUp,
                    other => return Err(format!("nothing finishes with {other}")),
                }
            }
        }
    }
    Ok(EngineOutput::Finished {
        reason,
        usage,
        state: None,
    })
}

fn failed(kind: &str, message: &str, param: &[&str]) -> Result<EngineOutput, String> {
    let kind = match kind {
        "model_not_found" => EngineFailureKind::ModelNotFound,
        "context_length_exceeded" => EngineFailureKind::ContextLengthExceeded,
        "unsupported" => EngineFailureKind::Unsupported,
        "invalid" => EngineFailureKind::Invalid,
        "overloaded" => EngineFailureKind::Overloaded,
        "rate_limited" => EngineFailureKind::RateLimited {
            retry_after_seconds: 7,
        },
        "internal" => EngineFailureKind::Internal,
        other => return Err(format!("an engine does not fail with {other}")),
    };
    Ok(EngineOutput::Failed(EngineFailure {
        kind,
        message: message.to_owned(),
        param: param.first().map(ToString::to_string),
    }))
}
