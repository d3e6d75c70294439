//! What the calls of a test or a benchmark do.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the calls do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    /// All-reduce.
    AllReduce,
    /// All-reduce, residual and RMSNorm of each row in one call.
    RmsNorm,
}
