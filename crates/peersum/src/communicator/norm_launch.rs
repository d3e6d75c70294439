//! Launches of the norm family: alone behind a call, or fused with a one-shot push.

use std::ops::Range;

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi::{self, PeersumParams};

use super::connected::Connected;
use super::fp8::Fp8Addresses;
use super::layout::MOST_UNITS;
use super::prepared::Call;
use super::row_shape::{EMULATED_LANES, RowBounds, RowShape};
use super::state::Communicator;
use crate::call_signature::{NormOutput, NormSignature, unit_elements};
use crate::device::{Device, LaunchShape};
use crate::dispatch::{FusedShape, LaunchLimits, Placement, Plan, Route, Topology};
use crate::element::Element;
use crate::error::Error;
use crate::norm_error::NormError;
use crate::operation::Operation;

/// The bit by which the header of a fused call differs from that of a one-shot push.
const FUSED: u64 = (abi::PEERSUM_ROOT_FUSED as u64) << abi::PEERSUM_HEADER_ROOT_SHIFT;

/// A call with RMSNorm.
#[derive(Clone, Copy)]
pub(super) struct NormCall {
    pub(super) call: Call,
    /// 0 if there is none.
    pub(super) residual: u64,
    pub(super) weight: u64,
    pub(super) hidden: u32,
    pub(super) epsilon: f32,
    pub(super) weight_offset: f32,
    pub(super) fp8: Fp8Addresses,
}

impl NormCall {
    /// A call without buffers, which is planned and not launched.
    fn of_rows(dtype: Dtype, rows: u32, hidden: u32) -> NormCall {
        NormCall {
            call: Call {
                dtype,
                input: 0,
                output: 0,
                elements: u64::from(rows) * u64::from(hidden),
                operation: Operation::RmsNorm,
            },
            residual: 0,
            weight: 0,
            hidden,
            epsilon: 0.0,
            weight_offset: 0.0,
            fp8: Fp8Addresses::default(),
        }
    }

    fn rows(&self) -> u64 {
        self.call.elements / u64::from(self.hidden)
    }

    fn row_units(&self) -> u32 {
        self.hidden / unit_elements(self.call.dtype)
    }

    fn signature(&self) -> NormSignature {
        let output = match self.fp8 {
            Fp8Addresses { values: 0, .. } => NormOutput::Rows,
            Fp8Addresses { row_scales: 0, .. } => NormOutput::Fp8Static,
            _ => NormOutput::Fp8PerToken,
        };
        let has_residual = self.residual != 0;
        let numbers = (self.epsilon, self.weight_offset);
        NormSignature::new(self.hidden, numbers, has_residual, output)
    }

    /// The parameters that the norm family has beyond those of `params`.
    fn params(&self, params: PeersumParams) -> PeersumParams {
        PeersumParams {
            input: self.call.input,
            output: self.call.output,
            elements: self.call.elements,
            residual: self.residual,
            weight: self.weight,
            hidden: self.hidden,
            epsilon: self.epsilon,
            weight_offset: self.weight_offset,
            rows: self.rows() as u32,
            fp8_values: self.fp8.values,
            fp8_inverse_scale: self.fp8.inverse_scale,
            fp8_row_scales: self.fp8.row_scales,
            ..params
        }
    }

    /// These rows of the call.
    fn part(&self, first_row: u64, rows: u64) -> NormCall {
        let hidden = u64::from(self.hidden);
        let offset = first_row * hidden * self.call.dtype.size_bytes() as u64;
        NormCall {
            call: Call {
                input: self.call.input + offset,
                output: self.call.output + offset,
                elements: rows * hidden,
                ..self.call
            },
            residual: match self.residual {
                0 => 0,
                residual => residual + offset,
            },
            fp8: self.fp8.at_row(first_row, hidden),
            ..*self
        }
    }
}

