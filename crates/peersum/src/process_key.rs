//! What tells this process from every other one: also from a later one with the same pid, from one
//! with the same pid in another PID namespace, and from its own children.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::rand::GetRandomFlags;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

pub(crate) type Nonce = [u8; 16];
/// A process id, and random bytes that no other process has chosen.
pub(crate) type ProcessKey = (u32, Nonce);

/// This process's key. Fails if the system has no random numbers or no memory.
pub(crate) fn current() -> io::Result<ProcessKey> {
    let mut nonce = [0; 16];
    for (bytes, word) in nonce.chunks_exact_mut(8).zip(nonce_words()?) {
        bytes.copy_from_slice(&filled(word)?.to_le_bytes());
    }
    Ok((std::process::id(), nonce))
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
