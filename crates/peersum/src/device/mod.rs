//! The device seam: what the communicator needs of the machine that runs the kernels.
//!
//! Two implementations exist: [`Cuda`](crate::Cuda), and the emulator of `peersum-emulator`, which runs the same kernel files on the
//! CPU. The seam speaks of addresses, memory that ranks share, and launches; protocol knowledge stays above it.

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use peersum_artifact::{Algorithm, Arch, ModuleKey};
use peersum_kernels::abi::{PeersumParams, PeersumStatus};

use crate::buffer::{AsViewMut, Input, Output};
use crate::element::Element;
use crate::loader::{LoadError, LoadPolicy, LoadReport};

/// Why the device could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A library that the device needs is not on this machine.
    #[error("{library} was not found; {help}")]
    LibraryMissing {
        /// The library's file name, for instance `libcuda.so.1`.
        library: String,
        /// What to install or set.
        help: String,
    },
    /// The driver's library is there and of no use.
    #[error("{reason}; {help}")]
    UnusableDriver {
        /// What is wrong with it.
        reason: String,
        /// What to do.
        help: String,
    },
    /// This process sees no GPU for its rank.
    #[error("there is no GPU for local rank {local_rank}: this process sees {visible}; {help}")]
    NoGpu {
        /// The rank's number among those of this machine.
        local_rank: u32,
        /// How many GPUs the driver shows this process.
        visible: u32,
        /// The value of `CUDA_VISIBLE_DEVICES`, and what to do.
        help: String,
    },
    /// A call into the driver failed.
    #[error("{call} failed: {message}")]
    Driver {
        /// The driver function, for instance `cuMemCreate`.
        call: &'static str,
        /// The driver's own name and description of the error.
        message: String,
    },
    /// The module for this configuration could not be had.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The stream cannot carry a communicator.
    #[error("this stream cannot carry a communicator: {reason}")]
    UnsuitableStream {
        /// Why, and which stream would do.
        reason: String,
    },
    /// Memory could be shared in none of the known ways.
    #[error("memory cannot be shared between the ranks: {reason}")]
    CannotShare {
        /// Each way that was tried, with its failure.
        reason: String,
    },
    /// A system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// The call, for instance `memfd_create`.
        call: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// What ranks must know of each other's device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceIdentity {
    /// The device's name, for instance `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Equal for two ranks exactly if they use the same device (or the same part of one).
    pub uuid: [u8; 16],
    /// Compute capability; `None` on the emulator.
    pub arch: Option<(u8, u8)>,
    /// Multiprocessors, which bound the blocks that run at once.
    pub multiprocessors: u32,
}

impl DeviceIdentity {
    /// The architecture that a cubin must serve, if the device is a GPU.
    pub fn cubin_arch(&self) -> Option<Arch> {
        self.arch.map(|(major, minor)| Arch::plain(major, minor))
    }
}

/// Which way of sharing memory to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemorySharing {
    /// File descriptors where the device can, else legacy IPC.
    #[default]
    Auto,
    /// File descriptors or an error.
    FileDescriptor,
    /// Legacy CUDA IPC (and, within a process, peer access by address).
    LegacyIpc,
}

/// How a piece of shared memory travels to another rank.
#[derive(Debug)]
pub enum Export {
    /// A file descriptor (CUDA VMM handle, memfd); goes through the rendezvous as ancillary data.
    Fd(OwnedFd),
    /// A legacy CUDA IPC handle: 64 opaque bytes.
    LegacyIpc([u8; 64]),
    /// The owner is a thread of this process: its address is valid here (CUDA: once peer access is on).
    SameProcess(u64),
}

/// A received [`Export`].
#[derive(Debug)]
pub enum Import<'a> {
    /// See [`Export::Fd`].
    Fd(BorrowedFd<'a>),
    /// See [`Export::LegacyIpc`].
    LegacyIpc([u8; 64]),
    /// See [`Export::SameProcess`].
    SameProcess(u64),
}

/// The shape of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks, 1 to `PEERSUM_MAX_BLOCKS`.
    pub blocks: u32,
    /// Threads a block that handle data, `PEERSUM_MIN_THREADS` to `PEERSUM_MAX_THREADS`. The device launches as many more as there are ranks, which
    /// carry signals.
    pub threads: u32,
    /// Whether to set the programmatic launch attribute. Ignored where the entry point does not wait for it.
    pub pdl: bool,
}

/// A stream as a library knows it. See [`Device::library_stream`].
#[derive(Debug, Clone, Copy)]
pub struct LibraryStream {
    /// CUDA's handle. Null on a device whose streams have none: it is idle, and the library does its work before it returns.
    pub handle: *mut c_void,
    /// Whether what is enqueued is recorded instead of run.
    pub is_recording: bool,
}

