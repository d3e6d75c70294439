//! NCCL, opened at run time, for comparison. Its environment variables are not changed.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use anyhow::{Context, Result};
use peersum::Cuda;
use peersum::device::{Device, LibraryStream};
use peersum::nccl::{Library, Link};
use peersum::nccl_version;
use peersum::shared_library::functions;
use peersum_artifact::Dtype;

use super::report::System;
use super::timing::Stopwatch;
use crate::operation::Operation;

/// `NCCL_WIN_COLL_SYMMETRIC` of nccl.h.
const WINDOW_SYMMETRIC: c_int = 1;

type Window = *mut c_void;

functions! {
    /// The functions that came with 2.19 and 2.27.
    struct SymmetricFunctions;
    ncclMemAlloc(*mut *mut c_void, usize) -> c_int;
    ncclMemFree(*mut c_void) -> c_int;
    ncclCommWindowRegister(*mut c_void, *mut c_void, usize, *mut Window, c_int) -> c_int;
    ncclCommWindowDeregister(*mut c_void, Window) -> c_int;
}

/// `ncclComm_t`.
type Comm = *mut c_void;

functions! {
    /// Calls that peersum itself never gives to NCCL.
    struct OtherCalls;
    ncclAllGather(*const c_void, *mut c_void, usize, c_int, Comm, *mut c_void) -> c_int;
    ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;
    ncclBroadcast(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;
}

/// `ncclSum`.
const SUM: c_int = 0;

/// `ncclUniqueId`.
type GroupId = [c_char; 128];

/// The library.
pub(crate) struct Nccl {
    library: &'static Library,
    other_calls: Option<OtherCalls>,
    symmetric: Option<SymmetricFunctions>,
}

impl Nccl {
    /// Opens the library: that of `path`, else the one that the loader finds.
    ///
    /// # Errors
    /// It is not there, or too old.
    pub(crate) fn open(path: Option<&Path>) -> Result<Nccl> {
        let library = nccl_version::open(path).context("could not open NCCL")?;
        // SAFETY: the signatures are those of nccl.h.
        let symmetric = unsafe { SymmetricFunctions::find(&library) };
        // SAFETY: likewise.
        let other_calls = unsafe { OtherCalls::find(&library) };
        Ok(Nccl {
            library: Library::open(path)?,
            other_calls: other_calls.ok(),
            symmetric: symmetric.ok(),
        })
    }

    pub(crate) fn version(&self) -> String {
        self.library.version().to_string()
    }

    /// Whether this version of NCCL is too old for `system`.
    pub(crate) fn lacks(&self, system: System) -> bool {
        system == System::NcclSymmetric && self.symmetric.is_none()
    }

    /// What the ranks of a new group join, one rank a GPU.
    ///
    /// # Errors
    /// NCCL refuses.
    pub(crate) fn group(&self) -> Result<GroupId> {
        Ok(self.library.unique_id()?)
    }

    /// Joins as the rank of this thread.
    ///
    /// # Errors
    /// NCCL refuses, or another rank failed.
    pub(crate) fn join(
        &self,
        (id, world_size): (GroupId, u32),
        stopwatch: &Stopwatch<'_, Cuda>,
    ) -> Result<Communicator<'_>> {
        let (stream, peers) = (stopwatch.device.stream(), stopwatch.peers);
        stream.context().bind_to_thread()?;
        // NCCL waits for every rank without a limit.
        peers.meet()?;
        Ok(Communicator {
            nccl: self,
            link: Link::connect(self.library, id, peers.rank(), world_size, 0)?,
            // All calls are launched, or recorded into a graph that is dropped before the link.
            stream: LibraryStream {
                handle: stream.cu_stream().cast(),
                is_recording: false,
            },
        })
    }
}

/// One rank's communicator, on the stream of its stopwatch.
pub(crate) struct Communicator<'a> {
    nccl: &'a Nccl,
    link: Link,
    stream: LibraryStream,
}

