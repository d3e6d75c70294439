//! Calls with RMSNorm of a group that is one grid: in one kernel, and in one behind every other
//! route.

use anyhow::{Context, Result};
use peersum::dispatch::{Plan, Route};
use peersum::reference::{self, NormNumbers};
use peersum_kernels::abi::{self, PeersumParams};

use super::group::{Group, Rank, T};
use crate::data::{self, Key, bytes_of};
use crate::grid::calls::{Call, Place};
use crate::grid::case::Variant;
use crate::grid::slot::Slot;

/// What is added to the mean of the squares, and to each weight.
const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 1.0,
};

/// One call.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowCall {
    pub(super) plan: Plan,
    pub(super) call: Call,
    hidden: usize,
    adds: bool,
}

/// Rows of each shape by each route. Blocks have several rows, or one; threads have one unit,
/// several, or none.
pub(super) fn calls() -> Vec<RowCall> {
    let shapes = [
        (8, 5, Variant::Aligned, 2, 32, true),
        (264, 5, Variant::InPlace, 2, 64, false),
        (1000, 4, Variant::Special, 1, 96, true),
        (2880, 2, Variant::Aligned, 2, 160, true),
    ];
    let of_route = |route| {
        shapes.map(|(hidden, rows, variant, blocks, threads, adds)| {
            let plan = Plan {
                route,
                blocks,
                threads,
            };
            RowCall {
                plan,
                call: Call::new(route, plan, rows * hidden, variant),
                hidden,
                adds,
            }
        })
    };
    Route::ALL.into_iter().flat_map(of_route).collect()
}

impl RowCall {
    fn residual_slot(&self, rank: &Rank) -> Slot {
        let base = rank.residual.base();
        self.call.slot(base, Place::Input, 0, 0, size_of::<T>())
    }

    fn weight_slot(&self, rank: &Rank) -> Slot {
        let weight = Call {
            elements: self.hidden,
            ..self.call
        };
        weight.slot(rank.weight.base(), Place::Input, 0, 0, size_of::<T>())
    }

    /// `params` of the all-reduce with what the rows need.
    fn params(&self, params: PeersumParams, rank: &Rank) -> PeersumParams {
        let mark = 1 << abi::PEERSUM_NORM_MARK_SHIFT;
        let value = |value: usize| (value as u64) << abi::PEERSUM_NORM_VALUE_SHIFT;
        let units = self.hidden * size_of::<T>() / abi::PEERSUM_UNIT_BYTES as usize;
        let residual = self.residual_slot(rank).address();
        PeersumParams {
            header: params.header
                | u64::from(abi::PEERSUM_OPERATION_RMS_NORM) << abi::PEERSUM_HEADER_OPERATION_SHIFT,
            norm_words: [
                mark | value(units) | u64::from(NUMBERS.epsilon.to_bits()),
                mark | value(self.adds.into()) | u64::from(NUMBERS.weight_offset.to_bits()),
            ],
            residual: if self.adds { residual } else { 0 },
            weight: self.weight_slot(rank).address(),
            hidden: self.hidden as u32,
            epsilon: NUMBERS.epsilon,
            weight_offset: NUMBERS.weight_offset,
            rows: (params.elements / self.hidden as u64) as u32,
            ..params
        }
    }
}

impl Group {
    /// Makes one call and compares every bit.
    pub(super) fn check_rows(&self, rows: &RowCall, seed: u64) -> Result<()> {
        let (call, content) = (&rows.call, rows.call.content);
        let keys = Key::of_all(seed, self.ranks.len() as u32);
        let sum: Vec<T> = data::expected(content, &keys, call.elements);
        self.write_inputs(call, &keys)?;
        let mut expected = Vec::new();
        for (index, rank) in self.ranks.iter().enumerate() {
            // Each rank has a residual and a weight of its own.
            let side = |layer, len| {
                let key = Key::new(seed, 0, layer, index as u32);
                data::input::<T>(content, key, len)
            };
            let (residual, weight) = (side(1, call.elements), side(2, rows.hidden));
            for (memory, slot, values) in [
                (&rank.residual, rows.residual_slot(rank), &residual),
                (&rank.weight, rows.weight_slot(rank), &weight),
            ] {
                memory.poison(&self.device)?;
                memory.write(&self.device, slot.start, bytes_of(values))?;
            }
            let kept = match rows.adds {
                true => reference::add_residual(&sum, &residual),
                false => sum.clone(),
            };
            let normalised = reference::rms_norm(&kept, &weight, NUMBERS);
            expected.push((normalised, if rows.adds { kept } else { residual }));
        }
        self.launch_rows(rows)?;
        for (index, (rank, (normalised, kept))) in self.ranks.iter().zip(&expected).enumerate() {
            self.compare(index, rank.slot(index, call, call.target), normalised)
                .with_context(|| format!("the output; seed {seed}"))?;
            self.compare(index, rows.residual_slot(rank), kept)
                .with_context(|| format!("the residual; seed {seed}"))?;
        }
        Ok(())
    }

    fn launch_rows(&self, rows: &RowCall) -> Result<()> {
        let RowCall { plan, call, .. } = *rows;
        let params =
            |own: usize| rows.params(self.params(plan.route, &call, own), &self.ranks[own]);
        if plan.route == Route::PushOneShot {
            return self.launch(&self.fused, plan, params);
        }
        self.launch(&self.functions[&plan.route], plan, params)?;
        let of_output = |own: usize| {
            let params = params(own);
            PeersumParams {
                input: params.output,
                ..params
            }
        };
        self.launch(&self.rows, plan, of_output)
    }
}
