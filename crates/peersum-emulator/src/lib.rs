//! Runs peersum's kernels on a machine without a GPU: a second implementation of
//! [`peersum::device::Device`].
//!
//! The files of `kernels/` are compiled as C++ by the system's compiler and run on the CPU. Each
//! CUDA thread is a fiber, with a stack of its own, and the fibers of a launch run by turns on the
//! host thread of their stream: all blocks run at once, and a thread that waits or polls lets the
//! others run, in pseudo-random order. A 16-byte access to memory that a peer uses is split into
//! four 32-bit accesses in random order. Memory that ranks share is a memfd, so ranks can be
//! threads or real processes. The emulator is slow and meant for tests: results and failures are
//! those of a GPU, times are not.
//!
//! It cannot show reorderings that the host's memory model forbids and a GPU's allows (x86 keeps
//! stores in order, and loads), kernels of one stream that overlap (programmatic dependent launch),
//! and threads of one launch that interrupt each other anywhere but where they wait or store for a
//! peer. See `tests/thread_sanitizer.rs` for how to run the protocols under ThreadSanitizer.
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
mod fibers;
mod handles;
mod launch;
mod memory;
mod stacks;
mod stream;

pub use buffer::{EmulatorBuffer, EmulatorPart, EmulatorView, EmulatorViewMut};
#[cfg(feature = "broken-kernels")]
pub use device::Break;
pub use device::{EmulatorDevice, EmulatorOptions};
pub use handles::{Emulator, EmulatorGraph, EmulatorModule};
pub use memory::{EmulatorAllocation, EmulatorMapping};
pub use stream::EmulatorStream;
