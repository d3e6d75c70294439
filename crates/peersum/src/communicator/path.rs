//! What carries out a call of a given size.

use super::Communicator;
use crate::device::Device;

/// What carries out a call. See [`Communicator::path`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallPath {
    /// Nothing: there is no element.
    Nothing,
    /// A copy, for the sum over one rank is its input.
    Copy,
    /// peersum's kernels, by the plan of the [`dispatch_table`](Communicator::dispatch_table).
    Kernels,
    /// NCCL, which the builder was told to use for such calls. Outside the numeric contract.
    Nccl,
}

impl<D: Device> Communicator<D> {
    /// What carries out a call of `bytes` bytes. The same on every rank.
    pub fn path(&self, bytes: usize) -> CallPath {
        if bytes == 0 {
            return CallPath::Nothing;
        }
        #[cfg(feature = "nccl")]
        if self.nccl_for(bytes as u64).is_some() {
            return CallPath::Nccl;
        }
        match self.links {
            Some(_) => CallPath::Kernels,
            None => CallPath::Copy,
        }
    }
}

#[cfg(not(feature = "nccl"))]
impl super::CommunicatorBuilder {
    /// What is compared between the ranks: this one may have been built without the feature, another with it.
    pub(super) fn above_range_name(&self, _: u32) -> Result<String, crate::error::Error> {
        Ok("peersum's kernels".to_owned())
    }
}
