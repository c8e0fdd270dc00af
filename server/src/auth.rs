//! Auth: which key a request brings, and whom its responses belong to.
//!
//! A key is the owner of what it creates: every response is looked up together with the
//! [`Tenant`] that asks. Keys are held as SHA-256 digests only. Revoking a key takes a restart.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hyper::HeaderMap;
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderValue, ORIGIN};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The owner of responses: the digest of a key, or the one owner of a server without keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant([u8; 32]);

/// Who may use the server.
#[derive(Debug)]
pub enum Access {
    /// Anyone who can connect. Credentials are ignored and all responses have one owner.
    Open,
    /// The bearers of these keys.
    Keys(Vec<Tenant>),
}

/// No key, or one that is not known. Which of the two is not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unauthorized;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("key file {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "key file {}: no keys in it; write one key per line, lines that begin with # are skipped",
        .0.display()
    )]
    Empty(PathBuf),
}

impl Tenant {
    /// The owner on a server without keys. No key has this digest.
    pub const ANYONE: Self = Self([0; 32]);

    pub fn of_key(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// The one that [`Tenant::as_bytes`] is of.
    pub(crate) fn of_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// What tells it apart from others, the same on every server.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Access {
    /// Reads one key per line. Blank lines and lines that begin with `#` are skipped.
    pub fn from_key_file(path: &Path) -> Result<Self, KeyFileError> {
        let text = fs::read_to_string(path).map_err(|source| KeyFileError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let keys: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|key| Tenant::of_key(key.as_bytes()))
            .collect();
        if keys.is_empty() {
            return Err(KeyFileError::Empty(path.to_owned()));
        }
        Ok(Self::Keys(keys))
    }

    /// Whether the page that sends a request, if a page does, may use this server.
    ///
    /// Without keys only this machine's own pages may: a browser lets any page open a socket
    /// to loopback, and a page has no key to show or to lack.
    pub fn admits_origin(&self, headers: &HeaderMap) -> bool {
        match (self, headers.get(ORIGIN)) {
            (Self::Keys(_), _) | (Self::Open, None) => true,
            (Self::Open, Some(origin)) => origin.to_str().is_ok_and(is_loopback),
        }
    }

    /// Looks for `Authorization: Bearer KEY`, then for `api-key: KEY`.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Tenant, Unauthorized> {
        let Self::Keys(keys) = self else {
            return Ok(Tenant::ANYONE);
        };
        let bearer = headers.get(AUTHORIZATION).and_then(bearer);
        let key = bearer.or_else(|| headers.get("api-key").map(HeaderValue::as_bytes));
        let presented = Tenant::of_key(key.ok_or(Unauthorized)?);
        let known = keys.iter().fold(0, |known, key| {
            known | key.0.ct_eq(&presented.0).unwrap_u8()
        });
        if known == 1 {
            Ok(presented)
        } else {
            Err(Unauthorized)
        }
    }
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked("bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| key.trim_ascii())
}

/// Whether an origin, `http://127.0.0.1:3000` say, is on this machine.
fn is_loopback(origin: &str) -> bool {
    let Ok(origin) = origin.parse::<Uri>() else {
        return false;
    };
    let host = origin.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
    }

    #[test]
    fn a_key_is_its_own_owner_in_either_header() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# staging\n\nsk-one\n  sk-two \r\n").unwrap();
        let access = Access::from_key_file(file.path()).unwrap();
        let one = Tenant::of_key(b"sk-one");
        let two = Tenant::of_key(b"sk-two");

        let ask = |name, value| access.authenticate(&headers(name, value));
        assert_eq!(ask("authorization", "Bearer sk-one"), Ok(one));
        assert_eq!(ask("authorization", "bearer  sk-two"), Ok(two));
        assert_eq!(ask("api-key", "sk-two"), Ok(two));
        for (name, value) in [
            ("authorization", "Bearer sk-on"),
            ("authorization", "Bearer "),
            ("authorization", "Basic sk-one"),
            ("authorization", "sk-one"),
            ("authorization", "Bearer # staging"),
            ("x-key", "sk-one"),
        ] {
            assert_eq!(ask(name, value), Err(Unauthorized), "{name}: {value}");
        }
    }

    #[test]
    fn without_keys_credentials_are_ignored() {
        let anything = headers("authorization", "Bearer whatever");
        assert_eq!(Access::Open.authenticate(&anything), Ok(Tenant::ANYONE));
    }

    #[test]
    fn a_file_without_keys_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# nothing yet\n").unwrap();
        let error = Access::from_key_file(file.path()).unwrap_err().to_string();
        assert!(
            error.contains(&file.path().display().to_string()),
            "{error}"
        );
    }

    #[test]
    fn without_keys_only_pages_of_this_machine_are_admitted() {
        let page = |origin| Access::Open.admits_origin(&headers("origin", origin));
        for own in [
            "http://localhost:3000",
            "http://127.0.0.1",
            "https://[::1]:8443",
        ] {
            assert!(page(own), "{own}");
        }
        for foreign in [
            "http://example.com",
            "http://localhost.example.com",
            "null",
            "",
            "file://",
        ] {
            assert!(!page(foreign), "{foreign}");
        }
        assert!(
            Access::Open.admits_origin(&HeaderMap::new()),
            "no page at all"
        );
        let keys = Access::Keys(vec![Tenant::of_key(b"key")]);
        assert!(keys.admits_origin(&headers("origin", "http://example.com")));
    }
}
