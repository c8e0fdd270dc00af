//! The cache of the hub's own Python library, read but never written.
//!
//! `models--OWNER--REPO/refs/main` holds a commit, `snapshots/COMMIT/FILE` is a link to the file.

use std::fs;
use std::path::{Path, PathBuf};

use super::choice;
use super::name::{GgufPath, Repository};

#[derive(Debug)]
pub(super) struct LibraryCache(pub(super) PathBuf);

impl LibraryCache {
    pub(super) fn find(&self, repository: &Repository, file: &GgufPath) -> Option<PathBuf> {
        let path = self.snapshot(repository)?.join(file.as_str());
        path.is_file().then_some(path)
    }

    /// The file one would choose if nothing but what lies here existed.
    pub(super) fn choose(&self, repository: &Repository) -> Option<PathBuf> {
        let snapshot = self.snapshot(repository)?;
        let files: Vec<_> = fs::read_dir(&snapshot)
            .ok()?
            .flatten()
            .filter_map(|entry| GgufPath::parse(entry.file_name().to_str()?))
            .collect();
        let file = choice::choose(&files).ok()?;
        self.find(repository, file)
    }

    fn snapshot(&self, repository: &Repository) -> Option<PathBuf> {
        let repository = self.0.join(format!("models--{}", repository.directory()));
        let commit = fs::read_to_string(repository.join("refs/main")).ok()?;
        let commit = commit.trim();
        let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_commit.then(|| repository.join(Path::new("snapshots").join(commit)))
    }
}
