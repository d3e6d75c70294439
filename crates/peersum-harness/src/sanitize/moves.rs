//! All-gathers, reduce-scatters and broadcasts of a group that is one grid.

use anyhow::{Context, Result};
use peersum::Operation;
use peersum::dispatch::{Plan, Route};
use peersum_kernels::abi::{self, PeersumParams};

use super::group::{Group, MOVES, T};
use crate::collective::Collective;
use crate::data::{Content, bytes_of};
use crate::grid::calls::{Call, Place};
use crate::grid::case::Variant;
use crate::grid::slot::Slot;

/// One call.
#[derive(Debug, Clone, Copy)]
pub(super) struct MoveCall {
    kind: Collective,
    plan: Plan,
    /// Of the message, or of a rank's chunk.
    elements: usize,
    variant: Variant,
}

/// Each operation in several shapes. Threads have one unit, several, or none.
pub(super) fn calls(world_size: u32) -> Vec<MoveCall> {
    let shapes = [
        (1, Variant::Aligned, 1, 32),
        (37, Variant::Unaligned, 2, 32),
        (1000, Variant::Aligned, 2, 32),
        (1003, Variant::Unaligned, 3, 64),
        (1001, Variant::Aligned, 1, 96),
    ];
    let roots = [0, world_size - 1].map(|root| Collective::Broadcast { root });
    let kinds = [Collective::AllGather, Collective::ReduceScatter];
    let of_kind = |kind| {
        shapes.map(|(elements, variant, blocks, threads)| MoveCall {
            kind,
            plan: Plan {
                route: Route::PushOneShot,
                blocks,
                threads,
            },
            elements,
            variant,
        })
    };
    kinds.into_iter().chain(roots).flat_map(of_kind).collect()
}

impl MoveCall {
    /// An array of this call with so many elements.
    fn array(&self, elements: usize) -> Call {
        Call::new(self.plan.route, self.plan, elements, self.variant)
    }

    fn kernel(&self) -> usize {
        match self.kind {
            Collective::AllGather => 0,
            Collective::ReduceScatter => 1,
            Collective::Broadcast { .. } => 2,
        }
    }

    /// `params` of an all-reduce with what this call needs.
    fn params(&self, params: PeersumParams, [input, output]: [Slot; 2]) -> PeersumParams {
        let bytes = (self.elements * size_of::<T>()) as u64;
        let (operation, root) = match self.kind.operation() {
            Operation::AllGather => (abi::PEERSUM_OPERATION_ALL_GATHER, 0),
            Operation::Broadcast { root } => (abi::PEERSUM_OPERATION_BROADCAST, root),
            _ => (abi::PEERSUM_OPERATION_REDUCE_SCATTER, 0),
        };
        let (_, dtype, _) = MOVES[self.kernel()];
        let type_bits = u64::from(abi::PEERSUM_HEADER_BYTES_BITS);
        let without_bytes = params.header >> type_bits << type_bits;
        PeersumParams {
            input: input.address(),
            output: output.address(),
            elements: bytes / dtype.size_bytes() as u64,
            chunk_stride: bytes,
            header: without_bytes
                | u64::from(operation) << abi::PEERSUM_HEADER_OPERATION_SHIFT
                | u64::from(root) << abi::PEERSUM_HEADER_ROOT_SHIFT
                | bytes,
            ..params
        }
    }
}

impl Group {
    /// Makes one call and compares every bit.
    pub(super) fn check_move(&self, call: &MoveCall, seed: u64) -> Result<()> {
        let world_size = self.ranks.len() as u32;
        let inputs = call
            .kind
            .inputs(Content::Special, seed, world_size, call.elements);
        let is_broadcast = matches!(call.kind, Collective::Broadcast { .. });
        let mut slots = Vec::new();
        for (index, (rank, input)) in self.ranks.iter().zip(&inputs).enumerate() {
            let (source, target) = rank.arrays();
            let place = |base, place, elements| {
                let array = call.array(elements);
                array.slot(base, place, index as u32, 0, size_of::<T>())
            };
            let results = call.kind.lengths(call.elements, world_size).1;
            let output = place(target.base(), Place::Output, results);
            source.poison(&self.device)?;
            target.poison(&self.device)?;
            // A broadcast has one array.
            let (memory, from) = match is_broadcast {
                true => (target, output),
                false => (source, place(source.base(), Place::Input, input.len())),
            };
            memory.write(&self.device, from.start, bytes_of(input))?;
            slots.push([from, output]);
        }
        let params = |own: usize| {
            let params = self.params(call.plan.route, &call.array(call.elements), own);
            call.params(params, slots[own])
        };
        self.launch(&self.moves[call.kernel()], call.plan, 1, params)?;
        for (index, [_, output]) in slots.iter().enumerate() {
            self.compare(index, *output, &call.kind.expected(&inputs, index as u32))
                .with_context(|| format!("seed {seed}"))?;
        }
        Ok(())
    }
}
