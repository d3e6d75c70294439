//! Runs peersum's kernels on a machine without a GPU: a second implementation of
//! [`peersum::device::Device`].
//!
//! The files of `kernels/` are compiled as C++ by the system's compiler and run on the CPU. Each
//! CUDA thread is a host thread of a persistent pool, all blocks of a launch run at once, a thread
//! that polls yields, and a 16-byte access to memory that a peer uses is split into four 32-bit
//! accesses in random order. Memory that ranks share is a memfd, so ranks can be threads or real
//! processes. The emulator is slow and meant for tests: results and failures are those of a GPU,
//! times are not.
//!
//! It cannot show reorderings that the host's memory model forbids and a GPU's allows (x86 keeps
//! stores in order, and loads), and kernels of one stream that overlap (programmatic dependent
//! launch). See `tests/thread_sanitizer.rs` for how to run the protocols under ThreadSanitizer.
//!
//! ```
//! use peersum::device::{Device, MemorySharing};
//! use peersum_emulator::{Emulator, EmulatorDevice};
//!
//! let stream = EmulatorDevice::new(0).stream()?;
//! let emulator = Emulator::open(&stream)?;
//! let arena = emulator.allocate_shared(1 << 20, MemorySharing::Auto)?;
//! // SAFETY: the arena outlives the call to `synchronize`.
//! unsafe { emulator.fill(emulator.allocation_address(&arena), 0, 1 << 18)? };
//! emulator.synchronize()?;
//! # Ok::<(), peersum::device::DeviceError>(())
//! ```

mod buffer;
#[cfg(test)]
mod conversions;
mod device;
mod emulator;
mod entry_points;
mod handles;
mod memory;
mod stream;
mod thread_pool;

pub use buffer::{EmulatorBuffer, EmulatorPart, EmulatorView, EmulatorViewMut};
#[cfg(feature = "broken-kernels")]
pub use device::Break;
pub use device::{EmulatorDevice, EmulatorOptions};
pub use handles::{Emulator, EmulatorGraph, EmulatorModule};
pub use memory::{EmulatorAllocation, EmulatorMapping};
pub use stream::EmulatorStream;
