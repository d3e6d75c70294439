//! What a rank's calls with RMSNorm have beyond their sum: the weight, the residual, FP8, and what
//! they must hold.

use anyhow::{Result, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::reference::{self, NormNumbers};
use peersum::{Communicator, Error, RmsNorm};

use crate::data::{self, Content, Key};
use crate::memory::{POISON, TestBuffer};
use crate::norm_output::{Fp8Buffers, NormOutput};

/// An element of an output that was not reduced.
pub(crate) const NAN: u16 = 0x7FFF;

/// The FP8 of such an element.
const FP8_NAN: u8 = 0x7F;

/// The inverse of the scale of FP8, if it is given. Few values saturate.
const INVERSE_SCALE: f32 = 100.0;

const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 1.0,
};

/// A buffer as the communicator takes it.
pub(crate) type Buffer<D> = <D as Device>::Buffer<bf16>;

/// Of which kind the calls are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormKind {
    /// Of the weight and the residual. That of the summed data will do.
    pub(crate) seed: u64,
    /// Elements of a row.
    pub(crate) hidden: usize,
    /// Whether they add a residual.
    pub(crate) adds: bool,
    pub(crate) output: NormOutput,
}

/// Weight, residual and FP8 of one rank.
pub(crate) struct Sides<D: Device> {
    weight: TestBuffer<D>,
    residual: TestBuffer<D>,
    /// The residual before a call, and after it.
    before: Vec<bf16>,
    after: Vec<bf16>,
    kind: NormKind,
    fp8_values: TestBuffer<D>,
    fp8_scales: TestBuffer<D>,
    /// FP8 and scales after a call.
    fp8_after: (Vec<u8>, Vec<f32>),
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was refused, and nothing was launched.
    Refused,
    Failed,
    Succeeded,
}

