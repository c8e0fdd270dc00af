//! TLS to the database, always with a look at its certificate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::TryFutureExt;
use futures_util::future::MapOk;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::rustls::client::WantsClientCert;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use tokio_rustls::{Connect, TlsConnector};

/// Whose certificates are believed. A clone shares it.
#[derive(Clone)]
pub(super) struct Tls(TlsConnector);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "the system has no root certificates; give sslrootcert=FILE in the URL, or sslmode=disable \
         if nobody can listen in"
    )]
    NoRoots(#[source] rustls::Error),
    #[error("sslrootcert {}: no certificate in it that can be used; write PEM", .0.display())]
    NoCertificate(PathBuf),
}

/// A handshake with a host of this name.
#[derive(Debug)]
pub(super) struct Handshake {
    tls: Tls,
    host: ServerName<'static>,
}

/// A connection that is secure.
#[derive(Debug)]
pub(super) struct Secure(ClientStream<Socket>);

impl Tls {
    /// Believes whom the system believes.
    pub(super) fn with_roots_of_the_system() -> Result<Self, TlsError> {
        let config = builder().with_platform_verifier();
        Ok(Self::new(config.map_err(TlsError::NoRoots)?))
    }

    /// Believes whom the certificates in a PEM file speak for, and nobody else.
    pub(super) fn with_roots(path: &Path, pem: &[u8]) -> Result<Self, TlsError> {
        let unusable = || TlsError::NoCertificate(path.to_owned());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| unusable())?;
            roots.add(certificate).map_err(|_| unusable())?;
        }
        if roots.is_empty() {
            return Err(unusable());
        }
        Ok(Self::new(builder().with_root_certificates(roots)))
    }

    fn new(config: ConfigBuilder<ClientConfig, WantsClientCert>) -> Self {
        let config = config.with_no_client_auth();
        Self(TlsConnector::from(Arc::new(config)))
    }
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has what TLS 1.2 and 1.3 need")
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Secure;
    type TlsConnect = Handshake;
    type Error = InvalidDnsNameError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, InvalidDnsNameError> {
        Ok(Handshake {
            tls: self.clone(),
            host: ServerName::try_from(host)?.to_owned(),
        })
    }
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Secure;
    type Error = io::Error;
    type Future = MapOk<Connect<Socket>, fn(ClientStream<Socket>) -> Secure>;

    fn connect(self, stream: Socket) -> Self::Future {
        self.tls.0.connect(self.host, stream).map_ok(Secure)
    }
}

impl TlsStream for Secure {
    /// What a password is bound to beside the certificate that was looked at.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
