//! Names of repositories and files on the hub. They become parts of paths and addresses here,
//! so whatever could lead out of a directory is refused when they are read.

use std::fmt;
use std::str::FromStr;

/// `OWNER/REPO[:FILE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    pub(super) repository: Repository,
    pub(super) file: Option<GgufPath>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    owner: String,
    name: String,
}

/// The path of a GGUF file inside a repository: relative, with no way up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GgufPath(String);

#[derive(Debug, thiserror::Error)]
#[error("`hf:{text}`: {reason}; a model of the Hugging Face hub is written `hf:OWNER/REPO[:FILE]`")]
pub struct InvalidHubModel {
    text: String,
    reason: &'static str,
}

impl HubModel {
    /// `OWNER/REPO`.
    pub fn repository(&self) -> String {
        self.repository.to_string()
    }
}

impl Repository {
    pub(super) fn segments(&self) -> [&str; 2] {
        [&self.owner, &self.name]
    }

    /// One directory name, the same for no other repository: names hold no `--`.
    pub(super) fn directory(&self) -> String {
        format!("{}--{}", self.owner, self.name)
    }
}

impl GgufPath {
    /// None for anything that is not a plain relative path ending in `.gguf`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let plain = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && !segment.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'))
        };
        let fits = text.len() <= 512 && text.ends_with(".gguf") && text.split('/').all(plain);
        fits.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// The directory part, empty for a file at the top.
    pub(super) fn directory(&self) -> &str {
        self.0
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory)
    }
}

impl FromStr for HubModel {
    type Err = InvalidHubModel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| InvalidHubModel {
            text: text.to_owned(),
            reason,
        };
        let (repository, file) = match text.split_once(':') {
            Some((repository, file)) => (repository, Some(file)),
            None => (text, None),
        };
        let (owner, name) = repository
            .split_once('/')
            .ok_or_else(|| invalid("the owner is missing"))?;
        if !is_name(owner) || !is_name(name) {
            return Err(invalid(
                "owner and repository consist of letters, digits, `-`, `_` and `.`",
            ));
        }
        let file = file
            .map(|file| {
                GgufPath::parse(file)
                    .ok_or_else(|| invalid("the file must be a plain path that ends in `.gguf`"))
            })
            .transpose()?;
        Ok(Self {
            repository: Repository {
                owner: owner.to_owned(),
                name: name.to_owned(),
            },
            file,
        })
    }
}

/// The hub's own rule for names of users and repositories.
fn is_name(text: &str) -> bool {
    (1..=96).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl fmt::Display for GgufPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}:{file}", self.repository),
            None => self.repository.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for text in [
            "",
            "repo",
            "/repo",
            "owner/",
            "a/b/c",
            "../b",
            "a/..",
            "a/.b",
            "-a/b",
            "a--b/c",
            "a/b?x",
            "a/b#x",
            "a/b c",
            "a/b%2f",
            "a/ü",
            "a/b:",
            "a/b:x.bin",
            "a/b:/x.gguf",
            "a/b:../x.gguf",
            "a/b:x/../y.gguf",
            "a/b:x//y.gguf",
            "a/b:x\\y.gguf",
            "a/b:x\n.gguf",
            "a/b:.gguf",
            "a/b:c:d.gguf",
        ] {
            let error = text.parse::<HubModel>().expect_err(text).to_string();
            assert!(error.contains("hf:OWNER/REPO[:FILE]"), "{error}");
        }
    }

    #[test]
    fn a_file_may_lie_in_a_directory() {
        let model: HubModel = "Qwen/Qwen3-0.6B-GGUF:Q8/model v1.gguf".parse().unwrap();
        assert_eq!(model.repository(), "Qwen/Qwen3-0.6B-GGUF");
        let file = model.file.unwrap();
        assert_eq!(
            (file.directory(), file.file_name()),
            ("Q8", "model v1.gguf")
        );
    }
}
