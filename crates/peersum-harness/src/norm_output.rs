//! What calls with RMSNorm write: the normalised rows, with or without FP8 of them.

use std::fmt;

use clap::ValueEnum;
use peersum::device::Device;
use peersum::{Communicator, Element, Error, Fp8PerToken, Fp8Static, RmsNorm, reference};
use peersum_kernels::abi;
use serde::{Deserialize, Serialize};

use crate::data::TestElement;
use crate::names::name_of;

/// What a call with RMSNorm writes.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NormOutput {
    /// The normalised rows, in the type of the input.
    #[default]
    Same,
    /// These and FP8 of them, with a scale that is given.
    Fp8Static,
    /// These and FP8 of them, with a scale for each row that the call finds.
    Fp8PerToken,
}

impl fmt::Display for NormOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name_of(self))
    }
}

/// Where a call writes FP8. The one inverse scale, or the scales of the rows.
pub(crate) struct Fp8Buffers<'a, D: Device> {
    pub(crate) values: &'a mut D::Buffer<u8>,
    pub(crate) scales: &'a mut D::Buffer<f32>,
}

impl NormOutput {
    pub(crate) const ALL: [NormOutput; 3] = [
        NormOutput::Same,
        NormOutput::Fp8Static,
        NormOutput::Fp8PerToken,
    ];

    /// Whether there is FP8. Such a call works in place.
    pub(crate) fn has_fp8(self) -> bool {
        !self.is_same()
    }

    /// Whether there is none.
    pub(crate) fn is_same(&self) -> bool {
        *self == NormOutput::Same
    }

    /// The number that `abi.h` gives it.
    pub(crate) fn abi(self) -> u32 {
        match self {
            NormOutput::Same => abi::PEERSUM_NORM_OUTPUT_ROWS,
            NormOutput::Fp8Static => abi::PEERSUM_NORM_OUTPUT_FP8_STATIC,
            NormOutput::Fp8PerToken => abi::PEERSUM_NORM_OUTPUT_FP8_PER_TOKEN,
        }
    }

    /// As a part of a longer name.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            NormOutput::Same => "",
            NormOutput::Fp8Static => "_fp8_static",
            NormOutput::Fp8PerToken => "_fp8_per_token",
        }
    }

    /// How many scales a call reads or writes.
    pub(crate) fn scales(self, rows: usize) -> usize {
        match self {
            NormOutput::Same => 0,
            NormOutput::Fp8Static => 1,
            NormOutput::Fp8PerToken => rows,
        }
    }

    /// The FP8 and the scales of normalised rows of `hidden` elements. `inverse_scale` is the one
    /// that is given.
    pub(crate) fn expected<T: TestElement>(
        self,
        rows: &[T],
        hidden: usize,
        inverse_scale: f32,
    ) -> (Vec<u8>, Vec<f32>) {
        match self {
            NormOutput::Same => (Vec::new(), Vec::new()),
            NormOutput::Fp8Static => (
                reference::fp8_static(rows, inverse_scale),
                vec![inverse_scale],
            ),
            NormOutput::Fp8PerToken => reference::fp8_per_token(rows, hidden),
        }
    }

    /// Sums and normalises `rows` in place, with a residual if there is one.
    pub(crate) fn call_in_place<T: Element, D: Device>(
        self,
        communicator: &mut Communicator<D>,
        rows: &mut D::Buffer<T>,
        residual: Option<&mut D::Buffer<T>>,
        norm: &RmsNorm<'_, D::Buffer<T>>,
        Fp8Buffers { values, scales }: Fp8Buffers<'_, D>,
    ) -> Result<(), Error> {
        let inverse_scale = &*scales;
        match (self, residual) {
            (NormOutput::Same, None) => communicator.all_reduce_rms_norm_in_place(rows, norm),
            (NormOutput::Same, Some(residual)) => {
                communicator.all_reduce_add_rms_norm_in_place(rows, residual, norm)
            }
            (NormOutput::Fp8Static, None) => {
                let fp8 = Fp8Static {
                    values,
                    inverse_scale,
                };
                communicator.all_reduce_rms_norm_fp8(rows, norm, fp8)
            }
            (NormOutput::Fp8Static, Some(residual)) => {
                let fp8 = Fp8Static {
                    values,
                    inverse_scale,
                };
                communicator.all_reduce_add_rms_norm_fp8(rows, residual, norm, fp8)
            }
            (NormOutput::Fp8PerToken, None) => {
                let fp8 = Fp8PerToken { values, scales };
                communicator.all_reduce_rms_norm_fp8(rows, norm, fp8)
            }
            (NormOutput::Fp8PerToken, Some(residual)) => {
                let fp8 = Fp8PerToken { values, scales };
                communicator.all_reduce_add_rms_norm_fp8(rows, residual, norm, fp8)
            }
        }
    }
}
