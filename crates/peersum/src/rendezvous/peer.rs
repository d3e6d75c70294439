//! Who the ranks are.

use super::error::RendezvousError;
use crate::process_key::{self, Nonce};
use serde::{Deserialize, Serialize};

/// A process, told apart from every other one: also from a later one with the same pid, from one
/// with the same pid in another PID namespace, and from its own children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id as the process itself sees it. Another PID namespace numbers it differently.
    pub pid: u32,
    pub(super) nonce: Nonce,
}

impl ProcessId {
    /// This process.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::Io`] if the system has no random numbers or no memory.
    pub fn current() -> Result<Self, RendezvousError> {
        let (pid, nonce) = process_key::current()
            .map_err(|error| RendezvousError::io("tell this process from others", error))?;
        Ok(Self { pid, nonce })
    }

    /// Whether this is the calling process. False in a child that fork made of it.
    pub fn is_current(&self) -> bool {
        Self::current().is_ok_and(|current| current == *self)
    }
}

/// A member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Its rank.
    pub rank: u32,
    /// The process it lives in. Ranks that are threads of one process share it.
    pub process: ProcessId,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that is process 1 of a PID namespace may have the number of its parent.
    #[test]
    fn a_child_with_its_parent_s_pid_is_another_process() {
        let parent = ProcessId::current().unwrap();
        // SAFETY: the child calls nothing but system calls before it ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let renumbered = ProcessId::current().map(|own| ProcessId {
                pid: parent.pid,
                ..own
            });
            let apart = renumbered.is_ok_and(|own| own != parent) && !parent.is_current();
            // SAFETY: ends the child without what the test harness has registered for its end.
            unsafe { libc::_exit(i32::from(!apart)) };
        }
        let child = rustix::process::Pid::from_raw(child).unwrap();
        let waited = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
        let (_, status) = waited.unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        assert!(parent.is_current());
    }
}
