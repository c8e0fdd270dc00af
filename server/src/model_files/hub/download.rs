//! One large file over HTTP that survives cut connections and restarts of the server.
//!
//! What has come lies in a partial file, next to it a note of what it is a part of: the SHA-256
//! that was wanted and the ETag under which it came. A partial file of anything else is thrown away.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use reqwest::header::{CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::io::AsyncWriteExt;

use super::super::cache::{self, CacheError, Identity, failed};
use super::innermost;

/// Tries in a row that bring nothing. A try that brings something starts the count anew.
const FRUITLESS_TRIES: u32 = 5;

#[derive(Debug)]
pub(super) struct Download<'a> {
    /// A GET without a body, sent anew for every try.
    pub(super) request: RequestBuilder,
    pub(super) partial: PathBuf,
    pub(super) identity: &'a Identity,
    pub(super) bar: ProgressBar,
    pub(super) retry_wait: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error("the connection failed: {}", innermost(.0))]
    Connection(#[from] reqwest::Error),
    #[error("the connection ended {missing} bytes early")]
    Short { missing: u64 },
    #[error("the server sent more than the {size} bytes it announced")]
    TooLong { size: u64 },
    #[error("the server sent another range than the one asked for")]
    OtherRange,
    #[error("the server answered with HTTP {0}")]
    Status(StatusCode),
    #[error(transparent)]
    File(CacheError),
}

impl Download<'_> {
    /// Returns when the partial file has its full size. Its hash is the caller's to check.
    pub(super) async fn run(&self) -> Result<(), DownloadError> {
        let mut fruitless = 0;
        loop {
            let before = self.length();
            let Err(error) = self.attempt().await else {
                self.bar.finish_and_clear();
                return Ok(());
            };
            fruitless = if self.length() > before {
                1
            } else {
                fruitless + 1
            };
            if !error.may_pass() || fruitless == FRUITLESS_TRIES {
                return Err(error);
            }
            tracing::warn!("the download was interrupted ({error}); going on with it");
            tokio::time::sleep(self.retry_wait * 2_u32.pow(fruitless - 1)).await;
        }
    }

    /// Throws away what has come.
    pub(super) fn discard(&self) -> Result<(), CacheError> {
        for path in [self.partial.clone(), self.note_path()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed("removing", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn attempt(&self) -> Result<(), DownloadError> {
        let note = fs::read_to_string(self.note_path()).unwrap_or_default();
        let (sha256, etag) = note.split_once('\n').unwrap_or((&note, ""));
        if sha256 != self.identity.sha256 || self.length() > self.identity.size {
            self.discard()?;
        }
        let offset = self.length();
        if offset == self.identity.size {
            return Ok(());
        }
        let response = self.request(offset, etag).await?;
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(offset) => offset,
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.discard()?;
                return Err(DownloadError::OtherRange);
            }
            status => return Err(DownloadError::Status(status)),
        };
        self.receive(response, offset).await
    }

    async fn request(&self, offset: u64, etag: &str) -> Result<Response, DownloadError> {
        let request = self.request.try_clone();
        let mut request = request.expect("a request without a body can be cloned");
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
            // A weak tag does not promise equal bytes, and a server must not compare it here.
            if etag.starts_with('"') {
                request = request.header(IF_RANGE, etag);
            }
        }
        Ok(request.send().await?)
    }

    async fn receive(&self, mut response: Response, offset: u64) -> Result<(), DownloadError> {
        let etag = response.headers().get(ETAG);
        let etag = etag.and_then(|etag| etag.to_str().ok()).unwrap_or("");
        let note = self.note_path();
        fs::write(&note, format!("{}\n{etag}", self.identity.sha256))
            .map_err(failed("writing", &note))?;

        let kept = failed("writing", &self.partial);
        let mut file = tokio::fs::File::options()
            .create(true)
            .write(true)
            .truncate(offset == 0)
            .append(offset > 0)
            .open(&self.partial)
            .await
            .map_err(kept)?;
        let mut length = offset;
        self.bar.set_position(length);
        let ended = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            };
            length += chunk.len() as u64;
            if length > self.identity.size {
                self.discard()?;
                let size = self.identity.size;
                return Err(DownloadError::TooLong { size });
            }
            file.write_all(&chunk)
                .await
                .map_err(failed("writing", &self.partial))?;
            self.bar.set_position(length);
        };
        file.flush()
            .await
            .map_err(failed("writing", &self.partial))?;
        match self.identity.size - length {
            0 => Ok(()),
            missing => ended.and(Err(DownloadError::Short { missing })),
        }
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.partial).map_or(0, |metadata| metadata.len())
    }

    fn note_path(&self) -> PathBuf {
        cache::beside(&self.partial, ".of")
    }
}

impl DownloadError {
    /// Whether the same request may succeed a moment later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Short { .. } | Self::OtherRange => true,
            Self::Status(status) => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
            Self::TooLong { .. } | Self::File(_) => false,
        }
    }
}

impl From<CacheError> for DownloadError {
    fn from(error: CacheError) -> Self {
        Self::File(error)
    }
}

/// The first number of `bytes 100-199/200`.
fn range_start(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    start.parse().ok()
}
