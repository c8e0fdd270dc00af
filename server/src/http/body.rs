//! Reading request bodies, within bounds of size and time.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Incoming};
use tokio::task::yield_now;
use tokio::time::timeout;
use turnwire_protocol::failure::Failure;

use super::answer;
use super::decoding::{Decoding, Encoding, Problem};

/// How long a body may pause.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes decoded before others get their turn: about a millisecond's worth.
const REST_BYTES: usize = 256 << 10;

/// The whole body, decoded. `limit` holds for what was sent and for what was meant.
///
/// A body that is refused is read on for up to twice the limit: a client that is answered while
/// it sends often sees a broken connection instead.
pub(super) async fn read(request: Request<Incoming>, limit: usize) -> Result<Bytes, Failure> {
    let encoding = Encoding::of(request.headers())?;
    let refused = |problem| encoding.refusal(problem, limit);
    let mut incoming = request.into_body();
    let endurance = limit.saturating_mul(2);
    if incoming.size_hint().lower() > endurance as u64 {
        return Err(refused(Problem::TooLarge));
    }
    let decoding = Decoding::new(encoding, limit);
    let mut decoding = Ok(decoding.map_err(|_| no_memory())?);
    let mut length = 0;
    while let Some(frame) = timeout(PATIENCE, incoming.frame())
        .await
        .map_err(|_| answer::body_timeout())?
    {
        // Its chunks are malformed, or the client left and nobody reads an answer.
        let Ok(data) = frame.map_err(|_| answer::broken_body())?.into_data() else {
            continue;
        };
        length += data.len();
        if length > endurance {
            return Err(refused(Problem::TooLarge));
        }
        if length > limit {
            decoding = Err(Problem::TooLarge);
        }
        if let Ok(mut so_far) = decoding {
            decoding = decode(&mut so_far, &data).await.map(|()| so_far);
        }
    }
    decoding.and_then(|whole| whole.finish()).map_err(refused)
}

/// Decodes what has come. Lets other tasks run in between: a few bytes can stand for many.
async fn decode(decoding: &mut Decoding, mut data: &[u8]) -> Result<(), Problem> {
    let mut rested = decoding.made();
    while !data.is_empty() {
        let taken = decoding.step(data)?;
        data = &data[taken..];
        if decoding.made() - rested >= REST_BYTES {
            rested = decoding.made();
            yield_now().await;
        }
    }
    Ok(())
}

fn no_memory() -> Failure {
    Failure::server_error("There is no memory for the body.")
}
