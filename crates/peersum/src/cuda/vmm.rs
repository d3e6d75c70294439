//! Virtual memory management: physical memory as a handle that travels as a file descriptor, and
//! its mappings.

use std::ffi::{c_int, c_uchar, c_ushort, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUdevice, CUdevice_attribute, CUdeviceptr, CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType, CUmemGenericAllocationHandle,
};
use rustix::io::{FdFlags, fcntl_setfd};

use super::driver::{attribute, bind, check, note, returned};
use super::owned::Owned;
use crate::device::DeviceError;

const POSIX_FD: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

const ALLOCATION_PINNED: c_int = 1;
const HANDLE_POSIX_FD: c_int = 1;
const LOCATION_DEVICE: c_int = 1;
const ACCESS_READ_WRITE: c_int = 3;

/// `CUmemLocation` of cuda.h. Its binding changes its shape, not its layout, from one CUDA version
/// to the next; which version cudarc is built for is the consumer's choice, so the layout is
/// written down here.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Location {
    kind: c_int,
    id: c_int,
}

/// `CUmemAllocationProp` of cuda.h, with plain numbers where the binding has enumerations: the
/// driver writes it too.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Properties {
    kind: c_int,
    handle_types: c_int,
    location: Location,
    win32_metadata: *mut c_void,
    compression: c_uchar,
    gpu_direct_rdma: c_uchar,
    usage: c_ushort,
    reserved: [c_uchar; 4],
}

/// `CUmemAccessDesc` of cuda.h.
#[repr(C)]
struct Access {
    location: Location,
    flags: c_int,
}

const _: () = {
    assert!(size_of::<Location>() == size_of::<sys::CUmemLocation>());
    assert!(size_of::<Properties>() == size_of::<sys::CUmemAllocationProp>());
    assert!(align_of::<Properties>() == align_of::<sys::CUmemAllocationProp>());
    assert!(size_of::<Access>() == size_of::<sys::CUmemAccessDesc>());
    assert!(size_of::<c_int>() == size_of::<CUmemAllocationHandleType>());
};

impl Properties {
    /// Memory of `device` that travels as a file descriptor: pinned, not compressed, not for
    /// network adapters.
    pub(super) fn shareable(device: CUdevice) -> Self {
        Self {
            kind: ALLOCATION_PINNED,
            handle_types: HANDLE_POSIX_FD,
            location: Location {
                kind: LOCATION_DEVICE,
                id: device,
            },
            win32_metadata: std::ptr::null_mut(),
            compression: 0,
            gpu_direct_rdma: 0,
            usage: 0,
            reserved: [0; 4],
        }
    }

    /// The device that the memory is on, if it is on one.
    pub(super) fn device(&self) -> Option<CUdevice> {
        (self.location.kind == LOCATION_DEVICE).then_some(self.location.id)
    }

    /// `bytes` as a size that can be allocated and mapped.
    pub(super) fn mapped_bytes(&self, bytes: usize) -> Result<usize, DeviceError> {
        let minimum = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: the place is one size; the properties have the layout that the driver reads.
        let granularity = returned("cuMemGetAllocationGranularity", 0, |place| unsafe {
            sys::cuMemGetAllocationGranularity(place, (&raw const *self).cast(), minimum)
        })?;
        // Even an empty allocation has an address.
        bytes
            .max(1)
            .checked_next_multiple_of(granularity)
            .ok_or_else(|| {
                let message =
                    format!("{bytes} bytes cannot be rounded up to multiples of {granularity}");
                DeviceError::driver("cuMemGetAllocationGranularity", message)
            })
    }
}

