//! NCCL, opened at run time, for comparison. Its environment variables are not changed.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use peersum::cudarc::driver::CudaStream;
use peersum::nccl_version::{self, NcclVersion};
use peersum::shared_library::functions;
use peersum_artifact::Dtype;

use super::report::System;

/// `NCCL_WIN_COLL_SYMMETRIC` of nccl.h.
const WINDOW_SYMMETRIC: c_int = 1;
/// `ncclSum`.
const SUM: c_int = 0;

type Communicator = *mut c_void;
type Window = *mut c_void;
type Status = c_int;

functions! {
    /// The functions that every NCCL has. Their signatures have not changed since 2.0.
    struct Functions;
    ncclGetErrorString(Status) -> *const c_char;
    ncclCommInitAll(*mut Communicator, c_int, *const c_int) -> Status;
    ncclCommDestroy(Communicator) -> Status;
    ncclAllReduce(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Communicator,
        *mut c_void,
    ) -> Status;
}

functions! {
    /// Those that came with 2.19 and 2.27.
    struct SymmetricFunctions;
    ncclMemAlloc(*mut *mut c_void, usize) -> Status;
    ncclMemFree(*mut c_void) -> Status;
    ncclCommWindowRegister(Communicator, *mut c_void, usize, *mut Window, c_int) -> Status;
    ncclCommWindowDeregister(Communicator, Window) -> Status;
}

/// The library.
pub(crate) struct Nccl {
    functions: Functions,
    symmetric: Option<SymmetricFunctions>,
    version: String,
}

impl Nccl {
    /// Opens the library: that of `path`, else the one that the loader finds.
    ///
    /// # Errors
    /// It is not there, or lacks a function that every NCCL has.
    pub(crate) fn open(path: Option<&Path>) -> Result<Nccl> {
        let library = nccl_version::open(path).context("could not open NCCL")?;
        let version = NcclVersion::of(&library).context("NCCL does not tell its version")?;
        // SAFETY: the signatures are those of nccl.h.
        let (functions, symmetric) = unsafe {
            let missing = |name| anyhow!("NCCL has no {name}");
            let functions = Functions::find(&library).map_err(missing)?;
            (functions, SymmetricFunctions::find(&library).ok())
        };
        Ok(Nccl {
            functions,
            symmetric,
            version: version.to_string(),
        })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Whether this version of NCCL is too old for `system`.
    pub(crate) fn lacks(&self, system: System) -> bool {
        system == System::NcclSymmetric && self.symmetric.is_none()
    }

    fn check(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns a string of its own for every number.
        let text = unsafe { CStr::from_ptr((self.functions.ncclGetErrorString)(status)) };
        bail!("{call}: {} ({status})", text.to_string_lossy())
    }

    /// For a drop, which cannot return an error.
    fn warn(&self, call: &str, status: Status) {
        if let Err(error) = self.check(call, status) {
            tracing::warn!("{error:#}");
        }
    }

    /// A communicator for each rank of a group, one a GPU.
    ///
    /// # Errors
    /// NCCL refuses, for instance more ranks than there are GPUs.
    pub(crate) fn communicators(&self, world_size: u32) -> Result<Vec<OwnedCommunicator<'_>>> {
        let ordinals: Vec<c_int> = (0..world_size as c_int).collect();
        let mut communicators = vec![std::ptr::null_mut(); ordinals.len()];
        // SAFETY: there is a place for each communicator and a number for each device.
        let status = unsafe {
            (self.functions.ncclCommInitAll)(
                communicators.as_mut_ptr(),
                ordinals.len() as c_int,
                ordinals.as_ptr(),
            )
        };
        self.check("ncclCommInitAll", status)?;
        Ok(communicators
            .into_iter()
            .map(|communicator| OwnedCommunicator {
                nccl: self,
                communicator,
            })
            .collect())
    }
}

