//! Handshake: from an HTTP request to an open WebSocket.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use reqwest::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, Response, StatusCode, Upgraded};
use sha1::{Digest, Sha1};
use tokio::time::timeout;

use crate::endpoint::Endpoint;
use crate::error::Error;

/// What every accepting server appends to the key (RFC 6455, 1.3).
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What other clients that compress offer.
const DEFLATE_OFFER: &str = "permessage-deflate; client_max_window_bits";

/// How much of the body of a refusal is read.
const REFUSAL_BYTES: usize = 64 << 10;

/// What the server answered when it switched protocols.
#[derive(Clone, Debug)]
pub struct Handshake {
    headers: HeaderMap,
}

impl Handshake {
    /// The headers of the answer with status 101.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The extensions that were agreed on, as the server wrote them.
    pub fn extensions(&self) -> Option<&str> {
        self.text(SEC_WEBSOCKET_EXTENSIONS)
    }

    /// The subprotocol that the server selected.
    pub fn subprotocol(&self) -> Option<&str> {
        self.text(SEC_WEBSOCKET_PROTOCOL)
    }

    fn text(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Asks for a socket at `responses`, within the endpoint's patience.
pub(crate) async fn shake_hands(endpoint: &Endpoint) -> Result<(Upgraded, Handshake), Error> {
    let handshake = timeout(endpoint.patience, ask(endpoint)).await;
    handshake.unwrap_or_else(|_| {
        Err(Error::TimedOut {
            address: endpoint.address(),
            after: endpoint.patience,
        })
    })
}

async fn ask(endpoint: &Endpoint) -> Result<(Upgraded, Handshake), Error> {
    let key = STANDARD.encode(fastrand::u128(..).to_ne_bytes());
    let mut request = endpoint
        .request(Method::GET, "responses")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key);
    if endpoint.compression {
        request = request.header(SEC_WEBSOCKET_EXTENSIONS, DEFLATE_OFFER);
    }
    if let Some(subprotocols) = &endpoint.subprotocols {
        request = request.header(SEC_WEBSOCKET_PROTOCOL, subprotocols);
    }
    let broken = |error| Error::from_http(error, &endpoint.address(), endpoint.patience);
    let response = request.send().await.map_err(broken)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    let handshake = Handshake {
        headers: response.headers().clone(),
    };
    check(&handshake, &key, endpoint)?;
    let upgraded = response.upgrade().await.map_err(broken)?;
    Ok((upgraded, handshake))
}

/// An answer that is not what was asked for, with the beginning of its body.
pub(crate) async fn refusal(mut response: Response) -> Error {
    let mut body = BytesMut::new();
    // A body that breaks off is as good as what has come of it.
    while let Ok(Some(piece)) = response.chunk().await {
        let room = REFUSAL_BYTES - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == REFUSAL_BYTES {
            break;
        }
    }
    Error::Refused {
        status: response.status().as_u16(),
        headers: Box::new(response.headers().clone()),
        body: Bytes::from(body),
    }
}

/// What RFC 6455, 4.1 asks a client to look at.
fn check(handshake: &Handshake, key: &str, endpoint: &Endpoint) -> Result<(), Error> {
    let wrong = |problem: &str| Err(Error::WrongHandshake(problem.to_owned()));
    let is = |name: HeaderName, expected: &str| {
        let value = handshake.text(name).unwrap_or_default();
        value
            .split(',')
            .any(|token| token.trim().eq_ignore_ascii_case(expected))
    };
    if !is(UPGRADE, "websocket") {
        return wrong("its `Upgrade` header is not `websocket`");
    }
    if !is(CONNECTION, "upgrade") {
        return wrong("its `Connection` header does not say `Upgrade`");
    }
    if handshake.text(SEC_WEBSOCKET_ACCEPT) != Some(accept(key).as_str()) {
        return wrong("its `Sec-WebSocket-Accept` header does not fit our key");
    }
    if let Some(extensions) = handshake.extensions() {
        let name = extensions.split(';').next().unwrap_or_default().trim();
        if !endpoint.compression || extensions.contains(',') || name != "permessage-deflate" {
            return wrong("it agreed to an extension that was not offered");
        }
    }
    if let Some(selected) = handshake.subprotocol() {
        let offered = endpoint.subprotocols.as_deref().unwrap_or_default();
        if !offered.split(", ").any(|offered| offered == selected) {
            return wrong("it selected a subprotocol that was not offered");
        }
    }
    Ok(())
}

fn accept(key: &str) -> String {
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update(ACCEPT_SUFFIX)
        .finalize();
    STANDARD.encode(digest)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_the_rfc_is_accepted_as_there() {
        let accepted = super::accept("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
