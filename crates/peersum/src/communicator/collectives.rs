//! All-gather, reduce-scatter and broadcast: their checks.

use super::collective_launch::Collective;
use super::state::Communicator;
use crate::device::{Device, Input, Output};
use crate::element::{Element, Scalar};
use crate::error::Error;
use crate::operation::Operation;

impl<D: Device> Communicator<D> {
    /// Gathers the inputs of all ranks in rank order: `output` is `world_size` times as long as
    /// `input`, and its chunk `r` is the input of rank `r`. Every bit arrives as it was sent.
    ///
    /// For every [`Scalar`] type. Lengths and types must be the same on every rank; addresses and
    /// alignment may differ, and one rank may gather in place while another does not. A symmetric
    /// buffer is used as any other memory. `Ok` means launched; a length of 0 does nothing and does
    /// not count. After a failure any part of the output may hold bytes of `0xFF`, and every part
    /// that was not received does.
    ///
    /// ```no_run
    /// use half::bf16;
    /// use peersum::cudarc::driver::CudaSlice;
    /// use peersum::{Communicator, Cuda, Error};
    ///
    /// /// Each rank has computed the logits of its part of the vocabulary.
    /// fn gather_logits(
    ///     communicator: &mut Communicator<Cuda>,
    ///     part: &CudaSlice<bf16>,
    ///     all: &mut CudaSlice<bf16>,
    /// ) -> Result<(), Error> {
    ///     communicator.all_gather(part, all)
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::ChunkLength`]; [`Error::NoKernels`] in a group across hosts; those of
    /// [`Communicator::all_reduce`] otherwise.
    pub fn all_gather<T: Scalar, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        self.check_chunks(Operation::AllGather, output.len(), input.len(), false)?;
        self.gather_into_front(input, output)
    }

    /// [`Communicator::all_gather`] into the first elements of an output that may be longer.
    pub(crate) fn gather_into_front<T: Scalar, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        let elements = input.len();
        self.check_chunks(Operation::AllGather, output.len(), elements, true)?;
        self.enqueue_between(Operation::AllGather, input, output, elements)
    }

    /// [`Communicator::all_gather`] in place: chunk `rank` of `buffer` is this rank's input.
    ///
    /// # Errors
    /// [`Error::UnequalChunks`], and those of [`Communicator::all_gather`].
    pub fn all_gather_in_place<T: Scalar, O: Output<T, D>>(
        &mut self,
        buffer: &mut O,
    ) -> Result<(), Error> {
        let elements = self.chunk_of(Operation::AllGather, buffer.len())?;
        let own = self.own_offset::<T>(elements)?;
        self.enqueue_within(Operation::AllGather, buffer, elements, |address| {
            (address + own, address)
        })
    }

    /// Sums `input` over all ranks as [`Communicator::all_reduce`] does, and gives each rank its
    /// chunk of the sum: `input` is `world_size` times as long as `output`, and rank `r` gets chunk
    /// `r`, with the same bits. Chunks may begin at any element.
    ///
    /// Lengths and types must be the same on every rank; addresses and alignment may differ, and
    /// one rank may work in place while another does not. A symmetric buffer is used as any other
    /// memory. `Ok` means launched; a length of 0 does nothing and does not count. After a failure
    /// the output holds NaN.
    ///
    /// # Errors
    /// As [`Communicator::all_gather`].
    pub fn reduce_scatter<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        self.check_chunks(Operation::ReduceScatter, input.len(), output.len(), false)?;
        self.scatter_front(input, output)
    }

    /// [`Communicator::reduce_scatter`] of the first elements of an input that may be longer.
    pub(crate) fn scatter_front<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        let elements = output.len();
        self.check_chunks(Operation::ReduceScatter, input.len(), elements, true)?;
        self.enqueue_between(Operation::ReduceScatter, input, output, elements)
    }

    /// [`Communicator::reduce_scatter`] in place: the result lies in chunk `rank` of `buffer`, and
    /// the other chunks keep what they hold.
    ///
    /// # Errors
    /// [`Error::UnequalChunks`], and those of [`Communicator::all_gather`].
    pub fn reduce_scatter_in_place<T: Element, O: Output<T, D>>(
        &mut self,
        buffer: &mut O,
    ) -> Result<(), Error> {
        let elements = self.chunk_of(Operation::ReduceScatter, buffer.len())?;
        let own = self.own_offset::<T>(elements)?;
        self.enqueue_within(Operation::ReduceScatter, buffer, elements, |address| {
            (address, address + own)
        })
    }

    /// Gives every rank what `buffer` of rank `root` holds. Every bit arrives as it was sent.
    ///
    /// For every [`Scalar`] type. Root, length and type must be the same on every rank. A symmetric
    /// buffer is used as any other memory. `Ok` means launched; a length of 0 does nothing and does
    /// not count. No rank ends the call before every other has begun it, the root included. After
    /// a failure any part of the buffer of another rank than the root may hold bytes of `0xFF`, and
    /// every part that was not received does.
    ///
    /// # Errors
    /// [`Error::Root`], and those of [`Communicator::all_gather`].
    pub fn broadcast<T: Scalar, O: Output<T, D>>(
        &mut self,
        buffer: &mut O,
        root: u32,
    ) -> Result<(), Error> {
        let operation = self.broadcast_from(root)?;
        let elements = buffer.len() as u64;
        self.enqueue_within(operation, buffer, elements, |address| (address, address))
    }

    /// [`Communicator::broadcast`] of the first elements of `input` on the root, which other ranks
    /// need not have.
    pub(crate) fn broadcast_into<T: Scalar, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: Option<&I>,
        output: &mut O,
        root: u32,
    ) -> Result<(), Error> {
        let operation = self.broadcast_from(root)?;
        let elements = output.len();
        let Some(input) = input.filter(|_| root == self.rank) else {
            return self.broadcast(output, root);
        };
        if input.len() < elements {
            return Err(Error::LengthMismatch {
                input: input.len(),
                output: elements,
            });
        }
        self.enqueue_between(operation, input, output, elements)
    }

    fn broadcast_from(&self, root: u32) -> Result<Operation, Error> {
        let world_size = self.world_size;
        match root < world_size {
            true => Ok(Operation::Broadcast { root }),
            false => Err(Error::Root { root, world_size }),
        }
    }

    fn check_chunks(
        &self,
        operation: Operation,
        whole: usize,
        chunk: usize,
        may_be_longer: bool,
    ) -> Result<(), Error> {
        let world_size = self.world_size;
        let fits = chunk
            .checked_mul(world_size as usize)
            .is_some_and(|needed| needed == whole || (may_be_longer && needed < whole));
        match fits {
            true => Ok(()),
            false => Err(Error::ChunkLength {
                operation,
                whole,
                chunk,
                world_size,
            }),
        }
    }

    /// The elements of a rank's chunk.
    fn chunk_of(&self, operation: Operation, elements: usize) -> Result<u64, Error> {
        let world_size = self.world_size;
        match elements.is_multiple_of(world_size as usize) {
            true => Ok((elements / world_size as usize) as u64),
            false => Err(Error::UnequalChunks {
                operation,
                elements,
                world_size,
            }),
        }
    }

    /// Where this rank's chunk begins in a buffer, in bytes.
    fn own_offset<T: Scalar>(&self, elements: u64) -> Result<u64, Error> {
        let before = elements.checked_mul(u64::from(self.rank));
        let bytes = before.and_then(|before| before.checked_mul(size_of::<T>() as u64));
        bytes.ok_or(Error::TooLong {
            elements: elements as usize,
            element_bytes: size_of::<T>(),
        })
    }

    fn enqueue_between<T: Scalar, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        operation: Operation,
        input: &I,
        output: &mut O,
        elements: usize,
    ) -> Result<(), Error> {
        let stream = self.device.stream().clone();
        self.check_before_waits(input.check(&stream)? | output.check(&stream)?)?;
        input.with_input(&stream, |input| {
            output.with_output(&stream, |output| {
                self.enqueue_collective(Collective {
                    operation,
                    dtype: T::DTYPE,
                    input,
                    output,
                    elements: elements as u64,
                })
            })
        })
    }

    /// `places` gives input and output within the buffer from the buffer's address.
    fn enqueue_within<T: Scalar, O: Output<T, D>>(
        &mut self,
        operation: Operation,
        buffer: &mut O,
        elements: u64,
        places: impl FnOnce(u64) -> (u64, u64),
    ) -> Result<(), Error> {
        let stream = self.device.stream().clone();
        self.check_before_waits(buffer.check(&stream)?)?;
        buffer.with_output(&stream, |address| {
            let (input, output) = places(address);
            self.enqueue_collective(Collective {
                operation,
                dtype: T::DTYPE,
                input,
                output,
                elements,
            })
        })
    }
}
