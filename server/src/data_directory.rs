//! The user's data directory: where what outlives the server is if nobody says.

use std::ffi::OsString;
use std::path::PathBuf;

/// Ours, in the user's. None where the environment names no place for it.
pub(crate) fn data_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from);
    // The XDG specification says that a relative path is to be ignored.
    let base = path("XDG_DATA_HOME").filter(|base| base.is_absolute());
    let base = base.or_else(|| Some(path("HOME")?.join(".local/share")))?;
    Some(base.join("turnwire"))
}
