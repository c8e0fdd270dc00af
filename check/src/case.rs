//! Case: one conversation with the server, and what it found out about its rows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use turnwire_client::{Answer, Connection, Error, Options};

use crate::event::{Event, Turn};
use crate::probe::Feature;
use crate::server::Server;
use crate::socket::Socket;
use crate::stop::{Held, Stop, skip};
use crate::transcript::{Line, Sender, Transcript};
use crate::watch::Watch;

/// Output tokens that an ordinary answer is kept to, so that small models come to an end.
pub(crate) const SHORT: u64 = 64;
/// And those that a long answer is allowed.
const LONG: u64 = 4000;

pub(crate) struct Case {
    pub(crate) server: Arc<Server>,
    transcript: Transcript,
    verdicts: Mutex<Verdicts>,
}

/// What was decided about each row: nothing against it, or why it stops and what crossed the wire
/// where it failed.
pub(crate) type Verdicts = BTreeMap<u16, Option<(Stop, Vec<Line>)>>;

/// The answer to an HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Null if the body is not JSON.
    pub(crate) json: Value,
}

impl Case {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            transcript: Transcript::begin(),
            verdicts: Mutex::default(),
        }
    }

    /// Marks one row as passed, whatever comes later in the conversation.
    pub(crate) fn pass(&self, row: u16) {
        self.record(row, None);
    }

    /// Marks one row as failed; the conversation goes on.
    pub(crate) fn fail(&self, row: u16, sentence: impl Into<String>) {
        self.decide(row, Stop::Fail(sentence.into()));
    }

    /// Marks one row as skipped; the conversation goes on.
    pub(crate) fn skip(&self, row: u16, reason: impl Into<String>) {
        self.decide(row, Stop::Skip(reason.into()));
    }

    /// The first verdict of a row is kept.
    pub(crate) fn decide(&self, row: u16, verdict: Stop) {
        let verdict = verdict.shortened();
        let lines = match verdict {
            Stop::Fail(_) => self.transcript.lines(),
            Stop::Skip(_) => Vec::new(),
        };
        self.record(row, Some((verdict, lines)));
    }

    fn record(&self, row: u16, verdict: Option<(Stop, Vec<Line>)>) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.entry(row).or_insert(verdict);
    }

    pub(crate) fn transcript(&self) -> Transcript {
        self.transcript.clone()
    }

    /// What was decided. Rows that are missing passed.
    pub(crate) fn into_verdicts(self) -> Verdicts {
        self.verdicts
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the conversation without a verdict if the server says that it has no such thing.
    pub(crate) async fn needs(&self, feature: Feature) -> Held {
        match self.server.lack_of(feature).await {
            Some(reason) => Err(Stop::Skip(reason)),
            None => Ok(()),
        }
    }

    pub(crate) async fn connect(&self) -> Result<Socket, Stop> {
        self.connect_with(&self.server.options).await
    }

    pub(crate) async fn connect_with(&self, options: &Options) -> Result<Socket, Stop> {
        Ok(self.try_connect_with(&self.server.url, options).await?)
    }

    pub(crate) async fn try_connect_with(
        &self,
        url: &str,
        options: &Options,
    ) -> Result<Socket, Error> {
        self.transcript
            .note(0, Sender::Client, format!("GET {url}/responses, upgrade"));
        let opened = Connection::open_with(url, options).await;
        if let Err(error) = &opened {
            self.transcript.note(0, Sender::Server, error.to_string());
        }
        let watch = Watch::new(self.server.violations.clone(), self.transcript.clone());
        let timeout = self.server.timeout;
        Ok(Socket::new(
            opened?,
            self.transcript.clone(),
            watch,
            timeout,
        ))
    }

    /// `response.create` with the model and these members. Unless they say otherwise it is not
    /// stored, and its answer is kept short.
    pub(crate) fn create(&self, members: Value) -> Value {
        let mut create = self.request(members);
        create["type"] = json!("response.create");
        create
    }

    /// The same as the body of an HTTP request.
    pub(crate) fn request(&self, members: Value) -> Value {
        let mut request = json!({"model": self.server.model, "store": false});
        if self.server.takes_max_output_tokens {
            request["max_output_tokens"] = json!(SHORT);
        }
        if let (Some(request), Value::Object(members)) = (request.as_object_mut(), members) {
            request.extend(members);
        }
        request
    }

    /// A create with this one message as its input.
    pub(crate) fn ask(&self, text: &str) -> Value {
        self.create(json!({"input": text}))
    }

    /// A create that continues the turn by this one message.
    pub(crate) fn onto(&self, parent: &Turn, text: &str) -> Value {
        self.create(json!({"previous_response_id": parent.id(), "input": text}))
    }

    /// A create whose answer takes a while, with these members besides.
    pub(crate) fn long(&self, members: Value) -> Value {
        let mut create = self.create(json!({
            "input": "Count from 1 to 2000. Write one number on each line and leave none out.",
        }));
        if self.server.takes_max_output_tokens {
            create["max_output_tokens"] = json!(LONG);
        }
        if let (Some(create), Value::Object(members)) = (create.as_object_mut(), members) {
            create.extend(members);
        }
        create
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Reply, Stop> {
        let answer = self.server.http.get(path);
        self.reply(&format!("GET {path}"), answer).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Reply, Stop> {
        let answer = self.server.http.delete(path);
        self.reply(&format!("DELETE {path}"), answer).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Reply, Stop> {
        let answer = self.server.http.post_json(path, body.to_string());
        self.reply(&format!("POST {path} {body}"), answer).await
    }

    /// Posts a request with `stream: true`, and reads its events. The flag says whether `[DONE]`
    /// came at the end.
    pub(crate) async fn post_stream(
        &self,
        path: &str,
        body: Value,
    ) -> Result<(Vec<Event>, bool), Stop> {
        self.note_http(Sender::Client, &format!("POST {path} {body}"));
        let read = async {
            let mut stream = self.server.http.post_sse(path, body.to_string()).await?;
            let mut events = Vec::new();
            while let Some(event) = stream.next().await? {
                self.note_http(Sender::Server, &String::from_utf8_lossy(&event.json));
                events.extend(event.parse().ok().and_then(Event::new));
            }
            Ok((events, stream.saw_done()))
        };
        match tokio::time::timeout(self.server.timeout, read).await {
            Ok(read) => read.map_err(|error: Error| self.http_error(&error)),
            Err(_) => skip!("{}", self.slow()),
        }
    }

    async fn reply(
        &self,
        request: &str,
        answer: impl Future<Output = Result<Answer, Error>>,
    ) -> Result<Reply, Stop> {
        self.note_http(Sender::Client, request);
        let answer = match tokio::time::timeout(self.server.timeout, answer).await {
            Ok(answer) => answer.map_err(|error| self.http_error(&error))?,
            Err(_) => skip!("{}", self.slow()),
        };
        let Answer { status, body, .. } = answer;
        self.note_http(
            Sender::Server,
            &format!("{status} {}", String::from_utf8_lossy(&body)),
        );
        Ok(Reply {
            status,
            json: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }

    fn http_error(&self, error: &Error) -> Stop {
        self.note_http(Sender::Server, &error.to_string());
        Stop::Fail(format!("expected an answer over HTTP; {error}"))
    }

    fn slow(&self) -> String {
        let seconds = self.server.timeout.as_secs();
        format!("the server did not answer over HTTP within {seconds} s")
    }

    fn note_http(&self, from: Sender, message: &str) {
        self.transcript.note(0, from, message);
    }
}

impl Reply {
    pub(crate) fn code(&self) -> Option<&str> {
        self.json["error"]["code"].as_str()
    }

    /// What the server says by this status of an endpoint that it has not.
    pub(crate) fn declares_lack_of(&self, endpoint: &str) -> Option<String> {
        let absent = matches!(self.status, 404 | 405 | 501);
        absent.then(|| format!("the server has no {endpoint} (HTTP {})", self.status))
    }
}
