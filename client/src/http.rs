//! Http: the same API without a socket.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder, Response};

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::event::Event;
use crate::handshake::refusal;
use crate::options::Options;
use crate::sse::{Decoder, Message, TooLarge};

/// Requests to the API's other addresses, and to `responses` without a socket.
///
/// Paths are relative to the base address, which includes `/v1`, and may have a query:
/// `responses/resp_1/input_items?limit=3`. A clone shares the kept connections.
#[derive(Clone, Debug)]
pub struct Http {
    endpoint: Endpoint,
}

/// A whole answer, whatever its status is.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The events of an answer, as they come.
pub struct Events {
    response: Response,
    decoder: Decoder,
    address: String,
    done: bool,
}

impl Http {
    pub fn new(url: &str, options: &Options) -> Result<Self, Error> {
        Endpoint::new(url, options).map(Self::at)
    }

    pub(crate) fn at(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    pub async fn get(&self, path: &str) -> Result<Answer, Error> {
        self.answer(self.endpoint.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Answer, Error> {
        self.answer(self.endpoint.request(Method::DELETE, path))
            .await
    }

    pub async fn post_json(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer, Error> {
        self.answer(self.post(path, body.into())).await
    }

    /// Sends any body with these headers, besides those of the options.
    pub async fn post_with(
        &self,
        path: &str,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> Result<Answer, Error> {
        let mut request = self.endpoint.request(Method::POST, path).body(body.into());
        for (name, value) in &headers {
            request = request.header(name, value);
        }
        self.answer(request).await
    }

    /// Asks for events. `body` says `"stream": true`. An answer that is not a stream of events
    /// is [`Error::Refused`].
    pub async fn post_sse(&self, path: &str, body: impl Into<Bytes>) -> Result<Events, Error> {
        let request = self
            .post(path, body.into())
            .header(ACCEPT, "text/event-stream");
        let response = self.send(request).await?;
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !response.status().is_success() || !kind.starts_with("text/event-stream") {
            return Err(refusal(response).await);
        }
        Ok(Events {
            response,
            decoder: Decoder::new(self.endpoint.limit),
            address: self.endpoint.address(),
            done: false,
        })
    }

    fn post(&self, path: &str, body: Bytes) -> RequestBuilder {
        self.endpoint
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "application/json")
            .body(body)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let Endpoint { patience, .. } = self.endpoint;
        // Boxed: an HTTP client's future is large, and everything that asks would carry it.
        Box::pin(request.send())
            .await
            .map_err(|error| Error::from_http(error, &self.endpoint.address(), patience))
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Answer, Error> {
        let Endpoint {
            patience, limit, ..
        } = self.endpoint;
        let mut response = self.send(request).await?;
        let mut body = BytesMut::new();
        loop {
            let piece = response.chunk().await;
            let piece = piece
                .map_err(|error| Error::from_http(error, &self.endpoint.address(), patience))?;
            let Some(piece) = piece else { break };
            if body.len() + piece.len() > limit {
                return Err(Error::TooLarge { limit });
            }
            body.extend_from_slice(&piece);
        }
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: body.freeze(),
        })
    }
}

impl Events {
    /// The next event; none when the stream has ended.
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(Message { data, .. }) = self.decoder.poll_message() {
                if data == "[DONE]" {
                    self.done = true;
                    continue;
                }
                return Event::read(data).map(Some);
            }
            let piece = self.response.chunk().await;
            let piece =
                piece.map_err(|error| Error::from_http(error, &self.address, Duration::ZERO));
            let Some(piece) = piece? else { return Ok(None) };
            let fed = self.decoder.feed(&piece);
            fed.map_err(|TooLarge { limit }| Error::TooLarge { limit })?;
        }
    }

    /// Whether `data: [DONE]` has come.
    pub fn saw_done(&self) -> bool {
        self.done
    }

    /// The headers of the answer.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}
