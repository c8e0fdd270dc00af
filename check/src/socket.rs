//! Socket: one connection of a conversation. Every wait is bounded, every message is written into
//! the transcript and judged by the watch.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use turnwire_client::{Bytes, Connection, Error, Handshake, Message, Payload, Traffic};

use crate::event::{Event, Refusal, Turn};
use crate::stop::{Stop, ensure, fail, skip};
use crate::transcript::{Sender, Transcript};
use crate::watch::Watch;

/// Frames of more bytes than this are refused by a client in wide use (row 22).
const LARGEST_FRAME: usize = 16 << 20;

/// How long nothing at all must come before a missing terminal event is held against a server.
const SILENCE: Duration = Duration::from_secs(5);

pub(crate) struct Socket {
    connection: Connection,
    number: usize,
    transcript: Transcript,
    watch: Watch,
    timeout: Duration,
}

/// How a create was answered.
pub(crate) enum Answer {
    Turn(Turn),
    Refused(Refusal),
}

impl Socket {
    pub(crate) fn new(
        connection: Connection,
        transcript: Transcript,
        watch: Watch,
        timeout: Duration,
    ) -> Self {
        Self {
            connection,
            number: transcript.connection(),
            transcript,
            watch,
            timeout,
        }
    }

    pub(crate) fn handshake(&self) -> &Handshake {
        self.connection.handshake()
    }

