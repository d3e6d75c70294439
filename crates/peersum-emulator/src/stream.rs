//! Streams: ordered queues of work, asynchronous to their callers.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use peersum::device::DeviceError;

use crate::device::EmulatorDevice;
use crate::fibers;
use crate::launch::Launch;
use crate::stacks::Stacks;

/// One piece of work. The caller who enqueued it through an `unsafe fn` of `Device` vouches for the
/// addresses.
pub(crate) enum Command {
    Launch(Box<Launch>),
    Fill {
        address: u64,
        word: u32,
        words: usize,
    },
    Copy {
        destination: u64,
        source: u64,
        bytes: usize,
    },
    Write {
        destination: u64,
        bytes: Box<[u8]>,
    },
    Graph(Arc<[Command]>),
    /// Waits until another stream has done so many commands.
    Await {
        progress: Arc<Progress>,
        done: u64,
    },
}

impl Command {
    /// Emulated threads that it needs at once.
    fn thread_count(&self) -> usize {
        match self {
            Command::Launch(launch) => launch.thread_count(),
            Command::Graph(commands) => commands
                .iter()
                .map(Command::thread_count)
                .max()
                .unwrap_or(0),
            _ => 0,
        }
    }

    fn execute(&self, stacks: &Stacks, seed: &mut u32) {
        match *self {
            Command::Launch(ref launch) => {
                *seed = seed.wrapping_mul(0x915F_77F5).wrapping_add(1);
                fibers::run(launch, *seed, stacks);
            }
            Command::Fill {
                address,
                word,
                words,
            } => {
                // SAFETY: the caller of `Device::fill` answers for the range.
                unsafe { fill(address, word, words) };
            }
            Command::Copy {
                destination,
                source,
                bytes,
            } => {
                let (source, destination) = (source as *const u8, destination as *mut u8);
                // SAFETY: the caller of `Device::copy` answers for both ranges, and that they do
                // not overlap.
                unsafe { source.copy_to_nonoverlapping(destination, bytes) };
            }
            Command::Write {
                destination,
                ref bytes,
            } => {
                let (source, destination) = (bytes.as_ptr(), destination as *mut u8);
                // SAFETY: the caller of `Device::write` answers for the destination; the source is
                // owned here.
                unsafe { source.copy_to_nonoverlapping(destination, bytes.len()) };
            }
            Command::Await { ref progress, done } => progress.wait_for(done),
            Command::Graph(ref commands) => {
                for command in &**commands {
                    command.execute(stacks, seed);
                }
            }
        }
    }
}

/// Repeats `word`.
///
/// # Safety
///
/// The range is the caller's to write. It may be any multiple of an element from alignment.
unsafe fn fill(address: u64, word: u32, words: usize) {
    let [byte, ..] = word.to_ne_bytes();
    if word == u32::from_ne_bytes([byte; 4]) {
        // What arenas are filled with. The C library is quick even in a debug build.
        // SAFETY: the caller answers for the range.
        unsafe { (address as *mut u8).write_bytes(byte, words * size_of::<u32>()) };
        return;
    }
    let address = address as *mut u32;
    for index in 0..words {
        // SAFETY: as above, and no alignment is assumed.
        unsafe { address.add(index).write_unaligned(word) };
    }
}

/// The progress of a stream.
#[derive(Default)]
pub(crate) struct Progress {
    counts: Mutex<Counts>,
    advanced: Condvar,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    enqueued: u64,
    done: u64,
}

impl Progress {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, done: u64) {
        let is_behind = |counts: &mut Counts| counts.done < done;
        drop(self.advanced.wait_while(self.counts(), is_behind));
    }
}

/// The number of the next capture, of all streams.
static NEXT_CAPTURE: AtomicU64 = AtomicU64::new(1);

/// What a capture holds, and who may end it.
struct Recorded {
    number: u64,
    commands: Vec<Command>,
    /// As with CUDA's thread-local mode, only the thread that began a capture ends it.
    thread: ThreadId,
}

/// An ordered queue of launches on an [`EmulatorDevice`]: a host thread
/// that runs them one by one. Cheap to clone. Dropping the last clone waits for what was enqueued.
#[derive(Clone)]
pub struct EmulatorStream {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    device: EmulatorDevice,
    stacks: Arc<Stacks>,
    progress: Arc<Progress>,
    /// `None` only while the stream is dropped.
    commands: Option<Sender<Command>>,
    executor: Option<JoinHandle<()>>,
    /// What was recorded since a capture began.
    recording: Mutex<Option<Recorded>>,
}

impl fmt::Debug for EmulatorStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EmulatorStream({} on {})",
            self.inner.id, self.inner.device.identity.name
        )
    }
}

