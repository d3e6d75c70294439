//! The traits of the device interface. Buffers and devices name each other, so they stand together.

use peersum_artifact::{Algorithm, ModuleKey};
use peersum_kernels::abi::PeersumParams;

use super::error::{BufferError, DeviceError};
use super::status::StatusRecord;
use super::values::{
    DeviceIdentity, Export, Import, LaunchShape, LibraryStream, MemorySharing, Recording, Waits,
};
use crate::element::Scalar;
use crate::loader::{LoadPolicy, LoadReport};

/// Memory of a device that holds elements: what [`Input`] and [`Output`] have in common.
pub trait DeviceBuffer<T: Scalar, D: Device> {
    /// The number of elements.
    fn len(&self) -> usize;

    /// Whether there is no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fails for a buffer that a call on `stream` cannot take, because it is memory of another
    /// device. Says whether the buffer makes the stream wait. Enqueues nothing. The default takes
    /// every buffer, and expects waits.
    ///
    /// # Errors
    /// [`BufferError`].
    fn check(&self, stream: &D::Stream) -> Result<Waits, BufferError> {
        let _ = stream;
        Ok(Waits::Possible)
    }
}

/// Device memory that a call reads: everything of cudarc that is a
/// [`DevicePtr`](cudarc::driver::DevicePtr), including the slices of a
/// [`SymmetricBuffer`](crate::SymmetricBuffer).
///
/// # Safety
/// The address that `with_input` passes on must be aligned to `T` and readable by the device for
/// `len()` elements by everything that `launch` enqueues on `stream`. What orders that against
/// earlier and later work on the memory must be held until `launch` has returned.
pub unsafe trait Input<T: Scalar, D: Device>: DeviceBuffer<T, D> {
    /// Calls `launch` with the address of the first element as the device sees it.
    ///
    /// # Errors
    /// That of `launch`, or a [`BufferError`] if `stream` cannot be made to wait for earlier work
    /// on the memory: then `launch` is not called.
    fn with_input<R, E: From<BufferError>>(
        &self,
        stream: &D::Stream,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E>;
}

/// Device memory that a call writes: everything of cudarc that is a
/// [`DevicePtrMut`](cudarc::driver::DevicePtrMut), including the views of a
/// [`SymmetricBuffer`](crate::SymmetricBuffer).
///
/// # Safety
/// As for [`Input`], for writing and reading.
pub unsafe trait Output<T: Scalar, D: Device>: DeviceBuffer<T, D> {
    /// Calls `launch` with the address of the first element as the device sees it.
    ///
    /// # Errors
    /// As [`Input::with_input`].
    fn with_output<R, E: From<BufferError>>(
        &mut self,
        stream: &D::Stream,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E>;
}

/// A buffer that lends all its elements as a view.
///
/// A view owns no memory. So it can be handed out where a `&mut` of the buffer itself cannot,
/// because `std::mem::swap` through that would free memory that something else still uses.
///
/// # Safety
/// Nothing that safe code can do with the view moves, frees or replaces the buffer's memory.
pub unsafe trait AsViewMut {
    /// The view.
    type ViewMut<'v>
    where
        Self: 'v;

    /// All elements, to read and write.
    fn as_view_mut(&mut self) -> Self::ViewMut<'_>;
}

/// A stream that knows the type of its device: what
/// [`CommunicatorBuilder::build`](crate::CommunicatorBuilder::build) is given.
pub trait DeviceStream: Sized {
    /// The device's type.
    type Device: Device<Stream = Self>;

    /// For a stream that cannot carry a communicator, such as CUDA's default streams: another of
    /// the same device that can, for a caller that orders the two with [`DeviceStream::wait_for`].
    /// `None` for a stream that can.
    fn stand_in(&self) -> Result<Option<Self>, DeviceError> {
        Ok(None)
    }

    /// Makes all work that is enqueued here from now on wait for all work of `other` so far.
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
    /// The entry points of one module, loaded.
    type Module: Send;
    /// Memory of this rank that peers can map. Freed when dropped.
    type Allocation: Send;
    /// A peer's memory as this rank maps it. Unmapped when dropped.
    type Mapping: Send;
    /// A recorded sequence of launches.
    type Graph: Send;
    /// The program's kind of buffer on this device.
    type Buffer<T: Scalar>: Input<T, Self>
        + Output<T, Self>
        + for<'v> AsViewMut<ViewMut<'v> = Self::ViewMut<'v, T>>
        + Send
        + 'static;
    /// A part of a buffer that does not own its memory: replacing one by another frees nothing.
    type ViewMut<'v, T: Scalar>: Input<T, Self> + Output<T, Self>;

