//! Launches all-gathers, reduce-scatters and broadcasts.

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi::{self, PeersumParams};

use super::connected::Connected;
use super::state::Communicator;
use crate::call_signature::{CallKind, CallSignature};
use crate::device::{Device, LaunchShape};
use crate::dispatch::{Placement, Plan, Route};
use crate::error::Error;
use crate::operation::Operation;

/// A call whose lengths are checked.
#[derive(Clone, Copy)]
pub(super) struct Collective {
    pub(super) operation: Operation,
    pub(super) dtype: Dtype,
    pub(super) input: u64,
    pub(super) output: u64,
    /// Of one rank's chunk, or of the whole buffer of a broadcast.
    pub(super) elements: u64,
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
    /// Launches one call, in pieces if it is larger than its slots.
    pub(super) fn enqueue_collective(&mut self, call: Collective) -> Result<(), Error> {
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
            let part = call.part(done, elements);
            done += elements;
            self.launch_collective(connected, part, call.bytes(), done < call.elements)?;
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
        more_pieces_follow: bool,
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
            more_pieces_follow,
            fused: false,
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
