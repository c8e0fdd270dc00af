//! Writer: the one thread that changes the database. What has queued up goes in one transaction,
//! so that one sync of the disk is shared by all who wait for it.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::tables::{Owners, Tables};
use super::trouble::Trouble;

/// Changes that may wait. More are refused: the disk is far behind.
const QUEUED_CHANGES: usize = 4096;

/// Bytes that those may have.
const QUEUED_BYTES: u64 = 256 << 20;

/// What one transaction takes at most, so that nobody waits long for the others in it.
const CHANGES_AT_ONCE: usize = 256;
const BYTES_AT_ONCE: u64 = 8 << 20;

/// Bytes of a change beyond those that it counts: rows of indexes, the frames of their pages.
const CHANGE_OVERHEAD: u64 = 16 << 10;

/// Bytes written until the log is copied into the database.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// Bytes of the log from where on the writer waits for readers, so that it can begin it anew.
const LOG_BYTES: i64 = 64 << 20;

/// How long it waits then.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gives changes to the thread, and to no other.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    jobs: SyncSender<Job>,
    waiting_bytes: Arc<AtomicU64>,
}

/// The thread.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Queue,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    Change(Counted),
    /// Begin the log anew, if all of it is in the database. Cut it off, if it is true.
    RestartLog(bool, oneshot::Sender<()>),
    Stop,
}

struct Counted {
    bytes: u64,
    change: Box<dyn Change>,
}

