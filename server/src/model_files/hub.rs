//! Models of the Hugging Face hub, or of a mirror that has its two routes: the list of a
//! repository's files with their hashes, and the files themselves.

mod choice;
mod download;
mod library;
mod name;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::ModelFileError;
use super::cache::{self, Cache, CacheError, Identity, failed};
use super::progress;
use choice::NoChoice;
use download::{Download, DownloadError};
use library::LibraryCache;
use name::{GgufPath, Repository};

pub use name::{HubModel, InvalidHubModel};

const PUBLIC_HUB: &str = "https://huggingface.co";

/// The list of a large repository with all hashes has a few hundred kilobytes.
const LISTING_BYTES: usize = 16 << 20;

/// Which hub, as whom, and where its own library keeps what it has downloaded.
#[derive(Debug)]
pub(super) struct Hub {
    endpoint: Url,
    token: Option<Token>,
    library: Option<LibraryCache>,
    /// Before the first new try of an interrupted download; doubled for each further one.
    retry_wait: Duration,
}

/// A secret, kept out of debug output.
struct Token(String);

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

/// A repository as the hub describes it.
#[derive(Deserialize)]
struct Listing {
    /// The commit that `main` points to.
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    size: u64,
    #[serde(alias = "oid")]
    sha256: String,
}

impl Hub {
    pub(super) fn from_environment(
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ModelFileError> {
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let value = text("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned());
        let endpoint = Url::parse(&value)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or(ModelFileError::InvalidEndpoint {
                variable: "HF_ENDPOINT",
                value,
            })?;
        let library = path("HF_HUB_CACHE")
            .or_else(|| Some(path("HF_HOME")?.join("hub")))
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface/hub")))
            .map(LibraryCache);
        Ok(Self {
            endpoint,
            token: text("HF_TOKEN").map(Token),
            library,
            retry_wait: Duration::from_secs(1),
        })
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

        let client = client().map_err(|source| self.unreachable(source))?;
        let listing = match self.list(&client, repository).await {
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
        let revision = listing.sha.as_deref().unwrap_or("main");
        let download = Download {
            client: &client,
            url: self.file_url(repository, revision, &file),
            token: self.token.as_ref().map(|token| token.0.as_str()),
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

    async fn list(&self, client: &Client, repository: &Repository) -> Result<Listing, Reason> {
        let segments = ["api", "models"].into_iter();
        let mut url = self.url(segments.chain(repository.segments()));
        url.set_query(Some("blobs=true"));
        let mut request = client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(&token.0);
        }
        let unreachable = |source| self.unreachable(source);
        let response = request.send().await.map_err(unreachable)?;
        if response.status() != StatusCode::OK {
            return Err(refused(response.status()));
        }
        let body = bounded_body(response).await.map_err(unreachable)?;
        let body = body.ok_or_else(|| {
            Reason::BadListing(format!("it is longer than {LISTING_BYTES} bytes"))
        })?;
        serde_json::from_slice(&body).map_err(|error| Reason::BadListing(error.to_string()))
    }

    fn file_url(&self, repository: &Repository, revision: &str, file: &GgufPath) -> Url {
        let segments = repository.segments().into_iter();
        let segments = segments.chain(["resolve", revision]);
        self.url(segments.chain(file.as_str().split('/')))
    }

    /// Segments are percent-encoded, so none of them can change the route.
    fn url<'a>(&self, segments: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .expect("an http address has a path")
            .pop_if_empty()
            .extend(segments);
        url
    }

    fn unreachable(&self, source: reqwest::Error) -> Reason {
        Reason::Unreachable {
            endpoint: self.endpoint.to_string(),
            source,
        }
    }
}

impl Listing {
    /// The wanted file, or the one to serve when none was named.
    fn choose(&self, wanted: Option<&GgufPath>) -> Result<(GgufPath, Identity), Reason> {
        let files: Vec<GgufPath> = self
            .siblings
            .iter()
            .filter_map(|sibling| GgufPath::parse(&sibling.rfilename))
            .collect();
        let file =
            match wanted {
                Some(wanted) if choice::is_part(wanted) => return Err(NoChoice::OnlyParts.into()),
                Some(wanted) => files.iter().find(|file| *file == wanted).ok_or_else(|| {
                    NoChoice::NoSuchFile {
                        wanted: wanted.to_string(),
                        held: files.iter().map(ToString::to_string).collect(),
                    }
                })?,
                None => choice::choose(&files)?,
            };
        let large_file = self
            .siblings
            .iter()
            .find(|sibling| sibling.rfilename == file.as_str())
            .and_then(|sibling| sibling.lfs.as_ref())
            .ok_or_else(|| Reason::NoHash(file.clone()))?;
        let identity = Identity {
            size: large_file.size,
            sha256: large_file.sha256.to_ascii_lowercase(),
        };
        Ok((file.clone(), identity))
    }
}

/// Downloads a file, checks it and gives it its place.
async fn finish(download: Download<'_>, path: &Path) -> Result<(), Reason> {
    download.run().await.map_err(|error| match error {
        DownloadError::Status(status) => refused(status),
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

fn client() -> Result<Client, reqwest::Error> {
    Client::builder()
        .user_agent(concat!("turnwire/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(15))
        // Between two pieces, not for the whole: a large file takes as long as it takes.
        .read_timeout(Duration::from_secs(60))
        .build()
}

/// None if it is longer than the limit.
async fn bounded_body(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > LISTING_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

fn refused(status: StatusCode) -> Reason {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::Refused(status),
        StatusCode::NOT_FOUND => Reason::NotFound,
        status => Reason::Status(status),
    }
}

/// The cause that says most: "connection refused" rather than "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests;
