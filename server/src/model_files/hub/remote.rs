//! The hub's two routes: what a repository holds, and the files themselves.

use std::fmt;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::super::cache::Identity;
use super::Reason;
use super::choice::{self, NoChoice};
use super::name::{GgufPath, Repository};

/// The list of a large repository with all hashes has a few hundred kilobytes.
const LISTING_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Remote<'a> {
    client: Client,
    endpoint: &'a Url,
    token: Option<&'a Token>,
}

/// A secret, kept out of debug output.
pub(super) struct Token(pub(super) String);

/// A repository as the hub describes it.
#[derive(Deserialize)]
pub(super) struct Listing {
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

impl<'a> Remote<'a> {
    pub(super) fn new(endpoint: &'a Url, token: Option<&'a Token>) -> Result<Self, Reason> {
        let client = Client::builder()
            .user_agent(concat!("turnwire/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(15))
            // Between two pieces, not for the whole: a large file takes as long as it takes.
            .read_timeout(Duration::from_secs(60))
            .build();
        Ok(Self {
            client: client.map_err(|source| unreachable(endpoint, source))?,
            endpoint,
            token,
        })
    }

    pub(super) async fn list(&self, repository: &Repository) -> Result<Listing, Reason> {
        let segments = ["api", "models"].into_iter();
        let mut url = self.url(segments.chain(repository.segments()));
        // With sizes and hashes.
        url.set_query(Some("blobs=true"));
        let unreachable = |source| unreachable(self.endpoint, source);
        let response = self.get(url).send().await.map_err(unreachable)?;
        if response.status() != StatusCode::OK {
            return Err(Reason::refused(response.status()));
        }
        let body = bounded_body(response).await.map_err(unreachable)?;
        let body = body.ok_or_else(|| {
            Reason::BadListing(format!("it is longer than {LISTING_BYTES} bytes"))
        })?;
        serde_json::from_slice(&body).map_err(|error| Reason::BadListing(error.to_string()))
    }

    pub(super) fn file(
        &self,
        repository: &Repository,
        revision: &str,
        file: &GgufPath,
    ) -> RequestBuilder {
        let segments = repository.segments().into_iter();
        let segments = segments.chain(["resolve", revision]);
        self.get(self.url(segments.chain(file.as_str().split('/'))))
    }

    /// Segments are percent-encoded, so none of them can change the route.
    fn url<'s>(&self, segments: impl Iterator<Item = &'s str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .expect("an http address has a path")
            .pop_if_empty()
            .extend(segments);
        url
    }

    /// The token goes to this host only: a redirect to another one goes without it.
    fn get(&self, url: Url) -> RequestBuilder {
        let request = self.client.get(url);
        match self.token {
            Some(Token(token)) => request.bearer_auth(token),
            None => request,
        }
    }
}

impl Listing {
    pub(super) fn revision(&self) -> &str {
        self.sha.as_deref().unwrap_or("main")
    }

    /// The wanted file, or the one to serve when none was named.
    pub(super) fn choose(&self, wanted: Option<&GgufPath>) -> Result<(GgufPath, Identity), Reason> {
        let names = self.siblings.iter().map(|sibling| &sibling.rfilename);
        let files: Vec<GgufPath> = names.filter_map(|name| GgufPath::parse(name)).collect();
        let file = match wanted {
            Some(wanted) if choice::is_part(wanted) => return Err(NoChoice::OnlyParts.into()),
            Some(wanted) if files.contains(wanted) => wanted,
            Some(wanted) => {
                return Err(NoChoice::NoSuchFile {
                    wanted: wanted.to_string(),
                    held: files.iter().map(ToString::to_string).collect(),
                }
                .into());
            }
            None => choice::choose(&files)?,
        };
        let mut siblings = self.siblings.iter();
        let large_file = siblings
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

fn unreachable(endpoint: &Url, source: reqwest::Error) -> Reason {
    Reason::Unreachable {
        endpoint: endpoint.to_string(),
        source,
    }
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

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
