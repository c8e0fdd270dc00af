//! Downloads from a hub made of a few lines on a loopback port.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// 100,000 bytes, so that a download comes in several pieces.
fn weights() -> Vec<u8> {
    let mut weights = b"GGUF".to_vec();
    weights.extend((0..99_996_u32).map(|n| (n % 251) as u8));
    weights
}

const WEIGHTS_SHA256: &str = "a8be914ed98488797dea6cdcd667d616bde56cdcacd466a8bd12eb6af0a760ad";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The head of a request: first line and headers, in lower case.
#[derive(Clone, Debug)]
struct Asked(String);

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    cut_after: Option<usize>,
}

/// Answers every request with what `answer` makes of it, and remembers what was asked.
struct FakeHub {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Asked {
    fn path(&self) -> &str {
        self.0.split(' ').nth(1).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn range_start(&self) -> usize {
        self.header("range").map_or(0, |range| {
            let start = range.strip_prefix("bytes=").unwrap();
            start.strip_suffix('-').unwrap().parse().unwrap()
        })
    }
}

impl FakeHub {
    async fn start(answer: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                let request = Asked(String::from_utf8(head).unwrap().to_ascii_lowercase());
                log.lock().unwrap().push(request.clone());
                let reply = answer(&request);
                let mut text = format!(
                    "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n",
                    reply.status,
                    reply.body.len()
                );
                for (name, value) in &reply.headers {
                    write!(text, "{name}: {value}\r\n").unwrap();
                }
                text.push_str("\r\n");
                socket.write_all(text.as_bytes()).await.unwrap();
                let sent = reply.cut_after.unwrap_or(reply.body.len());
                // The client may have hung up, which is its good right.
                let _ = socket.write_all(&reply.body[..sent]).await;
            }
        });
        Self { address, asked }
    }

    /// Serves `weights()` as `model-Q8_0.gguf` in all properness.
    async fn proper() -> Self {
        Self::start(|asked| match asked.path() {
            path if path.starts_with("/api/") => listing(WEIGHTS_SHA256),
            _ => file(asked),
        })
        .await
    }

    /// Paths of the requests for files, with where each one started.
    fn downloads(&self) -> Vec<usize> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|asked| !asked.path().starts_with("/api/"))
            .map(Asked::range_start)
            .collect()
    }

    fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn listing(sha256: &str) -> Reply {
    let body = format!(
        r#"{{"id":"o/r","sha":"{COMMIT}","siblings":[
            {{"rfilename":"README.md","size":10}},
            {{"rfilename":"../../evil.gguf","lfs":{{"sha256":"{sha256}","size":1,"pointerSize":1}}}},
            {{"rfilename":"model-F16.gguf","lfs":{{"sha256":"{sha256}","size":1,"pointerSize":1}}}},
            {{"rfilename":"model-Q8_0.gguf","size":100000,
              "lfs":{{"sha256":"{sha256}","size":100000,"pointerSize":134}}}}]}}"#
    );
    Reply {
        status: 200,
        body: body.into_bytes(),
        ..Reply::default()
    }
}

fn file(asked: &Asked) -> Reply {
    let weights = weights();
    let start = asked.range_start();
    let whole = start == 0;
    let mut headers = vec![("etag", r#""tag-1""#.to_owned())];
    if !whole {
        let range = format!("bytes {start}-{}/{}", weights.len() - 1, weights.len());
        headers.push(("content-range", range));
    }
    Reply {
        status: if whole { 200 } else { 206 },
        headers,
        body: weights[start..].to_vec(),
        cut_after: None,
    }
}

fn status(status: u16) -> Reply {
    Reply {
        status,
        ..Reply::default()
    }
}

/// A user with an empty home.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.home.path().join(relative)
    }

    async fn resolve(&self, hub: &FakeHub, model: &str) -> Result<PathBuf, ModelFileError> {
        self.resolve_at(&hub.address, model).await
    }

    async fn resolve_at(&self, endpoint: &str, model: &str) -> Result<PathBuf, ModelFileError> {
        let variable = |name: &str| match name {
            "HOME" => Some(self.home.path().as_os_str().to_owned()),
            "HF_ENDPOINT" => Some(endpoint.into()),
            "HF_TOKEN" => Some("secret-token".into()),
            _ => None,
        };
        let mut hub = Hub::from_environment(variable);
        hub.retry_wait = Duration::ZERO;
        let cache = Cache::from_environment(variable);
        hub.resolve(&model.parse().unwrap(), &cache).await
    }

    async fn refusal(&self, hub: &FakeHub, model: &str) -> String {
        self.resolve(hub, model).await.unwrap_err().to_string()
    }
}

