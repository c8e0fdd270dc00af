//! Database: connections to it, and what it means when one of them fails.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Socket};

use super::address::{Address, CONNECT_TIMEOUT};

/// How long one exchange with the database may take. What is asked of it takes milliseconds, so
/// it hangs, or nobody is there any more.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Notes from other servers that nobody has read yet.
const MAX_NOTES: usize = 4096;

/// What every connection says first. Plans are made for one row and many alike, and compiling them
/// takes longer than they run. A database that is set to lose what it has confirmed is told not to.
const PREPARE: &str = "
    SET search_path TO turnwire;
    SET client_min_messages TO warning;
    SET default_transaction_isolation TO 'read committed';
    SET statement_timeout TO '15s';
    SET idle_in_transaction_session_timeout TO '15s';
    SET jit TO off;
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') IN ('off', 'local');
";

/// A database that may come and go.
#[derive(Debug)]
pub(super) struct Database {
    address: Address,
    /// Whether the last that was heard of it was trouble. Told in the log when it changes.
    is_in_trouble: AtomicBool,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// There is no connection any more, or it leads to a server that takes no writes. What was
    /// asked for may have been done.
    #[error("no connection: {0}")]
    Lost(String),
    /// It was not done, because others did something to the same rows. Worth another try.
    #[error("a conflict: {0}")]
    Conflict(String),
    /// It was not done.
    #[error("{0}")]
    Refused(String),
}

impl Database {
    pub(super) fn at(address: Address) -> Self {
        Self {
            address,
            is_in_trouble: AtomicBool::new(false),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// A connection that is ready to be asked.
    pub(super) async fn connect(&self) -> Result<Client, Trouble> {
        let connect = async {
            let client = self.connect_bare().await?;
            client.batch_execute(PREPARE).await?;
            Ok(client)
        };
        // The timeout in the address is for one host and its first answer.
        match timeout(2 * CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected,
            Err(_) => Err(Trouble::Lost("it does not answer".into())),
        }
    }

    /// A connection that hears what servers tell each other. What it has heard and nobody took is
    /// bounded; beyond that it hears nothing.
    pub(super) async fn connect_to_listen(
        &self,
    ) -> Result<(Client, mpsc::Receiver<String>), Trouble> {
        let (hear, notes) = mpsc::channel(MAX_NOTES);
        let connect = async {
            let client = match &self.address.tls {
                None => {
                    let (client, connection) = self.address.config.connect(NoTls).await?;
                    tokio::spawn(listen(connection, hear));
                    client
                }
                Some(tls) => {
                    let (client, connection) = self.address.config.connect(tls.clone()).await?;
                    tokio::spawn(listen(connection, hear));
                    client
                }
            };
            client.batch_execute(PREPARE).await?;
            client.batch_execute("LISTEN turnwire").await?;
            Ok(client)
        };
        match timeout(2 * CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected.map(|client| (client, notes)),
            Err(_) => Err(Trouble::Lost("it does not answer".into())),
        }
    }

    async fn connect_bare(&self) -> Result<Client, tokio_postgres::Error> {
        let Address { config, tls } = &self.address;
        // Each connection ends with its client.
        match tls {
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
            Some(tls) => {
                let (client, connection) = config.connect(tls.clone()).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        }
    }

    /// Logs the first trouble after all was well.
    pub(super) fn note_trouble(&self, trouble: &Trouble) {
        if !self.is_in_trouble.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                database = %self.address,
                %trouble,
                "the database of --store does not do its work; what needs it fails until it does"
            );
        }
    }

    pub(super) fn note_success(&self) {
        if self.is_in_trouble.load(Ordering::Relaxed)
            && self.is_in_trouble.swap(false, Ordering::Relaxed)
        {
            tracing::info!(database = %self.address, "the database of --store works again");
        }
    }
}

/// Drives a connection, and hands on what it hears.
async fn listen<T>(mut connection: Connection<Socket, T>, hear: mpsc::Sender<String>)
where
    T: TlsStream + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
        if let AsyncMessage::Notification(note) = message {
            let _ = hear.try_send(note.payload().to_owned());
        }
    }
}

impl From<tokio_postgres::Error> for Trouble {
    /// Says nothing of what was asked: the details of a message may quote rows.
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refusal) = error.as_db_error() else {
            let cause = std::error::Error::source(&error);
            return Self::Lost(match cause {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            });
        };
        let code = refusal.code();
        let message = format!("{} (SQLSTATE {})", refusal.message(), code.code());
        if *code == SqlState::T_R_DEADLOCK_DETECTED
            || *code == SqlState::T_R_SERIALIZATION_FAILURE
            || *code == SqlState::UNIQUE_VIOLATION
        {
            return Self::Conflict(message);
        }
        let is_lost = ["08", "57P"]
            .iter()
            .any(|kind| code.code().starts_with(kind))
            || *code == SqlState::READ_ONLY_SQL_TRANSACTION
            || *code == SqlState::TOO_MANY_CONNECTIONS
            || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT;
        match is_lost {
            true => Self::Lost(message),
            false => Self::Refused(message),
        }
    }
}
