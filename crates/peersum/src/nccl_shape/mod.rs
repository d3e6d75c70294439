//! A communicator with the signatures of `cudarc::nccl`, for engines that call that one today.
//!
//! A move is a change of one `use`:
//!
//! ```
//! # mod before {
//! # /* cudarc's feature `nccl` is not on here:
//! use cudarc::nccl::{Comm, Id, ReduceOp};
//! # */
//! # }
//! use peersum::nccl_shape::{Comm, Id, ReduceOp};
//! ```
//!
//! What follows works with both:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use peersum::cudarc::driver::CudaSlice;
//! # use peersum::nccl_shape::{Comm, Id, ReduceOp};
//! # fn send_to_the_other_ranks(bytes: &[core::ffi::c_char; 128]) {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (rank, world_size) = (0, 2);
//! let id = Id::new().map_err(|error| format!("{error:?}"))?;
//! send_to_the_other_ranks(id.internal()); // who make it an id again with `Id::uninit`
//! let stream = peersum::open_context(rank as u32)?.new_stream()?;
//! let comm = Arc::new(
//!     Comm::from_rank(stream.clone(), rank, world_size, id).map_err(|error| format!("{error:?}"))?,
//! );
//! let mut hidden: CudaSlice<f32> = stream.alloc_zeros(8192)?;
//! comm.all_reduce_in_place(&mut hidden, &ReduceOp::Sum)
//!     .map_err(|error| format!("{error:?}"))?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is the same
//!
//! [`Id`] (128 bytes that the engine passes on as it likes), [`Comm::from_rank`], [`Comm::all_reduce`], [`Comm::all_reduce_in_place`],
//! [`Comm::rank`], [`Comm::world_size`], [`Comm::stream`], [`Comm::context`], [`Comm::ordinal`], [`ReduceOp`], [`NcclType`], [`NcclStatus`] and
//! [`NcclError`]. Calls take `&self`, so that a `Comm` works in an `Rc`, an `Arc`, a static.
//!
//! # What differs
//!
//! - Results are peersum's, to the bit ([`mod@crate::reference`]), and so are failures: no call waits for ever. After a failure outputs hold NaN and every later
//!   call returns the reason. An engine should call [`Comm::synchronize`] once a step, where it reads its logits: `Ok` from a call means
//!   launched, as it does with NCCL.
//! - Only [`ReduceOp::Sum`], only f16, bf16 and f32; another operation is [`NcclError::Operation`].
//! - The ranks are on one machine and of one user. They meet over a Unix socket in the directory of
//!   [`Rendezvous::from_env`](crate::Rendezvous::from_env) (`PEERSUM_RENDEZVOUS_DIR`); the id holds the name of their group.
//! - Each rank calls [`Comm::from_rank`] from a process or a thread of its own. `Comm::from_devices` and `group_start`, with which NCCL makes
//!   several ranks in one thread, do not exist here; neither do `send`, `recv`, `broadcast`, `reduce`, `all_gather` and `reduce_scatter`: an engine that uses
//!   them keeps an NCCL communicator for them.
//! - [`Comm::from_rank`] takes the settings of [`Communicator::builder`]. For others, build a [`Communicator`] and turn it into a
//!   `Comm` with `Comm::from`.
//! - CUDA's default streams (candle's `Device::new_cuda` has the per-thread one) cannot carry a communicator. For them `from_rank` makes a stream of its
//!   own, and each call is ordered with events: first everything that the default stream holds, then the call, then the default stream goes on. That costs some
//!   microseconds a call; `context.new_stream()`, or candle's `Device::new_cuda_with_stream`, saves them. Ranks that share a GPU within one process need streams
//!   of their own: they would wait for each other on the legacy default stream until the timeout.

mod id;
pub mod result;

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

pub use crate::element::Element as NcclType;
pub use id::Id;
pub use result::{NcclError, NcclStatus};

use crate::communicator::{AbortHandle, Communicator, SharedCommunicator};
use crate::device::{Device, DeviceStream};
use crate::device::{Input, Output};
use crate::error::Error;
use crate::rendezvous::Rendezvous;

/// What to reduce by, with the names of `cudarc::nccl::ReduceOp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum over all ranks: the one operation there is here.
    Sum,
    /// Refused with [`NcclError::Operation`].
    Prod,
    /// Refused with [`NcclError::Operation`].
    Max,
    /// Refused with [`NcclError::Operation`].
    Min,
    /// Refused with [`NcclError::Operation`].
    Avg,
}

/// One rank of a group, in the shape of `cudarc::nccl::Comm`. `S` is the device's kind of stream.
///
/// `Send` and `Sync`: calls lock a mutex. The order of calls must still be the same on every rank; threads that race for the mutex do not give one.
pub struct Comm<S: DeviceStream = Arc<CudaStream>> {
    communicator: SharedCommunicator<S::Device>,
    rank: usize,
    world_size: usize,
    /// The engine's, where its buffers are written and read.
    stream: S,
    /// The communicator's, where that is another one.
    stand_in: Option<S>,
}

impl<S: DeviceStream> fmt::Debug for Comm<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comm")
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .finish_non_exhaustive()
    }
}