impl<D: Device> Connected<D> {
    /// How many rows the slots of the fused kernel hold.
    fn most_rows(&self, shape: RowShape) -> u64 {
        self.layout.capacity_units(Route::PushOneShot) / u64::from(shape.slots)
    }
}

/// The rows of each launch of the kernel that normalises alone, for a call of `rows` rows: a launch
/// has no more units than its indices can count.
fn row_pieces(rows: u64, row_units: u32) -> impl Iterator<Item = Range<u64>> {
    let most = (MOST_UNITS / u64::from(row_units.max(1))).max(1);
    let pieces = rows.div_ceil(most);
    (0..pieces).map(move |piece| piece * most..rows.min((piece + 1) * most))
}

impl<D: Device> Communicator<D> {
    /// Launches one call with RMSNorm.
    pub(super) fn enqueue_norm(&mut self, norm: NormCall) -> Result<(), Error> {
        self.admit()?;
        let call = norm.call;
        if call.elements == 0 {
            return Ok(());
        }
        #[cfg(feature = "nccl")]
        if let Some(nccl) = self.nccl_for(call.bytes()?) {
            self.enqueue_to_nccl(nccl, call)?;
            return self.normalise_rows(norm.of_output(), None);
        }
        let Some(connected) = &self.connected else {
            // One rank: the sum is the input.
            return self.normalise_rows(norm, None);
        };
        let plan = self.plan_of(connected, &call)?;
        let placement = connected.placement(call.input, call.output, call.bytes()?);
        if let Some(fused) = self.fused_plan(connected, &norm, placement, call.bytes()?, plan) {
            let shape = self.row_shape(&norm, &connected.limits, Algorithm::OneShot, Some(fused));
            let rows = connected.most_rows(shape);
            if rows != 0 {
                return self.launch_fused(connected, norm, fused, shape, rows);
            }
        }
        let mut reduced = connected.params;
        self.reduce(connected, call, &mut reduced)?;
        self.normalise_rows(norm.of_output(), Some((plan, reduced)))
    }

    /// The plan of the fused kernel, if a call with this plan is fused: its shape limits the
    /// launch. Without a row of the table that says so, those calls are fused whose rows fit the
    /// registers of the block's threads.
    fn fused_plan(
        &self,
        connected: &Connected<D>,
        norm: &NormCall,
        placement: Placement,
        bytes: u64,
        plan: Plan,
    ) -> Option<Plan> {
        if plan.route.is_symmetric() && self.forced.is_none() {
            // A fused call does not read the symmetric buffer. So it is what a rank makes whose
            // buffer is ordinary (see `DispatchTable::plan`).
            let row = self.table.rms_norm.row(placement, bytes);
            let by_row = row.is_some_and(|row| row.fused.is_some());
            if !self.fuses.unwrap_or(by_row) {
                return None;
            }
            let (placement, plan) = (Placement::Ordinary, self.plan(Placement::Ordinary, bytes));
            return self.fused_plan(connected, norm, placement, bytes, plan);
        }
        let limits = &connected.limits;
        let usual = match self.limiting(Some(plan)) {
            Some(plan) => plan,
            None => Plan {
                blocks: limits.blocks(),
                threads: abi::PEERSUM_MAX_THREADS,
                ..plan
            },
        };
        let row = self.table.rms_norm.row(Placement::Ordinary, bytes);
        let row = row.filter(|_| self.forced.is_none());
        let by_row = row.map(|row| row.fused.is_some());
        let by_itself = || {
            let shape = self.row_shape(norm, limits, Algorithm::OneShot, Some(usual));
            let kept = match self.world_size {
                2 => abi::PEERSUM_KEPT_ROW_UNITS_OF_PAIR,
                _ => abi::PEERSUM_KEPT_ROW_UNITS,
            };
            let is_chosen = self.limiting(Some(plan)).is_some();
            plan.route == Route::PushOneShot && (is_chosen || shape.per_thread <= kept)
        };
        let fuses = self.fuses.or(by_row).unwrap_or_else(by_itself);
        let shape = row.and_then(|row| row.fused);
        fuses.then(|| Plan {
            route: Route::PushOneShot,
            ..shape.map_or(usual, FusedShape::plan)
        })
    }

