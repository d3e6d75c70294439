//! Processes of a command that end with the one that started them.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Makes the system kill this process when the process `parent`, or its thread that started this
/// one, ends.
///
/// # Errors
/// It has ended already, or the system refuses.
pub(crate) fn end_with(parent: i32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to end with the parent")?;
    // The parent may have ended before that took effect.
    ensure!(
        getppid().map(Pid::as_raw_pid) == Some(parent),
        "the parent has ended"
    );
    Ok(())
}