#[tokio::test]
async fn the_preferred_file_is_downloaded_once_and_nobody_is_asked_again() {
    let (hub, user) = (FakeHub::proper().await, User::new());
    let path = user.resolve(&hub, "o/r").await.unwrap();
    assert_eq!(path, user.at(".cache/turnwire/hub/o--r/model-Q8_0.gguf"));
    assert_eq!(fs::read(&path).unwrap(), weights());
    assert!(!cache::beside(&path, ".partial").exists());
    assert!(!user.at(".cache/turnwire/evil.gguf").exists());

    let asked = hub.asked.lock().unwrap().clone();
    assert_eq!(asked[0].path(), "/api/models/o/r?blobs=true");
    assert_eq!(
        asked[1].path(),
        format!("/o/r/resolve/{COMMIT}/model-q8_0.gguf")
    );
    for request in &asked {
        assert_eq!(request.header("authorization"), Some("bearer secret-token"));
    }

    for model in ["o/r", "o/r:model-Q8_0.gguf"] {
        assert_eq!(user.resolve(&hub, model).await.unwrap(), path);
    }
    assert_eq!(hub.requests(), 2);
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    let tries = Mutex::new(0);
    let hub = FakeHub::start(move |asked| {
        if asked.path().starts_with("/api/") {
            return listing(WEIGHTS_SHA256);
        }
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        match *tries {
            1 => Reply {
                cut_after: Some(40_000),
                ..file(asked)
            },
            2 => status(503),
            _ => {
                assert_eq!(asked.header("if-range"), Some(r#""tag-1""#));
                file(asked)
            }
        }
    })
    .await;
    let user = User::new();
    let path = user.resolve(&hub, "o/r").await.unwrap();
    assert_eq!(fs::read(path).unwrap(), weights());
    assert_eq!(hub.downloads(), [0, 40_000, 40_000]);
}

#[tokio::test]
async fn a_download_goes_on_after_a_restart() {
    let user = User::new();
    let hub = FakeHub::start(|asked| match asked.range_start() {
        _ if asked.path().starts_with("/api/") => listing(WEIGHTS_SHA256),
        0 => Reply {
            cut_after: Some(70_000),
            ..file(asked)
        },
        _ => status(500),
    })
    .await;
    let message = user.refusal(&hub, "o/r").await;
    assert!(message.contains("HTTP 500"), "{message}");

    let hub = FakeHub::proper().await;
    let path = user.resolve(&hub, "o/r").await.unwrap();
    assert_eq!(fs::read(path).unwrap(), weights());
    assert_eq!(hub.downloads(), [70_000]);
}

#[tokio::test]
async fn a_partial_file_of_something_else_is_not_continued() {
    let user = User::new();
    let other = "0".repeat(64);
    let hub = FakeHub::start(move |asked| match asked.range_start() {
        _ if asked.path().starts_with("/api/") => listing(&other),
        0 => Reply {
            cut_after: Some(70_000),
            ..file(asked)
        },
        _ => status(404),
    })
    .await;
    user.refusal(&hub, "o/r").await;
    let hub = FakeHub::proper().await;
    user.resolve(&hub, "o/r").await.unwrap();
    assert_eq!(hub.downloads(), [0]);
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_of_it_again() {
    let tries = Mutex::new(0);
    let hub = FakeHub::start(move |asked| {
        if asked.path().starts_with("/api/") {
            return listing(WEIGHTS_SHA256);
        }
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        Reply {
            status: 200,
            body: weights(),
            cut_after: (*tries == 1).then_some(50_000),
            ..Reply::default()
        }
    })
    .await;
    let user = User::new();
    let path = user.resolve(&hub, "o/r").await.unwrap();
    assert_eq!(fs::read(path).unwrap(), weights());
    assert_eq!(hub.downloads(), [0, 50_000]);
}

#[tokio::test]
async fn a_file_with_another_hash_is_refused_and_removed() {
    let hub = FakeHub::start(|asked| match asked.path() {
        path if path.starts_with("/api/") => listing(&"f".repeat(64)),
        _ => file(asked),
    })
    .await;
    let user = User::new();
    let message = user.refusal(&hub, "o/r").await;
    assert!(message.contains("another SHA-256"), "{message}");
    assert!(message.contains(WEIGHTS_SHA256), "{message}");
    let left = user.at(".cache/turnwire/hub/o--r/model-Q8_0.gguf");
    for suffix in ["", ".partial", ".checked"] {
        assert!(!cache::beside(&left, suffix).exists());
    }
}

#[tokio::test]
async fn more_bytes_than_announced_are_not_written_to_the_disk() {
    let hub = FakeHub::start(|asked| match asked.path() {
        path if path.starts_with("/api/") => listing(WEIGHTS_SHA256),
        _ => Reply {
            status: 200,
            body: [weights(), weights()].concat(),
            ..Reply::default()
        },
    })
    .await;
    let user = User::new();
    let message = user.refusal(&hub, "o/r").await;
    assert!(message.contains("more than the 100000 bytes"), "{message}");
    assert_eq!(hub.downloads(), [0]);
}

#[tokio::test]
async fn a_redirect_to_another_host_goes_without_the_token() {
    let elsewhere = FakeHub::start(file).await;
    // The same machine under another name, as a content network would be.
    let address = elsewhere.address.replace("127.0.0.1", "localhost");
    let hub = FakeHub::start(move |asked| match asked.path() {
        path if path.starts_with("/api/") => listing(WEIGHTS_SHA256),
        _ => Reply {
            status: 302,
            headers: vec![("location", format!("{address}/blob"))],
            ..Reply::default()
        },
    })
    .await;
    let user = User::new();
    user.resolve(&hub, "o/r").await.unwrap();
    let asked = elsewhere.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
    assert!(!asked[0].0.contains("secret-token"));
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let user = User::new();
    for (code, part) in [
        (401, "HF_TOKEN"),
        (403, "gated"),
        (404, "check the spelling"),
        (500, "try again later"),
    ] {
        let hub = FakeHub::start(move |_| status(code)).await;
        let message = user.refusal(&hub, "o/r").await;
        assert!(
            message.contains(part) && message.contains("o/r"),
            "{message}"
        );
    }

    // The repository is open, the file is not: gated models answer like this.
    let hub = FakeHub::start(|asked| match asked.path() {
        path if path.starts_with("/api/") => listing(WEIGHTS_SHA256),
        _ => status(403),
    })
    .await;
    let message = user.refusal(&hub, "o/r").await;
    assert!(message.contains("HF_TOKEN"), "{message}");
    assert_eq!(hub.downloads(), [0]);

    let hub = FakeHub::proper().await;
    let message = user.refusal(&hub, "o/r:model-Q4_0.gguf").await;
    assert!(message.contains("has no file model-Q4_0.gguf"), "{message}");
    assert!(message.contains("\n  model-F16.gguf"), "{message}");

    let hub = FakeHub::start(|_| Reply {
        status: 200,
        body: b"<html>sign in to the hotel network</html>".to_vec(),
        ..Reply::default()
    })
    .await;
    let message = user.refusal(&hub, "o/r").await;
    assert!(message.contains("cannot be read"), "{message}");
}

#[tokio::test]
async fn what_the_hubs_own_library_has_is_used_without_a_network() {
    let user = User::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);

    let message = user
        .resolve_at(&nobody, "o/r")
        .await
        .unwrap_err()
        .to_string();
    assert!(message.contains("--engine scripted"), "{message}");

    let repository = user.at(".cache/huggingface/hub/models--o--r");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("model-Q8_0.gguf"), weights()).unwrap();
    for model in ["o/r:model-Q8_0.gguf", "o/r"] {
        let path = user.resolve_at(&nobody, model).await.unwrap();
        assert_eq!(path, snapshot.join("model-Q8_0.gguf"));
    }
}

#[tokio::test]
async fn an_endpoint_must_be_an_address() {
    let user = User::new();
    for value in ["huggingface.co", "file:///etc", "http://"] {
        let message = user.resolve_at(value, "o/r").await.unwrap_err().to_string();
        assert!(
            message.contains("HF_ENDPOINT") && message.contains(value),
            "{message}"
        );
    }
}
