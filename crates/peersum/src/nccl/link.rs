//! One rank's communicator of NCCL.

use core::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use peersum_artifact::Dtype;

use super::library::{Comm, Library, UniqueId};
use crate::device::LibraryStream;
use crate::error::Error;

/// `ncclSum`
const SUM: c_int = 0;

/// NCCL's communicator of one rank, and the calls that go to it. Dropping it aborts it, which ends
/// every wait of NCCL's.
pub struct Link {
    library: &'static Library,
    comm: Comm,
    /// Calls of more bytes go to NCCL.
    pub(crate) above_bytes: u64,
    /// Whether a graph holds calls of this communicator.
    is_recorded: AtomicBool,
}

// SAFETY: NCCL's communicators may be used by any thread, one at a time; there is no `Sync`.
unsafe impl Send for Link {}

impl Link {
    /// Meets the other ranks of `id`. Waits for them without a limit. The calling thread's current
    /// CUDA context is the rank's.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn connect(
        library: &'static Library,
        id: [c_char; 128],
        rank: u32,
        world_size: u32,
        above_bytes: u64,
    ) -> Result<Self, Error> {
        let narrow = |number: u32| c_int::try_from(number).unwrap_or(c_int::MAX);
        let (own, ranks, id) = (narrow(rank), narrow(world_size), UniqueId(id));
        let mut comm = std::ptr::null_mut();
        // SAFETY: `comm` is a place for one handle; NCCL refuses numbers that make no sense.
        let result = unsafe { (library.functions.ncclCommInitRank)(&raw mut comm, ranks, id, own) };
        library.check("ncclCommInitRank", result)?;
        tracing::info!(
            rank,
            world_size,
            above_bytes,
            version = %library.version,
            "NCCL takes the calls of more bytes"
        );
        Ok(Link {
            library,
            comm,
            above_bytes,
            is_recorded: AtomicBool::new(false),
        })
    }

    /// `ncclDataType_t`.
    pub fn data_type(dtype: Dtype) -> c_int {
        match dtype {
            Dtype::I8 => 0,
            Dtype::U8 => 1,
            Dtype::I32 => 2,
            Dtype::U32 => 3,
            Dtype::I64 => 4,
            Dtype::U64 => 5,
            Dtype::F16 => 6,
            Dtype::F32 => 7,
            Dtype::Bf16 => 9,
        }
    }

    /// NCCL's handle.
    pub fn comm(&self) -> Comm {
        self.comm
    }

    /// Enqueues the sum over all ranks.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    ///
    /// # Safety
    /// Both addresses hold `elements` elements of `dtype` until `stream`, a stream of the current
    /// context, has finished the call.
    pub unsafe fn all_reduce(
        &self,
        dtype: Dtype,
        input: u64,
        output: u64,
        elements: u64,
        stream: LibraryStream,
    ) -> Result<(), Error> {
        if stream.is_recording {
            // Relaxed: read by the owner alone, when it drops this.
            self.is_recorded.store(true, Ordering::Relaxed);
        }
        // SAFETY: the communicator is live; the rest is the caller's.
        let result = unsafe {
            (self.library.functions.ncclAllReduce)(
                input as *const c_void,
                output as *mut c_void,
                elements as usize,
                Self::data_type(dtype),
                SUM,
                self.comm,
                stream.handle,
            )
        };
        self.library.check("ncclAllReduce", result)
    }

    /// What NCCL has noticed since the communicator was made.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        let mut noticed = 0;
        // SAFETY: the communicator is live, and `noticed` is a place for one int.
        let result =
            unsafe { (self.library.functions.ncclCommGetAsyncError)(self.comm, &raw mut noticed) };
        self.library.check("ncclCommGetAsyncError", result)?;
        self.library.check("a call of NCCL", noticed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.is_recorded.load(Ordering::Relaxed) {
            // NCCL waits, even in an abort, until every graph that holds a call of the communicator
            // is destroyed.
            tracing::warn!(
                "NCCL's communicator is kept to the end of the process: a graph may hold its calls"
            );
            return;
        }
        // Not `ncclCommDestroy`, which waits for the other ranks.
        // SAFETY: the communicator is live and not used again.
        let result = unsafe { (self.library.functions.ncclCommAbort)(self.comm) };
        if let Err(error) = self.library.check("ncclCommAbort", result) {
            tracing::warn!(%error, "NCCL did not give its communicator back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::nccl::sys;

    #[test]
    fn the_numbers_are_those_of_nccls_header() {
        assert_eq!(SUM, sys::ncclRedOp_t::ncclSum as c_int);
        for (dtype, theirs) in [
            (Dtype::F16, sys::ncclDataType_t::ncclFloat16),
            (Dtype::F32, sys::ncclDataType_t::ncclFloat32),
            (Dtype::Bf16, sys::ncclDataType_t::ncclBfloat16),
        ] {
            assert_eq!(Link::data_type(dtype), theirs as c_int);
        }
    }
}
