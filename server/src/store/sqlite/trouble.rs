//! Trouble: what the log says while the database cannot be used, and when it can be again.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A full disk fails every turn, and needs not to be told of each.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Trouble {
    path: PathBuf,
    /// When it was told last, if it is not over.
    told: Mutex<Option<Instant>>,
}

impl Trouble {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            told: Mutex::default(),
        }
    }

    /// An error of the database names tables and columns, and no values.
    pub(super) fn happened(&self, error: &dyn fmt::Display) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < QUIET) {
            return;
        }
        *told = Some(Instant::now());
        drop(told);
        tracing::error!(
            path = %self.path.display(),
            %error,
            "the database cannot be used: turns with store: true fail until it can. See that the \
             disk has room and can be written to"
        );
    }

    /// A change was kept.
    pub(super) fn is_over(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.take().is_some() {
            drop(told);
            tracing::info!(path = %self.path.display(), "the database can be used again");
        }
    }
}