/// What `device` or its driver lacks for memory that travels as a file descriptor, if anything.
pub fn missing_support(device: CUdevice) -> Result<Option<&'static str>, DeviceError> {
    for (which, what) in [
        (
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
            "virtual memory management",
        ),
        (
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
            "memory handles as file descriptors",
        ),
    ] {
        if attribute(device, which)? == 0 {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// Physical memory, of this process or a peer's. Released when dropped; the memory lives on in its
/// mappings and in the handles of other processes.
pub(super) struct Physical(Owned<CUmemGenericAllocationHandle>);

impl Physical {
    /// Allocates `bytes`, a multiple of the granularity.
    pub(super) fn allocate(
        context: &Arc<CudaContext>,
        properties: &Properties,
        bytes: usize,
    ) -> Result<Self, DeviceError> {
        // SAFETY: the place is one handle; the properties have the layout that the driver reads.
        let handle = returned("cuMemCreate", 0, |handle| unsafe {
            sys::cuMemCreate(handle, bytes, (&raw const *properties).cast(), 0)
        })?;
        Ok(Self::new(context, handle))
    }

    /// Takes a peer's memory out of a file descriptor, which stays the caller's.
    pub(super) fn import(
        context: &Arc<CudaContext>,
        fd: BorrowedFd<'_>,
    ) -> Result<Self, DeviceError> {
        // For this handle type the descriptor's number itself is passed in the pointer's place.
        let number = std::ptr::without_provenance_mut::<c_void>(fd.as_raw_fd() as usize);
        // SAFETY: the place is one handle. The driver reads `number` as a descriptor, which is open
        // during the call since `fd` borrows it; a descriptor of something else is an error that is
        // returned.
        let handle = returned("cuMemImportFromShareableHandle", 0, |handle| unsafe {
            sys::cuMemImportFromShareableHandle(handle, number, POSIX_FD)
        })?;
        Ok(Self::new(context, handle))
    }

    fn new(context: &Arc<CudaContext>, handle: CUmemGenericAllocationHandle) -> Self {
        Self(Owned::new(context, handle, "cuMemRelease", |handle| {
            // SAFETY: the handle came from the driver and is released once. Mappings keep the
            // memory by themselves.
            unsafe { sys::cuMemRelease(handle) }
        }))
    }

    /// What the memory was allocated as.
    pub(super) fn properties(&self) -> Result<Properties, DeviceError> {
        let call = "cuMemGetAllocationPropertiesFromHandle";
        // SAFETY: the place has the layout that the driver writes, and numbers without invalid
        // values; the handle is live.
        returned(call, Properties::shareable(0), |place| unsafe {
            sys::cuMemGetAllocationPropertiesFromHandle(place.cast(), self.0.handle())
        })
    }

    /// A new file descriptor for the memory.
    pub(super) fn export(&self) -> Result<OwnedFd, DeviceError> {
        // SAFETY: for this handle type the driver writes an int, which the place is; the handle is
        // live.
        let fd = returned("cuMemExportToShareableHandle", -1_i32, |fd| unsafe {
            sys::cuMemExportToShareableHandle(fd.cast(), self.0.handle(), POSIX_FD, 0)
        })?;
        // SAFETY: on success the driver has opened this descriptor for the caller, who owns it
        // alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // A program that this process starts would otherwise keep the memory alive.
        fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|source| DeviceError::System {
            call: "fcntl(F_SETFD)",
            source: source.into(),
        })?;
        Ok(fd)
    }
}

/// A range of addresses with memory behind it. Unmapped and given back when dropped.
pub(super) struct MappedRange {
    context: Arc<CudaContext>,
    address: CUdeviceptr,
    bytes: usize,
    mapped: bool,
}

impl MappedRange {
    /// Maps the first `bytes` bytes of `physical`, a multiple of its granularity, for reading and
    /// writing by the context's device alone.
    pub(super) fn map(
        context: &Arc<CudaContext>,
        physical: &Physical,
        bytes: usize,
    ) -> Result<Self, DeviceError> {
        // SAFETY: the place is one address. Alignment 0 means the granularity, address 0 any.
        let address = returned("cuMemAddressReserve", 0, |address| unsafe {
            sys::cuMemAddressReserve(address, bytes, 0, 0, 0)
        })?;
        let mut range = Self {
            context: Arc::clone(context),
            address,
            bytes,
            mapped: false,
        };
        // SAFETY: the range was reserved just now, is of this size, and nothing is mapped in it;
        // the handle is live.
        check("cuMemMap", unsafe {
            sys::cuMemMap(address, bytes, 0, physical.0.handle(), 0)
        })?;
        range.mapped = true;
        let access = Access {
            location: Location {
                kind: LOCATION_DEVICE,
                id: context.cu_device(),
            },
            flags: ACCESS_READ_WRITE,
        };
        // SAFETY: the whole range is mapped; `access` is one descriptor of the layout that the
        // driver reads.
        check("cuMemSetAccess", unsafe {
            sys::cuMemSetAccess(address, bytes, (&raw const access).cast(), 1)
        })?;
        Ok(range)
    }

    /// Where the range begins.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for MappedRange {
    fn drop(&mut self) {
        note(bind(&self.context).and_then(|()| {
            if self.mapped {
                // SAFETY: exactly this range was mapped, and no launch that uses it is in flight
                // when it is dropped: the contract of `Device`'s launch functions.
                check("cuMemUnmap", unsafe {
                    sys::cuMemUnmap(self.address, self.bytes)
                })?;
            }
            // SAFETY: exactly this range was reserved, and nothing is mapped in it any more.
            check("cuMemAddressFree", unsafe {
                sys::cuMemAddressFree(self.address, self.bytes)
            })
        }));
    }
}