/// A change, and who waits for it. Dropped, it has failed.
trait Change: Send {
    fn make(&mut self, tables: &mut Tables<'_>) -> rusqlite::Result<()>;

    /// To be called when what was made is on the disk.
    fn committed(self: Box<Self>);
}

struct Awaited<T, M, K> {
    make: Option<M>,
    made: Option<T>,
    kept: K,
    reply: oneshot::Sender<T>,
}

/// What the thread owns.
struct Thread {
    connection: Connection,
    page_bytes: i64,
    owners: Owners,
    queue: Receiver<Job>,
    waiting_bytes: Arc<AtomicU64>,
    /// Told whenever enough was written since it was told last.
    upkeep: SyncSender<()>,
    unchecked_bytes: u64,
    trouble: Arc<Trouble>,
}

impl Queue {
    /// Has a change made, after all that were given before. Once it is on the disk, `kept` sees
    /// what came of it, on the thread of the writer, and then the receiver does, which gets
    /// nothing if the change was not kept. `bytes` is about what it writes.
    pub(super) fn push<T: Send + 'static>(
        &self,
        bytes: usize,
        make: impl FnOnce(&mut Tables<'_>) -> rusqlite::Result<T> + Send + 'static,
        kept: impl FnOnce(&T) + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, made) = oneshot::channel();
        let bytes = bytes as u64 + CHANGE_OVERHEAD;
        if self.waiting_bytes.load(Ordering::Relaxed) > QUEUED_BYTES {
            return made;
        }
        let change = Box::new(Awaited {
            make: Some(make),
            made: None,
            kept,
            reply,
        });
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let job = Job::Change(Counted { bytes, change });
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.jobs.try_send(job)
        {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        made
    }

    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Has the log begun anew, and cut off if that is wanted too. For threads.
    pub(super) fn restart_log(&self, cut_off: bool) {
        let (reply, done) = oneshot::channel();
        if self.jobs.try_send(Job::RestartLog(cut_off, reply)).is_ok() {
            let _ = done.blocking_recv();
        }
    }
}

impl Writer {
    /// `upkeep` is told when the log has grown.
    pub(super) fn start(
        connection: Connection,
        upkeep: SyncSender<()>,
        trouble: Arc<Trouble>,
    ) -> rusqlite::Result<Self> {
        let page_bytes = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let (jobs, queue) = sync_channel(QUEUED_CHANGES);
        let waiting_bytes = Arc::new(AtomicU64::new(0));
        let thread = Thread {
            connection,
            page_bytes,
            owners: Owners::new(),
            queue,
            waiting_bytes: Arc::clone(&waiting_bytes),
            upkeep,
            unchecked_bytes: 0,
            trouble,
        };
        let thread = thread::Builder::new()
            .name("sqlite-writer".into())
            .spawn(|| thread.run())
            .expect("a process that starts can have one more thread");
        Ok(Self {
            queue: Queue {
                jobs,
                waiting_bytes,
            },
            thread: Some(thread),
        })
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }
}

impl Drop for Writer {
    /// Waits until everything that was queued is on the disk.
    fn drop(&mut self) {
        let _ = self.queue.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Thread {
    fn run(mut self) {
        while let Ok(first) = self.queue.recv() {
            let mut next = Some(first);
            let mut changes = Vec::new();
            let mut bytes = 0;
            while let Some(Job::Change(counted)) = next {
                bytes += counted.bytes;
                changes.push(counted.change);
                let more = changes.len() < CHANGES_AT_ONCE && bytes < BYTES_AT_ONCE;
                next = more.then(|| self.queue.try_recv().ok()).flatten();
            }
            if !changes.is_empty() {
                self.commit(changes, bytes);
            }
            match next {
                Some(Job::RestartLog(cut_off, done)) => {
                    self.restart_log(cut_off);
                    let _ = done.send(());
                }
                Some(Job::Stop) => break,
                _ => {}
            }
        }
    }

    fn commit(&mut self, changes: Vec<Box<dyn Change>>, bytes: u64) {
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        match self.make(changes) {
            Ok(made) => {
                if !made.is_empty() {
                    self.trouble.is_over();
                }
                for change in made {
                    change.committed();
                }
            }
            Err(error) => {
                self.trouble.happened(&error);
                self.owners.clear();
                if !self.connection.is_autocommit()
                    && let Err(error) = self.connection.execute_batch("ROLLBACK")
                {
                    self.trouble.happened(&error);
                }
            }
        }
        self.unchecked_bytes += bytes;
        if self.unchecked_bytes > CHECKPOINT_BYTES {
            self.unchecked_bytes = 0;
            // If it is told already, it has still to look.
            let _ = self.upkeep.try_send(());
        }
    }

    /// Makes all changes in one transaction. One that fails is taken back and hurts no other; an
    /// error is one of all of them.
    fn make(&mut self, changes: Vec<Box<dyn Change>>) -> rusqlite::Result<Vec<Box<dyn Change>>> {
        let Self {
            connection, owners, ..
        } = self;
        let run = |sql| connection.prepare_cached(sql)?.execute([]).map(drop);
        let mut made = Vec::with_capacity(changes.len());
        run("BEGIN IMMEDIATE")?;
        for mut change in changes {
            run("SAVEPOINT change")?;
            let mut tables = Tables { connection, owners };
            match change.make(&mut tables) {
                Ok(()) => {
                    run("RELEASE change")?;
                    made.push(change);
                }
                // Some errors end the transaction, and the changes before with it.
                Err(error) if connection.is_autocommit() => return Err(error),
                Err(error) => {
                    self.trouble.happened(&error);
                    owners.clear();
                    run("ROLLBACK TO change")?;
                    run("RELEASE change")?;
                }
            }
        }
        run("COMMIT")?;
        Ok(made)
    }

    /// Copies what is left of the log into the database, and has the next change begin it anew.
    /// Nobody can write meanwhile, so this comes after a copy that did not keep anyone.
    fn restart_log(&mut self, cut_off: bool) {
        let restarted = self.try_restart_log(cut_off);
        let _ = self.connection.busy_timeout(super::file::BUSY_TIMEOUT);
        if let Err(error) = restarted {
            self.trouble.happened(&error);
        }
    }

    fn try_restart_log(&self, cut_off: bool) -> rusqlite::Result<()> {
        let mode = match cut_off {
            true => "TRUNCATE",
            false => "RESTART",
        };
        let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
        // Readers that still need the log make it fail, which is fine until it has become large.
        self.connection.busy_timeout(Duration::ZERO)?;
        let busy_and_pages = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let (busy, pages): (bool, i64) =
            self.connection.query_row(&checkpoint, [], busy_and_pages)?;
        if busy && pages.saturating_mul(self.page_bytes) > LOG_BYTES {
            self.connection.busy_timeout(PATIENCE)?;
            self.connection.query_row(&checkpoint, [], |_| Ok(()))?;
        }
        Ok(())
    }
}

impl<T, M, K> Change for Awaited<T, M, K>
where
    T: Send,
    M: FnOnce(&mut Tables<'_>) -> rusqlite::Result<T> + Send,
    K: FnOnce(&T) + Send,
{
    fn make(&mut self, tables: &mut Tables<'_>) -> rusqlite::Result<()> {
        let make = self.make.take().expect("a change is made once");
        self.made = Some(make(tables)?);
        Ok(())
    }

    fn committed(mut self: Box<Self>) {
        if let Some(made) = mem::take(&mut self.made) {
            let Self { kept, reply, .. } = *self;
            kept(&made);
            let _ = reply.send(made);
        }
    }
}
