//! A server on a free port, and the ways to talk to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_openai::types::responses::websocket::ResponsesServerEvent;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use turnwire::auth::Access;
use turnwire::engine::scripted::{Activity, ScriptedEngine};
use turnwire::engine::{Engine, Engines};
use turnwire::histories::Histories;
use turnwire::secret::Secret;
pub(crate) use turnwire::serve::Capacity;
use turnwire::serve::{Listener, Server, serve};
use turnwire::store::{MemoryStore, Store};
use turnwire::tls::Tls;
use turnwire_client::{Connection, Event};
use turnwire_protocol::limits::Limits;

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    pub(crate) engine: watch::Receiver<Activity>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

/// What differs from server to server.
pub(crate) struct Settings {
    pub(crate) access: Access,
    pub(crate) histories: Histories,
    pub(crate) secret: Secret,
    pub(crate) limits: Limits,
    pub(crate) capacity: Capacity,
    pub(crate) tls: Option<Tls>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access: Access::Open,
            histories: Histories::new(1 << 20, Duration::MAX),
            secret: Secret::in_memory(),
            limits: Limits::default(),
            capacity: Capacity {
                connections: 100,
                background: 100,
            },
            tls: None,
        }
    }
}

/// The answer to an HTTP request.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl TestServer {
    pub(crate) async fn start(script: &str) -> Self {
        Self::with(script, Settings::default()).await
    }

    pub(crate) async fn with(script: &str, settings: Settings) -> Self {
        let engine = ScriptedEngine::new(script.parse().expect("a valid script"), 0);
        let activity = engine.activity();
        let engine: Arc<dyn Engine> = Arc::new(engine);
        Self::serving(Engines::ready([engine]), activity, settings)
            .await
            .0
    }

    /// Gives out the server's inside as well.
    pub(crate) async fn serving(
        engines: Engines,
        engine: watch::Receiver<Activity>,
        settings: Settings,
    ) -> (Self, Arc<Server>) {
        let Settings {
            access,
            histories,
            secret,
            limits,
            capacity,
            tls,
        } = settings;
        let store = Some(Store::Memory(MemoryStore::new(1 << 30)));
        let server = Server::new(engines, store, histories, access, secret, limits, capacity);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (listener, scheme) = match tls {
            None => (Listener::from(listener), "http"),
            Some(tls) => (Listener::secure(listener, tls), "https"),
        };
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(listener, Arc::clone(&server), async {
            let _ = stopped.await;
        }));
        let running = Self {
            address,
            scheme,
            engine,
            stop,
            served,
        };
        (running, server)
    }

    /// Begins to shut down; the handle is done when the server is.
    pub(crate) fn stop(self) -> JoinHandle<()> {
        self.stop.send(()).expect("the server still runs");
        self.served
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(&self.url("/v1"), None).await.unwrap()
    }

    /// A socket with a turn under way that will not end by itself.
    pub(crate) async fn connect_and_hang(&mut self) -> Connection {
        let mut connection = self.connect().await;
        connection
            .send(create(json!({"input": "go on"})).to_string())
            .await
            .unwrap();
        self.engine
            .wait_for(|engine| engine.running == 1)
            .await
            .unwrap();
        connection
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        request(http().get(self.url(path))).await
    }

    /// A request with a JSON body.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let method = method.parse().expect("a method");
        let sent = http().request(method, self.url(path));
        request(sent.body(body.to_string())).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        request(http().delete(self.url(path))).await
    }

    pub(crate) async fn post(&self, body: &Value) -> Answer {
        request(
            http()
                .post(self.url("/v1/responses"))
                .body(body.to_string()),
        )
        .await
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("a JSON body")
    }

    /// The code of an error whose body has all that it must have.
    pub(crate) fn error_code(&self) -> String {
        let body = self.json();
        let error = &body["error"];
        assert!(
            error["type"].is_string() && error["message"].is_string(),
            "{error}"
        );
        assert!(
            error["param"].is_string() || error["param"].is_null(),
            "{error}"
        );
        error["code"].as_str().expect("a code").to_owned()
    }
}

/// A client that knows nothing of this machine's proxies.
pub(crate) fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

pub(crate) async fn request(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

/// `response.create` for the model of the script, with these members.
pub(crate) fn create(members: Value) -> Value {
    let mut create = json!({"type": "response.create", "model": "scripted"});
    let Value::Object(members) = members else {
        panic!("members of an object")
    };
    create.as_object_mut().unwrap().extend(members);
    create
}

/// Sends one message and reads the events that end with its turn.
pub(crate) async fn turn(connection: &mut Connection, message: &Value) -> Vec<Event> {
    connection.send(message.to_string()).await.unwrap();
    events(connection).await
}

/// Reads events up to the end of a turn. Each of them is one that async-openai knows.
pub(crate) async fn events(connection: &mut Connection) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let event = connection.next().await.unwrap();
        check(&event.json);
        let last = event.is_terminal();
        events.push(event);
        if last {
            return events;
        }
    }
}

/// Fails if an independent implementation cannot read an event.
pub(crate) fn check(event: &[u8]) {
    if let Err(error) = serde_json::from_slice::<ResponsesServerEvent>(event) {
        panic!("{error}: {}", String::from_utf8_lossy(event));
    }
}

/// The response object of the last event.
pub(crate) fn response(events: &[Event]) -> Value {
    let last = events.last().expect("at least one event");
    let last: Value = last.parse().unwrap();
    assert!(last["response"].is_object(), "{last}");
    last["response"].clone()
}

/// The code of the `error` event that ended a turn.
pub(crate) fn error_code(events: &[Event]) -> String {
    let last: Value = events.last().expect("at least one event").parse().unwrap();
    last["error"]["code"]
        .as_str()
        .expect("an error event")
        .to_owned()
}

/// All text that a response says.
pub(crate) fn text(response: &Value) -> String {
    let items = response["output"].as_array().unwrap();
    let parts = items
        .iter()
        .filter_map(|item| item["content"].as_array())
        .flatten();
    parts.filter_map(|part| part["text"].as_str()).collect()
}

/// A function tool with these parameters, all required.
pub(crate) fn tool(name: &str, properties: &Value) -> Value {
    let required: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
    json!({
        "type": "function",
        "name": name,
        "strict": true,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        },
    })
}
