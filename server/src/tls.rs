//! TLS: the server's certificate and key, and the handshake with a client.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig};

use crate::stream::{Stream, Tcp};

/// How long a client may take from its connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte of every TLS connection: a record of the handshake. No HTTP begins with it.
const HANDSHAKE_RECORD: u8 = 0x16;

/// What it takes to speak TLS. A clone shares it.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// A file of a certificate or a key that the server cannot use.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    #[error("{flag} {}", path.display())]
    Unreadable {
        flag: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{flag} {}: {problem}", path.display())]
    Unusable {
        flag: &'static str,
        path: PathBuf,
        problem: String,
    },
}

/// A connection that did not become a secure one.
#[derive(Debug)]
pub(crate) enum Insecure {
    /// It begins with something else than TLS, as HTTP does.
    Plain(TcpStream),
    Failed(io::Error),
}

/// One of the two files, with the flag that names it.
struct File<'a> {
    flag: &'static str,
    path: &'a Path,
}

impl Tls {
    /// Reads PEM: the server's certificate, followed by those that lead to its root, and its key.
    pub fn from_files(certificates: &Path, key: &Path) -> Result<Self, TlsFileError> {
        let certificates = File {
            flag: "--tls-cert",
            path: certificates,
        };
        let key = File {
            flag: "--tls-key",
            path: key,
        };
        let chain = certificates.read()?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
        let chain = chain.map_err(|error| certificates.is_no_pem(&error))?;
        if chain.is_empty() {
            let problem = "no certificate in it; write the server's own first, then those that \
                           lead to its root, as PEM";
            return Err(certificates.unusable(problem));
        }
        let secret = PrivateKeyDer::from_pem_slice(&key.read()?);
        let secret = secret.map_err(|error| match error {
            pem::Error::NoItemsFound => {
                key.unusable("no private key in it; write the certificate's, unencrypted, as PEM")
            }
            error => key.is_no_pem(&error),
        })?;

        let provider = Arc::new(aws_lc_rs::default_provider());
        let secret = provider.key_provider.load_private_key(secret);
        let secret = secret.map_err(|error| key.unusable(error))?;
        let certified = CertifiedKey::new(chain, secret);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let certificate = certificates.path.display();
                let problem = format!("it is not the key of the certificate in {certificate}");
                return Err(key.unusable(problem));
            }
            Err(error) => return Err(certificates.unusable(error)),
        }
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what TLS 1.2 and 1.3 need")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) async fn accept(&self, tcp: TcpStream) -> Result<Stream, Insecure> {
        let handshake = async {
            let mut first = [0];
            let length = tcp.peek(&mut first).await.map_err(Insecure::Failed)?;
            if length > 0 && first[0] != HANDSHAKE_RECORD {
                return Err(Insecure::Plain(tcp));
            }
            let accepted = self.0.accept(Tcp::from(tcp)).await;
            let stream = accepted.map_err(Insecure::Failed)?;
            Ok(Stream::Tls(Box::new(stream)))
        };
        let handshake = timeout(HANDSHAKE_TIMEOUT, handshake).await;
        handshake.map_err(|late| Insecure::Failed(late.into()))?
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl File<'_> {
    fn read(&self) -> Result<Vec<u8>, TlsFileError> {
        fs::read(self.path).map_err(|source| TlsFileError::Unreadable {
            flag: self.flag,
            path: self.path.to_owned(),
            source,
        })
    }

    fn unusable(&self, problem: impl fmt::Display) -> TlsFileError {
        TlsFileError::Unusable {
            flag: self.flag,
            path: self.path.to_owned(),
            problem: problem.to_string(),
        }
    }

    fn is_no_pem(&self, error: &pem::Error) -> TlsFileError {
        self.unusable(format_args!("it is no valid PEM: {error}"))
    }
}
