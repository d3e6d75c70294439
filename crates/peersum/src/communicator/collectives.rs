//! All-gather, reduce-scatter and broadcast.

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi::{self, PeersumParams};

use super::connected::Connected;
use super::state::Communicator;
use crate::call_signature::{CallKind, CallSignature, Operation};
use crate::device::{Device, Input, LaunchShape, Output};
use crate::dispatch::{Placement, Plan, Route};
use crate::element::{Element, Scalar};
use crate::error::Error;

/// A call whose lengths are checked.
#[derive(Clone, Copy)]
struct Collective {
    operation: Operation,
    dtype: Dtype,
    input: u64,
    output: u64,
    /// Of one rank's chunk, or of the whole buffer of a broadcast.
    elements: u64,
}

impl Collective {
    fn element_bytes(&self) -> u64 {
        self.dtype.size_bytes() as u64
    }

    fn bytes(&self) -> u64 {
        self.elements * self.element_bytes()
    }

    /// Checks that there can be so many elements.
    fn check_bytes(&self, world_size: u32) -> Result<(), Error> {
        let chunk = self.elements.checked_mul(self.element_bytes());
        match chunk.and_then(|bytes| bytes.checked_mul(u64::from(world_size))) {
            Some(_) => Ok(()),
            None => Err(Error::TooLong {
                elements: self.elements as usize,
                element_bytes: self.dtype.size_bytes(),
            }),
        }
    }

    /// The kernel.
    fn entry_point(&self) -> (Family, Algorithm) {
        match self.operation {
            Operation::ReduceScatter => (Family::Push, Algorithm::ReduceScatter),
            Operation::Broadcast { .. } => (Family::Move, Algorithm::Broadcast),
            _ => (Family::Move, Algorithm::AllGather),
        }
    }

    /// The type of the module with the kernel.
    fn module_dtype(&self) -> Dtype {
        match self.operation {
            Operation::ReduceScatter => self.dtype,
            _ => Dtype::U8,
        }
    }

    /// The memories that hold the slots of the call: an escaped unit has slots in two.
    fn slot_memories(&self) -> u64 {
        match self.operation {
            Operation::ReduceScatter => 1,
            _ => 2,
        }
    }

    /// The part of every rank's chunk from an element on.
    fn part(&self, first: u64, elements: u64) -> Collective {
        let offset = first * self.element_bytes();
        Collective {
            input: self.input + offset,
            output: self.output + offset,
            elements,
            ..*self
        }
    }
}

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
        // Checked before the buffers enqueue waits of their own.
        self.check_recording()?;
        let stream = self.device.stream().clone();
        input.check(&stream)?;
        output.check(&stream)?;
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
        self.check_recording()?;
        let stream = self.device.stream().clone();
        buffer.check(&stream)?;
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

    fn enqueue_collective(&mut self, call: Collective) -> Result<(), Error> {
        self.admit()?;
        call.check_bytes(self.world_size)?;
        let Some(connected) = &self.connected else {
            if self.world_size > 1 {
                let operation = call.operation;
                return Err(Error::NoKernels { operation });
            }
            if call.input != call.output && call.elements != 0 {
                // SAFETY: `Input` and `Output` vouch for both ranges; distinct buffers do not
                // overlap.
                unsafe {
                    self.device
                        .copy(call.output, call.input, call.bytes() as usize)?
                };
            }
            return Ok(());
        };
        let unit_elements = u64::from(abi::PEERSUM_UNIT_BYTES) / call.element_bytes();
        let most = connected.layout.slot_units(call.slot_memories()) * unit_elements;
        let mut done = 0;
        while done < call.elements {
            let elements = most.min(call.elements - done);
            self.launch_collective(connected, call.part(done, elements), call.bytes())?;
            done += elements;
        }
        Ok(())
    }

    /// The grid of a call whose chunks (or, in a broadcast, whose buffers) have so many bytes, for
    /// benchmarks: of its pieces, if it takes several.
    #[doc(hidden)]
    pub fn collective_launch(&self, operation: Operation, bytes: u64) -> Option<Plan> {
        let connected = self.connected.as_ref()?;
        let call = Collective {
            operation,
            dtype: Dtype::U8,
            input: 0,
            output: 0,
            elements: bytes,
        };
        let most = connected.layout.slot_units(call.slot_memories());
        let units = bytes.div_ceil(u64::from(abi::PEERSUM_UNIT_BYTES)).min(most);
        let (blocks, threads) = self.collective_grid(connected, call, units);
        Some(Plan {
            route: Route::PushOneShot,
            blocks,
            threads,
        })
    }

    /// Blocks, and threads of each that handle units.
    fn collective_grid(
        &self,
        connected: &Connected<D>,
        call: Collective,
        units: u64,
    ) -> (u32, u32) {
        // A table has rows for all-reduces alone. What a rank sends to each peer decides here as
        // there.
        let bytes = units * u64::from(abi::PEERSUM_UNIT_BYTES);
        let plan = self
            .forced
            .unwrap_or_else(|| self.table.plan(Placement::Ordinary, bytes));
        let (family, algorithm) = call.entry_point();
        let (blocks, threads) = connected.limits.fit_units(family, algorithm, plan, units);
        // If threads have several units, no more threads than all have as many.
        let rounds = units.div_ceil(u64::from(blocks * threads)).max(1);
        let even = units.div_ceil(u64::from(blocks) * rounds);
        let whole_warps = even.next_multiple_of(u64::from(abi::PEERSUM_WARP_THREADS));
        (blocks, whole_warps.min(u64::from(threads)) as u32)
    }

    /// Launches one piece. `chunk_stride` is the size of a rank's whole chunk.
    fn launch_collective(
        &self,
        connected: &Connected<D>,
        call: Collective,
        chunk_stride: u64,
    ) -> Result<(), Error> {
        let (family, algorithm) = call.entry_point();
        let bytes = call.bytes();
        let units = bytes.div_ceil(u64::from(abi::PEERSUM_UNIT_BYTES));
        let (blocks, threads) = self.collective_grid(connected, call, units);
        let signature = CallSignature {
            sequence: 0,
            kind: CallKind {
                family: Family::Push,
                algorithm: Algorithm::OneShot,
            },
            symmetric: false,
            part: None,
            operation: call.operation,
            norm: None,
            dtype: Some(call.dtype),
            bytes,
        };
        let params = PeersumParams {
            input: call.input,
            output: call.output,
            elements: bytes / call.module_dtype().size_bytes() as u64,
            chunk_stride,
            header: signature.header(),
            ..connected.params
        };
        let shape = LaunchShape {
            blocks,
            threads,
            cluster: 1,
            pdl: self.pdl,
        };
        let module = connected.modules.get(family, call.module_dtype());
        // SAFETY: as in `Communicator::launch`; the caller has checked that the whole buffer has a
        // chunk of `chunk_stride` bytes for each rank. The slots hold the piece.
        unsafe { self.device.launch(module, algorithm, shape, &params)? };
        Ok(())
    }
}