    /// Opens the device behind a stream. Refuses streams that cannot carry a communicator (the
    /// legacy default stream).
    fn open(stream: &Self::Stream) -> Result<Self, DeviceError>;

    /// The stream that everything below goes to.
    fn stream(&self) -> &Self::Stream;

    /// A number that is equal for two streams of this process exactly if they are the same stream.
    fn stream_id(&self) -> u64;

    /// Who this device is.
    fn identity(&self) -> Result<DeviceIdentity, DeviceError>;

    /// Loads modules, all their entry points, by name, in their order.
    fn load(
        &self,
        policy: &LoadPolicy,
        keys: &[ModuleKey],
    ) -> Result<Vec<(Self::Module, LoadReport)>, DeviceError>;

    /// Whether a block of `threads` threads of this entry point fits a seat: a half of each part of
    /// a multiprocessor, so that any two such blocks fit one multiprocessor.
    fn fits_seat(
        &self,
        module: &Self::Module,
        algorithm: Algorithm,
        threads: u32,
    ) -> Result<bool, DeviceError>;

    /// How many clusters of `size` blocks of `threads` threads of this entry point run at once
    /// whatever other blocks run, as long as those leave `seats` seats: of the device's seats, half
    /// a multiprocessor each. 0 if the device or the entry point has no clusters.
    fn clusters(
        &self,
        module: &Self::Module,
        algorithm: Algorithm,
        threads: u32,
        size: u32,
        seats: u32,
    ) -> Result<u32, DeviceError>;

    /// Allocates memory that can be exported, aligned to at least 256 bytes. Contents are
    /// undefined.
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
    /// `address` must be aligned to `T`, and hold `len` elements as long as the buffer is used. The
    /// buffer must be given to [`Device::disown`] instead of being dropped.
    unsafe fn adopt<T: Scalar>(
        &self,
        address: u64,
        len: usize,
    ) -> Result<Self::Buffer<T>, DeviceError>;

    /// Ends an adopted buffer without freeing its memory. Work on another stream that uses the
    /// buffer is done, or the buffer's own stream waits for it, as far as the device keeps track of
    /// that. If it fails, such work may go on, so the memory must not be freed.
    fn disown<T: Scalar>(buffer: Self::Buffer<T>) -> Result<(), DeviceError>;

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

    /// Writes host bytes to the device, ordered in the stream, and returns when `bytes` may be
    /// reused.
    ///
    /// # Safety
    /// The destination must be allocated memory of `bytes.len()` bytes.
    unsafe fn write(&self, destination: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Reads device bytes once the stream has passed all that was enqueued before.
    ///
    /// # Safety
    /// The source must be allocated memory of `bytes.len()` bytes.
    unsafe fn read(&self, source: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Enqueues one kernel. Allocates nothing and takes no lock of ours. The calling thread has
    /// made the device its current one by [`Device::recording`]; otherwise the launch may fail.
    ///
    /// # Safety
    /// Every address in `params` must be valid for the kernel until it ends, and `shape` within the
    /// module's bounds.
    unsafe fn launch(
        &self,
        module: &Self::Module,
        algorithm: Algorithm,
        shape: LaunchShape,
        params: &PeersumParams,
    ) -> Result<(), DeviceError>;

    /// The stream for a library that enqueues its own work on it, after all earlier and before all
    /// later work.
    fn library_stream(&self) -> Result<LibraryStream, DeviceError>;

    /// Whether the stream records, also if the program itself began the capture; never waits, and
    /// is cheap enough for every call. Makes the device the current one of the calling thread.
    fn recording(&self) -> Result<Recording, DeviceError>;

    /// Waits until the stream has passed everything enqueued so far.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// Starts recording launches instead of running them.
    fn capture_begin(&self) -> Result<(), DeviceError>;

    /// Ends recording. Only the thread that began it may do so.
    fn capture_end(&self) -> Result<Self::Graph, DeviceError>;

    /// Enqueues all launches of a recording.
    ///
    /// # Safety
    /// Every address that the recorded launches use must be valid until the stream has passed this
    /// point.
    unsafe fn launch_graph(&self, graph: &Self::Graph) -> Result<(), DeviceError>;
}