    /// Bytes of frames so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.connection.traffic()
    }

    pub(crate) async fn send(&mut self, message: Value) -> Result<(), Stop> {
        self.send_text(message.to_string()).await
    }

    /// Sends a text message that need not be JSON, nor UTF-8.
    pub(crate) async fn send_text(&mut self, text: impl Into<Bytes>) -> Result<(), Stop> {
        let text = text.into();
        self.note_sent(&text);
        let sent = self.connection.send_text_unchecked(text);
        within(self.timeout, sent).await
    }

    pub(crate) async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> Result<(), Stop> {
        let bytes = bytes.into();
        self.note_sent(&bytes);
        within(self.timeout, self.connection.send_binary(bytes)).await
    }

    /// Sends one text message in several frames.
    pub(crate) async fn send_in_frames(
        &mut self,
        message: Value,
        frames: usize,
    ) -> Result<(), Stop> {
        let text = Bytes::from(message.to_string());
        self.note_sent(&text);
        let sent = self.connection.send_in_frames(text, frames);
        within(self.timeout, sent).await
    }

    pub(crate) async fn ping(&mut self, payload: &'static str) -> Result<(), Stop> {
        self.note(Sender::Client, format!("Ping {payload:?}"));
        within(self.timeout, self.connection.ping(payload)).await
    }

    pub(crate) async fn pong(&mut self, payload: &'static str) -> Result<(), Stop> {
        self.note(Sender::Client, format!("Pong {payload:?}"));
        within(self.timeout, self.connection.pong(payload)).await
    }

    /// Ends the TCP connection without a Close frame.
    pub(crate) fn abort(self) {
        self.note(Sender::Client, "the connection is dropped");
        self.connection.abort();
    }

    /// Sends a Close frame. What still comes can be read.
    pub(crate) async fn send_close(&mut self) -> Result<(), Stop> {
        self.note(Sender::Client, "Close 1000");
        within(self.timeout, self.connection.send_close(1000, "")).await
    }

    /// The next message of any kind; `None` when the deadline has passed.
    pub(crate) async fn next_message(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<Message>, Error> {
        let next = self.connection.next_message();
        let Ok(message) = timeout_at(deadline, next).await else {
            return Ok(None);
        };
        match &message {
            Ok(Message::Text(payload)) => self.note_payload(payload),
            Ok(Message::Binary(payload)) => {
                self.note_payload(payload);
                self.watch.blame(12, "a binary message came");
            }
            Ok(Message::Ping(_)) => self.note(Sender::Server, "Ping"),
            Ok(Message::Pong(payload)) => {
                self.note(Sender::Server, format!("Pong {payload:?}"));
            }
            Ok(Message::Close { code, reason }) => {
                let code = code.map_or("without a code".to_owned(), |code| code.to_string());
                self.note(Sender::Server, format!("Close {code} {reason}"));
            }
            Err(error) => self.note(Sender::Server, error.to_string()),
        }
        message.map(Some)
    }

    /// The next event; `None` when the deadline has passed.
    pub(crate) async fn next_before(&mut self, deadline: Instant) -> Result<Option<Event>, Stop> {
        loop {
            let payload = match self.next_message(deadline).await? {
                None => return Ok(None),
                Some(Message::Text(payload) | Message::Binary(payload)) => payload,
                Some(Message::Ping(_) | Message::Pong(_)) => continue,
                Some(Message::Close { code, reason }) => {
                    return Err(Error::Closed { code, reason }.into());
                }
            };
            if payload.bytes.as_ref() == b"[DONE]" {
                self.watch.blame(19, "`[DONE]` came on the socket");
                continue;
            }
            let Ok(json) = serde_json::from_slice(&payload.bytes) else {
                self.watch.blame(12, "a message is not one JSON value");
                fail!("expected an event; a message came that is not JSON");
            };
            if let Some(event) = self.watch.received(&json) {
                return Ok(Some(event));
            }
        }
    }

    /// The next event, which has to come before the timeout. `due` says what it should be.
    pub(crate) async fn next(&mut self, due: &str) -> Result<Event, Stop> {
        match self.next_before(self.deadline()).await? {
            Some(event) => Ok(event),
            None => fail!(
                "expected {due}; nothing came within {} s",
                self.timeout.as_secs()
            ),
        }
    }

    /// Reads until the events so far are enough.
    pub(crate) async fn read_until(
        &mut self,
        due: &str,
        mut enough: impl FnMut(&[Event]) -> bool,
    ) -> Result<Vec<Event>, Stop> {
        let deadline = self.deadline();
        let mut events = Vec::new();
        while !enough(&events) {
            // What is there already is read after the deadline too, so it is looked at here.
            let event = match Instant::now() < deadline {
                true => self.next_before(deadline).await?,
                false => None,
            };
            let event = match event {
                Some(event) => Some(event),
                // The end may be on its way, so its absence takes a silence of its own.
                None if self.watch.only_an_end_is_due() => {
                    self.next_before(Instant::now() + self.timeout.min(SILENCE))
                        .await?
                }
                None => None,
            };
            match event {
                Some(event) => events.push(event),
                None => return Err(self.silence(due, &events)),
            }
        }
        Ok(events)
    }

    /// Reads until this many creates have been answered to the end. The timeout is for one turn,
    /// and holds for each of them.
    pub(crate) async fn read_endings(&mut self, count: usize) -> Result<Vec<Event>, Stop> {
        let mut events = Vec::new();
        for _ in 0..count {
            let ended = self.read_until("the end of a turn", |events| {
                events.last().is_some_and(Event::is_ending)
            });
            events.extend(ended.await?);
        }
        Ok(events)
    }

    /// Sends a create, and reads on to the end of the response or the refusal.
    pub(crate) async fn answer(&mut self, create: Value) -> Result<Answer, Stop> {
        self.send(create).await?;
        self.read_answer().await
    }

    /// Reads the answer to a create that was sent.
    pub(crate) async fn read_answer(&mut self) -> Result<Answer, Stop> {
        let events = self.read_endings(1).await?;
        match events.last() {
            Some(last) if last.name == "error" => Ok(Answer::Refused(Refusal {
                json: last.json.clone(),
            })),
            _ => Ok(Answer::Turn(Turn { events })),
        }
    }

    /// Sends a create that has to become a response which ends well.
    pub(crate) async fn turn(&mut self, create: Value) -> Result<Turn, Stop> {
        self.send(create).await?;
        self.read_turn().await
    }

    /// Reads a response that has to end well.
    pub(crate) async fn read_turn(&mut self) -> Result<Turn, Stop> {
        match self.read_answer().await? {
            Answer::Turn(turn) => {
                turn.expect_usable()?;
                Ok(turn)
            }
            Answer::Refused(refusal) => fail!("expected a response; the server refused: {refusal}"),
        }
    }

    /// Sends a message that has to be answered with an `error` event, and with nothing before it.
    pub(crate) async fn refusal(&mut self, message: Value) -> Result<Refusal, Stop> {
        self.send(message).await?;
        self.read_refusal().await
    }

    /// Reads an `error` event.
    pub(crate) async fn read_refusal(&mut self) -> Result<Refusal, Stop> {
        let event = self.next("an `error` event").await?;
        ensure!(
            event.name == "error",
            "expected an `error` event; `{}` came",
            event.name
        );
        Ok(Refusal { json: event.json })
    }

    /// Sends a create that is to run long, reads up to its first delta, and gives out the id of
    /// the response. Ends the conversation
    /// without a verdict if the model has nothing to say for long.
    pub(crate) async fn begin(&mut self, create: Value) -> Result<String, Stop> {
        let lane = create["stream_id"].as_str().map(str::to_owned);
        self.send(create).await?;
        let events = self.read_until("the first delta of a long answer", |events| {
            let last = events.last();
            last.is_some_and(|event| event.is_delta() || event.is_ending())
        });
        let mut events = events.await?;
        events.retain(|event| event.lane() == lane.as_deref());
        match events.last() {
            Some(last) if last.name == "error" => {
                let refusal = Refusal {
                    json: last.json.clone(),
                };
                fail!("expected a response; the server refused: {refusal}")
            }
            Some(last) if last.is_terminal() => skip!("the model's answer was too short"),
            _ => {}
        }
        let created = events.iter().find(|event| event.name == "response.created");
        match created.and_then(|event| event.json["response"]["id"].as_str()) {
            Some(id) => Ok(id.to_owned()),
            None => fail!(
                "expected the events of the turn to carry `stream_id` {}; no `response.created` \
                 with it came before the first delta",
                json!(lane)
            ),
        }
    }

    /// Reads up to the Close frame, and gives out its code and reason.
    pub(crate) async fn read_close(&mut self) -> Result<(Option<u16>, String), Stop> {
        let deadline = self.deadline();
        loop {
            match self.next_message(deadline).await {
                Ok(None) => fail!(
                    "expected a Close frame; none came within {} s",
                    self.timeout.as_secs()
                ),
                Ok(Some(Message::Close { code, reason })) | Err(Error::Closed { code, reason }) => {
                    return Ok((code, reason));
                }
                Ok(Some(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// When what is asked now has to be answered.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// The timeout has passed. A model that is still at it is slow; a server that has everything
    /// and does not say so, or that says nothing at all, is wrong.
    fn silence(&self, due: &str, events: &[Event]) -> Stop {
        let seconds = self.timeout.as_secs();
        if self.watch.only_an_end_is_due() {
            let sentence = format!(
                "all items of a response were done, but no terminal event came within {seconds} s"
            );
            self.watch.blame(55, sentence.clone());
            return Stop::Fail(sentence);
        }
        if events.is_empty() && !self.watch.is_running() {
            return Stop::Fail(format!("expected {due}; nothing came within {seconds} s"));
        }
        Stop::Skip(format!(
            "the model did not answer within {seconds} s (waited for {due})"
        ))
    }

    fn note(&self, from: Sender, message: impl AsRef<str>) {
        self.transcript.note(self.number, from, message);
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        if let Ok(sent) = serde_json::from_slice(bytes) {
            self.watch.sent(&sent);
        }
        self.note(Sender::Client, String::from_utf8_lossy(bytes));
    }

    fn note_payload(&self, payload: &Payload) {
        self.note(Sender::Server, String::from_utf8_lossy(&payload.bytes));
        if payload.largest_frame > LARGEST_FRAME {
            let sentence = format!("a frame of {} bytes came", payload.largest_frame);
            self.watch.blame(22, sentence);
        }
    }
}

async fn within(
    timeout: Duration,
    done: impl Future<Output = Result<(), Error>>,
) -> Result<(), Stop> {
    match tokio::time::timeout(timeout, done).await {
        Ok(done) => Ok(done?),
        Err(_) => skip!("the server took no more bytes for {} s", timeout.as_secs()),
    }
}
