//! Upkeep: a thread that copies the log into the database, has old things taken away, and gives
//! free pages back.
//!
//! It never changes the database itself. What it wants changed it gives to the writer in small
//! pieces, and rests in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use super::retention;
use super::trouble::Trouble;
use super::writer::Queue;
use crate::clock;
use crate::store::Retention;
use crate::store::hot::Hot;

/// How often it looks after what is old when nothing is written.
const INTERVAL: Duration = Duration::from_secs(5);

/// Rest between two slices.
const REST: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Upkeep {
    thread: Option<JoinHandle<()>>,
}

/// What the thread will own, before there is a writer.
pub(super) struct Prepared {
    connection: Connection,
    woken: Receiver<()>,
    trouble: Arc<Trouble>,
}

struct Thread {
    prepared: Prepared,
    queue: Queue,
    hot: Arc<Hot>,
    retention: Retention,
    /// Whether the log may say what was deleted.
    deleted: Arc<AtomicBool>,
}

impl Upkeep {
    /// The sender wakes it up. Once all senders are gone, it ends.
    pub(super) fn prepare(
        connection: Connection,
        trouble: Arc<Trouble>,
    ) -> (Prepared, SyncSender<()>) {
        let (wake, woken) = sync_channel(1);
        let prepared = Prepared {
            connection,
            woken,
            trouble,
        };
        (prepared, wake)
    }
}

impl Prepared {
    /// `deleted` is to be set when something was deleted.
    pub(super) fn start(
        self,
        queue: Queue,
        hot: Arc<Hot>,
        retention: Retention,
        deleted: Arc<AtomicBool>,
    ) -> Upkeep {
        let thread = Thread {
            prepared: self,
            queue,
            hot,
            retention,
            deleted,
        };
        let thread = thread::Builder::new()
            .name("sqlite-upkeep".into())
            .spawn(|| thread.run())
            .expect("a process that starts can have one more thread");
        Upkeep {
            thread: Some(thread),
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Thread {
    fn run(self) {
        loop {
            let idle = match self.prepared.woken.recv_timeout(INTERVAL) {
                Ok(()) => false,
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !idle {
                self.checkpoint();
            }
            while self.sweep() {
                thread::sleep(REST);
            }
            while self.vacuum() {
                thread::sleep(REST);
            }
            if idle && self.deleted.swap(false, Ordering::Relaxed) {
                self.queue.restart_log(true);
            }
        }
    }

    /// Copies what it can without keeping anyone. The rest, which came meanwhile, is little, and
    /// is copied by the writer.
    fn checkpoint(&self) {
        let connection = &self.prepared.connection;
        match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            Ok(()) => self.queue.restart_log(false),
            Err(error) => self.prepared.trouble.happened(&error),
        }
    }

    /// True if there is more to take away.
    fn sweep(&self) -> bool {
        let (retention, hot) = (self.retention, Arc::clone(&self.hot));
        let swept = self.queue.push(
            0,
            move |tables| retention::sweep(tables, retention, clock::unix_seconds()),
            move |swept| {
                for (owner, id) in &swept.gone {
                    hot.forget(*owner, id);
                }
            },
        );
        match swept.blocking_recv() {
            Ok(swept) => {
                self.deleted.fetch_or(swept.changed, Ordering::Relaxed);
                swept.more
            }
            Err(_) => false,
        }
    }

    /// True if there are more pages to give back.
    fn vacuum(&self) -> bool {
        let more = self.queue.push(0, retention::vacuum, |_| {});
        more.blocking_recv().unwrap_or(false)
    }
}
