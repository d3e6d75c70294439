//! Memory that ranks share: memfds, which every process with the descriptor can map.

use std::cell::UnsafeCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use peersum::device::{DeviceError, Export, Import, StatusMemory, StatusRecord};
use peersum_kernels::abi::PeersumStatus;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// How much of a new allocation is filled with garbage, so that the use of uninitialised memory
/// shows at once. Filling all of a large arena would cost its size in memory.
const GARBAGE_BYTES: usize = 1 << 20;
const GARBAGE: u8 = 0xA5;

/// A mapping of a memfd, unmapped when dropped.
#[derive(Debug)]
struct Mapped {
    address: usize,
    bytes: usize,
}

impl Mapped {
    fn new(fd: BorrowedFd<'_>, bytes: usize) -> Result<Self, DeviceError> {
        // SAFETY: a mapping at an address of the system's choice replaces nothing.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }
        .map_err(|errno| system("mmap", errno))?;
        Ok(Self {
            address: address as usize,
            bytes,
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is unmapped once. Whoever used its address
        // answered, in an `unsafe fn` of `Device`, for its being allocated for as long.
        let unmapped = unsafe { munmap(self.address as *mut _, self.bytes) };
        if let Err(errno) = unmapped {
            tracing::warn!(%errno, "munmap failed");
        }
    }
}

/// Memory of one rank that its peers can map. Freed when dropped, once no peer maps it any more.
#[derive(Debug)]
pub struct EmulatorAllocation {
    fd: OwnedFd,
    mapped: Mapped,
}

impl EmulatorAllocation {
    pub(crate) fn new(bytes: usize) -> Result<Self, DeviceError> {
        let fd = memfd_create("peersum", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|errno| system("memfd_create", errno))?;
        ftruncate(&fd, bytes as u64).map_err(|errno| system("ftruncate", errno))?;
        // If a peer truncated it, this process would be killed by SIGBUS.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|errno| system("fcntl(F_ADD_SEALS)", errno))?;
        let mapped = Mapped::new(fd.as_fd(), bytes)?;
        // SAFETY: the range was just mapped for writing, and nobody else knows of it.
        unsafe { ptr::write_bytes(mapped.address as *mut u8, GARBAGE, bytes.min(GARBAGE_BYTES)) };
        Ok(Self { fd, mapped })
    }

    pub(crate) fn address(&self) -> u64 {
        self.mapped.address as u64
    }

    pub(crate) fn export(&self, same_process: bool) -> Result<Export, DeviceError> {
        if same_process {
            return Ok(Export::SameProcess(self.address()));
        }
        let fd = self.fd.try_clone().map_err(|source| DeviceError::System {
            call: "dup",
            source,
        })?;
        Ok(Export::Fd(fd))
    }
}

/// A peer's memory as this rank sees it.
#[derive(Debug)]
pub struct EmulatorMapping {
    pub(crate) address: u64,
    /// `None` where the peer is a thread of this process, whose own mapping serves.
    _mapped: Option<Mapped>,
}

impl EmulatorMapping {
    pub(crate) fn new(import: Import<'_>, bytes: usize) -> Result<Self, DeviceError> {
        match import {
            Import::Fd(fd) => {
                let found = fstat(fd).map_err(|errno| system("fstat", errno))?.st_size;
                if !u64::try_from(found).is_ok_and(|found| found >= bytes as u64) {
                    let reason = format!("the peer's memory has {found} bytes instead of {bytes}");
                    return Err(DeviceError::CannotShare { reason });
                }
                let mapped = Mapped::new(fd, bytes)?;
                Ok(Self {
                    address: mapped.address as u64,
                    _mapped: Some(mapped),
                })
            }
            Import::SameProcess(address) => Ok(Self {
                address,
                _mapped: None,
            }),
            Import::LegacyIpc(_) => Err(DeviceError::CannotShare {
                reason: "the peer sent a CUDA IPC handle, and this rank runs on the emulator: all \
                         ranks of a group must use the same kind of device"
                    .to_owned(),
            }),
        }
    }
}

/// A status record on the heap.
#[derive(Default)]
struct HeapStatus(UnsafeCell<PeersumStatus>);

// SAFETY: the record is reached through its address only, and by atomic accesses while it may be
// written (`StatusRecord`).
unsafe impl Send for HeapStatus {}
// SAFETY: as above.
unsafe impl Sync for HeapStatus {}

// SAFETY: the record is in a heap allocation that `self` owns and nothing else reaches.
unsafe impl StatusMemory for HeapStatus {
    fn as_ptr(&self) -> *mut PeersumStatus {
        self.0.get()
    }
}

pub(crate) fn allocate_status() -> StatusRecord {
    let host = Arc::new(HeapStatus::default());
    StatusRecord {
        device_address: host.as_ptr() as u64,
        host,
    }
}

fn system(call: &'static str, errno: rustix::io::Errno) -> DeviceError {
    DeviceError::System {
        call,
        source: errno.into(),
    }
}
