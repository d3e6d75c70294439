//! A call, and the latest one ready to be launched again: an engine's step repeats its calls, and
//! what a launch needs is then the same.

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi::PeersumParams;

use crate::device::LaunchShape;
use crate::dispatch::Plan;
use crate::error::Error;
use crate::operation::Operation;

/// A call, or one of the pieces that it is launched in.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Call {
    pub(super) dtype: Dtype,
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) elements: u64,
    /// An all-reduce, with or without RMSNorm, as the header says.
    pub(super) operation: Operation,
}

impl Call {
    /// The size of one buffer.
    pub(super) fn bytes(&self) -> Result<u64, Error> {
        let element_bytes = self.dtype.size_bytes();
        self.elements
            .checked_mul(element_bytes as u64)
            .ok_or(Error::TooLong {
                elements: self.elements as usize,
                element_bytes,
            })
    }
}

/// Everything that decides what a call launches and that can differ between two calls.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Cause {
    pub(super) call: Call,
    pub(super) forced: Option<Plan>,
    pub(super) timeout_ns: u64,
    pub(super) symmetric_buffers: usize,
}

/// What the one launch of a call needs.
pub(super) struct PreparedCall {
    pub(super) cause: Cause,
    pub(super) family: Family,
    pub(super) algorithm: Algorithm,
    pub(super) shape: LaunchShape,
    pub(super) params: PeersumParams,
}
