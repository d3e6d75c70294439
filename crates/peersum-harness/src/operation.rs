//! What the calls of a test or a benchmark do.

use clap::ValueEnum;
use peersum_artifact::Dtype;
use serde::{Deserialize, Serialize};

use crate::names::name_of;

/// What the calls do.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    /// All-reduce.
    #[default]
    #[value(alias = "all_reduce")]
    AllReduce,
    /// All-reduce, residual and RMSNorm of each row in one call.
    #[value(alias = "rms_norm")]
    RmsNorm,
    /// All-gather.
    #[value(alias = "all_gather")]
    AllGather,
    /// Reduce-scatter.
    #[value(alias = "reduce_scatter")]
    ReduceScatter,
    /// Broadcast.
    Broadcast,
}

impl Operation {
    /// Its name in reports: as a flag, with underscores.
    pub(crate) fn name(self) -> String {
        name_of(&self).replace('-', "_")
    }

    /// Whether it takes elements of a type: calls that sum take few.
    pub(crate) fn takes(self, dtype: Dtype) -> bool {
        match self {
            Operation::AllGather | Operation::Broadcast => true,
            _ => Dtype::REDUCED.contains(&dtype),
        }
    }

    /// Whether it is an all-reduce, with or without RMSNorm.
    pub(crate) fn all_reduces(&self) -> bool {
        matches!(self, Operation::AllReduce | Operation::RmsNorm)
    }
}
