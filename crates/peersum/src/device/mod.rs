//! The device interface: what the communicator needs of the machine that runs the kernels.
//!
//! Two implementations exist: [`Cuda`](crate::Cuda), and the emulator of `peersum-emulator`, which
//! runs the same kernel files on the CPU. The interface knows addresses, memory that ranks share,
//! and launches; what the protocol means stays above it.

mod error;
mod interface;
mod status;
mod values;

pub use error::{BufferError, DeviceError};
pub use interface::{AsViewMut, Device, DeviceBuffer, DeviceStream, Input, Output};
pub use status::{StatusMemory, StatusRecord};
pub use values::{
    DeviceIdentity, Export, Import, LaunchShape, LibraryStream, MemorySharing, Recording, Waits,
};