impl Communicator<'_> {
    /// Enqueues a call of chunks, or whole arrays, of `elements` elements. An all-reduce is in
    /// place if both addresses are the same.
    ///
    /// # Errors
    /// NCCL refuses.
    ///
    /// # Safety
    /// Both addresses hold an array until the stream, which is still there, has passed this point:
    /// where the call has chunks, one of them holds a chunk for each rank.
    pub(crate) unsafe fn call(
        &self,
        operation: Operation,
        [input, output]: [u64; 2],
        elements: usize,
        dtype: Dtype,
    ) -> Result<()> {
        if operation.all_reduces() {
            let elements = elements as u64;
            // SAFETY: the stream is of this rank's device; the rest is the caller's promise.
            unsafe {
                self.link
                    .all_reduce(dtype, input, output, elements, self.stream)?;
            }
            return Ok(());
        }
        let functions = self.nccl.other_calls.as_ref();
        let functions =
            functions.context("this NCCL lacks all-gather, reduce-scatter, broadcast")?;
        let (input, output) = (input as *const c_void, output as *mut c_void);
        let (comm, stream) = (self.link.comm(), self.stream.handle);
        let dtype = Link::data_type(dtype);
        // SAFETY: the communicator is live; the stream is of this rank's device; the rest is the
        // caller's promise.
        let (name, status) = unsafe {
            match operation {
                Operation::ReduceScatter => (
                    "ncclReduceScatter",
                    (functions.ncclReduceScatter)(
                        input, output, elements, dtype, SUM, comm, stream,
                    ),
                ),
                Operation::Broadcast => (
                    "ncclBroadcast",
                    (functions.ncclBroadcast)(output, output, elements, dtype, 0, comm, stream),
                ),
                _ => (
                    "ncclAllGather",
                    (functions.ncclAllGather)(input, output, elements, dtype, comm, stream),
                ),
            }
        };
        Ok(self.nccl.library.check(name, status)?)
    }
}

/// NCCL's own memory in a symmetric window. Registering is collective: all ranks make them in the
/// same order.
pub(crate) struct SymmetricMemory<'a> {
    communicator: &'a Communicator<'a>,
    functions: &'a SymmetricFunctions,
    address: *mut c_void,
    window: Window,
}

impl<'a> SymmetricMemory<'a> {
    /// # Errors
    /// This NCCL has no symmetric windows, or refuses so much memory.
    pub(crate) fn new(communicator: &'a Communicator<'a>, bytes: usize) -> Result<Self> {
        let library = communicator.nccl.library;
        let functions = communicator.nccl.symmetric.as_ref();
        let functions = functions.context("NCCL has no symmetric windows")?;
        let mut memory = SymmetricMemory {
            communicator,
            functions,
            address: std::ptr::null_mut(),
            window: std::ptr::null_mut(),
        };
        // SAFETY: `address` is a place for one address.
        let status = unsafe { (functions.ncclMemAlloc)(&raw mut memory.address, bytes) };
        library.check("ncclMemAlloc", status)?;
        // SAFETY: the memory was just allocated with so many bytes; `window` is a place for one
        // handle.
        let status = unsafe {
            (functions.ncclCommWindowRegister)(
                communicator.link.comm(),
                memory.address,
                bytes,
                &raw mut memory.window,
                WINDOW_SYMMETRIC,
            )
        };
        library.check("ncclCommWindowRegister", status)?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address as u64
    }
}

impl Drop for SymmetricMemory<'_> {
    fn drop(&mut self) {
        let warn = |call, status| {
            if let Err(error) = self.communicator.nccl.library.check(call, status) {
                tracing::warn!("{error:#}");
            }
        };
        if !self.window.is_null() {
            let comm = self.communicator.link.comm();
            // SAFETY: registered with this communicator, and deregistered once, here; the stream
            // was waited for.
            let status = unsafe { (self.functions.ncclCommWindowDeregister)(comm, self.window) };
            warn("ncclCommWindowDeregister", status);
        }
        if !self.address.is_null() {
            // SAFETY: allocated by ncclMemAlloc, and freed once, here.
            let status = unsafe { (self.functions.ncclMemFree)(self.address) };
            warn("ncclMemFree", status);
        }
    }
}
