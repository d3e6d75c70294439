//! A rank's arrays, and what its calls must give.

use anyhow::Result;
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, Error, reference};

use crate::data::{self, Content};
use crate::memory::TestBuffer;

const ELEMENTS: usize = 3000;

/// What [`TestBuffer::poison`] makes of an element.
pub(super) const POISON: u16 = 0xA5A5;

/// A rank's buffers and what its calls must give.
pub(super) struct Work<D: Device> {
    pub(super) device: D,
    input: TestBuffer<bf16, D>,
    pub(super) output: TestBuffer<bf16, D>,
    pub(super) expected: Vec<bf16>,
}

impl<D: Device> Work<D> {
    pub(super) fn new(stream: &D::Stream, rank: u32, world_size: u32) -> Result<Self> {
        Work::of(stream, rank, world_size, 3, ELEMENTS)
    }

    /// As [`Work::new`], with other data and another size.
    pub(super) fn of(
        stream: &D::Stream,
        rank: u32,
        world_size: u32,
        seed: u64,
        elements: usize,
    ) -> Result<Self> {
        let device = D::open(stream)?;
        let inputs: Vec<Vec<bf16>> = (0..world_size)
            .map(|rank| data::input(seed, rank, elements, Content::Ordinary))
            .collect();
        let slices: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
        let (input, output) = (
            TestBuffer::new(&device, elements, 0)?,
            TestBuffer::new(&device, elements, 0)?,
        );
        input.write(&device, &inputs[rank as usize])?;
        Ok(Work {
            device,
            input,
            output,
            expected: reference::all_reduce(&slices),
        })
    }

    pub(super) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        self.input.with(&self.device, |input| {
            self.output.with(&self.device, |output| {
                communicator.all_reduce(&*input, output)
            })
        })
    }

    pub(super) fn output_is(&self, expected: &dyn Fn(usize) -> u16) -> Result<bool> {
        let (values, guards) = self.output.read(&self.device)?;
        Ok(guards
            && values
                .iter()
                .enumerate()
                .all(|(i, value)| value.to_bits() == expected(i)))
    }
}
