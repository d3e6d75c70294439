//! The data of a rank's call with RMSNorm, and what the call must give.

use peersum::reference::{self, NormNumbers};

use crate::data::{self, Content, Key, TestElement};
use crate::norm_output::NormOutput;

/// Of which kind the call is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormKind {
    /// Of the weight and the residual. That of the summed data will do.
    pub(crate) seed: u64,
    pub(crate) content: Content,
    /// Elements of a row.
    pub(crate) hidden: usize,
    /// Whether it adds a residual.
    pub(crate) adds: bool,
    pub(crate) output: NormOutput,
    pub(crate) numbers: NormNumbers,
    /// The inverse of the scale of FP8, if it is given.
    pub(crate) inverse_scale: f32,
}

/// A scale by which few values saturate.
pub(crate) const INVERSE_SCALE: f32 = 100.0;

/// What is added to the mean of the squares and to each weight, where only one choice is tested.
pub(crate) const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 1.0,
};

/// What one rank has beyond its part of the sum, and the results.
#[derive(Default)]
pub(crate) struct NormData<T> {
    pub(crate) weight: Vec<T>,
    /// The residual before the call, and after it.
    pub(crate) residual: Vec<T>,
    pub(crate) kept: Vec<T>,
    pub(crate) output: Vec<T>,
    pub(crate) fp8_values: Vec<u8>,
    pub(crate) fp8_scales: Vec<f32>,
}

impl<T: TestElement> NormData<T> {
    /// Each rank has a residual and a weight of its own.
    pub(crate) fn new(kind: &NormKind, sum: &[T], rank: u32) -> Self {
        let side = |layer, len| {
            let key = Key::new(kind.seed, 0, layer, rank);
            data::input::<T>(kind.content, key, len)
        };
        let (residual, weight) = (side(1, sum.len()), side(2, kind.hidden));
        let added = kind.adds.then(|| reference::add_residual(sum, &residual));
        let summed = added.as_deref().unwrap_or(sum);
        let output = reference::rms_norm(summed, &weight, kind.numbers);
        let (fp8_values, fp8_scales) =
            kind.output
                .expected(&output, kind.hidden, kind.inverse_scale);
        NormData {
            kept: added.unwrap_or_else(|| residual.clone()),
            weight,
            residual,
            output,
            fp8_values,
            fp8_scales,
        }
    }
}
