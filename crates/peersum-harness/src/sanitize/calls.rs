//! The calls of a group that is one grid.

use half::bf16;
use peersum::Scalar;
use peersum::dispatch::{Plan, Route};

use crate::call::{
    INVERSE_SCALE, MoveCall, NUMBERS, NormKind, RankCall, SumCall, Variant, norm_call,
};
use crate::collective::Collective;
use crate::data::{Content, Key};
use crate::norm_output::NormOutput::{self, Fp8PerToken, Fp8Static, Same};

/// The type of all calls. 16-bit elements give units with partial words and tails.
pub(super) type T = bf16;

/// One call.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupCall {
    pub(super) plan: Plan,
    form: Form,
    /// The blocks that share a row.
    pub(super) cluster: u32,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Sum(SumCall),
    Rows {
        sum: SumCall,
        hidden: usize,
        adds: bool,
        output: NormOutput,
    },
    Moved(MoveCall),
}

impl GroupCall {
    /// The call as `rank` makes it. `keys` are those of all ranks.
    pub(super) fn of_rank(&self, keys: &[Key], rank: u32, seed: u64) -> RankCall {
        match self.form {
            Form::Sum(call) => call.of_rank(T::DTYPE, keys, rank),
            Form::Moved(call) => call.with_marks(keys, rank),
            Form::Rows {
                sum,
                hidden,
                adds,
                output,
            } => {
                let kind = NormKind {
                    seed,
                    content: sum.content,
                    hidden,
                    adds,
                    output,
                    numbers: NUMBERS,
                    inverse_scale: INVERSE_SCALE,
                };
                norm_call(&sum, T::DTYPE, kind, keys, rank)
            }
        }
    }
}

/// A call of each variant by each route, each of another size and shape.
pub(super) fn sums() -> Vec<GroupCall> {
    let shapes = [
        (1, Variant::Aligned, 1, 32),
        (37, Variant::Unaligned, 2, 32),
        (1000, Variant::InPlace, 2, 64),
        (5003, Variant::UnalignedInPlace, 4, 96),
        (4096, Variant::Special, 8, 32),
        (3001, Variant::SpecialUnaligned, 3, 160),
    ];
    let call = |route, (elements, variant, blocks, threads)| {
        let plan = Plan {
            route,
            blocks,
            threads,
        };
        GroupCall {
            plan,
            form: Form::Sum(SumCall::new(plan, elements, variant)),
            cluster: 1,
        }
    };
    let of_route = |route| shapes.map(|shape| call(route, shape));
    Route::ALL.into_iter().flat_map(of_route).collect()
}

/// All-gathers, reduce-scatters and broadcasts in several shapes. Threads have one unit, several,
/// or none.
pub(super) fn moves(world_size: u32) -> Vec<GroupCall> {
    let shapes = [
        (1, false, 1, 32),
        (37, true, 2, 32),
        (1000, false, 2, 32),
        (1003, true, 3, 64),
        (1001, false, 1, 96),
    ];
    let roots = [0, world_size - 1].map(|root| Collective::Broadcast { root });
    let kinds = [Collective::AllGather, Collective::ReduceScatter];
    let of_kind = |kind| {
        shapes.map(|(elements, is_unaligned, blocks, threads)| GroupCall {
            plan: Plan {
                route: Route::PushOneShot,
                blocks,
                threads,
            },
            form: Form::Moved(MoveCall {
                kind,
                dtype: T::DTYPE,
                elements,
                is_unaligned,
                // A broadcast has one array.
                in_place: matches!(kind, Collective::Broadcast { .. }),
                content: Content::Special,
            }),
            cluster: 1,
        })
    };
    kinds.into_iter().chain(roots).flat_map(of_kind).collect()
}

/// The form of rows: hidden size, rows, variant, whether they add a residual, what they make.
type RowForm = (usize, usize, Variant, bool, NormOutput);

fn rows_in(plan: Plan, cluster: u32, (hidden, rows, variant, adds, output): RowForm) -> GroupCall {
    GroupCall {
        plan,
        form: Form::Rows {
            sum: SumCall::new(plan, rows * hidden, variant),
            hidden,
            adds,
            output,
        },
        cluster,
    }
}

/// Rows of each shape by each route, and in clusters if there may be any: in one kernel, with a
/// block or a cluster for each row, and in one behind every other route. Blocks have several rows,
/// or one; threads have one unit, several, or none. Some make FP8 too.
pub(super) fn rows(has_clusters: bool) -> Vec<GroupCall> {
    let shapes = [
        (2, 32, (8, 5, Variant::Aligned, true, Same)),
        (2, 64, (264, 5, Variant::InPlace, false, Fp8Static)),
        (1, 96, (1000, 4, Variant::Special, true, Fp8PerToken)),
        (2, 160, (2880, 2, Variant::Aligned, true, Same)),
    ];
    let of_route = |route| {
        shapes.map(|(blocks, threads, form)| {
            let plan = Plan {
                route,
                blocks,
                threads,
            };
            rows_in(plan, 1, form)
        })
    };
    let mut calls: Vec<GroupCall> = Route::ALL.into_iter().flat_map(of_route).collect();
    if has_clusters {
        calls.extend(clustered_rows());
    }
    calls
}

/// Rows with a cluster each, of every size that a launch may have: no block is without a unit, and
/// its threads are a power of two of warps. The largest has as many warps as a row may have.
fn clustered_rows() -> impl Iterator<Item = GroupCall> {
    let shapes = [
        (2, 64, (1000, 3, Variant::Aligned, true, Same)),
        (3, 128, (2880, 2, Variant::InPlace, false, Fp8PerToken)),
        (4, 64, (2000, 2, Variant::Special, true, Fp8Static)),
        (5, 128, (5120, 1, Variant::InPlace, true, Fp8Static)),
        // Several units a thread, and more of them than it keeps.
        (2, 128, (4096, 2, Variant::Aligned, true, Fp8PerToken)),
        (2, 64, (8192, 1, Variant::Special, true, Same)),
        (8, 128, (8192, 1, Variant::InPlace, true, Fp8PerToken)),
    ];
    let of_shape = |(cluster, threads, form): (u32, u32, RowForm)| {
        let plan = Plan {
            route: Route::PushOneShot,
            blocks: form.1 as u32 * cluster,
            threads,
        };
        rows_in(plan, cluster, form)
    };
    shapes.into_iter().map(of_shape)
}
