//! One rank's calls, with RMSNorm or without, and what they must give.

use anyhow::{Context, Result};
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, Error};

use super::stage::{NAN, POISONED};
use crate::arrays::Arrays;
use crate::norm_output::NormOutput;
use crate::norm_sides::{NormKind, Outcome, Sides};

/// The arrays of a rank's calls.
pub(super) struct Calls<D: Device> {
    pub(super) arrays: Arrays<bf16, D>,
    sides: Option<Sides<D>>,
    /// What the output must hold.
    expected: Vec<bf16>,
}

impl<D: Device> Calls<D> {
    /// Calls with RMSNorm of rows of so many elements, which write this, or without.
    pub(super) fn new(
        communicator: &Communicator<D>,
        arrays: Arrays<bf16, D>,
        norm: Option<(usize, NormOutput)>,
    ) -> Result<Self> {
        let (sides, expected) = match norm {
            Some((hidden, output)) => {
                let kind = NormKind {
                    hidden,
                    adds: false,
                    output,
                };
                let sum = &arrays.expected;
                let made = Sides::new(communicator, &arrays.device, sum, kind)?;
                (Some(made.0), made.1)
            }
            None => (None, arrays.expected.clone()),
        };
        let calls = Calls {
            arrays,
            sides,
            expected,
        };
        calls.prepare()?;
        Ok(calls)
    }

    /// Whether the result of a call replaces its input. Such a call has to be prepared each time.
    pub(super) fn is_in_place(&self) -> bool {
        self.sides.as_ref().is_some_and(Sides::is_in_place)
    }

    /// Poisons what the next call writes, and writes what it reads.
    pub(super) fn prepare(&self) -> Result<()> {
        let Arrays {
            device,
            output,
            own,
            ..
        } = &self.arrays;
        output.poison(device)?;
        if self.is_in_place() {
            output.write(device, own)?;
        }
        match &self.sides {
            Some(sides) => sides.prepare(device),
            None => Ok(()),
        }
    }

    pub(super) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let Arrays {
            device,
            input,
            output,
            ..
        } = &self.arrays;
        let Some(sides) = &self.sides else {
            return self.arrays.call(communicator);
        };
        let is_in_place = self.is_in_place();
        input.with::<bf16, _>(device, |input| {
            let input = (!is_in_place).then_some(&*input);
            output.with::<bf16, _>(device, |output| {
                sides.call(device, communicator, input, output)
            })
        })
    }

    pub(super) fn ensure_result(&self) -> Result<()> {
        let output = &self.arrays.output;
        self.arrays
            .ensure_is(output, |index| self.expected[index])?;
        self.check_sides(Outcome::Succeeded)
    }

    /// Fails unless everything is NaN that a call writes, as after one in which a rank had no part.
    pub(super) fn ensure_nan(&self) -> Result<()> {
        let arrays = &self.arrays;
        arrays
            .ensure_is(&arrays.output, |_| NAN)
            .context("an output that was not reduced")?;
        match &self.sides {
            Some(sides) => sides.ensure_fp8_is_nan(&arrays.device),
            None => Ok(()),
        }
    }

    /// Fails unless everything is as [`Calls::prepare`] has left it.
    pub(super) fn ensure_untouched(&self) -> Result<()> {
        let arrays = &self.arrays;
        let is_in_place = self.is_in_place();
        arrays
            .ensure_is(&arrays.output, |index| match is_in_place {
                true => arrays.own[index],
                false => POISONED,
            })
            .context("the output of a refused call")?;
        self.check_sides(Outcome::Refused)
    }

    fn check_sides(&self, outcome: Outcome) -> Result<()> {
        match &self.sides {
            Some(sides) => sides.check(&self.arrays.device, outcome),
            None => Ok(()),
        }
    }
}
