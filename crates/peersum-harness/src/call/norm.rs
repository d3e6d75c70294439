//! A call with RMSNorm as one rank makes it.

use peersum_artifact::Dtype;

use super::array::{Array, Role, Values};
use super::norm_data::{NormData, NormKind};
use super::rank_call::{CallKind, RankCall};
use super::sum::SumCall;
use crate::data::{self, Key, TestElement, with_element};
use crate::norm_output::NormOutput;

/// The call of `rank` that sums as `sum` says and normalises the result. `keys` are those of all
/// ranks.
pub(crate) fn norm_call(
    sum: &SumCall,
    dtype: Dtype,
    kind: NormKind,
    keys: &[Key],
    rank: u32,
) -> RankCall {
    let mut call = sum.of_rank(dtype, keys, rank);
    call.kind = CallKind::Norm(kind);
    call.label = String::new();
    with_element!(dtype, T => add_arrays::<T>(&mut call, kind, keys, rank));
    call
}

fn add_arrays<T: TestElement>(call: &mut RankCall, kind: NormKind, keys: &[Key], rank: u32) {
    let sum = data::expected::<T>(kind.content, keys, call.elements);
    let data = NormData::new(&kind, &sum, rank);
    let arrays = &mut call.arrays;
    arrays[0].after = Values::of(&data.output);
    if kind.adds {
        arrays.push(Array::new(Role::Residual, Some(&data.residual), &data.kept));
    }
    arrays.push(Array::new(Role::Weight, Some(&data.weight), &data.weight));
    if kind.output.has_fp8() {
        arrays.push(Array::new(Role::Fp8Values, None, &data.fp8_values));
        let is_given = kind.output == NormOutput::Fp8Static;
        let given = is_given.then_some(&data.fp8_scales[..]);
        arrays.push(Array::new(Role::Fp8Scales, given, &data.fp8_scales));
    }
}
