//! An allocator that keeps count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are allocated now, and the most that were since the last look.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged. A reallocation counts both blocks at
// once, as it may need both.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// A test that watches; there is one at a time.
pub(crate) struct Watch {
    before: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        // A test that failed has nothing to do with the next.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watch = Self {
            before: 0,
            _alone: alone,
        };
        watch.take();
        watch
    }

    /// The most that was allocated at once since the last look, beyond what was allocated then.
    pub(crate) fn take(&mut self) -> usize {
        let most = MOST.load(Ordering::Relaxed).saturating_sub(self.before);
        self.before = LIVE.load(Ordering::Relaxed);
        MOST.store(self.before, Ordering::Relaxed);
        most
    }
}
