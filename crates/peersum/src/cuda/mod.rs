//! The device interface on CUDA's driver API, through `cudarc`.
//!
//! Memory that ranks share comes from CUDA's virtual memory management and travels as file
//! descriptors. If a device or a sandbox does not offer that, it is plain memory and legacy IPC.
//! Launches go through `cuLaunchKernelEx`, for its programmatic attribute.

mod buffer;
mod device;
#[doc(hidden)]
pub mod diagnosis;
mod driver;
mod graph;
mod launch;
mod mapping;
mod memory;
mod module;
mod open;
mod owned;
mod pending;
mod start;
mod status;
mod stream;
mod vmm;

pub use device::Cuda;
pub use driver::driver_present;
pub use graph::Graph;
#[doc(hidden)]
pub use launch::launch_function;
pub use mapping::Mapping;
pub use memory::Allocation;
pub use module::Module;
pub use open::open_context;
