//! A peer's memory as this rank maps it.

use std::ffi::c_char;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUipcMem_flags, CUipcMemHandle, CUpointer_attribute,
    CUresult,
};

use super::driver::{can_access_peer, check, returned};
use super::owned::Owned;
use super::vmm::{MappedRange, Physical, Properties};
use crate::device::{DeviceError, Import};

/// A peer's memory as this rank maps it. Unmapped when dropped, at which time no launch of this
/// rank may use it.
pub struct Mapping(Kind);

enum Kind {
    Vmm(MappedRange),
    LegacyIpc(Owned<CUdeviceptr>),
    /// Nothing to undo: peer access between the contexts of a process stays on, as others may rely
    /// on it.
    SameProcess(u64),
}

impl Mapping {
    /// Maps `bytes` bytes of a peer in the current context, which is `context`.
    pub(super) fn new(
        context: &Arc<CudaContext>,
        import: &Import<'_>,
        bytes: usize,
    ) -> Result<Self, DeviceError> {
        Ok(Self(match *import {
            Import::Fd(fd) => Kind::Vmm(map_descriptor(context, fd, bytes)?),
            Import::LegacyIpc(handle) => Kind::LegacyIpc(open_ipc(context, handle)?),
            Import::SameProcess(address) => {
                reach(context, address)?;
                Kind::SameProcess(address)
            }
        }))
    }

    pub(super) fn address(&self) -> u64 {
        match &self.0 {
            Kind::Vmm(range) => range.address(),
            Kind::LegacyIpc(memory) => memory.handle(),
            Kind::SameProcess(address) => *address,
        }
    }
}

/// What is known before a mapping is tried, if the driver says nothing about it, for instance
/// because the other device is hidden from this process.
const RECEIVED: &str = "a peer's memory was received";

/// What the driver says before memory of device `owner` is mapped on device `own`, for the error if
/// the mapping fails all the same. Fails where it says that `own` cannot address that memory.
fn promise(own: CUdevice, owner: Option<CUdevice>) -> Result<String, DeviceError> {
    let owner = match owner {
        None => return Ok(RECEIVED.to_owned()),
        Some(owner) if owner == own => {
            return Ok("a peer's memory is on this rank's own device".to_owned());
        }
        Some(owner) => owner,
    };
    match can_access_peer(own, owner) {
        Ok(true) => Ok(format!(
            "device {own} can address the memory of device {owner} (cuDeviceCanAccessPeer says yes)"
        )),
        Ok(false) => Err(DeviceError::cannot_share(format!(
            "device {own} cannot address the memory of device {owner}, where a peer's memory is \
             (cuDeviceCanAccessPeer says no). `nvidia-smi topo -p2p rw` shows which devices can; \
             in a virtual machine peer access may be off, and on some hosts the IOMMU or PCIe \
             access control forbids it"
        ))),
        Err(_) => Ok(RECEIVED.to_owned()),
    }
}

/// The error for a mapping that failed although nothing spoke against it. `needs` says what ranks
/// in different containers must have in common.
fn refused(promise: &str, failure: &DeviceError, needs: &str) -> DeviceError {
    DeviceError::cannot_share(format!(
        "{promise}, but mapping it failed: {failure}. {needs}"
    ))
}

/// What memory needs that travels as a file descriptor, or not at all.
const NEEDS: &str = "Ranks in different containers must see the same devices; their PID and IPC \
    namespaces may differ";
/// What memory needs that is opened by a handle of CUDA's legacy IPC.
const LEGACY_IPC_NEEDS: &str = "Memory is shared through legacy CUDA IPC here: ranks in different \
    containers must share the PID and IPC namespaces (`--pid=host --ipc=host`) and see the same \
    devices";

fn map_descriptor(
    context: &Arc<CudaContext>,
    fd: BorrowedFd<'_>,
    bytes: usize,
) -> Result<MappedRange, DeviceError> {
    let own = context.cu_device();
    let physical =
        Physical::import(context, fd).map_err(|failure| refused(RECEIVED, &failure, NEEDS))?;
    let properties = physical.properties().ok();
    let promise = promise(own, properties.as_ref().and_then(Properties::device))?;
    // The owner rounded by its own device's granularity.
    let bytes = properties
        .unwrap_or_else(|| Properties::shareable(own))
        .mapped_bytes(bytes)
        .or_else(|_| Properties::shareable(own).mapped_bytes(bytes))?;
    // The mapping keeps the memory; the handle is not needed after it.
    MappedRange::map(context, &physical, bytes)
        .map_err(|failure| refused(&promise, &failure, NEEDS))
}

/// Makes memory at `address`, of a thread of this process, addressable from `context`.
fn reach(context: &CudaContext, address: u64) -> Result<(), DeviceError> {
    let none: CUcontext = std::ptr::null_mut();
    // SAFETY: the attribute is one context handle, and so is the place; an address that the driver
    // does not know is an error that is returned.
    let owner_context = returned("cuPointerGetAttribute", none, |place| unsafe {
        let which = CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT;
        sys::cuPointerGetAttribute(place.cast(), which, address)
    })
    .map_err(|failure| refused(RECEIVED, &failure, NEEDS))?;
    if owner_context == context.cu_ctx() {
        return Ok(());
    }
    // SAFETY: the attribute is one int, and so is the place.
    let ordinal = returned("cuPointerGetAttribute", -1_i32, |place| unsafe {
        let which = CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        sys::cuPointerGetAttribute(place.cast(), which, address)
    });
    let promise = promise(context.cu_device(), ordinal.ok())?;
    // SAFETY: the owner's context lives, since its rank waits in the set-up that this rank takes
    // part in. Access is granted to the current context, which is `context`.
    match unsafe { sys::cuCtxEnablePeerAccess(owner_context, 0) } {
        CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
        result => check("cuCtxEnablePeerAccess", result)
            .map_err(|failure| refused(&promise, &failure, NEEDS)),
    }
}

/// Opens memory of another process through its legacy IPC handle.
fn open_ipc(
    context: &Arc<CudaContext>,
    handle: [u8; 64],
) -> Result<Owned<CUdeviceptr>, DeviceError> {
    let handle = CUipcMemHandle {
        reserved: handle.map(|byte| c_char::from_ne_bytes([byte])),
    };
    let flags = CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    // SAFETY: the place is one address; bytes that are no handle are an error that is returned.
    let address = returned("cuIpcOpenMemHandle", 0, |address| unsafe {
        sys::cuIpcOpenMemHandle_v2(address, handle, flags)
    })
    .map_err(|failure| refused(RECEIVED, &failure, LEGACY_IPC_NEEDS))?;
    Ok(Owned::new(context, address, "cuIpcCloseMemHandle", |at| {
        // SAFETY: the address came from `cuIpcOpenMemHandle` and is closed once.
        unsafe { sys::cuIpcCloseMemHandle(at) }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As docs/packaging.md and the doctor say it.
    #[test]
    fn only_legacy_ipc_asks_for_common_namespaces() {
        let failure = DeviceError::driver("cuMemMap", "no");
        let text = |needs| refused(RECEIVED, &failure, needs).to_string();
        assert!(text(NEEDS).contains("PID and IPC namespaces may differ"));
        assert!(!text(NEEDS).contains("--pid=host"));
        assert!(text(LEGACY_IPC_NEEDS).contains("--pid=host --ipc=host"));
    }
}
