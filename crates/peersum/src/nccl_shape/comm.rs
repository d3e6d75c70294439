//! The communicator.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::id::Id;
use super::operation::ReduceOp;
use super::result::{NcclError, NcclStatus};
use crate::communicator::{AbortHandle, Communicator, SharedCommunicator};
use crate::device::{Device, DeviceStream, Input, Output};
use crate::element::{Element, Scalar};
use crate::error::Error;
use crate::rendezvous::Rendezvous;

/// One rank of a group, in the shape of `cudarc::nccl::Comm`. `S` is the device's kind of stream.
///
/// `Send` and `Sync`: calls lock a mutex. The order of calls must still be the same on every rank,
/// which threads that race for the mutex do not guarantee.
pub struct Comm<S: DeviceStream = Arc<CudaStream>> {
    communicator: SharedCommunicator<S::Device>,
    rank: usize,
    world_size: usize,
    /// The engine's, where its buffers are written and read.
    stream: S,
    /// The communicator's, if that is another one.
    stand_in: Option<S>,
}

fn require_sum(operation: ReduceOp) -> Result<(), NcclError> {
    match operation {
        ReduceOp::Sum => Ok(()),
        other => Err(NcclError::Operation(other)),
    }
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
    /// Meets the other ranks of `id`. Collective: it returns when all have come, or with an error
    /// after 5 minutes.
    ///
    /// # Errors
    /// [`NcclError::ForeignId`] for 128 bytes that [`Id::new`] of this module has not made;
    /// [`NcclError::Communicator`] as
    /// [`CommunicatorBuilder::build`](crate::CommunicatorBuilder::build).
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
    /// [`NcclError::Operation`] for another operation than [`ReduceOp::Sum`];
    /// [`NcclError::Communicator`] as [`Communicator::all_reduce`].
    // The parameters' order is cudarc's, for callers that name them.
    pub fn all_reduce<I: Input<T, S::Device>, O: Output<T, S::Device>, T: Element>(
        &self,
        sendbuff: &I,
        recvbuff: &mut O,
        reduce_op: &ReduceOp,
    ) -> Result<NcclStatus, NcclError> {
        require_sum(*reduce_op)?;
        self.call(|communicator| communicator.all_reduce_into_front(sendbuff, recvbuff))
    }

    /// Sums `buff` over all ranks in place.
    ///
    /// # Errors
    /// As [`Comm::all_reduce`].
    pub fn all_reduce_in_place<O: Output<T, S::Device>, T: Element>(
        &self,
        buff: &mut O,
        reduce_op: &ReduceOp,
    ) -> Result<NcclStatus, NcclError> {
        require_sum(*reduce_op)?;
        self.call(|communicator| communicator.all_reduce_in_place(buff))
    }

    /// Gathers `sendbuff` of all ranks, in rank order, into the first elements of `recvbuff`, which
    /// may be longer.
    ///
    /// # Errors
    /// [`NcclError::Communicator`] as [`Communicator::all_gather`].
    pub fn all_gather<I: Input<T, S::Device>, O: Output<T, S::Device>, T: Scalar>(
        &self,
        sendbuff: &I,
        recvbuff: &mut O,
    ) -> Result<NcclStatus, NcclError> {
        self.call(|communicator| communicator.gather_into_front(sendbuff, recvbuff))
    }

    /// Sums `sendbuff` over all ranks and gives each rank its chunk of the sum. A chunk is as long
    /// as `recvbuff`. `sendbuff` may be longer than the chunks of all ranks.
    ///
    /// # Errors
    /// [`NcclError::Operation`] as [`Comm::all_reduce`];
    /// [`NcclError::Communicator`] as [`Communicator::reduce_scatter`].
    pub fn reduce_scatter<I: Input<T, S::Device>, O: Output<T, S::Device>, T: Element>(
        &self,
        sendbuff: &I,
        recvbuff: &mut O,
        reduce_op: &ReduceOp,
    ) -> Result<NcclStatus, NcclError> {
        require_sum(*reduce_op)?;
        self.call(|communicator| communicator.scatter_front(sendbuff, recvbuff))
    }

    /// Gives `recvbuff` of every rank the first elements of the root's `sendbuff`, which may be
    /// longer. Ranks other than the root may pass `None`; what they pass is not read.
    ///
    /// # Errors
    /// [`NcclError::Root`]; [`NcclError::NoSendbuff`];
    /// [`NcclError::Communicator`] as [`Communicator::broadcast`].
    pub fn broadcast<I: Input<T, S::Device>, O: Output<T, S::Device>, T: Scalar>(
        &self,
        sendbuff: Option<&I>,
        recvbuff: &mut O,
        root: i32,
    ) -> Result<NcclStatus, NcclError> {
        let rank = self.rank_of_root(root)?;
        if sendbuff.is_none() && self.rank == rank as usize {
            return Err(NcclError::NoSendbuff { root });
        }
        self.call(|communicator| communicator.broadcast_into(sendbuff, recvbuff, rank))
    }

    /// Gives `recvbuff` of every rank what that of the root holds.
    ///
    /// # Errors
    /// [`NcclError::Root`]; [`NcclError::Communicator`] as [`Communicator::broadcast`].
    pub fn broadcast_in_place<O: Output<T, S::Device>, T: Scalar>(
        &self,
        recvbuff: &mut O,
        root: i32,
    ) -> Result<NcclStatus, NcclError> {
        let rank = self.rank_of_root(root)?;
        self.call(|communicator| communicator.broadcast(recvbuff, rank))
    }

    fn rank_of_root(&self, root: i32) -> Result<u32, NcclError> {
        let world_size = self.world_size;
        match u32::try_from(root) {
            Ok(rank) if (rank as usize) < world_size => Ok(rank),
            _ => Err(NcclError::Root { root, world_size }),
        }
    }

    fn call(
        &self,
        call: impl FnOnce(&mut Communicator<S::Device>) -> Result<(), Error>,
    ) -> Result<NcclStatus, NcclError> {
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

    /// Waits for every call so far: outputs are valid once this has returned `Ok`. Not in
    /// `cudarc::nccl`.
    ///
    /// # Errors
    /// [`NcclError::Communicator`] as [`Communicator::synchronize`].
    pub fn synchronize(&self) -> Result<(), NcclError> {
        Ok(self.communicator.synchronize()?)
    }

    /// A failure that is known so far. Takes no lock and never waits, unlike [`Comm::synchronize`]:
    /// for watchdog threads. Not in `cudarc::nccl`.
    ///
    /// # Errors
    /// [`NcclError::Communicator`] as [`Communicator::status`].
    pub fn status(&self) -> Result<(), NcclError> {
        Ok(self.communicator.status()?)
    }

    /// A handle that reads the status and ends every wait of this rank, from any thread. Takes no
    /// lock. Not in `cudarc::nccl`.
    pub fn abort_handle(&self) -> AbortHandle {
        self.communicator.abort_handle()
    }

    /// The communicator behind it, for everything that `cudarc::nccl` does not have.
    ///
    /// It has a stream of its own if [`Comm::from_rank`] was given a default stream. Then only
    /// cudarc's event tracking orders direct calls with that stream, and nothing orders graphs.
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
