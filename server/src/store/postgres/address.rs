//! Address: which database is meant by a URL, and how to get there.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::tls::{Tls, TlsError};

/// How long a server may take to answer a first word.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long what was sent may stay unacknowledged by the kernel on the other side.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The URL of a database: `postgres://USER:PASSWORD@HOST:PORT/NAME?OPTION=VALUE&…`. It is not
/// printed, since it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

/// Where a database is, taken apart.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) config: Config,
    /// None where the connection needs no protection.
    pub(super) tls: Option<Tls>,
}

/// A URL that names no database that can be used. Nothing of the URL is in the message.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("it is no URL of a database: {0}. Write postgres://USER@HOST/NAME")]
    Unreadable(&'static str),
    #[error("{0}")]
    Option(tokio_postgres::Error),
    #[error("sslmode must be disable, require, verify-ca or verify-full, and not `{0}`")]
    SslMode(String),
    #[error("sslrootcert {}", path.display())]
    RootCertificates { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl PostgresUrl {
    /// The text, if it begins like the URL of a database.
    pub fn of(text: &str) -> Option<Self> {
        let schemes = ["postgres://", "postgresql://"];
        let is_url = schemes.iter().any(|scheme| text.starts_with(scheme));
        is_url.then(|| Self(text.to_owned()))
    }

    /// Without a password in it, that of `PGPASSWORD` is meant.
    pub(super) fn read(&self) -> Result<Address, AddressError> {
        let (url, query) = self.0.split_once('?').unwrap_or((&self.0, ""));
        let mut ssl_mode = None;
        let mut roots = None;
        let mut others = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = || percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "sslmode" => ssl_mode = Some(value()),
                "sslrootcert" => roots = Some(PathBuf::from(value())),
                _ => others.push(option),
            }
        }
        let mut config: Config = format!("{url}?{}", others.join("&"))
            .parse()
            .map_err(AddressError::Option)?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(AddressError::Unreadable("it has no host"));
        }
        if config.get_user().is_none() {
            return Err(AddressError::Unreadable("it has no user"));
        }
        if config.get_password().is_none()
            && let Ok(password) = env::var("PGPASSWORD")
        {
            config.password(password);
        }
        let is_secure = match ssl_mode.as_deref() {
            None => !is_on_this_machine(&config),
            Some("disable") => false,
            Some("require" | "verify-ca" | "verify-full") => true,
            Some(other) => return Err(AddressError::SslMode(other.to_owned())),
        };
        let tls = match (is_secure, roots) {
            (false, _) => None,
            (true, None) => Some(Tls::with_roots_of_the_system()?),
            (true, Some(path)) => match fs::read(&path) {
                Ok(pem) => Some(Tls::with_roots(&path, &pem)?),
                Err(source) => return Err(AddressError::RootCertificates { path, source }),
            },
        };
        config
            .ssl_mode(match tls {
                None => SslMode::Disable,
                Some(_) => SslMode::Require,
            })
            .application_name("turnwire")
            // Of several hosts one takes writes, and after a failover it is another.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .tcp_user_timeout(STALL_TIMEOUT)
            .keepalives_idle(STALL_TIMEOUT);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        Ok(Address { config, tls })
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresUrl")
    }
}

impl fmt::Display for Address {
    /// The name of the database and where it is, as far as an operator needs to tell it apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.config.get_user().unwrap_or_default();
        let name = self.config.get_dbname().unwrap_or(user);
        write!(f, "`{name}` on ")?;
        let ports = self.config.get_ports();
        for (place, host) in self.config.get_hosts().iter().enumerate() {
            let separator = if place > 0 { ", " } else { "" };
            let port = ports.get(place).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(host) => write!(f, "{separator}{host}:{port}")?,
                Host::Unix(path) => write!(f, "{separator}{}", path.display())?,
            }
        }
        write!(f, " as {user}")
    }
}

/// Whether every host is reached without a network.
fn is_on_this_machine(config: &Config) -> bool {
    let is_local = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(host) => {
            let address = host.parse::<IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        }
    };
    let addresses = config.get_hostaddrs();
    match addresses.is_empty() {
        true => config.get_hosts().iter().all(is_local),
        false => addresses.iter().all(IpAddr::is_loopback),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Address, AddressError> {
        PostgresUrl::of(text).unwrap().read()
    }

    #[test]
    fn what_crosses_a_network_is_protected_and_nothing_else() {
        for (url, is_secure) in [
            ("postgres://u@127.0.0.1/db", false),
            ("postgresql://u@localhost:5433/db", false),
            ("postgres://u@/db?host=/var/run/postgresql", false),
            ("postgres://u@%2Fvar%2Frun%2Fpostgresql/db", false),
            ("postgres://u@10.0.0.1/db?sslmode=disable", false),
        ] {
            let address = read(url).unwrap();
            assert_eq!(address.tls.is_some(), is_secure, "{url}");
        }
        // That it was tried to find roots is told by what is wrong with them.
        for url in [
            "postgres://u@db.example/x?sslrootcert=/no/such/file",
            "postgres://u@127.0.0.1/x?sslmode=verify-full&sslrootcert=%2Fno%2Fsuch%2Ffile",
        ] {
            let error = read(url).unwrap_err().to_string();
            assert_eq!(error, "sslrootcert /no/such/file");
        }
    }

    #[test]
    fn a_password_is_printed_nowhere() {
        let url = PostgresUrl::of("postgres://u:secret@localhost:5433/db").unwrap();
        let address = url.read().unwrap();
        assert_eq!(address.to_string(), "`db` on localhost:5433 as u");
        assert!(!format!("{url:?} {address:?}").contains("secret"));
        for wrong in [
            "postgres://u:secret@localhost:port/db",
            "postgres://u:secret@localhost/db?sslmode=prefer",
            "postgres://u:secret@localhost/db?nonsense=1",
            "postgres://u:secret@/db",
        ] {
            let error = anyhow::Error::from(read(wrong).unwrap_err());
            assert!(
                !format!("{error:#} {error:?}").contains("secret"),
                "{error:?}"
            );
        }
        assert_eq!(PostgresUrl::of("postgres:db"), None);
    }
}
