//! Calls with RMSNorm of a group that is one grid: in one kernel, with a block or a cluster for
//! each row, and in one behind every other route. Some make FP8 too.

use anyhow::{Context, Result};
use peersum::dispatch::{Plan, Route};
use peersum::reference::{self, NormNumbers};
use peersum_kernels::abi::{self, PeersumParams};

use super::group::{Group, Rank, T};
use crate::data::{self, Key, bytes_of};
use crate::grid::calls::{Call, Place};
use crate::grid::case::Variant;
use crate::grid::slot::Slot;
use crate::norm_output::NormOutput::{self, Fp8PerToken, Fp8Static, Same};

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
    output: NormOutput,
    /// The blocks that share a row.
    cluster: u32,
}

/// The inverse of the scale of FP8, if it is given. Few values saturate.
const INVERSE_SCALE: f32 = 100.0;

/// Rows of each shape by each route, and in clusters if there may be any. Blocks have several rows,
/// or one; threads have one unit, several, or none.
pub(super) fn calls(has_clusters: bool) -> Vec<RowCall> {
    let shapes = [
        (8, 5, Variant::Aligned, 2, 32, true, Same),
        (264, 5, Variant::InPlace, 2, 64, false, Fp8Static),
        (1000, 4, Variant::Special, 1, 96, true, Fp8PerToken),
        (2880, 2, Variant::Aligned, 2, 160, true, Same),
    ];
    let of_route = |route| {
        shapes.map(|(hidden, rows, variant, blocks, threads, adds, output)| {
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
                output,
                cluster: 1,
            }
        })
    };
    let mut calls: Vec<RowCall> = Route::ALL.into_iter().flat_map(of_route).collect();
    if has_clusters {
        calls.extend(clustered_calls());
    }
    calls
}

/// Rows with a cluster each, of every size that a launch may have: no block is without a unit, and
/// its threads are a power of two of warps. The largest has as many warps as a row may have.
fn clustered_calls() -> impl Iterator<Item = RowCall> {
    let shapes = [
        (1000, 3, Variant::Aligned, 2, 64, true, Same),
        (2880, 2, Variant::InPlace, 3, 128, false, Fp8PerToken),
        (2000, 2, Variant::Special, 4, 64, true, Fp8Static),
        (5120, 1, Variant::InPlace, 5, 128, true, Fp8Static),
        // Several units a thread, and more of them than it keeps.
        (4096, 2, Variant::Aligned, 2, 128, true, Fp8PerToken),
        (8192, 1, Variant::Special, 2, 64, true, Same),
        (8192, 1, Variant::InPlace, 8, 128, true, Fp8PerToken),
    ];
    let of_shape = |(hidden, rows, variant, cluster, threads, adds, output)| {
        let plan = Plan {
            route: Route::PushOneShot,
            blocks: rows as u32 * cluster,
            threads,
        };
        RowCall {
            plan,
            call: Call::new(plan.route, plan, rows * hidden, variant),
            hidden,
            adds,
            output,
            cluster,
        }
    };
    shapes.into_iter().map(of_shape)
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

    fn fp8_slots(&self, rank: &Rank) -> [Slot; 2] {
        let values = self
            .call
            .slot(rank.fp8_values.base(), Place::Input, 0, 0, 1);
        let scales = Call {
            elements: self.output.scales(self.call.elements / self.hidden),
            ..self.call
        };
        let scales = scales.slot(rank.fp8_scales.base(), Place::Input, 0, 0, 4);
        [values, scales]
    }

    /// `params` of the all-reduce with what the rows need.
    fn params(&self, params: PeersumParams, rank: &Rank) -> PeersumParams {
        let mark = 1 << abi::PEERSUM_NORM_MARK_SHIFT;
        let value = |value: usize| (value as u64) << abi::PEERSUM_NORM_VALUE_SHIFT;
        let units = self.hidden * size_of::<T>() / abi::PEERSUM_UNIT_BYTES as usize;
        let residual = self.residual_slot(rank).address();
        let [values, scales] = self.fp8_slots(rank).map(|slot| slot.address());
        let only = |wanted: bool, address| if wanted { address } else { 0 };
        PeersumParams {
            header: params.header
                | u64::from(abi::PEERSUM_OPERATION_RMS_NORM) << abi::PEERSUM_HEADER_OPERATION_SHIFT,
            norm_words: [
                mark | value(units) | u64::from(NUMBERS.epsilon.to_bits()),
                mark | value(self.adds.into())
                    | u64::from(self.output.abi()) << abi::PEERSUM_NORM_OUTPUT_SHIFT
                    | u64::from(NUMBERS.weight_offset.to_bits()),
            ],
            residual: only(self.adds, residual),
            fp8_values: only(self.output.has_fp8(), values),
            fp8_inverse_scale: only(self.output == Fp8Static, scales),
            fp8_row_scales: only(self.output == Fp8PerToken, scales),
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
            let fp8 = rows
                .output
                .expected(&normalised, rows.hidden, INVERSE_SCALE);
            self.prepare_fp8(rows, rank)?;
            expected.push((normalised, if rows.adds { kept } else { residual }, fp8));
        }
        self.launch_rows(rows)?;
        for (index, (rank, expected)) in self.ranks.iter().zip(&expected).enumerate() {
            let (normalised, kept, (values, scales)) = expected;
            self.compare(index, rank.slot(index, call, call.target), normalised)
                .with_context(|| format!("the output; seed {seed}"))?;
            self.compare(index, rows.residual_slot(rank), kept)
                .with_context(|| format!("the residual; seed {seed}"))?;
            if rows.output.has_fp8() {
                let [values_slot, scales_slot] = rows.fp8_slots(rank);
                self.compare(index, values_slot, values)
                    .with_context(|| format!("the FP8 values; seed {seed}"))?;
                self.compare(index, scales_slot, scales)
                    .with_context(|| format!("the FP8 scales; seed {seed}"))?;
            }
        }
        Ok(())
    }

    fn prepare_fp8(&self, rows: &RowCall, rank: &Rank) -> Result<()> {
        let [_, scales] = rows.fp8_slots(rank);
        rank.fp8_values.poison(&self.device)?;
        rank.fp8_scales.poison(&self.device)?;
        match rows.output {
            Fp8Static => {
                let scale = bytes_of(&[INVERSE_SCALE]);
                rank.fp8_scales.write(&self.device, scales.start, scale)
            }
            Same | Fp8PerToken => Ok(()),
        }
    }

    fn launch_rows(&self, rows: &RowCall) -> Result<()> {
        let RowCall { plan, call, .. } = *rows;
        let params =
            |own: usize| rows.params(self.params(plan.route, &call, own), &self.ranks[own]);
        if rows.cluster > 1 {
            let clustered = self.clustered.as_ref().context("a device with clusters")?;
            return self.launch(clustered, plan, rows.cluster, params);
        }
        if plan.route == Route::PushOneShot {
            return self.launch(&self.fused, plan, 1, params);
        }
        self.launch(&self.functions[&plan.route], plan, 1, params)?;
        let of_output = |own: usize| {
            let params = params(own);
            PeersumParams {
                input: params.output,
                ..params
            }
        };
        self.launch(&self.rows, plan, 1, of_output)
    }
}
