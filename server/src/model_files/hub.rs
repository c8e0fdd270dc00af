//! Models of the Hugging Face hub, or of a mirror that has its two routes: the list of a
//! repository's files with their hashes, and the files themselves.

mod choice;
mod download;
mod library;
mod name;
mod remote;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{StatusCode, Url};

use super::ModelFileError;
use super::cache::{self, Cache, CacheError, Identity, failed};
use super::progress;
use choice::NoChoice;
use download::{Download, DownloadError};
use library::LibraryCache;
use name::{GgufPath, Repository};
use remote::{Remote, Token};

pub use name::{HubModel, InvalidHubModel};

const PUBLIC_HUB: &str = "https://huggingface.co";

/// Which hub, as whom, and where its own library keeps what it has downloaded.
#[derive(Debug)]
pub(super) struct Hub {
    /// An address, or what was given instead of one.
    endpoint: Result<Url, String>,
    token: Option<Token>,
    library: Option<LibraryCache>,
    /// Before the first new try of an interrupted download; doubled for each further one.
    retry_wait: Duration,
}

/// The hub gave no file, and neither of the caches has it.
#[derive(Debug, thiserror::Error)]
#[error("hf:{model}: {reason}")]
pub struct HubError {
    model: HubModel,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error(
        "it is not in the cache, and the hub at {endpoint} cannot be reached ({})\n\
         \n\
         Three ways out:\n\
         1. a GGUF file you have:       turnwire serve --engine llama:/path/to/model.gguf\n\
         2. a mirror of the hub:        HF_ENDPOINT=https://… turnwire serve …\n\
         3. no model, scripted answers: turnwire serve --engine scripted",
        innermost(source)
    )]
    Unreachable {
        endpoint: String,
        source: reqwest::Error,
    },
    #[error(
        "the hub refuses access (HTTP {}). There is no such repository, or it is private or gated: \
         accept its terms on its page and set HF_TOKEN to a token that may read it",
        .0.as_u16()
    )]
    Refused(StatusCode),
    #[error("not found on the hub; check the spelling of owner, repository and file")]
    NotFound,
    #[error("the hub answered with HTTP {}; try again later", .0.as_u16())]
    Status(StatusCode),
    #[error("the hub's list of its files cannot be read: {0}")]
    BadListing(String),
    #[error("HF_ENDPOINT={0:?} is not an http or https address")]
    InvalidEndpoint(String),
    #[error("the repository {0}")]
    NoChoice(#[from] NoChoice),
    #[error(
        "the hub names no SHA-256 for {0}, so it could not be checked; download it by hand and give \
         its path"
    )]
    NoHash(GgufPath),
    #[error("{0}. What has come is kept; start again to go on from there")]
    Download(DownloadError),
    #[error(
        "the file came with another SHA-256 ({found}) than the hub announces ({expected}) and was \
         removed; start again to download it anew"
    )]
    WrongHash { found: String, expected: String },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Hub {
    pub(super) fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned());
        let endpoint = match Url::parse(&endpoint) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
            _ => Err(endpoint),
        };
        let library = path("HF_HUB_CACHE")
            .or_else(|| Some(path("HF_HOME")?.join("hub")))
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface/hub")))
            .map(LibraryCache);
        Self {
            endpoint,
            token: text("HF_TOKEN").map(Token),
            library,
            retry_wait: Duration::from_secs(1),
        }
    }

    /// From our cache, from the cache of the hub's own library, or from the hub, in this order.
    pub(super) async fn resolve(
        &self,
        model: &HubModel,
        cache: &Cache,
    ) -> Result<PathBuf, ModelFileError> {
        self.find(model, cache).await.map_err(|reason| {
            let model = model.clone();
            HubError { model, reason }.into()
        })
    }

    async fn find(&self, model: &HubModel, cache: &Cache) -> Result<PathBuf, Reason> {
        let repository = &model.repository;
        let relative = format!("hub/{}", repository.directory());
        let directory = cache.directory(&relative)?;
        let _lock = cache::lock(&directory.join("lock")).await?;
        // A choice once made stays, or another model might be served after a restart.
        let choice = directory.join("chosen");
        let chosen = || GgufPath::parse(fs::read_to_string(&choice).ok()?.trim_end());
        if let Some(file) = model.file.clone().or_else(chosen)
            && let Some(path) = self.find_here(repository, &file, &directory).await?
        {
            return Ok(path);
        }

        let endpoint = self.endpoint.as_ref();
        let endpoint = endpoint.map_err(|value| Reason::InvalidEndpoint(value.clone()))?;
        let remote = Remote::new(endpoint, self.token.as_ref())?;
        let listing = match remote.list(repository).await {
            Ok(listing) => listing,
            Err(reason) => {
                let library = self.library.as_ref().filter(|_| model.file.is_none());
                let path = library.and_then(|library| library.choose(repository));
                return path.ok_or(reason);
            }
        };
        let (file, identity) = listing.choose(model.file.as_ref())?;
        if model.file.is_none() {
            fs::write(&choice, file.as_str()).map_err(failed("writing", &choice))?;
            if let Some(path) = self.find_here(repository, &file, &directory).await? {
                return Ok(path);
            }
        }
        let path = cache
            .directory(&format!("{relative}/{}", file.directory()))?
            .join(file.file_name());
        let download = Download {
            request: remote.file(repository, listing.revision(), &file),
            partial: cache::beside(&path, ".partial"),
            identity: &identity,
            bar: progress::bar(file.file_name(), identity.size),
            retry_wait: self.retry_wait,
        };
        tracing::info!(
            "downloading {file} of {repository}, {} MB",
            identity.size / 1_000_000
        );
        finish(download, &path).await?;
        Ok(path)
    }

    /// A file that was downloaded before, by us or by the hub's own library.
    async fn find_here(
        &self,
        repository: &Repository,
        file: &GgufPath,
        directory: &Path,
    ) -> Result<Option<PathBuf>, CacheError> {
        let path = directory.join(file.as_str());
        if let Some(identity) = Identity::stamped(&path)
            && identity.is_intact_at(&path).await?
        {
            return Ok(Some(path));
        }
        let library = self.library.as_ref();
        Ok(library.and_then(|library| library.find(repository, file)))
    }
}

impl Reason {
    fn refused(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Refused(status),
            StatusCode::NOT_FOUND => Self::NotFound,
            status => Self::Status(status),
        }
    }
}

/// Downloads a file, checks it and gives it its place.
async fn finish(download: Download<'_>, path: &Path) -> Result<(), Reason> {
    download.run().await.map_err(|error| match error {
        DownloadError::Status(status) => Reason::refused(status),
        error => Reason::Download(error),
    })?;
    let found = Identity::of(&download.partial).await?;
    if found != *download.identity {
        download.discard()?;
        return Err(Reason::WrongHash {
            found: found.sha256,
            expected: download.identity.sha256.clone(),
        });
    }
    cache::install(&download.partial, path, download.identity)?;
    Ok(download.discard()?)
}

/// The cause that says most: "connection refused" rather than "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests;
