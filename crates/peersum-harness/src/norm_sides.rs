//! What a rank's calls with RMSNorm have beyond their sum: the weight, the residual, and what both
//! must hold.

use anyhow::{Result, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::reference::{self, NormNumbers};
use peersum::{Communicator, Error, RmsNorm};

use crate::data::{self, Content, Key};
use crate::memory::TestBuffer;

/// An element of an output that was not reduced.
pub(crate) const NAN: u16 = 0x7FFF;

const SEED: u64 = 6;
const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 1.0,
};

/// A buffer as the communicator takes it.
type Buffer<D> = <D as Device>::Buffer<bf16>;

/// Weight and residual of one rank.
pub(crate) struct Sides<D: Device> {
    weight: TestBuffer<D>,
    residual: TestBuffer<D>,
    /// The residual before a call, and after it.
    before: Vec<bf16>,
    after: Vec<bf16>,
    /// Whether the calls add the residual.
    adds: bool,
}

impl<D: Device> Sides<D> {
    /// Weight and residual for this sum of rows of `hidden` elements; the residual is only added if
    /// `adds`. Also returns the output of a call.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        device: &D,
        sum: &[bf16],
        hidden: usize,
        adds: bool,
    ) -> Result<(Self, Vec<bf16>)> {
        let rank = communicator.rank();
        let side = |layer, len| {
            let key = Key::new(SEED, 0, layer, rank);
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
        let sides = Sides {
            weight,
            residual: TestBuffer::new::<bf16>(device, sum.len())?,
            before,
            after,
            adds,
        };
        Ok((sides, output))
    }

    /// Writes the residual again, which a call has replaced.
    pub(crate) fn prepare(&self, device: &D) -> Result<()> {
        self.residual.write(device, &self.before)
    }

    /// Normalises the sum of `input` into `output`; without an input, of what is in its place.
    pub(crate) fn call(
        &self,
        device: &D,
        communicator: &mut Communicator<D>,
        input: Option<&Buffer<D>>,
        output: &mut Buffer<D>,
    ) -> Result<(), Error> {
        self.weight.with::<bf16, _>(device, |weight| {
            let norm = RmsNorm {
                weight: &*weight,
                epsilon: NUMBERS.epsilon,
                weight_offset: NUMBERS.weight_offset,
            };
            self.residual
                .with::<bf16, _>(device, |residual| match (input, self.adds) {
                    (Some(input), true) => {
                        communicator.all_reduce_add_rms_norm(input, residual, &norm, output)
                    }
                    (Some(input), false) => communicator.all_reduce_rms_norm(input, &norm, output),
                    (None, true) => {
                        communicator.all_reduce_add_rms_norm_in_place(output, residual, &norm)
                    }
                    (None, false) => communicator.all_reduce_rms_norm_in_place(output, &norm),
                })
        })
    }

    /// Checks the residual: updated if the call succeeded, untouched if nothing was launched,
    /// otherwise untouched, updated or NaN.
    pub(crate) fn check(&self, device: &D, launched: bool, succeeded: bool) -> Result<()> {
        let (found, intact) = self.residual.read::<bf16>(device)?;
        ensure!(intact, "memory beside the residual was written");
        for (index, found) in found.iter().map(|found| found.to_bits()).enumerate() {
            let (before, after) = (self.before[index].to_bits(), self.after[index].to_bits());
            let is_right = match (launched, succeeded) {
                (true, true) => found == after,
                (true, false) => [before, after, NAN].contains(&found),
                (false, _) => found == before,
            };
            ensure!(
                is_right,
                "residual {index} is {found:#06x}, the reference {after:#06x} \
                 (launched: {launched}, succeeded: {succeeded})"
            );
        }
        Ok(())
    }
}