/// Whether a stream records what is enqueued on it instead of running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recording {
    /// It runs what is enqueued.
    Off,
    /// It records, whoever began the capture.
    On,
    /// It records, and something that a capture cannot hold has spoilt the recording.
    Spoilt,
}

/// A status record in host memory that the device maps. The memory outlives every clone.
#[derive(Clone)]
pub struct StatusRecord {
    /// The record's address as the device sees it.
    pub device_address: u64,
    /// The record as the host sees it.
    pub host: Arc<dyn StatusMemory>,
}

/// Host memory that holds one [`PeersumStatus`], zeroed at first.
///
/// # Safety
/// What `as_ptr` returns is aligned and valid for reads and writes as long as `self` lives, the
/// same each time, and written by nothing but the device and the helpers of [`StatusRecord`].
pub unsafe trait StatusMemory: Send + Sync {
    /// The record. It stays valid as long as `self` does; the device writes it at any time, so it is read through the helpers of
    /// [`StatusRecord`] only.
    fn as_ptr(&self) -> *mut PeersumStatus;
}

impl StatusRecord {
    /// The abort word. Storing 1 ends every wait of this rank.
    pub fn abort_word(&self) -> &AtomicU32 {
        // SAFETY: `as_ptr` is valid and aligned for as long as `self.host` lives, which `&self` covers; host and device access the word
        // as a 32-bit atomic only.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.host.as_ptr()).abort) }
    }

    /// The device's record of a failure, once it is complete.
    pub fn failure(&self) -> Option<PeersumStatus> {
        // SAFETY: as in `abort_word`, for the `valid` word.
        let valid = unsafe { AtomicU32::from_ptr(&raw mut (*self.host.as_ptr()).valid) };
        // Acquire pairs with the device's release of `valid`: the fields are written before it and never again.
        if valid.load(std::sync::atomic::Ordering::Acquire) == 0 {
            return None;
        }
        // SAFETY: the record is complete (see above) and, but for the abort word, immutable from now on. The abort word may be stored
        // by another thread meanwhile, so the copy is volatile; a PeersumStatus has no invalid bit patterns.
        Some(unsafe { std::ptr::read_volatile(self.host.as_ptr()) })
    }
}

/// A stream that says which device it belongs to: what [`CommunicatorBuilder::build`](crate::CommunicatorBuilder::build) is given.
pub trait DeviceStream: Sized {
    /// The device's type.
    type Device: Device<Stream = Self>;

    /// For a stream that cannot carry a communicator, as CUDA's default streams: another of the same device that can, for a caller that
    /// orders the two with [`DeviceStream::wait_for`]. `None` for a stream that can.
    fn stand_in(&self) -> Result<Option<Self>, DeviceError> {
        Ok(None)
    }

    /// Lets whatever is enqueued here from now on wait for all that `other` holds so far.
    fn wait_for(&self, other: &Self) -> Result<(), DeviceError>;
}

