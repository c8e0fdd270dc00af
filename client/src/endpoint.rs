//! Endpoint: a server's base address and the HTTP client that reaches it.
//!
//! Handshakes go through the same HTTP client as requests, so that certificates, proxies and
//! timeouts are the same for both.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, RequestBuilder, Url, redirect};

use crate::error::Error;
use crate::options::Options;

#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    client: Client,
    /// With an http scheme.
    base: Url,
    headers: HeaderMap,
    pub(crate) subprotocols: Option<String>,
    pub(crate) compression: bool,
    pub(crate) patience: Duration,
    pub(crate) limit: usize,
}

impl Endpoint {
    pub(crate) fn new(url: &str, options: &Options) -> Result<Self, Error> {
        let base = parse(url)?;
        Ok(Self {
            client: client(&base, options)?,
            base,
            headers: headers(options)?,
            subprotocols: (!options.subprotocols.is_empty())
                .then(|| options.subprotocols.join(", ")),
            compression: options.compression,
            patience: options.connect_timeout,
            limit: options.largest_message,
        })
    }

    /// A request with all the headers that the options ask for. The path is relative to the base
    /// address and may have a query, which joins that of the address.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.client.request(method, self.join(path));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
    }

    /// Host and port, for messages.
    pub(crate) fn address(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port_or_known_default() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    fn join(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        let whole = format!(
            "{}/{}",
            url.path().trim_end_matches('/'),
            path.trim_start_matches('/')
        );
        url.set_path(&whole);
        if let Some(query) = query {
            let query = match url.query() {
                Some(given) => format!("{given}&{query}"),
                None => query.to_owned(),
            };
            url.set_query(Some(&query));
        }
        url
    }
}

fn parse(url: &str) -> Result<Url, Error> {
    let invalid = |problem: String| Error::InvalidUrl {
        // What stands behind the query is nobody's concern, and it may be a secret.
        url: url.split(['?', '#']).next().unwrap_or_default().to_owned(),
        problem,
    };
    let mut base = Url::parse(url).map_err(|problem| invalid(problem.to_string()))?;
    let scheme = match base.scheme() {
        "http" | "ws" => "http",
        "https" | "wss" => "https",
        other => {
            let problem = format!("the scheme is `{other}`; use http, https, ws or wss");
            return Err(invalid(problem));
        }
    };
    if !base.username().is_empty() || base.password().is_some() {
        return Err(Error::InvalidUrl {
            url: base.host_str().unwrap_or_default().to_owned(),
            problem: "it has a user name or password; give the key by itself".to_owned(),
        });
    }
    base.set_scheme(scheme)
        .map_err(|()| invalid("it has no host".to_owned()))?;
    base.set_fragment(None);
    Ok(base)
}

fn client(base: &Url, options: &Options) -> Result<Client, Error> {
    let mut client = Client::builder()
        // WebSockets are upgrades of HTTP/1.1.
        .http1_only()
        .redirect(redirect::Policy::none())
        .connect_timeout(options.connect_timeout);
    if base.scheme() == "http" {
        // Proxies forward plain requests but not their upgrades. Without the last line the
        // certificates of the system would be read for nothing.
        client = client.no_proxy().tls_certs_only([]);
    } else {
        for pem in &options.root_certificates {
            let certificates = Certificate::from_pem_bundle(pem);
            let certificates =
                certificates.map_err(|error| invalid_option("root certificate", &error))?;
            if certificates.is_empty() {
                return Err(Error::InvalidOption {
                    option: "root certificate".to_owned(),
                    problem: "there is no PEM certificate in it".to_owned(),
                });
            }
            client = client.tls_certs_merge(certificates);
        }
        client = client.tls_danger_accept_invalid_certs(options.any_certificate);
    }
    client
        .build()
        .map_err(|error| invalid_option("TLS configuration", &error))
}

fn headers(options: &Options) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    if let Some(key) = &options.key {
        let value = HeaderValue::try_from(format!("Bearer {key}"));
        let mut value = value.map_err(|error| invalid_option("key", &error))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    for (name, value) in &options.headers {
        let option = format!("header `{name}`");
        let name = HeaderName::try_from(name);
        let name = name.map_err(|error| invalid_option(&option, &error))?;
        let value = HeaderValue::try_from(value);
        let value = value.map_err(|error| invalid_option(&option, &error))?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn invalid_option(option: &str, error: &dyn std::error::Error) -> Error {
    let mut problem = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        problem = format!("{problem}: {error}");
        cause = error.source();
    }
    Error::InvalidOption {
        option: option.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(base: &str, path: &str) -> String {
        let endpoint = Endpoint::new(base, &Options::new()).expect("an address");
        endpoint.join(path).to_string()
    }

    #[test]
    fn a_path_goes_between_the_base_and_its_query() {
        for (base, path, expected) in [
            ("http://h/v1", "responses", "http://h/v1/responses"),
            ("ws://h:9/v1/", "responses", "http://h:9/v1/responses"),
            ("http://h/v1?x=y", "/responses", "http://h/v1/responses?x=y"),
            (
                "http://h/v1?x=y#z",
                "responses/resp_1/input_items?limit=3",
                "http://h/v1/responses/resp_1/input_items?x=y&limit=3",
            ),
            ("ws://[::1]:80", "models", "http://[::1]/models"),
        ] {
            assert_eq!(joined(base, path), expected);
        }
    }

    #[test]
    fn what_is_no_address_is_told() {
        for (url, expected) in [
            (
                "localhost:8080",
                "the scheme is `localhost`; use http, https, ws or wss",
            ),
            ("127.0.0.1:8080/v1", "relative URL without a base"),
            ("http://", "empty host"),
            (
                "http://me:secret@h/v1",
                "it has a user name or password; give the key by itself",
            ),
        ] {
            let error = Endpoint::new(url, &Options::new()).expect_err("no address");
            let Error::InvalidUrl { url, problem } = error else {
                panic!("{error}")
            };
            assert_eq!(problem, expected);
            assert!(!url.contains("secret"));
        }
    }

    #[test]
    fn options_that_cannot_be_used_are_named() {
        let error = |options| match Endpoint::new("https://h/v1", &options) {
            Err(Error::InvalidOption { option, .. }) => option,
            other => panic!("{other:?}"),
        };
        assert_eq!(error(Options::new().key("a\nb")), "key");
        assert_eq!(error(Options::new().header("a b", "c")), "header `a b`");
        assert_eq!(
            error(Options::new().root_certificates("no PEM")),
            "root certificate"
        );
    }
}
