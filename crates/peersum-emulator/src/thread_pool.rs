//! The host threads that are the CUDA threads of one stream.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use peersum_kernels::abi::PeersumParams;

use crate::entry_points::{
    BLOCK_MEMORY_WORDS, BlockBarriers, EntryPoint, ThreadIdentity, peersum_emulator_run,
};

/// Much more than any kernel needs, and small enough for a thousand threads.
const STACK_BYTES: usize = 256 * 1024;

/// One launch: what to run and on how many threads.
#[derive(Clone)]
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
    /// Host threads that run at once.
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
struct Running {
    launch: Launch,
    barriers: Box<[BlockBarriers]>,
    /// [`BLOCK_MEMORY_WORDS`] for each block.
    memory: ZeroedWords,
    /// Threads that have not ended yet.
    remaining: AtomicUsize,
    /// The thread that the last one wakes.
    waiter: Thread,
    seed: u32,
}

impl Running {
    /// The delay of `block`: one block in four is delayed, by a random part of the maximum.
    fn delay_of(&self, block: u32) -> Duration {
        let random = (self.seed ^ block.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0xC2B2_AE35);
        if random >> 30 != 0 {
            return Duration::ZERO;
        }
        self.launch.block_delay * (random >> 22 & 0xFF) / 0xFF
    }

    fn run_thread(&self, index: u32) {
        let Launch {
            entry,
            blocks,
            threads,
            cluster,
            ref params,
            ..
        } = self.launch;
        let block = index / threads;
        let delay = self.delay_of(block);
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        let identity = ThreadIdentity {
            thread: index % threads,
            threads,
            block,
            blocks,
            cluster,
            barriers: &self.barriers[block as usize],
            memory: self.memory.at(block as usize * BLOCK_MEMORY_WORDS),
            // Odd multipliers spread the seeds; the lowest bit keeps them from being 0.
            random_seed: (self.seed ^ index.wrapping_mul(0x9E37_79B9)) | 1,
        };
        // SAFETY: `Device::launch` makes its caller answer for the addresses in `params`; the
        // barriers live as long as `self`, and all threads of its block run, since the pool has a
        // thread for each.
        unsafe { peersum_emulator_run(entry, params, &identity) };
        // Release and acquire: what this thread did happens before the next launch of the stream,
        // and before whoever synchronises.
        if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waiter.unpark();
        }
    }
}

struct Worker {
    jobs: Sender<(Arc<Running>, u32)>,
    handle: JoinHandle<()>,
}

/// Threads that grow to the largest launch and end with the pool.
#[derive(Default)]
pub(crate) struct ThreadPool {
    workers: Mutex<Vec<Worker>>,
}

impl ThreadPool {
    /// Makes sure that a launch of `threads` threads can run.
    ///
    /// # Errors
    ///
    /// The system refuses another thread.
    pub(crate) fn reserve(&self, threads: usize) -> io::Result<()> {
        let mut workers = self.workers();
        while workers.len() < threads {
            let (jobs, received) = channel::<(Arc<Running>, u32)>();
            let handle = thread::Builder::new()
                .name(format!("emulated {}", workers.len()))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    for (running, index) in received {
                        running.run_thread(index);
                    }
                })?;
            workers.push(Worker { jobs, handle });
        }
        Ok(())
    }

    /// Runs one launch and returns when all its threads have ended. The pool has been made large
    /// enough by [`Self::reserve`].
    pub(crate) fn run(&self, launch: &Launch, seed: u32) {
        let running = Arc::new(Running {
            launch: launch.clone(),
            barriers: (0..launch.blocks)
                .map(|_| BlockBarriers::default())
                .collect(),
            memory: ZeroedWords::new(launch.blocks as usize * BLOCK_MEMORY_WORDS),
            remaining: AtomicUsize::new(launch.thread_count()),
            waiter: thread::current(),
            seed,
        });
        {
            let workers = self.workers();
            assert!(
                workers.len() >= launch.thread_count(),
                "the pool was not reserved for this launch"
            );
            for (index, worker) in (0..).zip(workers.iter().take(launch.thread_count())) {
                // A worker receives until its sender, which is held here, is dropped.
                let _ = worker.jobs.send((Arc::clone(&running), index));
            }
        }
        while running.remaining.load(Ordering::Acquire) != 0 {
            thread::park();
        }
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut *self.workers());
        let handles: Vec<JoinHandle<()>> =
            workers.into_iter().map(|worker| worker.handle).collect();
        for handle in handles {
            // A worker runs kernels only, which do not unwind.
            let _ = handle.join();
        }
    }
}
