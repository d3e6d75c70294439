//! What the calls of a grid do.

use clap::ValueEnum;
use peersum_artifact::Dtype;
use serde::{Deserialize, Serialize};

/// What the calls of a configuration do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum GridOp {
    /// All-reduce.
    AllReduce,
    /// All-reduce, residual and RMSNorm of each row in one call.
    RmsNorm,
    /// All-gather.
    AllGather,
    /// Reduce-scatter.
    ReduceScatter,
    /// Broadcast.
    Broadcast,
}

impl GridOp {
    /// Whether it takes elements of a type: calls that sum take few.
    pub(crate) fn takes(self, dtype: Dtype) -> bool {
        match self {
            GridOp::AllGather | GridOp::Broadcast => true,
            _ => Dtype::REDUCED.contains(&dtype),
        }
    }
}