/// A machine that runs the kernels: one device, one stream.
///
/// # Safety
/// Communicators rely on what the methods return: addresses are those of the memory that was asked
/// for, allocations and mappings keep it until they are dropped, a stream handle is live, and a
/// stream that was synchronised has passed everything enqueued before.
pub unsafe trait Device: Send + Sized + 'static {
    /// An ordered queue of launches; cheap to clone.
    type Stream: Clone + Send + 'static;
    /// The two entry points of one module, loaded.
    type Module: Send;
    /// Memory of this rank that peers can map. Freed when dropped.
    type Allocation: Send;
    /// A peer's memory as this rank maps it. Unmapped when dropped.
    type Mapping: Send;
    /// A recorded sequence of launches.
    type Graph: Send;
    /// The program's kind of buffer on this device.
    type Buffer<T: Element>: Input<T, Self>
        + Output<T, Self>
        + for<'v> AsViewMut<ViewMut<'v> = Self::ViewMut<'v, T>>
        + Send
        + 'static;
    /// A part of a buffer that does not own its memory: replacing one by another frees nothing.
    type ViewMut<'v, T: Element>: Input<T, Self> + Output<T, Self>;

    /// Opens the device behind a stream. Refuses streams that cannot carry a communicator (the legacy default stream).
    fn open(stream: &Self::Stream) -> Result<Self, DeviceError>;

    /// The stream that everything below goes to.
    fn stream(&self) -> &Self::Stream;

    /// A number that is equal for two streams of this process exactly if they are the same stream.
    fn stream_id(&self) -> u64;

    /// Who this device is.
    fn identity(&self) -> Result<DeviceIdentity, DeviceError>;

    /// Loads a module, both entry points, by name.
    fn load(
        &self,
        policy: &LoadPolicy,
        key: ModuleKey,
    ) -> Result<(Self::Module, LoadReport), DeviceError>;

    /// How many blocks of `threads` threads of this entry point fit one multiprocessor at once.
    fn blocks_per_multiprocessor(
        &self,
        module: &Self::Module,
        algorithm: Algorithm,
        threads: u32,
    ) -> Result<u32, DeviceError>;

    /// Allocates memory that can be exported, aligned to at least 256 bytes. Contents are undefined.
    fn allocate_shared(
        &self,
        bytes: usize,
        sharing: MemorySharing,
    ) -> Result<Self::Allocation, DeviceError>;

    /// Where this rank sees its own allocation.
    fn allocation_address(&self, allocation: &Self::Allocation) -> u64;

    /// Prepares an allocation for a rank of another process (`same_process` false) or of this one.
    fn export(
        &self,
        allocation: &Self::Allocation,
        same_process: bool,
    ) -> Result<Export, DeviceError>;

    /// Maps a peer's memory of `bytes` bytes.
    fn import(&self, import: Import<'_>, bytes: usize) -> Result<Self::Mapping, DeviceError>;

    /// Where this rank sees a peer's memory.
    fn mapping_address(&self, mapping: &Self::Mapping) -> u64;

    /// Makes a buffer of memory that this rank has allocated otherwise.
    ///
    /// # Safety
    /// `address` must be aligned to `T`, and hold `len` elements until the buffer is given to [`Device::disown`], which must happen
    /// instead of dropping it.
    unsafe fn adopt<T: Element>(&self, address: u64, len: usize) -> Self::Buffer<T>;

    /// Ends an adopted buffer without freeing its memory. What uses the buffer on another stream is
    /// done, or the buffer's own stream waits for it, as far as the device keeps account of that.
    fn disown<T: Element>(buffer: Self::Buffer<T>);

    /// Allocates a zeroed status record in host memory that the device maps.
    fn allocate_status(&self) -> Result<StatusRecord, DeviceError>;

    /// Enqueues filling `words` 32-bit words from `address` on.
    ///
    /// # Safety
    /// The range must lie in memory that stays allocated until the stream has passed this point.
    unsafe fn fill(&self, address: u64, word: u32, words: usize) -> Result<(), DeviceError>;

    /// Enqueues a copy within the device. The ranges do not overlap.
    ///
    /// # Safety
    /// Both ranges must lie in memory that stays allocated until the stream has passed this point.
    unsafe fn copy(&self, destination: u64, source: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Writes host bytes to the device, ordered in the stream, and returns when `bytes` may be reused.
    ///
    /// # Safety
    /// The destination must be allocated memory of `bytes.len()` bytes.
    unsafe fn write(&self, destination: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Reads device bytes once the stream has passed all that was enqueued before.
    ///
    /// # Safety
    /// The source must be allocated memory of `bytes.len()` bytes.
    unsafe fn read(&self, source: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Enqueues one kernel. Allocates nothing and takes no lock of ours.
    ///
    /// # Safety
    /// Every address in `params` must be valid for the kernel until it ends, and `shape` within the module's bounds.
    unsafe fn launch(
        &self,
        module: &Self::Module,
        algorithm: Algorithm,
        shape: LaunchShape,
        params: &PeersumParams,
    ) -> Result<(), DeviceError>;

    /// The stream for a library that enqueues work of its own on it. What has been enqueued comes first, what follows comes after.
    fn library_stream(&self) -> Result<LibraryStream, DeviceError>;

    /// Whether the stream records, also if the program itself began the capture; never waits, and
    /// is cheap enough for every call.
    fn recording(&self) -> Result<Recording, DeviceError>;

    /// Whether the stream has passed everything enqueued so far; never waits.
    fn is_idle(&self) -> Result<bool, DeviceError>;

    /// Waits until the stream has passed everything enqueued so far.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// Starts recording launches instead of running them.
    fn capture_begin(&self) -> Result<(), DeviceError>;

    /// Ends recording. Only the thread that began it may do so.
    fn capture_end(&self) -> Result<Self::Graph, DeviceError>;

    /// Enqueues all launches of a recording.
    ///
    /// # Safety
    /// Every address that the recorded launches use must be valid until the stream has passed this point.
    unsafe fn launch_graph(&self, graph: &Self::Graph) -> Result<(), DeviceError>;
}
