//! Calls with RMSNorm of a group that is one grid.

use peersum::Scalar;
use peersum::reference::NormNumbers;
use peersum_kernels::abi::{self, PeersumParams};

use super::calls::T;
use crate::call::{NormKind, Role};
use crate::norm_output::NormOutput;

/// `params` of the all-reduce with what the rows need. `address` says where arrays lie, if there
/// are any.
pub(super) fn norm_params(
    params: PeersumParams,
    kind: &NormKind,
    address: impl Fn(Role) -> Option<u64>,
) -> PeersumParams {
    let mark = 1 << abi::PEERSUM_NORM_MARK_SHIFT;
    let value = |value: usize| (value as u64) << abi::PEERSUM_NORM_VALUE_SHIFT;
    let units = kind.hidden * T::DTYPE.size_bytes() / abi::PEERSUM_UNIT_BYTES as usize;
    let NormNumbers {
        epsilon,
        weight_offset,
    } = kind.numbers;
    let address = |role| address(role).unwrap_or(0);
    let scales_of = |output| match kind.output == output {
        true => address(Role::Fp8Scales),
        false => 0,
    };
    PeersumParams {
        header: params.header
            | u64::from(abi::PEERSUM_OPERATION_RMS_NORM) << abi::PEERSUM_HEADER_OPERATION_SHIFT,
        norm_words: [
            mark | value(units) | u64::from(epsilon.to_bits()),
            mark | value(kind.adds.into())
                | u64::from(kind.output.abi()) << abi::PEERSUM_NORM_OUTPUT_SHIFT
                | u64::from(weight_offset.to_bits()),
        ],
        residual: address(Role::Residual),
        fp8_values: address(Role::Fp8Values),
        fp8_inverse_scale: scales_of(NormOutput::Fp8Static),
        fp8_row_scales: scales_of(NormOutput::Fp8PerToken),
        weight: address(Role::Weight),
        hidden: kind.hidden as u32,
        epsilon,
        weight_offset,
        rows: (params.elements / kind.hidden as u64) as u32,
        ..params
    }
}