impl<D: Device> Sides<D> {
    /// What calls with this sum have. Also returns the output of a call.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        device: &D,
        sum: &[bf16],
        kind: NormKind,
    ) -> Result<(Self, Vec<bf16>)> {
        let NormKind {
            seed, hidden, adds, ..
        } = kind;
        let rank = communicator.rank();
        let side = |layer, len| {
            let key = Key::new(seed, 0, layer, rank);
            data::input::<bf16>(Content::Ordinary, key, len)
        };
        let (own_weight, before) = (side(1, hidden), side(2, sum.len()));
        let after = match adds {
            true => reference::add_residual(sum, &before),
            false => before.clone(),
        };
        let kept = if adds { &after } else { sum };
        let output = reference::rms_norm(kept, &own_weight, NUMBERS);
        let weight = TestBuffer::new::<bf16>(device, hidden)?;
        weight.write(device, &own_weight)?;
        let fp8_after = kind.output.expected(&output, hidden, INVERSE_SCALE);
        let sides = Sides {
            weight,
            residual: TestBuffer::new::<bf16>(device, sum.len())?,
            before,
            after,
            kind,
            fp8_values: TestBuffer::new::<u8>(device, fp8_after.0.len())?,
            fp8_scales: TestBuffer::new::<f32>(device, fp8_after.1.len())?,
            fp8_after,
        };
        sides.prepare(device)?;
        Ok((sides, output))
    }

    /// Whether the calls can only work in place.
    pub(crate) fn is_in_place(&self) -> bool {
        self.kind.output.has_fp8()
    }

    /// Writes the residual again, which a call has replaced, and poisons what a call writes.
    pub(crate) fn prepare(&self, device: &D) -> Result<()> {
        self.fp8_values.poison(device)?;
        self.fp8_scales.poison(device)?;
        if self.kind.output == NormOutput::Fp8Static {
            self.fp8_scales.write(device, &[INVERSE_SCALE])?;
        }
        self.residual.write(device, &self.before)
    }

    /// Normalises the sum of `input` into `output`; without an input, of what is in its place.
    /// Calls with FP8 have none.
    pub(crate) fn call(
        &self,
        device: &D,
        communicator: &mut Communicator<D>,
        input: Option<&Buffer<D>>,
        output: &mut Buffer<D>,
    ) -> Result<(), Error> {
        self.weight.with::<bf16, _, _>(device, |weight| {
            let norm = RmsNorm {
                weight: &*weight,
                epsilon: NUMBERS.epsilon,
                weight_offset: NUMBERS.weight_offset,
            };
            self.residual.with::<bf16, _, _>(device, |residual| {
                let adds = self.kind.adds;
                match input {
                    Some(input) if adds => {
                        communicator.all_reduce_add_rms_norm(input, residual, &norm, output)
                    }
                    Some(input) => communicator.all_reduce_rms_norm(input, &norm, output),
                    None => self.fp8_values.with::<u8, _, _>(device, |values| {
                        self.fp8_scales.with::<f32, _, _>(device, |scales| {
                            let fp8 = Fp8Buffers { values, scales };
                            let (kind, residual) = (self.kind.output, adds.then_some(residual));
                            kind.call_in_place(communicator, output, residual, &norm, fp8)
                        })
                    }),
                }
            })
        })
    }

    /// Checks residual and FP8.
    pub(crate) fn check(&self, device: &D, outcome: Outcome) -> Result<()> {
        self.check_residual(device, outcome)?;
        self.check_fp8(device, outcome)
    }

    /// The residual is updated if the call succeeded, untouched if nothing was launched, otherwise
    /// untouched, updated or NaN.
    fn check_residual(&self, device: &D, outcome: Outcome) -> Result<()> {
        let (found, intact) = self.residual.read::<bf16>(device)?;
        ensure!(intact, "memory beside the residual was written");
        for (index, found) in found.iter().map(|found| found.to_bits()).enumerate() {
            let (before, after) = (self.before[index].to_bits(), self.after[index].to_bits());
            let is_right = match outcome {
                Outcome::Succeeded => found == after,
                Outcome::Failed => [before, after, NAN].contains(&found),
                Outcome::Refused => found == before,
            };
            ensure!(
                is_right,
                "residual {index} is {found:#06x}, the reference {after:#06x} ({outcome:?})"
            );
        }
        Ok(())
    }

    /// FP8 is right if the call succeeded, untouched if nothing was launched, otherwise right or
    /// NaN. So are the scales of rows; a scale that is given stays.
    fn check_fp8(&self, device: &D, outcome: Outcome) -> Result<()> {
        let (values, values_intact) = self.fp8_values.read::<u8>(device)?;
        let (scales, scales_intact) = self.fp8_scales.read::<f32>(device)?;
        ensure!(
            values_intact && scales_intact,
            "memory beside FP8 was written"
        );
        let (values_after, scales_after) = &self.fp8_after;
        for (index, (&found, &after)) in values.iter().zip(values_after).enumerate() {
            let is_right = match outcome {
                Outcome::Succeeded => found == after,
                Outcome::Failed => found == after || found == FP8_NAN,
                Outcome::Refused => found == POISON,
            };
            ensure!(
                is_right,
                "FP8 value {index} is {found:#04x}, the reference {after:#04x} ({outcome:?})"
            );
        }
        let is_given = self.kind.output == NormOutput::Fp8Static;
        for (index, (found, after)) in scales.iter().zip(scales_after).enumerate() {
            let is_expected = found.to_bits() == after.to_bits();
            let is_right = match outcome {
                _ if is_given => is_expected,
                Outcome::Succeeded => is_expected,
                Outcome::Failed => is_expected || found.is_nan(),
                Outcome::Refused => found.to_ne_bytes() == [POISON; 4],
            };
            ensure!(
                is_right,
                "FP8 scale {index} is {found:e}, the reference {after:e} ({outcome:?})"
            );
        }
        Ok(())
    }

    /// Fails unless all FP8 is NaN: of a call in which a rank had no part.
    pub(crate) fn ensure_fp8_is_nan(&self, device: &D) -> Result<()> {
        let values = self.fp8_values.read::<u8>(device)?.0;
        let scales = self.fp8_scales.read::<f32>(device)?.0;
        let is_given = self.kind.output == NormOutput::Fp8Static;
        ensure!(
            values.iter().all(|value| *value == FP8_NAN),
            "FP8 that is not NaN"
        );
        ensure!(
            is_given || scales.iter().all(|scale| scale.is_nan()),
            "a scale that is not NaN"
        );
        Ok(())
    }
}
