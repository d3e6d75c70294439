//! What tells a process from every other one.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::rand::GetRandomFlags;
use serde::{Deserialize, Serialize};
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// A process, told apart from every other one: also from a later one with the same pid, from one
/// with the same pid in another PID namespace, and from its own children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id as the process itself sees it. Another PID namespace numbers it differently.
    pub pid: u32,
    /// Random bytes that no other process has chosen.
    nonce: [u8; 16],
}

impl ProcessId {
    /// This process.
    ///
    /// # Errors
    ///
    /// The system has no random numbers or no memory.
    pub fn current() -> io::Result<Self> {
        let mut nonce = [0; 16];
        for (bytes, word) in nonce.chunks_exact_mut(8).zip(nonce_words()?) {
            bytes.copy_from_slice(&filled(word)?.to_le_bytes());
        }
        let pid = std::process::id();
        Ok(Self { pid, nonce })
    }

    /// Whether this is the calling process. False in a child that fork made of it.
    pub fn is_current(&self) -> bool {
        Self::current().is_ok_and(|current| current == *self)
    }
}

type NonceWords = [AtomicU64; 2];

/// The words of this process's nonce; 0 if they are not chosen yet.
///
/// They lie in memory that the kernel clears in a child made by fork, whichever call made it: a
/// child chooses words of its own. Linux before 4.14 does not clear it. There a child has its
/// parent's nonce, and only its pid tells the two apart.
fn nonce_words() -> io::Result<&'static NonceWords> {
    static WORDS: AtomicPtr<NonceWords> = AtomicPtr::new(null_mut());
    const BYTES: usize = size_of::<NonceWords>();
    let mut words = WORDS.load(Ordering::Acquire);
    if words.is_null() {
        // SAFETY: a new mapping, at a place that the kernel chooses, touches no other memory.
        let mapped = unsafe {
            mmap_anonymous(
                null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let mapped = mapped?;
        // SAFETY: the range is the mapping just made. The advice changes it in children alone.
        if let Err(error) = unsafe { madvise(mapped, BYTES, Advice::LinuxWipeOnFork) } {
            tracing::debug!(%error, "memory cannot be cleared in children");
        }
        // Two threads may have come here at once: the first mapping stays.
        words = match WORDS.compare_exchange(
            null_mut(),
            mapped.cast(),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => mapped.cast(),
            Err(first) => {
                // SAFETY: no other thread has seen this mapping.
                let _ = unsafe { munmap(mapped, BYTES) };
                first
            }
        };
    }
    // SAFETY: `words` is a mapping of at least `BYTES` bytes, aligned to a page and never unmapped.
    // It is zero at first, which is a value of these words, and all access to it is atomic.
    Ok(unsafe { &*words })
}

/// The word's value, chosen at random if it has none.
fn filled(word: &AtomicU64) -> io::Result<u64> {
    // Relaxed, here and below: the word carries nothing but itself.
    while word.load(Ordering::Relaxed) == 0 {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random[..], GetRandomFlags::empty())?;
        let _ = word.compare_exchange(
            0,
            u64::from_le_bytes(random),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
    Ok(word.load(Ordering::Relaxed))
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