    /// The plan whose shape limits the blocks that normalise. A forced plan does, so that tests can
    /// choose them. On the emulator every plan does, because threads are expensive there.
    fn limiting(&self, plan: Option<Plan>) -> Option<Plan> {
        plan.filter(|_| self.table.topology == Topology::Emulator || self.forced.is_some())
    }

    /// What a call with RMSNorm launches of the fused kernel: for a call in several pieces, the
    /// largest. `None` if the call is not fused.
    #[doc(hidden)]
    pub fn fused_launch<T: Element>(
        &self,
        placement: Placement,
        rows: u32,
        hidden: u32,
    ) -> Option<Plan> {
        let connected = self.connected.as_ref()?;
        let norm = NormCall::of_rows(T::DTYPE, rows, hidden);
        let bytes = norm.call.bytes().ok()?;
        let plan = self.forced.unwrap_or_else(|| self.plan(placement, bytes));
        let plan = self.fused_plan(connected, &norm, placement, bytes, plan)?;
        let shape = self.row_shape(&norm, &connected.limits, Algorithm::OneShot, Some(plan));
        let rows = u64::from(rows).min(connected.most_rows(shape));
        let blocks = u64::from(self.most_row_blocks(&connected.limits, Some(plan)));
        (rows != 0).then_some(Plan {
            blocks: rows.min(blocks / u64::from(shape.blocks)) as u32 * shape.blocks,
            threads: shape.threads,
            ..plan
        })
    }

    /// Launches the fused kernel for `most_rows` rows at a time.
    fn launch_fused(
        &self,
        connected: &Connected<D>,
        norm: NormCall,
        plan: Plan,
        shape: RowShape,
        most_rows: u64,
    ) -> Result<(), Error> {
        let module = connected.modules.get(Family::Norm, norm.call.dtype);
        let mut done = 0;
        while done < norm.rows() {
            let rows = most_rows.min(norm.rows() - done);
            let part = norm.part(done, rows);
            done += rows;
            let more_follow = done < norm.rows();
            let mut params = connected.params;
            self.prepare(connected, plan, part.call, more_follow, &mut params);
            params.header |= FUSED;
            let params = PeersumParams {
                norm_words: norm.signature().words(norm.call.dtype),
                ..part.params(params)
            };
            let blocks = self.most_row_blocks(&connected.limits, Some(plan));
            let rows_at_once = rows.min(u64::from(blocks / shape.blocks)) as u32;
            let algorithm = match shape.blocks {
                1 => Algorithm::OneShot,
                _ => Algorithm::Clustered,
            };
            let shape = LaunchShape {
                blocks: rows_at_once * shape.blocks,
                threads: shape.threads,
                cluster: shape.blocks,
                pdl: self.pdl,
            };
            // SAFETY: as in `Communicator::launch`; residual and weight are kept valid as the input
            // is. The slots hold `most_rows` rows.
            unsafe {
                self.device.launch(module, algorithm, shape, &params)?;
            }
        }
        Ok(())
    }

