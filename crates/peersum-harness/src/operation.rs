//! What the calls of a test or a benchmark do.

use clap::ValueEnum;

/// What the calls do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Operation {
    /// All-reduce.
    AllReduce,
    /// All-reduce, residual and RMSNorm of each row in one call.
    RmsNorm,
}
