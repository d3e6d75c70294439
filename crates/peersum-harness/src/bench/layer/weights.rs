//! Random weights of many layers, which repeat.

use std::sync::Arc;

use anyhow::{Context, Result};
use half::bf16;
use peersum::cudarc::driver::{CudaSlice, CudaStream};

use crate::data::{self, Content, Key};

/// Elements of random weights, which repeat. A prime, so that no two rows or layers begin at the
/// same one; making more takes longer than measuring.
const PATTERN_ELEMENTS: usize = 1_048_573;
/// The variance of [`Content::Even`].
const EVEN_VARIANCE: f32 = 64.0 / 12.0;

/// Weights that keep the variance of what products with `inputs` inputs over all ranks multiply.
/// Each rank has different ones.
///
/// # Errors
/// The driver refuses, for instance so much memory.
pub(super) fn random(
    stream: &Arc<CudaStream>,
    rank: u32,
    elements: usize,
    inputs: u32,
) -> Result<CudaSlice<bf16>> {
    let mut weights = stream.alloc_zeros::<bf16>(elements).with_context(|| {
        let mebibytes = (elements * size_of::<bf16>()) >> 20;
        format!("{mebibytes} MiB for the weights of a rank")
    })?;
    let scale = (EVEN_VARIANCE * inputs as f32).sqrt().recip();
    let mut filled = PATTERN_ELEMENTS.min(elements);
    let pattern: Vec<bf16> = data::input::<bf16>(Content::Even, Key::of(11, rank), filled)
        .into_iter()
        .map(|weight| bf16::from_f32(weight.to_f32() * scale))
        .collect();
    stream.memcpy_htod(&pattern, &mut weights.slice_mut(..filled))?;
    while filled < elements {
        let next = filled.min(elements - filled);
        let (done, mut rest) = weights.split_at_mut(filled);
        stream.memcpy_dtod(&done.slice(..next), &mut rest.slice_mut(..next))?;
        filled += next;
    }
    stream.synchronize()?;
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_the_variance_of_what_they_multiply() {
        let values: Vec<bf16> = data::input(Content::Even, Key::of(3, 0), 100_000);
        let squares = values.iter().map(|value| value.to_f32().powi(2));
        let variance = squares.sum::<f32>() / values.len() as f32;
        assert!((variance / EVEN_VARIANCE - 1.0).abs() < 0.02, "{variance}");
    }
}
