//! All-gathers, reduce-scatters and broadcasts of a group that is one grid.

use peersum::Operation;
use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi::{self, PeersumParams};

use crate::collective::Collective;

/// Their kernels: family, type of the module, algorithm.
pub(super) const MOVES: [(Family, Dtype, Algorithm); 3] = [
    (Family::Move, Dtype::U8, Algorithm::AllGather),
    (Family::Push, Dtype::Bf16, Algorithm::ReduceScatter),
    (Family::Move, Dtype::U8, Algorithm::Broadcast),
];

/// Which of [`MOVES`] carries out a call.
pub(super) fn kernel_of(kind: Collective) -> (Family, Dtype, Algorithm) {
    match kind {
        Collective::AllGather => MOVES[0],
        Collective::ReduceScatter => MOVES[1],
        Collective::Broadcast { .. } => MOVES[2],
    }
}

/// `params` of an all-reduce with what this call needs.
pub(super) fn move_params(params: PeersumParams, kind: Collective) -> PeersumParams {
    let (operation, root) = match kind.operation() {
        Operation::AllGather => (abi::PEERSUM_OPERATION_ALL_GATHER, 0),
        Operation::Broadcast { root } => (abi::PEERSUM_OPERATION_BROADCAST, root),
        _ => (abi::PEERSUM_OPERATION_REDUCE_SCATTER, 0),
    };
    let (_, dtype, _) = kernel_of(kind);
    let bytes = params.elements * Dtype::Bf16.size_bytes() as u64;
    PeersumParams {
        elements: bytes / dtype.size_bytes() as u64,
        chunk_stride: bytes,
        header: params.header
            | u64::from(operation) << abi::PEERSUM_HEADER_OPERATION_SHIFT
            | u64::from(root) << abi::PEERSUM_HEADER_ROOT_SHIFT,
        ..params
    }
}
