//! What the calls of a test or a benchmark do.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the calls do.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    /// All-reduce.
    #[default]
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

impl Operation {
    /// Whether it is an all-reduce, with or without RMSNorm.
    pub(crate) fn all_reduces(&self) -> bool {
        matches!(self, Operation::AllReduce | Operation::RmsNorm)
    }
}
