//! NCCL as a second path: for all-reduces above the custom range, or for those of a group that
//! spans hosts. Feature `nccl`.
//!
//! ```no_run
//! use peersum::nccl::Nccl;
//! use peersum::{Communicator, Rendezvous};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let stream = peersum::open_context(0)?.new_stream()?;
//! let mut communicator = Communicator::builder()
//!     .rendezvous(Rendezvous::from_env()?)
//!     .max_bytes(4 << 20)
//!     .above_range(Nccl::new()) // all-reduces of more than 4 MiB
//!     .build(&stream)?;
//! # Ok(())
//! # }
//! ```
//!
//! Which path an all-reduce takes depends on its bytes alone
//! ([`Communicator::path`](crate::Communicator::path)), so all ranks take the same. NCCL works on
//! the communicator's stream: calls of both paths are in order, and both can be captured into a
//! graph. What differs:
//!
//! - **Bits.** NCCL chooses the order and the precision of its sums. Its results are outside
//!   [`mod@crate::reference`]'s contract.
//! - **Waits.** NCCL waits without a limit, in set-up and in calls:
//!   [`timeout`](crate::CommunicatorBuilder::timeout) and [`AbortHandle`](crate::AbortHandle) do
//!   not reach into it, and ranks that call it with different sizes get no error.
//!   [`synchronize`](crate::Communicator::synchronize) reports the errors that NCCL itself has
//!   noticed. A communicator that has failed aborts NCCL's when it is dropped.
//! - **Graphs.** If calls to NCCL were captured, NCCL's communicator outlives the
//!   [`Communicator`](crate::Communicator): its teardown would wait for the graph.
//! - **Network.** NCCL opens TCP sockets, on ports that the kernel chooses.
//! - **Calls.** Only all-reduces, with or without RMSNorm, go to NCCL. An all-gather, a
//!   reduce-scatter and a broadcast go through the kernels whatever their size, and across hosts
//!   they are [`Error::NoKernels`].
//! - **GPUs.** Every rank needs its own GPU. NCCL refuses a GPU that two ranks share unless an
//!   experimental setting of its own allows it; a group with a rendezvous refuses it in any case.
//!
//! `libnccl.so.2` is opened when a communicator is built, not before and not for a group of one.
//! cudarc's own binding is not used for it: cudarc 0.19 looks for `libnccl.so`, which only
//! development packages have, and panics if it finds none.

mod library;
mod link;

use core::ffi::c_char;
use std::path::PathBuf;

// For the benchmark that compares with NCCL.
#[doc(hidden)]
pub use library::Library;
#[doc(hidden)]
pub use link::Link;

use crate::error::Error;

/// NCCL as the path of some or all all-reduces: what
/// [`CommunicatorBuilder::above_range`](crate::CommunicatorBuilder::above_range) takes.
#[derive(Debug, Clone, Default)]
pub struct Nccl {
    library: Option<PathBuf>,
    pub(crate) across_hosts: Option<AcrossHosts>,
}

/// A rank of a group that no rendezvous of this machine can form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AcrossHosts {
    pub(crate) id: [c_char; 128],
    pub(crate) rank: u32,
    pub(crate) world_size: u32,
}

impl Nccl {
    /// NCCL for all-reduces larger than [`max_bytes`](crate::CommunicatorBuilder::max_bytes). The
    /// ranks pass NCCL's id to each other when they meet.
    pub fn new() -> Self {
        Self::default()
    }

    /// NCCL for every all-reduce, in a group that spans hosts or has more than eight ranks. Such a
    /// group has no rendezvous and uses none of peersum's kernels.
    ///
    /// `id` is the same 128 bytes on every rank: those of [`Nccl::unique_id`], or of
    /// `cudarc::nccl::Id::internal`. One rank makes them, and the engine passes them to the others
    /// by its own means.
    pub fn across_hosts(mut self, id: [c_char; 128], rank: u32, world_size: u32) -> Self {
        self.across_hosts = Some(AcrossHosts {
            id,
            rank,
            world_size,
        });
        self
    }

    /// Opens this library instead of the one that the dynamic loader finds as `libnccl.so.2`.
    pub fn library(mut self, path: impl Into<PathBuf>) -> Self {
        self.library = Some(path.into());
        self
    }

    /// An id for [`Nccl::across_hosts`], for one rank to make and pass on. NCCL listens for the
    /// other ranks in this process from now on.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no NCCL, with what to install; [`Error::Nccl`].
    pub fn unique_id(&self) -> Result<[c_char; 128], Error> {
        self.open()?.unique_id()
    }

    pub(crate) fn open(&self) -> Result<&'static Library, Error> {
        Library::open(self.library.as_deref())
    }
}
