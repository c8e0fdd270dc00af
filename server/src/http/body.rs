//! Reading request bodies, within bounds of size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_ENCODING;
use hyper::{HeaderMap, Request};
use tokio::time::timeout;
use turnwire_protocol::failure::Failure;

use super::answer;

/// How long a body may pause.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no body to work on.
pub(super) enum Unreadable {
    Refused(Failure),
    /// Its chunks are malformed, or the client left and nobody reads an answer.
    Broken,
}

/// The whole body, uncompressed.
///
/// A body beyond `limit` is read on for as much again before it is refused: a client that is
/// answered while it sends often sees a broken connection instead.
pub(super) async fn read(request: Request<Incoming>, limit: usize) -> Result<Bytes, Unreadable> {
    check_encoding(request.headers())?;
    let mut incoming = request.into_body();
    let too_large = || Unreadable::Refused(Failure::request_too_large(limit));
    let endurance = limit.saturating_mul(2);
    if incoming.size_hint().lower() > endurance as u64 {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = timeout(PATIENCE, incoming.frame())
        .await
        .map_err(|_| Unreadable::Refused(answer::body_timeout()))?
    {
        let Ok(data) = frame.map_err(|_| Unreadable::Broken)?.into_data() else {
            continue;
        };
        length += data.len();
        if length > endurance {
            return Err(too_large());
        }
        if length > limit {
            body = BytesMut::new();
        } else {
            body.extend_from_slice(&data);
        }
    }
    if length > limit {
        Err(too_large())
    } else {
        Ok(body.freeze())
    }
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Unreadable> {
    for encoding in headers.get_all(CONTENT_ENCODING) {
        let encoding = String::from_utf8_lossy(encoding.as_bytes());
        if !encoding.trim().eq_ignore_ascii_case("identity") {
            return Err(Unreadable::Refused(answer::unsupported_encoding(&encoding)));
        }
    }
    Ok(())
}