    /// Launches the kernel that normalises rows of a sum. `reduced` is the plan and the parameters
    /// of the call that made the sum, if peersum's kernels did: the ranks then compare norm words.
    fn normalise_rows(
        &self,
        norm: NormCall,
        reduced: Option<(Plan, PeersumParams)>,
    ) -> Result<(), Error> {
        let (modules, limits) = match (&self.connected, &self.alone) {
            (Some(connected), _) => (&connected.modules, &connected.limits),
            (None, Ok(alone)) => (&alone.modules, &alone.limits),
            (None, Err(reason)) => {
                let reason = reason.clone();
                return Err(NormError::Unavailable { reason }.into());
            }
        };
        let plan = self.limiting(reduced.map(|(plan, _)| plan));
        let params = match reduced {
            Some((_, params)) => PeersumParams {
                norm_words: norm.signature().words(norm.call.dtype),
                ..params
            },
            None => self
                .connected
                .as_ref()
                .map_or_else(PeersumParams::default, |connected| connected.params),
        };
        let shape = self.row_shape(&norm, limits, Algorithm::Rows, plan);
        let blocks = self.most_row_blocks(limits, plan);
        let shape = LaunchShape {
            blocks: norm.rows().min(u64::from(blocks)) as u32,
            threads: shape.threads,
            cluster: 1,
            pdl: self.pdl,
        };
        let module = modules.get(Family::Norm, norm.call.dtype);
        for rows in row_pieces(norm.rows(), norm.row_units()) {
            let part = norm.part(rows.start, rows.end - rows.start);
            let mut params = part.params(params);
            if rows.start != 0 {
                // The ranks compare them once a call.
                params.norm_words = [0; abi::PEERSUM_NORM_WORDS as usize];
            }
            // SAFETY: as in `Communicator::launch`; residual and weight are kept valid as the input
            // is.
            unsafe {
                self.device
                    .launch(module, Algorithm::Rows, shape, &params)?;
            }
        }
        Ok(())
    }

    /// The blocks for a call's rows, with no more threads than the plan has.
    fn row_shape(
        &self,
        norm: &NormCall,
        limits: &LaunchLimits,
        algorithm: Algorithm,
        plan: Option<Plan>,
    ) -> RowShape {
        let bounds = |algorithm| {
            let most = limits.threads(Family::Norm, algorithm);
            RowBounds {
                threads: plan.map_or(most, |plan| most.min(plan.threads)),
                lanes: match self.table.topology {
                    Topology::Emulator => EMULATED_LANES,
                    _ => abi::PEERSUM_WARP_THREADS,
                },
                // A pair polls two units at once, larger groups one after the other.
                units_in_cluster: if self.world_size == 2 { 2 } else { 1 },
            }
        };
        let blocks = self.most_row_blocks(limits, plan);
        let clusters = |size| limits.clusters(size, self.world_size).min(blocks / size);
        let in_cluster = match algorithm {
            Algorithm::OneShot => {
                let bounds = bounds(Algorithm::Clustered);
                bounds.cluster(norm.row_units(), norm.rows(), clusters)
            }
            _ => None,
        };
        in_cluster.unwrap_or_else(|| match algorithm {
            Algorithm::Rows => bounds(algorithm).block_of_reduced(norm.row_units()),
            _ => bounds(algorithm).one_block(norm.row_units()),
        })
    }

    fn most_row_blocks(&self, limits: &LaunchLimits, plan: Option<Plan>) -> u32 {
        match plan {
            Some(plan) => limits.blocks().min(plan.blocks),
            None => limits.blocks(),
        }
    }
}

impl NormCall {
    /// The same, once the sum is in the output.
    fn of_output(self) -> NormCall {
        NormCall {
            call: Call {
                input: self.call.output,
                ..self.call
            },
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_more_units_than_a_launch_can_count_are_normalised_in_pieces() {
        assert!(row_pieces(7, 512).eq(std::iter::once(0..7)));
        // 128 GiB in rows of one unit, and in rows of 4096 elements of two bytes.
        for (rows, row_units) in [(1 << 33, 1), (1 << 24, 512), (MOST_UNITS, 1)] {
            let mut next = 0;
            for piece in row_pieces(rows, row_units) {
                assert_eq!(piece.start, next);
                assert!((piece.end - piece.start) * u64::from(row_units) <= MOST_UNITS);
                next = piece.end;
            }
            assert_eq!(next, rows);
        }
    }
}
