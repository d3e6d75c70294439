//! What calls return, with the names of `cudarc::nccl::result`.

use std::fmt;

use super::operation::ReduceOp;
use crate::error::Error;

/// The outcome of a call that was launched, with the names of `cudarc::nccl::result::NcclStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NcclStatus {
    /// The only status that is returned here.
    Success,
    /// For matches that name it.
    InProgress,
    /// For matches that name it.
    NumResults,
}

/// Why there is no communicator or a call was not launched.
///
/// `{:?}` gives the message of `{}`: engines print NCCL's errors that way.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// The 128 bytes are not those of an [`Id`](crate::nccl_shape::Id) of this module.
    #[error(
        "these 128 bytes are no id of peersum's; make it on one rank with \
         `peersum::nccl_shape::Id::new()`, not with cudarc's, and pass on all of `internal()`"
    )]
    ForeignId,
    /// Another operation than the sum.
    #[error("peersum sums, and cannot reduce by {0:?}; keep an NCCL communicator for that call")]
    Operation(ReduceOp),
    /// The root of a broadcast is no rank.
    #[error("there is no rank {root} to broadcast from: the group has {world_size} ranks, from 0")]
    Root {
        /// The root that was given.
        root: i32,
        /// The number of ranks.
        world_size: usize,
    },
    /// The root of a broadcast has passed no `sendbuff`.
    #[error(
        "rank {root} is the root of this broadcast, so its sendbuff must be `Some`; to send what \
         recvbuff holds, every rank calls `broadcast_in_place`"
    )]
    NoSendbuff {
        /// The root: this rank.
        root: i32,
    },
    /// The communicator's own error.
    #[error(transparent)]
    Communicator(#[from] Error),
}

impl fmt::Debug for NcclError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
