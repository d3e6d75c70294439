//! One call as one rank makes it.

use std::time::Duration;

use peersum::dispatch::Plan;
use peersum_artifact::Dtype;

use super::array::{Array, Role};
use super::norm_data::NormKind;
use crate::collective::Collective;

/// What a call does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CallKind {
    AllReduce,
    Norm(NormKind),
    Other(Collective),
}

/// One call of one rank.
#[derive(Debug, Clone)]
pub(crate) struct RankCall {
    /// Which communicator makes it.
    pub(crate) lane: usize,
    /// How long the rank sleeps before it.
    pub(crate) delay: Duration,
    /// `None`: as the dispatch table says.
    pub(crate) plan: Option<Plan>,
    pub(crate) kind: CallKind,
    pub(crate) dtype: Dtype,
    /// Elements, of each rank if it has chunks.
    pub(crate) elements: usize,
    /// The output first.
    pub(crate) arrays: Vec<Array>,
    /// What a report says of it behind its place.
    pub(crate) label: String,
}

impl RankCall {
    pub(crate) fn output(&self) -> &Array {
        &self.arrays[0]
    }

    /// The array of this role, if the call has one. A call in place has no input.
    pub(crate) fn array(&self, role: Role) -> Option<&Array> {
        self.arrays.iter().find(|array| array.role == role)
    }

    /// The bytes of its largest array.
    pub(crate) fn most_bytes(&self) -> usize {
        self.arrays.iter().map(Array::bytes).max().unwrap_or(0)
    }
}