fn dtype_number(dtype: Dtype) -> c_int {
    match dtype {
        Dtype::F16 => 6,
        Dtype::F32 => 7,
        Dtype::Bf16 => 9,
    }
}

/// One rank's communicator. Destroyed when dropped.
pub(crate) struct OwnedCommunicator<'a> {
    nccl: &'a Nccl,
    communicator: Communicator,
}

// SAFETY: each communicator is used by the thread of its rank alone, and dropped after those have
// ended.
unsafe impl Sync for OwnedCommunicator<'_> {}

impl OwnedCommunicator<'_> {
    /// Enqueues a sum over all ranks, in place if both addresses are the same.
    ///
    /// # Errors
    /// NCCL refuses.
    ///
    /// # Safety
    /// Both addresses hold `elements` elements of `dtype` until the stream, which is of this rank's
    /// device, has passed this point. One thread at a time uses a communicator.
    pub(crate) unsafe fn all_reduce(
        &self,
        input: u64,
        output: u64,
        elements: usize,
        dtype: Dtype,
        stream: &CudaStream,
    ) -> Result<()> {
        // SAFETY: the communicator is live; the rest is the caller's promise.
        let status = unsafe {
            (self.nccl.functions.ncclAllReduce)(
                input as *const c_void,
                output as *mut c_void,
                elements,
                dtype_number(dtype),
                SUM,
                self.communicator,
                stream.cu_stream().cast(),
            )
        };
        self.nccl.check("ncclAllReduce", status)
    }
}

impl Drop for OwnedCommunicator<'_> {
    fn drop(&mut self) {
        // SAFETY: made by ncclCommInitAll, and destroyed once, here.
        let status = unsafe { (self.nccl.functions.ncclCommDestroy)(self.communicator) };
        self.nccl.warn("ncclCommDestroy", status);
    }
}

/// NCCL's own memory in a symmetric window. Registering is collective: all ranks make them in the
/// same order.
pub(crate) struct SymmetricMemory<'a> {
    nccl: &'a Nccl,
    functions: &'a SymmetricFunctions,
    communicator: Communicator,
    address: *mut c_void,
    window: Window,
}

impl<'a> SymmetricMemory<'a> {
    /// # Errors
    /// This NCCL has no symmetric windows, or refuses so much memory.
    pub(crate) fn new(communicator: &OwnedCommunicator<'a>, bytes: usize) -> Result<Self> {
        let nccl = communicator.nccl;
        let functions = nccl.symmetric.as_ref();
        let functions = functions.context("NCCL has no symmetric windows")?;
        let mut memory = SymmetricMemory {
            nccl,
            functions,
            communicator: communicator.communicator,
            address: std::ptr::null_mut(),
            window: std::ptr::null_mut(),
        };
        // SAFETY: `address` is a place for one address.
        let status = unsafe { (functions.ncclMemAlloc)(&raw mut memory.address, bytes) };
        nccl.check("ncclMemAlloc", status)?;
        // SAFETY: the memory was just allocated with so many bytes; `window` is a place for one
        // handle.
        let status = unsafe {
            (functions.ncclCommWindowRegister)(
                memory.communicator,
                memory.address,
                bytes,
                &raw mut memory.window,
                WINDOW_SYMMETRIC,
            )
        };
        nccl.check("ncclCommWindowRegister", status)?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address as u64
    }
}

impl Drop for SymmetricMemory<'_> {
    fn drop(&mut self) {
        if !self.window.is_null() {
            // SAFETY: registered with this communicator, and deregistered once, here; the stream
            // was waited for.
            let status = unsafe {
                (self.functions.ncclCommWindowDeregister)(self.communicator, self.window)
            };
            self.nccl.warn("ncclCommWindowDeregister", status);
        }
        if !self.address.is_null() {
            // SAFETY: allocated by ncclMemAlloc, and freed once, here.
            let status = unsafe { (self.functions.ncclMemFree)(self.address) };
            self.nccl.warn("ncclMemFree", status);
        }
    }
}
