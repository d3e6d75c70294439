//! The configurations of all-gather, reduce-scatter and broadcast, and their calls.

use std::collections::HashSet;
use std::fmt;

use peersum::dispatch::{Plan, Route};
use peersum_artifact::Dtype;
use peersum_kernels::abi::PEERSUM_UNIT_BYTES;

use super::case::{Case, Form, GroupKind, LAYERS, Mode, Room};
use super::settings::{GridKind, Settings};
use crate::call::{MoveCall, RankCall, Variant, stride};
use crate::collective::Collective;
use crate::data::{Content, Key};
use crate::machine::DeviceKind;
use crate::names::name_of;
use crate::operation::Operation;

/// The operations, in the order in which they run.
const MOVES: [Operation; 3] = [
    Operation::AllGather,
    Operation::ReduceScatter,
    Operation::Broadcast,
];

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MoveCase {
    pub(crate) world_size: u32,
    pub(crate) op: Operation,
    pub(crate) dtype: Dtype,
    /// Of a rank's chunk, or of the whole buffer of a broadcast.
    pub(crate) elements: usize,
    pub(crate) mode: Mode,
    /// Where the arrays lie. What they hold is always full of special values.
    pub(crate) variant: Variant,
    /// The rank from which the first call of a round broadcasts; each next call has the next rank.
    pub(crate) root: u32,
    /// Rounds of fresh data, each `LAYERS` calls.
    pub(crate) rounds: u32,
    /// Which launch shapes.
    pub(crate) shape: usize,
}

impl MoveCase {
    fn kind(&self, layer: usize) -> Collective {
        match self.op {
            Operation::AllGather => Collective::AllGather,
            Operation::ReduceScatter => Collective::ReduceScatter,
            _ => Collective::Broadcast {
                root: (self.root + layer as u32) % self.world_size,
            },
        }
    }

    /// Whether a rank's call works in place. In the last call of a round every second rank does
    /// not: ranks may differ in it.
    fn is_in_place(&self, rank: u32, layer: usize) -> bool {
        self.op == Operation::Broadcast
            || self.variant.is_in_place() && (layer + 1 < LAYERS || rank.is_multiple_of(2))
    }
    fn group(&self) -> String {
        format!("ws{}/{}/{}", self.world_size, self.dtype, self.op.name())
    }

    pub(crate) fn case(self, settings: &Settings) -> Case {
        let (sent, received) = self.kind(0).lengths(self.elements, self.world_size);
        let most_bytes = sent.max(received) * self.dtype.size_bytes();
        let longest = longest_bytes(settings.grid);
        Case {
            name: self.to_string(),
            op: self.op,
            group: self.group(),
            world_size: self.world_size,
            kind: GroupKind::Moves,
            rounds: self.rounds,
            is_captured: self.mode == Mode::Graph,
            room: Room {
                region_bytes: LAYERS * stride(most_bytes),
                max_bytes: longest,
                // Slots for a fraction of the longest chunk, whatever cases are selected: a case
                // that is run again goes in the same pieces.
                push_half_bytes: Some(longest * self.world_size as usize / 4),
            },
            form: Box::new(self),
        }
    }
}

impl Form for MoveCase {
    fn calls(&self, settings: &Settings, seed: u64, rank: u32, round: u32) -> Vec<RankCall> {
        let of_layer = |layer: usize| {
            let keys = Key::of_call(seed, round, layer as u32, self.world_size);
            let call = MoveCall {
                kind: self.kind(layer),
                dtype: self.dtype,
                elements: self.elements,
                is_unaligned: self.variant.is_unaligned(),
                in_place: self.is_in_place(rank, layer),
                // Sums of special values are often the same whatever is added.
                content: [Content::Ordinary, Content::Special][layer % 2],
            };
            RankCall {
                plan: plan(settings.device, self.shape + layer),
                ..call.of_rank(&keys, rank)
            }
        };
        (0..LAYERS).map(of_layer).collect()
    }
}

/// `ws4/u64/all_gather/1037/graph/in_place`, or `ws4/u8/broadcast/1/eager/aligned/root3`.
impl fmt::Display for MoveCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, variant) = (name_of(&self.mode), name_of(&self.variant));
        write!(f, "{}/{}/{mode}/{variant}", self.group(), self.elements)?;
        match self.op {
            Operation::Broadcast => write!(f, "/root{}", self.root),
            _ => Ok(()),
        }
    }
}

/// So many units and elements more.
type Length = (usize, isize);

/// What a grid is made of.
struct MoveGrid {
    /// Around units; chunks of whole units; chunks that begin within units. Each in every variant.
    short: &'static [Length],
    /// More than the slots hold. Each in one of the variants by turns.
    long: &'static [Length],
    /// Whether each of these has every type, or one of them by turns.
    has_all_types: bool,
    rounds: u32,
}

/// The bytes of the longest chunk, which a few pieces of a call carry.
fn longest_bytes(kind: GridKind) -> usize {
    let units = grid(kind).long.iter().map(|(units, _)| units + 1);
    units.max().unwrap_or(1) * PEERSUM_UNIT_BYTES as usize
}

/// One element; a unit less one, one unit, one more; chunks of whole units and others.
const SHORT: [Length; 7] = [(0, 1), (1, -1), (1, 0), (1, 1), (20, 0), (65, 1), (130, 3)];

fn grid(kind: GridKind) -> MoveGrid {
    match kind {
        GridKind::Sanitizer => MoveGrid {
            short: &[(1, 1), (20, 0), (65, 1)],
            long: &[(600, 0)],
            has_all_types: false,
            rounds: 1,
        },
        GridKind::Smoke => MoveGrid {
            short: &SHORT,
            long: &[(600, 0), (600, 3)],
            has_all_types: false,
            rounds: 2,
        },
        GridKind::Full => MoveGrid {
            short: &SHORT,
            long: &[(16_384, 0), (16_384, 3)],
            has_all_types: true,
            rounds: 4,
        },
    }
}

