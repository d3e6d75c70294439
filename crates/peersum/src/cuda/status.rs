//! The status record in host memory that the device maps.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys;
use peersum_kernels::abi::PeersumStatus;

use super::driver::{give_back, returned};
use crate::device::{DeviceError, StatusMemory, StatusRecord};

/// Page-locked host memory that holds one record.
struct HostStatus {
    context: Arc<CudaContext>,
    record: NonNull<PeersumStatus>,
}

// SAFETY: the memory belongs to no thread. It is handed out as a raw pointer only, whose users
// access it atomically.
unsafe impl Send for HostStatus {}
// SAFETY: as for `Send`; `as_ptr` only copies the pointer.
unsafe impl Sync for HostStatus {}

// SAFETY: the record lies in page-locked memory of its own, freed when `self` is dropped.
unsafe impl StatusMemory for HostStatus {
    fn as_ptr(&self) -> *mut PeersumStatus {
        self.record.as_ptr()
    }
}

impl Drop for HostStatus {
    fn drop(&mut self) {
        // SAFETY: the memory came from `cuMemHostAlloc` and is freed once, here: the last clone of
        // the record is gone, and with it every pointer on the host. The device's last launch has
        // ended before the communicator gives up its clone.
        give_back(&self.context, "cuMemFreeHost", || unsafe {
            sys::cuMemFreeHost(self.record.as_ptr().cast())
        });
    }
}

/// Allocates a zeroed record in the current context, which is `context`.
pub(super) fn allocate(context: &Arc<CudaContext>) -> Result<StatusRecord, DeviceError> {
    let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
    // SAFETY: the place is one pointer.
    let memory = returned("cuMemHostAlloc", std::ptr::null_mut(), |memory| unsafe {
        sys::cuMemHostAlloc(memory, size_of::<PeersumStatus>(), flags)
    })?;
    let record = NonNull::new(memory.cast::<PeersumStatus>())
        .ok_or_else(|| DeviceError::driver("cuMemHostAlloc", "it returned null"))?;
    let host = HostStatus {
        context: Arc::clone(context),
        record,
    };
    // SAFETY: the memory is as large as one record, page-aligned, and nobody else has it yet. Zero
    // is a valid value of every field.
    unsafe { record.write_bytes(0, 1) };
    // SAFETY: the place is one address; the memory was allocated as mapped.
    let device_address = returned("cuMemHostGetDevicePointer", 0, |address| unsafe {
        sys::cuMemHostGetDevicePointer_v2(address, memory, 0)
    })?;
    Ok(StatusRecord {
        device_address,
        host: Arc::new(host),
    })
}
