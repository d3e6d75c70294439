//! One rank's calls, with RMSNorm or without, and what they must give.

use anyhow::Result;
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, Error};

use crate::arrays::Arrays;
use crate::norm_sides::Sides;

/// The arrays of a rank's calls.
pub(super) struct Calls<D: Device> {
    pub(super) arrays: Arrays<bf16, D>,
    sides: Option<Sides<D>>,
    /// What the output must hold.
    expected: Vec<bf16>,
}

impl<D: Device> Calls<D> {
    /// Calls with RMSNorm of rows of `hidden` elements, or without.
    pub(super) fn new(
        communicator: &Communicator<D>,
        arrays: Arrays<bf16, D>,
        hidden: Option<usize>,
    ) -> Result<Self> {
        let (sides, expected) = match hidden {
            Some(hidden) => {
                let sum = &arrays.expected;
                let made = Sides::new(communicator, &arrays.device, sum, hidden, false)?;
                (Some(made.0), made.1)
            }
            None => (None, arrays.expected.clone()),
        };
        Ok(Calls {
            arrays,
            sides,
            expected,
        })
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
        input.with::<bf16, _>(device, |input| {
            output.with::<bf16, _>(device, |output| {
                sides.call(device, communicator, Some(&*input), output)
            })
        })
    }

    pub(super) fn ensure_result(&self) -> Result<()> {
        let output = &self.arrays.output;
        self.arrays.ensure_is(output, |index| self.expected[index])
    }
}
