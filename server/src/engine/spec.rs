//! Engine specifications: what follows `--engine`.

use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;

#[cfg(feature = "engine-llama")]
use crate::model_files::{ModelSource, SMOLLM2};

/// `[NAME=]SPEC`: an engine, and the name under which clients ask for its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSpec {
    pub name: Option<String>,
    pub kind: EngineKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// `scripted[:FILE]`.
    Scripted(Option<PathBuf>),
    /// `llama:NAME`, `llama:PATH` or `llama:hf:OWNER/REPO[:FILE]`.
    #[cfg(feature = "engine-llama")]
    Llama(ModelSource),
    /// `chat:URL`: a server of `/chat/completions` below that address.
    Chat(Url),
}

impl EngineSpec {
    /// What is served when nothing else is asked for.
    #[cfg(feature = "engine-llama")]
    pub fn default_model() -> Self {
        Self {
            name: None,
            kind: EngineKind::Llama(ModelSource::Packaged(SMOLLM2)),
        }
    }
}

impl FromStr for EngineSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(kind) = EngineKind::parse(text) {
            return Ok(Self {
                name: None,
                kind: kind?,
            });
        }
        let (name, spec) = text.split_once('=').unwrap_or(("", text));
        let kind = EngineKind::parse(spec).ok_or_else(|| {
            format!(
                "`{spec}` is no engine; write `llama:NAME`, `llama:PATH`, \
                     `llama:hf:OWNER/REPO[:FILE]`, `chat:URL`, `scripted` or `scripted:FILE`"
            )
        })??;
        let name = (!name.is_empty()).then(|| name.to_owned());
        Ok(Self { name, kind })
    }
}

impl EngineKind {
    /// None if `spec` does not begin like an engine.
    fn parse(spec: &str) -> Option<Result<Self, String>> {
        match spec.split_once(':').unwrap_or((spec, "")) {
            ("scripted", "") => Some(Ok(Self::Scripted(None))),
            ("scripted", file) => Some(Ok(Self::Scripted(Some(file.into())))),
            ("chat", url) => Some(chat_url(url).map(Self::Chat)),
            #[cfg(feature = "engine-llama")]
            ("llama", source) => {
                let source = source.parse::<ModelSource>();
                Some(source.map(Self::Llama).map_err(|error| error.to_string()))
            }
            #[cfg(not(feature = "engine-llama"))]
            ("llama", _) => Some(Err(
                "this build has no embedded engine; build it with the feature `engine-llama`"
                    .into(),
            )),
            _ => None,
        }
    }
}

fn chat_url(text: &str) -> Result<Url, String> {
    let problem = |problem: &str| {
        format!("`chat:{text}`: {problem}; write it like `chat:http://127.0.0.1:8000/v1`")
    };
    let url: Url = text
        .parse()
        .map_err(|error| problem(&format!("this is no address ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
        return Err(problem("the address must begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(problem(
            "a key does not belong here, but into --upstream-key-file",
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_stand_before_the_engine() {
        let spec = |text: &str| text.parse::<EngineSpec>();
        let scripted = |name: Option<&str>, file: Option<&str>| {
            Ok(EngineSpec {
                name: name.map(String::from),
                kind: EngineKind::Scripted(file.map(PathBuf::from)),
            })
        };
        assert_eq!(spec("scripted"), scripted(None, None));
        assert_eq!(spec("scripted:a=b.toml"), scripted(None, Some("a=b.toml")));
        assert_eq!(
            spec("gpt:4=scripted:a.toml"),
            scripted(Some("gpt:4"), Some("a.toml"))
        );
        let named = spec("gpt=chat:http://127.0.0.1:8000/v1").unwrap();
        assert_eq!(named.name.as_deref(), Some("gpt"));
        for wrong in [
            "chat:",
            "chat:host/v1",
            "chat:ws://host/v1",
            "chat:http://key@host/v1",
        ] {
            assert!(spec(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
        for wrong in ["", "vllm:x", "name=", "name=vllm:x"] {
            assert!(spec(wrong).unwrap_err().contains("is no engine"), "{wrong}");
        }
    }
}
