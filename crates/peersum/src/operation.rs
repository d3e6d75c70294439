//! What a call does, as its header tells it.

use std::fmt;

use peersum_kernels::abi;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// [`Communicator::all_reduce`](crate::Communicator::all_reduce).
    AllReduce,
    /// An all-reduce whose sum is normalised row by row
    /// ([`Communicator::all_reduce_rms_norm`](crate::Communicator::all_reduce_rms_norm)).
    RmsNorm,
    /// [`Communicator::all_gather`](crate::Communicator::all_gather).
    AllGather,
    /// [`Communicator::reduce_scatter`](crate::Communicator::reduce_scatter).
    ReduceScatter,
    /// [`Communicator::broadcast`](crate::Communicator::broadcast).
    Broadcast {
        /// The rank whose data all receive.
        root: u32,
    },
}

impl Operation {
    /// From the numbers of a header. An unknown operation stands for an all-reduce.
    pub(crate) fn from_abi(operation: u32, root: u32) -> Operation {
        match operation {
            abi::PEERSUM_OPERATION_RMS_NORM => Operation::RmsNorm,
            abi::PEERSUM_OPERATION_ALL_GATHER => Operation::AllGather,
            abi::PEERSUM_OPERATION_REDUCE_SCATTER => Operation::ReduceScatter,
            abi::PEERSUM_OPERATION_BROADCAST => Operation::Broadcast { root },
            _ => Operation::AllReduce,
        }
    }

    pub(crate) fn abi(self) -> u32 {
        match self {
            Operation::AllReduce => abi::PEERSUM_OPERATION_ALL_REDUCE,
            Operation::RmsNorm => abi::PEERSUM_OPERATION_RMS_NORM,
            Operation::AllGather => abi::PEERSUM_OPERATION_ALL_GATHER,
            Operation::ReduceScatter => abi::PEERSUM_OPERATION_REDUCE_SCATTER,
            Operation::Broadcast { .. } => abi::PEERSUM_OPERATION_BROADCAST,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::AllReduce => f.write_str("all_reduce"),
            Operation::RmsNorm => f.write_str("all_reduce with RMSNorm"),
            Operation::AllGather => f.write_str("all_gather"),
            Operation::ReduceScatter => f.write_str("reduce_scatter"),
            Operation::Broadcast { root } => write!(f, "broadcast from rank {root}"),
        }
    }
}
