//! What `peersum-doctor` asks of the driver beyond the public API: it must look at drivers and GPUs
//! that [`open_context`](super::open_context) refuses.

pub use super::driver::{
    arch, attribute, describe, device_count, device_name, device_uuid, returned, text,
};
pub use super::open::open_gpu;
pub use super::start::{RESTART, TOOLKIT_MAJOR, Trouble, start};
pub use super::vmm::missing_support;