impl EmulatorDevice {
    /// A new stream on this device.
    ///
    /// # Errors
    ///
    /// The system refuses another thread.
    pub fn stream(&self) -> Result<EmulatorStream, DeviceError> {
        static STREAMS: AtomicU64 = AtomicU64::new(1);
        let id = STREAMS.fetch_add(1, Ordering::Relaxed);
        let stacks = Arc::new(Stacks::default());
        let progress = Arc::new(Progress::default());
        let (commands, received) = channel::<Command>();
        let executor = thread::Builder::new()
            .name(format!("emulated stream {id}"))
            .spawn({
                let (stacks, progress) = (Arc::clone(&stacks), Arc::clone(&progress));
                move || {
                    let mut seed = id as u32;
                    for command in received {
                        command.execute(&stacks, &mut seed);
                        progress.counts().done += 1;
                        progress.advanced.notify_all();
                    }
                }
            })
            .map_err(|source| refused("pthread_create", source))?;
        Ok(EmulatorStream {
            inner: Arc::new(Inner {
                id,
                device: self.clone(),
                stacks,
                progress,
                commands: Some(commands),
                executor: Some(executor),
                recording: Mutex::new(None),
            }),
        })
    }
}

impl EmulatorStream {
    /// The device that the stream belongs to.
    #[must_use]
    pub fn device(&self) -> &EmulatorDevice {
        &self.inner.device
    }

    /// A number that no other stream of this process has.
    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    /// Waits until everything enqueued so far is done.
    pub fn synchronize(&self) {
        let enqueued = self.inner.progress.counts().enqueued;
        self.inner.progress.wait_for(enqueued);
    }

    /// Makes later work of this stream wait for all work that `other` holds now.
    pub(crate) fn wait_for_work_of(&self, other: &EmulatorStream) {
        if self.id() == other.id() {
            return;
        }
        let progress = Arc::clone(&other.inner.progress);
        let done = progress.counts().enqueued;
        // During a capture, the wait would only be recorded.
        let is_enqueued =
            !self.is_capturing() && self.enqueue(Command::Await { progress, done }).is_ok();
        if !is_enqueued {
            other.synchronize();
        }
    }

    /// Whether everything enqueued so far is done.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let counts = *self.inner.progress.counts();
        counts.done == counts.enqueued
    }

    /// Whether commands are recorded rather than run.
    pub(crate) fn is_capturing(&self) -> bool {
        self.capture().is_some()
    }

    /// The number of the capture that records commands, if any does.
    pub(crate) fn capture(&self) -> Option<u64> {
        self.recording().as_ref().map(|recorded| recorded.number)
    }

    /// Enqueues a command, or records it during a capture.
    pub(crate) fn enqueue(&self, command: Command) -> Result<(), DeviceError> {
        // Here and not in the executor, so that the caller gets the error.
        self.inner
            .stacks
            .reserve(command.thread_count())
            .map_err(|source| refused("mmap", source))?;
        if let Some(recorded) = &mut *self.recording() {
            recorded.commands.push(command);
            return Ok(());
        }
        // Counted under the lock that orders the queue, so that `done` never passes `enqueued`.
        let mut counts = self.inner.progress.counts();
        let commands = self.inner.commands.as_ref();
        if commands.is_none_or(|commands| commands.send(command).is_err()) {
            return Err(misuse("enqueue", "the stream's thread has ended"));
        }
        counts.enqueued += 1;
        Ok(())
    }

    pub(crate) fn capture_begin(&self) -> Result<(), DeviceError> {
        let mut recording = self.recording();
        if recording.is_some() {
            let message = "a capture is in progress on this stream";
            return Err(misuse("capture_begin", message));
        }
        *recording = Some(Recorded {
            number: NEXT_CAPTURE.fetch_add(1, Ordering::Relaxed),
            commands: Vec::new(),
            thread: thread::current().id(),
        });
        Ok(())
    }

    pub(crate) fn capture_end(&self) -> Result<Arc<[Command]>, DeviceError> {
        let mut recording = self.recording();
        match recording.take() {
            Some(recorded) if recorded.thread == thread::current().id() => {
                Ok(recorded.commands.into())
            }
            Some(recorded) => {
                *recording = Some(recorded);
                Err(misuse("capture_end", "another thread began the capture"))
            }
            None => Err(misuse(
                "capture_end",
                "no capture is in progress on this stream",
            )),
        }
    }

    fn recording(&self) -> MutexGuard<'_, Option<Recorded>> {
        self.inner
            .recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(executor) = self.executor.take() {
            // All waits of kernels are bounded, so the executor ends.
            let _ = executor.join();
        }
    }
}

fn refused(call: &'static str, source: io::Error) -> DeviceError {
    DeviceError::System { call, source }
}

/// An error that a driver would report.
pub(crate) fn misuse(call: &'static str, message: impl Into<String>) -> DeviceError {
    let message = message.into();
    DeviceError::Driver { call, message }
}
