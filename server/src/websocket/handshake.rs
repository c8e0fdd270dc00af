//! The opening handshake of RFC 6455, and the choice of compression (RFC 7692).
//!
//! No subprotocol is ever selected: none is defined, and official clients offer none.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Version};
use sha1::{Digest, Sha1};

/// Appended to the key before hashing, RFC 6455 section 1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What both sides have agreed on.
#[derive(Debug)]
pub(crate) struct Handshake {
    accept: HeaderValue,
    /// Our answer to the extensions offered, if there is one we can do.
    pub(super) extensions: Option<String>,
}

/// Why a request is not taken for the opening of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAWebSocket {
    /// An ordinary request.
    NoUpgrade,
    /// Another version of the protocol than 13.
    WrongVersion,
    /// `Sec-WebSocket-Key` is missing or is not 16 bytes in base64.
    InvalidKey,
}

impl Handshake {
    pub(crate) fn check<B>(request: &Request<B>) -> Result<Self, NotAWebSocket> {
        let headers = request.headers();
        let upgrades = request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && has_token(headers, &CONNECTION, "upgrade")
            && has_token(headers, &UPGRADE, "websocket");
        if !upgrades {
            return Err(NotAWebSocket::NoUpgrade);
        }
        if headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_none_or(|version| version != "13")
        {
            return Err(NotAWebSocket::WrongVersion);
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
        let key = key.ok_or(NotAWebSocket::InvalidKey)?.trim_ascii();
        if BASE64_STANDARD.decode(key).map_or(0, |bytes| bytes.len()) != 16 {
            return Err(NotAWebSocket::InvalidKey);
        }
        let accept = Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX);
        let accept = BASE64_STANDARD.encode(accept.finalize());
        Ok(Self {
            accept: HeaderValue::try_from(accept).expect("base64 is a header value"),
            extensions: agree(headers),
        })
    }

    /// The headers of the answer with status 101.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept.clone());
        if let Some(extensions) = &self.extensions {
            let extensions = HeaderValue::try_from(extensions);
            let extensions = extensions.expect("our own extension names are a header value");
            headers.insert(SEC_WEBSOCKET_EXTENSIONS, extensions);
        }
        headers
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    elements(headers, name, ',').any(|element| element.eq_ignore_ascii_case(token))
}

fn elements<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    separator: char,
) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values
        .flat_map(move |value| value.split(separator))
        .map(str::trim)
}

/// Takes the first offer of permessage-deflate that we can do.
fn agree(headers: &HeaderMap) -> Option<String> {
    elements(headers, &SEC_WEBSOCKET_EXTENSIONS, ',').find_map(agree_to_deflate)
}

/// Neither side keeps a window between messages, so that an idle connection holds none: a
/// server may ask that of its client whether or not the client offered it. The client's window
/// is of no concern, because ours takes up every size.
fn agree_to_deflate(offer: &str) -> Option<String> {
    let mut parameters = offer.split(';').map(str::trim);
    if parameters.next() != Some("permessage-deflate") {
        return None;
    }
    let mut agreed =
        String::from("permessage-deflate; server_no_context_takeover; client_no_context_takeover");
    let mut named = Vec::new();
    for parameter in parameters {
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (parameter, None),
        };
        // An offer that names a parameter twice is malformed.
        if named.contains(&name) {
            return None;
        }
        named.push(name);
        match (name, value.map(str::parse::<u8>)) {
            ("server_no_context_takeover" | "client_no_context_takeover", None)
            | ("client_max_window_bits", None | Some(Ok(8..=15))) => {}
            // A window of 8 bits is allowed, but zlib cannot make one.
            ("server_max_window_bits", Some(Ok(bits @ 9..=15))) => {
                agreed.push_str(&format!("; server_max_window_bits={bits}"));
            }
            _ => return None,
        }
    }
    Some(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGREED: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder();
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn upgrade(changed: (&str, &str)) -> Result<Handshake, NotAWebSocket> {
        let usual = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = usual.map(|header| {
            if header.0 == changed.0 {
                changed
            } else {
                header
            }
        });
        Handshake::check(&request(&headers))
    }

    #[test]
    fn the_example_of_the_rfc_is_answered_as_there() {
        let headers = upgrade(("", "")).unwrap().headers();
        assert_eq!(
            headers[SEC_WEBSOCKET_ACCEPT],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert!(!headers.contains_key("sec-websocket-protocol"));
    }

    #[test]
    fn what_is_wrong_with_a_handshake_is_told_apart() {
        for (changed, expected) in [
            (("connection", "keep-alive"), NotAWebSocket::NoUpgrade),
            (("upgrade", "h2c"), NotAWebSocket::NoUpgrade),
            (("sec-websocket-version", "8"), NotAWebSocket::WrongVersion),
            (
                ("sec-websocket-key", "dGhlIHNhbXBsZQ=="),
                NotAWebSocket::InvalidKey,
            ),
            (
                ("sec-websocket-key", "not base64"),
                NotAWebSocket::InvalidKey,
            ),
        ] {
            assert_eq!(upgrade(changed).unwrap_err(), expected, "{changed:?}");
        }
    }

    #[test]
    fn the_first_offer_of_compression_that_we_can_do_is_taken() {
        for (offer, expected) in [
            ("permessage-deflate", Some(AGREED.into())),
            (
                "permessage-deflate; client_max_window_bits",
                Some(AGREED.into()),
            ),
            (
                "permessage-deflate; server_max_window_bits=\"12\"; client_no_context_takeover",
                Some(format!("{AGREED}; server_max_window_bits=12")),
            ),
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate",
                Some(AGREED.into()),
            ),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; client_max_window_bits=16", None),
            ("permessage-deflate; novelty", None),
            (
                "permessage-deflate; client_max_window_bits; client_max_window_bits",
                None,
            ),
            ("permessage-deflate-2", None),
            ("x-webkit-deflate-frame", None),
        ] {
            let request = request(&[("sec-websocket-extensions", offer)]);
            assert_eq!(agree(request.headers()), expected, "{offer}");
        }
    }
}
