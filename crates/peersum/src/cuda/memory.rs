//! Memory of this rank that peers can map: allocating and exporting it.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdeviceptr, CUipcMemHandle};

use super::driver::returned;
use super::owned::Owned;
use super::vmm::{MappedRange, Physical, Properties, missing_support};
use crate::device::{DeviceError, Export, MemorySharing};

/// What plain memory is rounded up to. The driver packs smaller allocations into blocks of this
/// size, and legacy IPC hands out the whole block: another allocation of this process must not lie
/// in it.
const PLAIN_GRANULARITY_BYTES: usize = 2 << 20;

/// Memory of this rank that peers can map. Freed when dropped, at which time no launch may use it,
/// here or at a peer.
pub struct Allocation(Kind);

enum Kind {
    /// Shared as a file descriptor. Fields are dropped in this order: the mapping goes first.
    Vmm {
        range: MappedRange,
        physical: Physical,
    },
    /// Shared as a legacy IPC handle, or by address within the process.
    Plain {
        memory: Owned<CUdeviceptr>,
        /// Why it is not shared as a file descriptor, where that was tried.
        instead_of: Option<String>,
    },
}

impl Allocation {
    /// Allocates at least `bytes` bytes in the current context, which is `context`.
    pub(super) fn new(
        context: &Arc<CudaContext>,
        bytes: usize,
        sharing: MemorySharing,
    ) -> Result<Self, DeviceError> {
        let instead_of = match sharing {
            MemorySharing::LegacyIpc => None,
            MemorySharing::Auto | MemorySharing::FileDescriptor => {
                match Self::vmm(context, bytes) {
                    Ok(allocation) => return Ok(allocation),
                    Err(reason) => Some(reason),
                }
            }
        };
        if let Some(reason) = &instead_of {
            if sharing == MemorySharing::FileDescriptor {
                return Err(DeviceError::cannot_share(format!(
                    "as a file descriptor, which was demanded: {reason}. Legacy IPC was not tried"
                )));
            }
            tracing::warn!(
                %reason,
                "memory is shared by legacy CUDA IPC, not as a file descriptor"
            );
        }
        let memory = allocate_plain(context, bytes).map_err(|error| match &instead_of {
            None => error,
            Some(reason) => DeviceError::cannot_share(format!(
                "as a file descriptor: {reason}; for legacy CUDA IPC: {error}"
            )),
        })?;
        Ok(Self(Kind::Plain { memory, instead_of }))
    }

    /// Allocates memory that travels as a file descriptor; else says why it cannot be had.
    fn vmm(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, String> {
        let device = context.cu_device();
        if let Some(what) = missing_support(device).map_err(|error| error.to_string())? {
            return Err(format!("the device or its driver does not support {what}"));
        }
        let allocate = || {
            let properties = Properties::shareable(device);
            let bytes = properties.mapped_bytes(bytes)?;
            let physical = Physical::allocate(context, &properties, bytes)?;
            // Sandboxes exist that allow all but this. Tried now, while there is another way.
            drop(physical.export()?);
            let range = MappedRange::map(context, &physical, bytes)?;
            Ok(Self(Kind::Vmm { range, physical }))
        };
        allocate().map_err(|error: DeviceError| error.to_string())
    }

    pub(super) fn address(&self) -> u64 {
        match &self.0 {
            Kind::Vmm { range, .. } => range.address(),
            Kind::Plain { memory, .. } => memory.handle(),
        }
    }

    /// Prepares the memory for another rank.
    pub(super) fn export(&self, same_process: bool) -> Result<Export, DeviceError> {
        match &self.0 {
            Kind::Vmm { physical, .. } => physical.export().map(Export::Fd).map_err(|error| {
                DeviceError::cannot_share(format!("as a file descriptor: {error}"))
            }),
            Kind::Plain { memory, .. } if same_process => Ok(Export::SameProcess(memory.handle())),
            Kind::Plain { memory, instead_of } => {
                ipc_handle(memory).map(Export::LegacyIpc).map_err(|error| {
                    let first = instead_of.as_ref();
                    let first = first.map(|reason| format!("as a file descriptor: {reason}; "));
                    let first = first.unwrap_or_default();
                    DeviceError::cannot_share(format!("{first}by legacy CUDA IPC: {error}"))
                })
            }
        }
    }
}

/// Allocates with `cuMemAlloc`: legacy IPC takes neither memory of pools (which cudarc's slices
/// come from) nor VMM memory.
fn allocate_plain(
    context: &Arc<CudaContext>,
    bytes: usize,
) -> Result<Owned<CUdeviceptr>, DeviceError> {
    let bytes = bytes
        .max(1)
        .checked_next_multiple_of(PLAIN_GRANULARITY_BYTES)
        .ok_or_else(|| {
            let message = format!("{bytes} bytes are more than can be addressed");
            DeviceError::driver("cuMemAlloc", message)
        })?;
    // SAFETY: the place is one address.
    let address = returned("cuMemAlloc", 0, |address| unsafe {
        sys::cuMemAlloc_v2(address, bytes)
    })?;
    Ok(Owned::new(context, address, "cuMemFree", |address| {
        // SAFETY: the address came from `cuMemAlloc` and is freed once.
        unsafe { sys::cuMemFree_v2(address) }
    }))
}

/// The legacy IPC handle of memory that [`allocate_plain`] has allocated.
fn ipc_handle(memory: &Owned<CUdeviceptr>) -> Result<[u8; 64], DeviceError> {
    let empty = CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: the place is one handle, and the address is the start of a live allocation.
    let handle = returned("cuIpcGetMemHandle", empty, |handle| unsafe {
        sys::cuIpcGetMemHandle(handle, memory.handle())
    })?;
    Ok(handle.reserved.map(|byte| byte.to_ne_bytes()[0]))
}
