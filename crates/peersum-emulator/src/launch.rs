//! One launch: what to run, and what its threads share outside the ranks' memory.

use std::ffi::c_void;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use peersum_kernels::abi::PeersumParams;

use crate::entry_points::{
    BLOCK_MEMORY_WORDS, EntryPoint, Suspend, ThreadIdentity, peersum_emulator_run,
};

/// What to run and on how many threads.
pub(crate) struct Launch {
    pub(crate) entry: EntryPoint,
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    /// Blocks of a cluster.
    pub(crate) cluster: u32,
    pub(crate) params: PeersumParams,
    /// See [`EmulatorOptions::block_delay`](crate::EmulatorOptions::block_delay).
    pub(crate) block_delay: Duration,
}

impl Launch {
    /// Emulated threads, which run at once.
    pub(crate) fn thread_count(&self) -> usize {
        self.blocks as usize * self.threads as usize
    }
}

/// Words that are zero at first. The system gives the pages when they are first touched.
struct ZeroedWords(Box<[AtomicU64]>);

impl ZeroedWords {
    fn new(words: usize) -> Self {
        let zeroed = vec![0u64; words].into_boxed_slice();
        // SAFETY: the two types have the same layout, and the box is owned here.
        Self(unsafe { Box::from_raw(Box::into_raw(zeroed) as *mut [AtomicU64]) })
    }

    fn at(&self, index: usize) -> *const AtomicU64 {
        &raw const self.0[index]
    }
}

/// A launch in progress.
pub(crate) struct Running<'l> {
    launch: &'l Launch,
    /// [`BLOCK_MEMORY_WORDS`] for each block.
    memory: ZeroedWords,
    seed: u32,
}

impl<'l> Running<'l> {
    pub(crate) fn new(launch: &'l Launch, seed: u32) -> Self {
        Self {
            launch,
            memory: ZeroedWords::new(launch.blocks as usize * BLOCK_MEMORY_WORDS),
            seed,
        }
    }

    /// How long a thread waits before its first instruction, as its whole block does: one block in
    /// four is delayed, by a random part of the maximum.
    pub(crate) fn delay_of(&self, index: u32) -> Duration {
        let block = index / self.launch.threads;
        let random = (self.seed ^ block.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0xC2B2_AE35);
        if random >> 30 != 0 {
            return Duration::ZERO;
        }
        self.launch.block_delay * (random >> 22 & 0xFF) / 0xFF
    }

    /// Runs one emulated thread from its entry to its exit, on the stack of the caller.
    ///
    /// # Safety
    ///
    /// `suspend` may be called with `fiber` until this function returns. All threads of the launch
    /// run, each on a stack of its own, and one at a time.
    pub(crate) unsafe fn run_thread(&self, index: u32, suspend: Suspend, fiber: *const c_void) {
        let launch = self.launch;
        let block = index / launch.threads;
        let identity = ThreadIdentity {
            thread: index % launch.threads,
            threads: launch.threads,
            block,
            blocks: launch.blocks,
            cluster: launch.cluster,
            memory: self.memory.at(block as usize * BLOCK_MEMORY_WORDS),
            // Odd multipliers spread the seeds; the lowest bit keeps them from being 0.
            random_seed: (self.seed ^ index.wrapping_mul(0x9E37_79B9)) | 1,
            has_waited: false,
            suspend,
            fiber,
        };
        // SAFETY: `Device::launch` makes its caller answer for the addresses in `params`; the
        // blocks' memory lives as long as `self`; the caller answers for the rest.
        unsafe { peersum_emulator_run(launch.entry, &launch.params, &identity) };
    }
}
