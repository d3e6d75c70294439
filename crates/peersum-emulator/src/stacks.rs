//! The stacks of a stream's fibers.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use corosensei::stack::StackPointer;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// Much more than any kernel needs. The system gives the pages when they are first touched.
const STACK_BYTES: usize = 64 * 1024;

/// A multiple of every page size, below the stack.
const GUARD_BYTES: usize = 64 * 1024;

const MAPPED_BYTES: usize = GUARD_BYTES + STACK_BYTES;

/// Memory of its own, with room below it that nobody can access.
pub(crate) struct Stack {
    mapping: NonZeroUsize,
}

impl Stack {
    fn new() -> io::Result<Self> {
        // SAFETY: new memory at an address that the system chooses.
        let mapping = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                MAPPED_BYTES,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )?
        };
        let address = NonZeroUsize::new(mapping.addr()).ok_or(io::ErrorKind::OutOfMemory)?;
        // Unmapped again if the system refuses the next step.
        let stack = Self { mapping: address };
        let usable = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the upper part of the mapping.
        unsafe { mprotect(mapping.byte_add(GUARD_BYTES), STACK_BYTES, usable)? };
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let address = self.mapping.get() as *mut c_void;
        // SAFETY: the whole mapping, which this value owns and no fiber uses any more. It exists,
        // so it can be unmapped.
        let _ = unsafe { munmap(address, MAPPED_BYTES) };
    }
}

// SAFETY: at least the smallest size, aligned to pages, and an overflow meets the guard.
unsafe impl corosensei::stack::Stack for Stack {
    fn base(&self) -> StackPointer {
        self.mapping.saturating_add(MAPPED_BYTES)
    }

    fn limit(&self) -> StackPointer {
        self.mapping
    }
}

/// Stacks that grow to the largest launch of a stream and serve all its launches.
#[derive(Default)]
pub(crate) struct Stacks {
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    /// All there are, those of a launch in progress included.
    made: usize,
    free: Vec<Stack>,
}

impl Stacks {
    /// Makes sure that a launch of `threads` threads can run.
    ///
    /// # Errors
    ///
    /// The system refuses the memory.
    pub(crate) fn reserve(&self, threads: usize) -> io::Result<()> {
        let mut pool = self.pool();
        let missing = threads.saturating_sub(pool.made);
        // All or none: a refused launch leaves no memory behind that others may need.
        let new: Vec<Stack> = (0..missing)
            .map(|_| Stack::new())
            .collect::<Result<_, _>>()?;
        pool.free.extend(new);
        pool.made += missing;
        Ok(())
    }

    /// So many stacks, of those that were reserved.
    pub(crate) fn take(&self, count: usize) -> Vec<Stack> {
        let mut pool = self.pool();
        assert!(
            count <= pool.free.len(),
            "the stacks were not reserved for this launch"
        );
        let kept = pool.free.len() - count;
        pool.free.split_off(kept)
    }

    pub(crate) fn give_back(&self, stacks: impl Iterator<Item = Stack>) {
        self.pool().free.extend(stacks);
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
