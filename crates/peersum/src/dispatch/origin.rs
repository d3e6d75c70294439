//! Where a row of a dispatch table comes from.

use peersum_artifact::Dtype;
use serde::{Deserialize, Serialize};

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was not measured: a guess from what was measured elsewhere.
    #[default]
    Default,
    /// It was not measured: the model in docs/performance.md, with what was measured of a pair.
    Modelled,
    /// It was the fastest of those that were tried.
    Measured(Measurement),
}

/// What a row was measured on. The topology is the table's.
/// No date: equal measurements give equal files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The device's name, for instance `NVIDIA H100 80GB HBM3`.
    pub device: String,
    /// How many devices the ranks used.
    pub devices: u32,
    /// The ranks that were measured; a table may serve neighbouring world sizes with the same rows.
    pub world_size: u32,
    /// The element types that were measured. A row serves all types.
    pub dtypes: Vec<Dtype>,
    /// The message that was measured, in bytes.
    pub bytes: u64,
    /// What it took in a replayed graph, in microseconds a call, the slowest type's median; `None`
    /// if it was not written down.
    pub us: Option<f64>,
    /// peersum's version.
    pub peersum: String,
    /// The compiler of the kernels, for instance `nvcc 13.0.88`.
    pub toolkit: String,
}