impl<S: DeviceStream> Comm<S> {
    /// Meets the other ranks of `id`. Collective: it returns when all have come, after 5 minutes with an error.
    ///
    /// # Errors
    /// [`NcclError::ForeignId`] for 128 bytes that [`Id::new`] of this module has not made; [`NcclError::Communicator`] with whatever
    /// [`CommunicatorBuilder::build`](crate::CommunicatorBuilder::build) says.
    pub fn from_rank(stream: S, rank: usize, world_size: usize, id: Id) -> Result<Self, NcclError> {
        // What does not fit is no rank of any group, and refused as such.
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let rendezvous =
            Rendezvous::in_default_directory(id.group()?, narrow(rank), narrow(world_size))
                .map_err(Error::from)?;
        let stand_in = stream.stand_in().map_err(Error::from)?;
        let communicator = Communicator::builder()
            .rendezvous(rendezvous)
            .build(stand_in.as_ref().unwrap_or(&stream))?;
        Ok(Comm {
            communicator: communicator.into_shared(),
            rank,
            world_size,
            stream,
            stand_in,
        })
    }

    /// Sums `sendbuff` over all ranks into the first elements of `recvbuff`, which may be longer.
    ///
    /// # Errors
    /// [`NcclError::Operation`] for another operation than [`ReduceOp::Sum`]; [`NcclError::Communicator`] with whatever
    /// [`Communicator::all_reduce`] says.
    // The parameters' order is cudarc's, for callers that name them.
    pub fn all_reduce<I: Input<T, S::Device>, O: Output<T, S::Device>, T: NcclType>(
        &self,
        sendbuff: &I,
        recvbuff: &mut O,
        reduce_op: &ReduceOp,
    ) -> Result<NcclStatus, NcclError> {
        self.call(*reduce_op, |communicator| {
            communicator.all_reduce_into_front(sendbuff, recvbuff)
        })
    }

    /// Sums `buff` over all ranks in place.
    ///
    /// # Errors
    /// As [`Comm::all_reduce`].
    pub fn all_reduce_in_place<O: Output<T, S::Device>, T: NcclType>(
        &self,
        buff: &mut O,
        reduce_op: &ReduceOp,
    ) -> Result<NcclStatus, NcclError> {
        self.call(*reduce_op, |communicator| {
            communicator.all_reduce_in_place(buff)
        })
    }

    fn call(
        &self,
        operation: ReduceOp,
        call: impl FnOnce(&mut Communicator<S::Device>) -> Result<(), Error>,
    ) -> Result<NcclStatus, NcclError> {
        if operation != ReduceOp::Sum {
            return Err(NcclError::Operation(operation));
        }
        // Under one lock, so that no other thread's call comes between the call and what orders it.
        let mut communicator = self.communicator.lock();
        if let Some(stand_in) = &self.stand_in {
            stand_in.wait_for(&self.stream).map_err(Error::from)?;
        }
        let launched = call(&mut communicator);
        // After an error as well: a part of the call may have been launched.
        if let Some(stand_in) = &self.stand_in {
            self.stream.wait_for(stand_in).map_err(Error::from)?;
        }
        launched?;
        Ok(NcclStatus::Success)
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Waits for every call so far: outputs are valid once this has returned `Ok`. Not in `cudarc::nccl`.
    ///
    /// # Errors
    /// [`NcclError::Communicator`] with whatever [`Communicator::synchronize`] says.
    pub fn synchronize(&self) -> Result<(), NcclError> {
        Ok(self.communicator.synchronize()?)
    }

    /// A failure that is known so far. Takes no lock and never waits, unlike [`Comm::synchronize`]:
    /// for watchdog threads. Not in `cudarc::nccl`.
    ///
    /// # Errors
    /// [`NcclError::Communicator`] with whatever [`Communicator::status`] says.
    pub fn status(&self) -> Result<(), NcclError> {
        Ok(self.communicator.status()?)
    }

    /// A handle that reads the status and ends every wait of this rank, from any thread. Takes no
    /// lock. Not in `cudarc::nccl`.
    pub fn abort_handle(&self) -> AbortHandle {
        self.communicator.abort_handle()
    }

    /// The communicator behind it, for everything that `cudarc::nccl` does not have.
    pub fn communicator(&self) -> &SharedCommunicator<S::Device> {
        &self.communicator
    }
}

impl<S: DeviceStream + Clone> Comm<S> {
    /// The stream that [`Comm::from_rank`] was given.
    pub fn stream(&self) -> S {
        self.stream.clone()
    }
}

impl Comm {
    /// The context of the stream.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// The number of the stream's device.
    pub fn ordinal(&self) -> usize {
        self.stream.context().ordinal()
    }
}

impl<D: Device> From<Communicator<D>> for Comm<D::Stream>
where
    D::Stream: DeviceStream<Device = D>,
{
    fn from(communicator: Communicator<D>) -> Self {
        Comm {
            rank: communicator.rank() as usize,
            world_size: communicator.world_size() as usize,
            stream: communicator.stream().clone(),
            stand_in: None,
            communicator: communicator.into_shared(),
        }
    }
}
