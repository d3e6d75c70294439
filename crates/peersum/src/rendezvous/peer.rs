//! Who the ranks are.

use super::error::RendezvousError;
use rustix::rand::GetRandomFlags;
use std::sync::Mutex;

/// A process, told apart from every other one, also from a later one with the same pid or one of another PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The process id as the process itself sees it.
    pub pid: u32,
    pub(super) nonce: [u8; 16],
}

impl ProcessId {
    /// This process.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::Io`] if the system has no random numbers.
    pub fn current() -> Result<Self, RendezvousError> {
        static CURRENT: Mutex<Option<ProcessId>> = Mutex::new(None);
        let pid = std::process::id();
        let mut current = CURRENT
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match *current {
            // A forked child inherits the value of its parent.
            Some(process) if process.pid == pid => Ok(process),
            _ => {
                let mut nonce = [0; 16];
                rustix::rand::getrandom(&mut nonce[..], GetRandomFlags::empty())
                    .map_err(|error| RendezvousError::io("read random numbers", error))?;
                Ok(*current.insert(ProcessId { pid, nonce }))
            }
        }
    }
}

/// A member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its rank.
    pub rank: u32,
    /// The process it lives in. Ranks that are threads of one process share it.
    pub process: ProcessId,
}
