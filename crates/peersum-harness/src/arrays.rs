//! One rank's arrays of a call, and what the call must give.

use anyhow::{Result, ensure};
use peersum::device::Device;
use peersum::{Communicator, Error};

use crate::data::{self, Content, Key, TestElement};
use crate::memory::TestBuffer;

/// The arrays of one rank.
pub(crate) struct Arrays<T: TestElement, D: Device> {
    /// A second handle on the communicator's stream: the communicator keeps its own.
    pub(crate) device: D,
    pub(crate) input: TestBuffer<D>,
    pub(crate) output: TestBuffer<D>,
    /// What the input holds.
    pub(crate) own: Vec<T>,
    /// What every rank's output must hold after the call.
    pub(crate) expected: Vec<T>,
}

impl<T: TestElement, D: Device> Arrays<T, D> {
    /// Writes the input and poisons the output. All ranks must pass the same arguments.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        seed: u64,
        elements: usize,
        content: Content,
    ) -> Result<Self> {
        let device = D::open(communicator.stream())?;
        let keys = Key::of_all(seed, communicator.world_size());
        let own = data::input(content, keys[communicator.rank() as usize], elements);
        let input = TestBuffer::new::<T>(&device, elements)?;
        let output = TestBuffer::new::<T>(&device, elements)?;
        input.write(&device, &own)?;
        Ok(Arrays {
            device,
            input,
            output,
            own,
            expected: data::expected(content, &keys, elements),
        })
    }

    /// Restores the arrays to their state before the first call.
    pub(crate) fn reset(&self) -> Result<()> {
        self.input.write(&self.device, &self.own)?;
        self.output.poison(&self.device)
    }

    /// Sums the input into the output.
    pub(crate) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let Arrays { device, output, .. } = self;
        self.input.with::<T, _, _>(device, |input| {
            output.with::<T, _, _>(device, |output| communicator.all_reduce(&*input, output))
        })
    }

    /// Fails unless `array`, one of this rank's, holds the sum and the memory around it is
    /// untouched.
    pub(crate) fn ensure_sum(&self, array: &TestBuffer<D>) -> Result<()> {
        self.ensure_is(array, |index| self.expected[index])
    }

    /// Fails unless each element of `array` is what `expected` returns and the memory around it is
    /// untouched.
    pub(crate) fn ensure_is(
        &self,
        array: &TestBuffer<D>,
        expected: impl Fn(usize) -> T,
    ) -> Result<()> {
        let (actual, intact) = array.read::<T>(&self.device)?;
        let elements = actual.len();
        ensure!(intact, "{elements} elements: written outside the array");
        for (index, actual) in actual.into_iter().enumerate() {
            let (actual, expected) = (actual.raw(), expected(index).raw());
            ensure!(
                actual == expected,
                "element {index} of {elements} of {} is {actual:#x}, not {expected:#x}",
                T::DTYPE
            );
        }
        Ok(())
    }
}