fn variants(op: Operation) -> &'static [Variant] {
    match op {
        Operation::Broadcast => &[Variant::Aligned, Variant::Unaligned],
        _ => &[
            Variant::Aligned,
            Variant::Unaligned,
            Variant::InPlace,
            Variant::UnalignedInPlace,
        ],
    }
}

/// The elements of a length. None of a type whose unit has no room for the length.
fn elements(length: Length, dtype: Dtype) -> usize {
    let (units, more) = length;
    (units * PEERSUM_UNIT_BYTES as usize / dtype.size_bytes()).saturating_add_signed(more)
}

/// The launch shape of a call: another one in every call, and that of the table among them.
fn plan(kind: DeviceKind, turn: usize) -> Option<Plan> {
    let shape = match kind {
        DeviceKind::Emulator => Some([(2, 8), (1, 12), (3, 9), (2, 17)][turn % 4]),
        DeviceKind::Cuda => [
            Some((132, 512)),
            Some((16, 256)),
            Some((7, 96)),
            Some((1, 512)),
            None,
        ][turn % 5],
    };
    shape.map(|(blocks, threads)| Plan {
        // Any but those of symmetric buffers: these calls take its shape alone.
        route: Route::PushOneShot,
        blocks,
        threads,
    })
}

/// The configurations, in the order in which they run. Modes, roots and launch shapes take turns,
/// so that each meets every operation and length.
pub(crate) fn cases(settings: &Settings) -> Vec<MoveCase> {
    let mut cases = Vec::new();
    // A group of one launches nothing.
    for &world_size in settings.world_sizes.iter().filter(|size| **size > 1) {
        for op in MOVES.into_iter().filter(|op| settings.ops.contains(op)) {
            cases.extend(cases_of(settings, world_size, op));
        }
    }
    cases
}

fn cases_of(settings: &Settings, world_size: u32, op: Operation) -> Vec<MoveCase> {
    let grid = grid(settings.grid);
    let (dtypes, variants) = (settings.dtypes_of(op), variants(op));
    let lengths = || grid.short.iter().chain(grid.long).copied().enumerate();
    let (mut cases, mut names) = (Vec::new(), HashSet::new());
    for (d, &dtype) in dtypes.iter().enumerate() {
        for (l, length) in lengths() {
            for (v, &variant) in variants.iter().enumerate() {
                let world = world_size as usize;
                // So that in the smoke grid neither a variant nor a mode has some types alone,
                // however many types are selected.
                let is_its_type = (world + 5 * l + l / 2 + v) % dtypes.len() == d;
                let is_its_variant = (world + d + l) % variants.len() == v;
                let is_short = l < grid.short.len();
                if !(grid.has_all_types || is_its_type) || !(is_short || is_its_variant) {
                    continue;
                }
                let turn = l * variants.len() + v;
                let case = MoveCase {
                    world_size,
                    op,
                    dtype,
                    elements: elements(length, dtype),
                    mode: [Mode::Eager, Mode::Graph][(world + l + v) % 2],
                    variant,
                    root: match op {
                        Operation::Broadcast => turn as u32 % world_size,
                        _ => 0,
                    },
                    rounds: grid.rounds,
                    shape: world + turn,
                };
                // Units of two elements have lengths that are the same.
                if names.insert(case.to_string()) {
                    cases.push(case);
                }
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORLDS: [u32; 7] = [2, 3, 4, 5, 6, 7, 8];

    fn all(kind: GridKind) -> Vec<MoveCase> {
        let cases = cases(&Settings::of(DeviceKind::Emulator, kind, WORLDS, 1));
        assert!(cases.iter().all(|case| case.elements > 0));
        cases
    }

    /// The different things that configurations are, by `of`.
    fn kinds<T: Eq + std::hash::Hash>(cases: &[MoveCase], of: impl Fn(&MoveCase) -> T) -> usize {
        cases.iter().map(of).collect::<HashSet<T>>().len()
    }

    #[test]
    fn every_rank_is_a_root_in_every_grid_but_that_for_sanitizers() {
        for kind in [GridKind::Smoke, GridKind::Full] {
            let mut broadcasts = all(kind);
            broadcasts.retain(|case| case.op == Operation::Broadcast);
            let roots = kinds(&broadcasts, |case| (case.world_size, case.root));
            assert_eq!(roots, WORLDS.iter().sum::<u32>() as usize);
        }
    }

    #[test]
    fn the_smoke_grid_has_every_operation_type_variant_and_mode_for_every_world_size() {
        let all = all(GridKind::Smoke);
        let types = kinds(&all, |case| (case.world_size, case.op, case.dtype));
        assert_eq!(types, 7 * (9 + 3 + 9));
        let ways = kinds(&all, |case| {
            (case.world_size, case.op, case.variant, case.mode)
        });
        assert_eq!(ways, 7 * (4 + 4 + 2) * 2);
    }

    #[test]
    fn the_full_grid_has_every_variant_and_mode_of_every_type_for_every_world_size() {
        let all = all(GridKind::Full);
        let ways = kinds(&all, |case| {
            (
                case.world_size,
                case.op,
                case.dtype,
                case.variant,
                case.mode,
            )
        });
        assert_eq!(ways, 7 * (9 * 4 + 3 * 4 + 9 * 2) * 2);
        let most = longest_bytes(GridKind::Full) + 16 * 3;
        let chunk_bytes = |case: &MoveCase| case.elements * case.dtype.size_bytes();
        assert!(all.iter().all(|case| chunk_bytes(case) <= most));
    }
}
