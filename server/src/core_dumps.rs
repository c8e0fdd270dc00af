//! Core dumps: the memory of a process that crashes, and with it all that was said, in a file.

use std::io;

/// From now on a crash of this process leaves no file.
///
/// The limit is what every Unix knows. Linux does not look at it where dumps go to a program
/// (`|` in /proc/sys/kernel/core_pattern), but always heeds that a process is not dumpable. Its
/// memory is then closed to debuggers of the same user, too.
#[cfg(unix)]
pub(crate) fn switch_off() -> io::Result<()> {
    rlimit::setrlimit(rlimit::Resource::CORE, 0, 0)?;
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};

        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn switch_off() -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this system has no switch for them",
    ))
}
