//! The same over TLS.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use turnwire::tls::Tls;
use turnwire_client::{Connection, Error, Http, Options};

use crate::raw::Raw;
use crate::support::*;

/// A certificate for this machine, and its key, in files.
pub(crate) struct Identity {
    directory: TempDir,
    /// PEM, as a client needs it.
    certificate: String,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let identity = Self {
            directory: tempfile::tempdir().unwrap(),
            certificate: made.cert.pem(),
        };
        fs::write(identity.certificate_file(), &identity.certificate).unwrap();
        fs::write(identity.key_file(), made.signing_key.serialize_pem()).unwrap();
        identity
    }

    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// How a client comes to trust the server.
    pub(crate) fn options(&self) -> Options {
        Options::new().root_certificates(self.certificate.clone())
    }

    pub(crate) async fn serve(&self, script: &str, settings: Settings) -> TestServer {
        let tls = Tls::from_files(&self.certificate_file(), &self.key_file());
        let settings = Settings {
            tls: Some(tls.unwrap()),
            ..settings
        };
        TestServer::with(script, settings).await
    }

    /// A secure connection without anything on it.
    async fn connect(&self, server: &TestServer) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        roots.add(certificate.unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, tcp).await.unwrap()
    }
}

#[tokio::test]
async fn every_transport_serves_over_tls() {
    let identity = Identity::new();
    let script = "[[reply]]\nsteps = [{text = 'some text', repeat = 5000}]";
    let server = identity.serve(script, Settings::default()).await;
    let url = server.url("/v1");
    let options = identity.options().compression(true);
    let http = Http::new(&url, &options).unwrap();
    let body =
        |stream: bool| json!({"model": "scripted", "input": "x", "stream": stream}).to_string();

    let mut socket = Connection::open_with(&url, &options).await.unwrap();
    let large = create(json!({"input": "x".repeat(1 << 20)}));
    let from_socket = response(&turn(&mut socket, &large).await);
    socket.close().await.unwrap();
    let one = http.post_json("responses", body(false)).await.unwrap();
    let one: Value = serde_json::from_slice(&one.body).unwrap();
    let mut stream = http.post_sse("responses", body(true)).await.unwrap();
    let mut last = None;
    while let Some(event) = stream.next().await.unwrap() {
        last = Some(event);
    }
    let last: Value = last.unwrap().parse().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert!(text(&one).len() >= 45_000);
    assert_eq!(text(&from_socket), text(&one));
    assert_eq!(text(&last["response"]), text(&one));
}

#[tokio::test]
async fn a_drain_ends_secure_connections_properly() {
    let identity = Identity::new();
    let hang = "[[reply]]\nsteps = [{text = 'well'}, {hang = true}]";
    let mut server = identity.serve(hang, Settings::default()).await;
    let mut busy = Connection::open_with(&server.url("/v1"), &identity.options())
        .await
        .unwrap();
    let message = create(json!({"input": "go on"})).to_string();
    busy.send(message).await.unwrap();
    let running = server.engine.wait_for(|engine| engine.running == 1);
    drop(running.await.unwrap());
    let mut raw = Raw::over(identity.connect(&server).await);
    raw.handshake().await;
    let mut idle = Raw::over(identity.connect(&server).await);
    idle.send(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(idle.head().await.starts_with("HTTP/1.1 200"));

    let stopped = server.stop();
    let closed = loop {
        match busy.next().await {
            Ok(event) => check(&event.json),
            Err(error) => break error,
        }
    };
    let Error::Closed { code, .. } = closed else {
        panic!("{closed}")
    };
    assert_eq!(code, Some(1001));
    // An end without close_notify would be an error here.
    assert_eq!(raw.close_code().await, 1001);
    idle.assert_ended().await;
    drop((busy, raw, idle));
    stopped.await.unwrap();
}

#[tokio::test]
async fn plain_http_is_told_to_use_tls() {
    let identity = Identity::new();
    let server = identity.serve("", Settings::default()).await;
    let plain = format!("http://{}/health", server.address);
    let told = request(http().get(plain)).await;
    assert_eq!(
        (told.status, told.error_code()),
        (400, "https_required".into())
    );
    let plain = Connection::open(&format!("ws://{}/v1", server.address), None).await;
    let Err(Error::Refused { status, .. }) = plain else {
        panic!("{plain:?}")
    };
    assert_eq!(status, 400);

    let mut nonsense = Raw::connect(&server).await;
    nonsense.send(&[0x16, 3, 1, 0, 4, 1, 2, 3, 4]).await;
    nonsense.broken_off().await;
    let health = Http::new(&server.url("/v1"), &identity.options()).unwrap();
    assert_eq!(health.get("models").await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_come_holds_nobody_up_and_ends() {
    let identity = Identity::new();
    let server = identity.serve("", Settings::default()).await;
    let mut silent = Raw::connect(&server).await;
    let began = Instant::now();
    drop(identity.connect(&server).await);
    assert!(began.elapsed().as_secs() < 10);
    silent.assert_ended().await;
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn a_connection_counts_before_its_handshake() {
    let identity = Identity::new();
    let settings = Settings {
        capacity: Capacity {
            connections: 1,
            background: 1,
        },
        ..Settings::default()
    };
    let server = identity.serve("", settings).await;
    let silent = Raw::connect(&server).await;
    let http = Http::new(&server.url("/v1"), &identity.options()).unwrap();
    let refused = http.get("models").await.unwrap();
    assert_eq!(refused.status, 503);
    drop(silent);
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said_with_its_flag() {
    let (identity, other) = (Identity::new(), Identity::new());
    let (certificate, key) = (identity.certificate_file(), identity.key_file());
    let empty = identity.directory.path().join("empty.pem");
    fs::write(&empty, "# nothing\n").unwrap();
    let damaged = identity.directory.path().join("damaged.pem");
    let begin = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&damaged, begin).unwrap();
    let missing = PathBuf::from("/no/such/file");
    for (certificate, key, flag, said) in [
        (&missing, &key, "--tls-cert /no/such/file", ""),
        (&certificate, &missing, "--tls-key /no/such/file", ""),
        (&empty, &key, "--tls-cert ", "empty.pem: no certificate"),
        (&damaged, &key, "--tls-cert ", "damaged.pem: "),
        (&key, &key, "--tls-cert ", "key.pem: no certificate"),
        (
            &certificate,
            &empty,
            "--tls-key ",
            "empty.pem: no private key",
        ),
        (
            &certificate,
            &certificate,
            "--tls-key ",
            "cert.pem: no private key",
        ),
        (
            &certificate,
            &other.key_file(),
            "--tls-key ",
            "is not the key of",
        ),
    ] {
        let error = Tls::from_files(certificate, key).unwrap_err().to_string();
        assert!(error.starts_with(flag) && error.contains(said), "{error}");
    }
}
