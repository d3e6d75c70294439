//! One rank's all-reduces, with RMSNorm or without, and what they must give.

use anyhow::{Result, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, DeviceBuffer, Error, Output, SymmetricBuffer};

use crate::arrays::Arrays;
use crate::data::{Content, bytes_of};
use crate::memory::{POISON, elements_of, lend};
use crate::norm_sides::{Buffer, NAN, NormKind, Outcome, Sides};

/// The arrays of a rank's calls.
pub(crate) struct SumCall<D: Device> {
    arrays: Arrays<bf16, D>,
    sides: Option<Sides<D>>,
    symmetric: Option<Symmetric<D>>,
    /// What the output must hold.
    expected: Vec<bf16>,
    /// Whether a test asked for a wrong result.
    pub(crate) corrupts: bool,
}

/// The buffer that takes the place of the input.
pub(crate) struct Symmetric<D: Device> {
    // Held for its memory; used by its address.
    _buffer: SymmetricBuffer<bf16, D>,
    address: u64,
    /// Elements.
    len: usize,
    is_in_place: bool,
}

impl<D: Device> Symmetric<D> {
    pub(crate) fn new(
        communicator: &Communicator<D>,
        mut buffer: SymmetricBuffer<bf16, D>,
        is_in_place: bool,
    ) -> Result<Self, Error> {
        let stream = communicator.stream();
        let address = buffer.as_view_mut().with_output(stream, Ok::<_, Error>)?;
        Ok(Symmetric {
            len: buffer.len(),
            _buffer: buffer,
            address,
            is_in_place,
        })
    }
}

impl<D: Device> SumCall<D> {
    /// Calls of so many elements. All ranks must pass the same arguments.
    ///
    /// # Errors
    /// The symmetric buffer is too small, or the result would not be in place though calls with FP8
    /// are; or the device refuses.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        norm: Option<NormKind>,
        seed: u64,
        elements: usize,
        symmetric: Option<Symmetric<D>>,
    ) -> Result<Self> {
        let is_served = symmetric.as_ref().is_none_or(|symmetric| {
            let has_fp8 = norm.is_some_and(|norm| norm.output.has_fp8());
            symmetric.len >= elements && (symmetric.is_in_place || !has_fp8)
        });
        ensure!(is_served, "a symmetric buffer that the call cannot use");
        let arrays = Arrays::new(communicator, seed, elements, Content::Ordinary)?;
        let sum = &arrays.expected;
        let (sides, expected) = match norm {
            Some(kind) => {
                let (sides, output) = Sides::new(communicator, &arrays.device, sum, kind)?;
                (Some(sides), output)
            }
            None => (None, sum.clone()),
        };
        let call = SumCall {
            arrays,
            sides,
            symmetric,
            expected,
            corrupts: false,
        };
        call.prepare()?;
        Ok(call)
    }

    /// Whether the result of a call replaces its input. Such a call has to be prepared each time.
    pub(crate) fn is_in_place(&self) -> bool {
        let has_fp8 = self.sides.as_ref().is_some_and(Sides::is_in_place);
        has_fp8 || self.symmetric.as_ref().is_some_and(|it| it.is_in_place)
    }

    /// Poisons what the next call writes, and writes what it reads.
    pub(crate) fn prepare(&self) -> Result<()> {
        let Arrays {
            device,
            output,
            own,
            ..
        } = &self.arrays;
        output.poison(device)?;
        match &self.symmetric {
            // SAFETY: the symmetric buffer has at least as many elements as `own`: `new` has
            // checked that.
            Some(symmetric) => unsafe { device.write(symmetric.address, bytes_of(own))? },
            None if self.is_in_place() => output.write(device, own)?,
            None => {}
        }
        match &self.sides {
            Some(sides) => sides.prepare(device),
            None => Ok(()),
        }
    }

    pub(crate) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let Arrays {
            device,
            input,
            output,
            own,
            ..
        } = &self.arrays;
        let is_in_place = self.is_in_place();
        let call_between = |input: &mut Buffer<D>| match (is_in_place, &self.symmetric) {
            (true, Some(_)) => self.launch(communicator, None, input),
            _ => output.with::<bf16, _, _>(device, |output| {
                let input = (!is_in_place).then_some(&*input);
                self.launch(communicator, input, output)
            }),
        };
        match &self.symmetric {
            None => input.with::<bf16, _, _>(device, call_between),
            // SAFETY: the symmetric buffer has at least as many elements, as `new` has checked, and
            // `self` keeps it until its calls have ended.
            Some(symmetric) => unsafe {
                lend::<bf16, D, _, _>(device, symmetric.address, own.len(), call_between)
            },
        }
    }

    /// One call. Without an input it is in place.
    fn launch(
        &self,
        communicator: &mut Communicator<D>,
        input: Option<&Buffer<D>>,
        output: &mut Buffer<D>,
    ) -> Result<(), Error> {
        match (&self.sides, input) {
            (Some(sides), _) => sides.call(&self.arrays.device, communicator, input, output),
            (None, Some(input)) => communicator.all_reduce(input, output),
            (None, None) => communicator.all_reduce_in_place(output),
        }
    }

    /// The array that a call writes.
    fn result(&self) -> Result<Vec<bf16>> {
        let Arrays {
            device,
            output,
            own,
            ..
        } = &self.arrays;
        let mut values = match &self.symmetric {
            Some(symmetric) if symmetric.is_in_place => {
                let mut bytes = vec![0; size_of_val(&own[..])];
                // SAFETY: the symmetric buffer has at least so many elements, as `new` has checked.
                unsafe { device.read(symmetric.address, &mut bytes)? };
                elements_of(&bytes)
            }
            _ => {
                let (values, intact) = output.read::<bf16>(device)?;
                ensure!(intact, "memory beside the output was written");
                values
            }
        };
        if self.corrupts {
            let middle = values.len() / 2;
            values[middle] = bf16::from_bits(values[middle].to_bits() ^ 1);
        }
        Ok(values)
    }

    /// Fails unless `is_right(index, found, expected)` for each element of the result. `demand`
    /// says what that is.
    fn check_each(&self, demand: &str, is_right: impl Fn(usize, u16, u16) -> bool) -> Result<()> {
        for (index, (found, expected)) in self.result()?.iter().zip(&self.expected).enumerate() {
            let (found, expected) = (found.to_bits(), expected.to_bits());
            ensure!(
                is_right(index, found, expected),
                "element {index} is {found:#06x}, the reference {expected:#06x} ({demand})"
            );
        }
        Ok(())
    }

    /// Right if the call succeeded, right or NaN if it failed, the old contents if it was refused.
    pub(crate) fn check(&self, outcome: Outcome) -> Result<()> {
        let is_in_place = self.is_in_place();
        let demand = format!("{outcome:?}");
        self.check_each(&demand, |index, found, expected| match outcome {
            Outcome::Succeeded => found == expected,
            Outcome::Failed => found == expected || found == NAN,
            Outcome::Refused if is_in_place => found == self.arrays.own[index].to_bits(),
            Outcome::Refused => found == u16::from_ne_bytes([POISON; 2]),
        })?;
        match &self.sides {
            Some(sides) => sides.check(&self.arrays.device, outcome),
            None => Ok(()),
        }
    }

    /// Fails unless all of the output is NaN, and all FP8, as after a call in which a rank had no
    /// part.
    pub(crate) fn ensure_lost(&self) -> Result<()> {
        self.check_each("must be lost", |_, found, _| found == NAN)?;
        match &self.sides {
            Some(sides) => sides.ensure_fp8_is_nan(&self.arrays.device),
            None => Ok(()),
        }
    }
}
