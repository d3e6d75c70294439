//! The status record in host memory that the device maps.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys;
use peersum_kernels::abi::PeersumStatus;

use super::driver::returned;
use super::owned::Owned;
use crate::device::{DeviceError, StatusMemory, StatusRecord};

/// Page-locked host memory that holds one record.
struct HostStatus(Owned<*mut PeersumStatus>);

// SAFETY: the memory belongs to no thread. It is handed out as a raw pointer only, whose users
// access it atomically.
unsafe impl Send for HostStatus {}
// SAFETY: as for `Send`; `as_ptr` only copies the pointer.
unsafe impl Sync for HostStatus {}

// SAFETY: the record lies in page-locked memory of its own, freed when `self` is dropped.
unsafe impl StatusMemory for HostStatus {
    fn as_ptr(&self) -> *mut PeersumStatus {
        self.0.handle()
    }
}

/// Allocates a zeroed record in the current context, which is `context`.
pub(super) fn allocate(context: &Arc<CudaContext>) -> Result<StatusRecord, DeviceError> {
    let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
    // SAFETY: the place is one pointer.
    let memory = returned("cuMemHostAlloc", std::ptr::null_mut(), |memory| unsafe {
        sys::cuMemHostAlloc(memory, size_of::<PeersumStatus>(), flags)
    })?;
    let record: *mut PeersumStatus = memory.cast();
    let host = HostStatus(Owned::new(context, record, "cuMemFreeHost", |record| {
        // SAFETY: the memory came from `cuMemHostAlloc` and is freed once: the last clone of the
        // record is gone, and with it every pointer on the host. The device's last launch has ended
        // before the communicator gives up its clone.
        unsafe { sys::cuMemFreeHost(record.cast()) }
    }));
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
