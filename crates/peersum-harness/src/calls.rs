//! One rank's calls of any operation, and what they must give.

use std::fmt;

use anyhow::{Context, Result};
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, Error};

use crate::arrays::Arrays;
use crate::collective::{Collective, CollectiveCall};
use crate::data::Content;
use crate::memory::POISON;
use crate::norm_output::NormOutput;
use crate::norm_sides::{NAN, NormKind, Outcome, Sides};

/// An element of memory that was poisoned and not written since.
const POISONED: bf16 = bf16::from_bits(u16::from_ne_bytes([POISON; 2]));

/// What calls do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum What {
    AllReduce,
    /// With RMSNorm that writes this.
    Norm(NormOutput),
    Other(Collective),
}

impl What {
    /// Everything, with broadcasts from the first of three ranks and from the last.
    pub(crate) const ALL: [What; 8] = [
        What::AllReduce,
        What::Norm(NormOutput::Same),
        What::Norm(NormOutput::Fp8Static),
        What::Norm(NormOutput::Fp8PerToken),
        What::Other(Collective::AllGather),
        What::Other(Collective::ReduceScatter),
        What::Other(Collective::Broadcast { root: 0 }),
        What::Other(Collective::Broadcast { root: 2 }),
    ];
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::AllReduce => f.write_str("all_reduce"),
            What::Norm(NormOutput::Same) => f.write_str("all_reduce with RMSNorm"),
            What::Norm(output) => write!(f, "all_reduce with RMSNorm, {output}"),
            What::Other(collective) => write!(f, "{collective}"),
        }
    }
}

/// The arrays of a rank's calls.
pub(crate) struct Calls<D: Device> {
    arrays: Arrays<bf16, D>,
    sides: Option<Sides<D>>,
    other: Option<CollectiveCall<D>>,
    /// What the output must hold.
    expected: Vec<bf16>,
}

impl<D: Device> Calls<D> {
    /// Calls of so many elements, of each rank if it has chunks. With RMSNorm a row has `hidden`
    /// elements. All ranks must pass the same arguments.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        what: What,
        seed: u64,
        elements: usize,
        hidden: usize,
    ) -> Result<Self> {
        let arrays = Arrays::new(communicator, seed, elements, Content::Ordinary)?;
        let other = match what {
            What::Other(kind) => Some(CollectiveCall::new(communicator, kind, seed, elements)?),
            _ => None,
        };
        let (sides, expected) = match what {
            What::Norm(output) => {
                let kind = NormKind {
                    seed,
                    hidden,
                    adds: false,
                    output,
                };
                let sum = &arrays.expected;
                let made = Sides::new(communicator, &arrays.device, sum, kind)?;
                (Some(made.0), made.1)
            }
            _ => (None, arrays.expected.clone()),
        };
        let calls = Calls {
            arrays,
            sides,
            other,
            expected,
        };
        calls.prepare()?;
        Ok(calls)
    }

    /// Whether the result of a call replaces its input. Such a call has to be prepared each time.
    pub(crate) fn is_in_place(&self) -> bool {
        self.sides.as_ref().is_some_and(Sides::is_in_place)
    }

    /// Makes a result wrong before it is checked, for a test.
    pub(crate) fn corrupt(&mut self, corrupts: bool) {
        if let Some(other) = &mut self.other {
            other.corrupts = corrupts;
        }
    }

    /// Poisons what the next call writes, and writes what it reads.
    pub(crate) fn prepare(&self) -> Result<()> {
        if let Some(other) = &self.other {
            return other.prepare();
        }
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

    pub(crate) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        if let Some(other) = &self.other {
            return other.call(communicator);
        }
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
        input.with::<bf16, _, _>(device, |input| {
            let input = (!is_in_place).then_some(&*input);
            output.with::<bf16, _, _>(device, |output| {
                sides.call(device, communicator, input, output)
            })
        })
    }

    pub(crate) fn ensure_result(&self) -> Result<()> {
        if let Some(other) = &self.other {
            return other.check(Outcome::Succeeded);
        }
        let output = &self.arrays.output;
        self.arrays
            .ensure_is(output, |index| self.expected[index])?;
        self.check_sides(Outcome::Succeeded)
    }

    /// Fails unless everything is lost that a call writes, as after one in which a rank had no
    /// part: NaN, or ones in all bits.
    pub(crate) fn ensure_lost(&self) -> Result<()> {
        if let Some(other) = &self.other {
            return other.ensure_lost();
        }
        let arrays = &self.arrays;
        arrays
            .ensure_is(&arrays.output, |_| bf16::from_bits(NAN))
            .context("an output that was not reduced")?;
        match &self.sides {
            Some(sides) => sides.ensure_fp8_is_nan(&arrays.device),
            None => Ok(()),
        }
    }

    /// Fails unless everything is as [`Calls::prepare`] has left it.
    pub(crate) fn ensure_untouched(&self) -> Result<()> {
        if let Some(other) = &self.other {
            return other.check(Outcome::Refused);
        }
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
