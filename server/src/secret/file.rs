//! The file of keys: one per line, 32 bytes in base64, the one that seals first.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{KEY_BYTES, Secret, SecretKey, random};
use crate::data_directory::data_directory;

/// A key takes 45 of them, so this is more than anyone has.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("secret file {}: {action}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "secret file {path}: its mode {mode:03o} lets others read or change it. Run: chmod 600 {path}",
        path = path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "secret file {}: line {line} is not a key; write 32 bytes in base64, as \
         `openssl rand -base64 32` prints them. Lines that begin with # are skipped",
        path.display()
    )]
    NotAKey { path: PathBuf, line: usize },
    #[error(
        "secret file {}: no keys in it; remove it, and it is made anew with one",
        .0.display()
    )]
    Empty(PathBuf),
}

/// Where the keys are if nobody says: the user's data directory. None where the environment names
/// no place for it.
pub fn default_path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(data_directory(variable)?.join("secret"))
}

impl Secret {
    /// The keys in this file, which is made with one key if it is not there.
    pub fn from_file(path: &Path) -> Result<Self, SecretFileError> {
        if let Some(secret) = Self::read(path)? {
            return Ok(secret);
        }
        create(path).map_err(failed("it cannot be made", path))?;
        let gone = || failed("it cannot be read", path)(io::ErrorKind::NotFound.into());
        Self::read(path)?.ok_or_else(gone)
    }

    /// The keys in the file at the default place, made if it is not there. Where that cannot be,
    /// one key in memory, and a warning.
    pub fn from_default_file(path: Option<&Path>) -> Result<Self, SecretFileError> {
        let kept = path.map(|path| {
            make_directory(path)
                .map_err(failed("its directory cannot be made", path))
                .and_then(|()| Self::from_file(path))
        });
        let why = match kept {
            None => "the environment names no HOME".to_owned(),
            Some(Err(SecretFileError::Io { source, .. })) => source.to_string(),
            Some(kept) => return kept,
        };
        tracing::warn!(
            path = path.map(|path| tracing::field::display(path.display())),
            why,
            "no secret file can be kept: what is sealed for clients (compaction items, encrypted \
             reasoning) cannot be read after a restart. Give --secret-file FILE"
        );
        Ok(Self::in_memory())
    }

    /// None if there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, SecretFileError> {
        let unreadable = failed("it cannot be read", path);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let metadata = file.metadata().map_err(&unreadable)?;
        let mode = metadata.mode() & 0o777;
        if exposes(mode, metadata.uid()) {
            let path = path.to_owned();
            return Err(SecretFileError::Exposed { path, mode });
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(&unreadable)?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = BASE64_STANDARD.decode(line).ok();
            let key = key.and_then(|key| <[u8; KEY_BYTES]>::try_from(key).ok());
            let key = key.ok_or_else(|| SecretFileError::NotAKey {
                path: path.to_owned(),
                line: index + 1,
            })?;
            keys.push(SecretKey::new(&key));
        }
        let mut keys = keys.into_iter();
        match keys.next() {
            Some(first) => Ok(Some(Self {
                first,
                older: keys.collect(),
            })),
            None => Err(SecretFileError::Empty(path.to_owned())),
        }
    }
}

/// Whether a file of this mode and owner is open to more than the server.
///
/// Of a file of root's, the group may read: so do service managers and orchestrators hand secrets
/// to a process that is not root, in a group of its own.
fn exposes(mode: u32, owner: u32) -> bool {
    let others = if owner == 0 { 0o037 } else { 0o077 };
    mode & others != 0
}

fn make_directory(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(directory) => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory),
        None => Ok(()),
    }
}

/// Makes a file with a new key. Fine if another server made one first.
///
/// It is written beside its place and linked there whole: servers that start at once end up with
/// the same key, and none of them reads half a file. Neither step follows a symbolic link.
fn create(path: &Path) -> io::Result<()> {
    let name: [u8; 8] = random();
    let name = format!(".secret-{:016x}", u64::from_ne_bytes(name));
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let draft = directory.join(name);
    let key: [u8; KEY_BYTES] = random();
    let text = format!(
        "# Keys of Turnwire. The first one seals, all of them open; add new ones at the top.\n{}\n",
        BASE64_STANDARD.encode(key)
    );
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    let linked = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&draft, path));
    let _ = fs::remove_file(&draft);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(directory)?.sync_all(),
    }
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl Fn(io::Error) -> SecretFileError + 'p {
    move |source| SecretFileError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use turnwire_protocol::seal::{Content, Sealer};

    use super::*;
    use crate::auth::Tenant;
    use crate::secret::TenantSealer;

    fn sealer(path: &Path) -> TenantSealer {
        TenantSealer::new(Arc::new(Secret::from_file(path).unwrap()), Tenant::ANYONE)
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_new_file_is_for_its_owner_alone_and_the_next_server_opens_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let sealed = sealer(&path).seal(Content::Compaction, "x");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let opened = sealer(&path).open(Content::Compaction, &sealed);
        assert_eq!(opened.as_deref(), Some("x"));
    }

    #[test]
    fn an_older_key_still_opens_and_the_first_one_seals() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let keys = [1, 2].map(|byte| BASE64_STANDARD.encode([byte; KEY_BYTES]));
        write(&path, &keys[0], 0o600);
        let old = sealer(&path);
        write(
            &path,
            &format!("# both\n{}\n\n{}\n", keys[1], keys[0]),
            0o600,
        );
        let both = sealer(&path);
        let content = Content::Reasoning;
        let by_old = old.seal(content, "x");
        assert_eq!(both.open(content, &by_old).as_deref(), Some("x"));
        assert_eq!(old.open(content, &both.seal(content, "x")), None);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_an_error_that_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let key = BASE64_STANDARD.encode([1; KEY_BYTES]);
        for (text, mode, why) in [
            (&*key, 0o644, "mode 644"),
            (&key, 0o602, "chmod 600"),
            ("# nothing", 0o600, "no keys in it"),
            (&format!("{key}\nsecret"), 0o600, "line 2 is not a key"),
        ] {
            write(&path, text, mode);
            let error = Secret::from_file(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        let nowhere = directory.path().join("no/secret");
        let error = Secret::from_file(&nowhere).unwrap_err().to_string();
        assert!(error.contains("cannot be made"), "{error}");
    }

    #[test]
    fn a_group_may_read_what_is_owned_by_root() {
        let (root, user) = (0, 1000);
        for (mode, owner, exposed) in [
            (0o600, user, false),
            (0o400, root, false),
            (0o440, root, false),
            (0o440, user, true),
            (0o660, root, true),
            (0o444, root, true),
        ] {
            assert_eq!(exposes(mode, owner), exposed, "{mode:o} of {owner}");
        }
    }

    #[test]
    fn a_link_to_nowhere_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (directory.path().join("secret"), directory.path().join("x"));
        std::os::unix::fs::symlink(&target, &path).unwrap();
        Secret::from_file(&path).unwrap_err();
        assert!(!target.exists());
    }

    #[test]
    fn the_default_place_is_made_and_where_it_cannot_be_a_key_stays_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let home = |name: &str| (name == "HOME").then(|| directory.path().into());
        let path = default_path(home).unwrap();
        assert_eq!(path, directory.path().join(".local/share/turnwire/secret"));
        Secret::from_default_file(Some(&path)).unwrap();
        assert!(path.exists());
        let inside_a_file = path.join("secret");
        Secret::from_default_file(Some(&inside_a_file)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        Secret::from_default_file(Some(&path)).unwrap_err();
        Secret::from_default_file(None).unwrap();
        assert_eq!(default_path(|_| None), None);
    }
}
