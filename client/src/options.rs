//! Options: how to reach a server, the same for sockets and HTTP.

use std::fmt;
use std::time::Duration;

/// How a connection is made, and what is taken from it.
///
/// ```
/// use turnwire_client::Options;
///
/// let options = Options::new()
///     .key("sk-…")
///     .header("OpenAI-Beta", "responses_multi_agent=v1")
///     .compression(true);
/// ```
#[derive(Clone)]
pub struct Options {
    pub(crate) key: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) compression: bool,
    pub(crate) root_certificates: Vec<Vec<u8>>,
    pub(crate) any_certificate: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) largest_message: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key: None,
            headers: Vec::new(),
            subprotocols: Vec::new(),
            compression: false,
            root_certificates: Vec::new(),
            any_certificate: false,
            connect_timeout: Duration::from_secs(15),
            largest_message: 256 << 20,
        }
    }
}

impl Options {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sent as `Authorization: Bearer KEY`.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// One more header of the handshake and of each HTTP request. A name may be given several
    /// times; each value is sent.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Offers one more subprotocol. A server of Responses WebSocket mode selects none.
    #[must_use]
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// Whether permessage-deflate is offered. By default it is not.
    #[must_use]
    pub fn compression(mut self, offered: bool) -> Self {
        self.compression = offered;
        self
    }

    /// Trusts these certificates besides those of the system. PEM, one or several.
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificates.push(pem.into());
        self
    }

    /// Takes whatever certificate the server shows. Anybody in between can then read and change
    /// what is said, so this is for tests.
    #[must_use]
    pub fn accept_any_certificate(mut self, accepted: bool) -> Self {
        self.any_certificate = accepted;
        self
    }

    /// How long a handshake may take from the first packet to the 101: 15 seconds by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Bytes of the largest message, event or body that is taken: 256 MiB by default.
    #[must_use]
    pub fn largest_message(mut self, bytes: usize) -> Self {
        self.largest_message = bytes;
        self
    }
}

/// Without the key and the values of headers, which may be keys too.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Options")
            .field("key", &self.key.as_ref().map(|_| "…"))
            .field("headers", &headers)
            .field("subprotocols", &self.subprotocols)
            .field("compression", &self.compression)
            .field("root_certificates", &self.root_certificates.len())
            .field("any_certificate", &self.any_certificate)
            .field("connect_timeout", &self.connect_timeout)
            .field("largest_message", &self.largest_message)
            .finish()
    }
}
