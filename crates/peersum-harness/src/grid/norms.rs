//! The configurations of calls with RMSNorm, and their calls.

use std::fmt;

use fastrand::Rng;
use peersum::dispatch::{Plan, Route};
use peersum::reference::NormNumbers;
use peersum_artifact::Dtype;

use super::case::{Case, Form, GroupKind, Room};
use super::settings::{GridKind, Settings};
use crate::call::{NormKind, RankCall, SumCall, norm_call, stride};
use crate::data::{Content, Key, case_seed};
use crate::machine::DeviceKind;
use crate::norm_output::NormOutput;
use crate::operation::Operation;

/// The lengths of rows, in elements: one unit to the longest.
const HIDDEN: [usize; 12] = [
    8, 64, 1024, 2880, 3072, 4096, 5120, 7168, 8192, 12288, 16384, 32768,
];
const ROWS: [usize; 9] = [1, 2, 3, 7, 16, 64, 128, 513, 2048];

/// The most elements of a call of the full grid: the reference is computed on the host.
const MOST_ELEMENTS: usize = 4 << 20;

const EPSILONS: [f32; 3] = [1e-6, 1e-5, 0.0];
const WEIGHT_OFFSETS: [f32; 2] = [0.0, 1.0];
/// A multiple of the number of launch shapes, which is three or four.
const SHAPES: usize = 12;
pub(crate) const NUMBERS: usize = EPSILONS.len() * WEIGHT_OFFSETS.len() * SHAPES;

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NormCase {
    pub(crate) world_size: u32,
    pub(crate) dtype: Dtype,
    /// What the all-reduce is forced to; `None`: as the dispatch table says.
    pub(crate) route: Option<Route>,
    pub(crate) hidden: usize,
    pub(crate) rows: usize,
    pub(crate) has_residual: bool,
    pub(crate) in_place: bool,
    pub(crate) output: NormOutput,
    pub(crate) is_captured: bool,
    pub(crate) is_special: bool,
    /// Which of the epsilons, offsets and launch shapes: below [`NUMBERS`].
    pub(crate) numbers: usize,
}

impl NormCase {
    fn epsilon(&self) -> f32 {
        EPSILONS[self.numbers % EPSILONS.len()]
    }

    fn weight_offset(&self) -> f32 {
        WEIGHT_OFFSETS[self.numbers / EPSILONS.len() % WEIGHT_OFFSETS.len()]
    }

    /// Which of three or four launch shapes.
    fn shape(&self) -> usize {
        self.numbers / (EPSILONS.len() * WEIGHT_OFFSETS.len())
    }

    /// The plan of a forced route, whose shape also limits the blocks that normalise.
    fn plan(&self, device: DeviceKind) -> Option<Plan> {
        let (blocks, threads) = match device {
            DeviceKind::Emulator => (2, [8, 16, 24][self.shape() % 3]),
            DeviceKind::Cuda => [(132, 512), (16, 256), (7, 96), (1, 512)][self.shape() % 4],
        };
        self.route.map(|route| Plan {
            route,
            blocks,
            threads,
        })
    }

    pub(crate) fn case(self) -> Case {
        let bytes = self.hidden * self.rows * size_of::<f32>();
        let half = (bytes / 2).max(1024);
        Case {
            name: self.to_string(),
            op: Operation::RmsNorm,
            group: format!("ws{}/{}/rms_norm", self.world_size, self.dtype),
            world_size: self.world_size,
            kind: GroupKind::Norms,
            rounds: 1,
            is_captured: self.is_captured,
            room: Room {
                region_bytes: stride(bytes),
                max_bytes: half,
                push_half_bytes: Some(half),
            },
            form: Box::new(self),
        }
    }
}

impl Form for NormCase {
    fn calls(&self, settings: &Settings, seed: u64, rank: u32, _round: u32) -> Vec<RankCall> {
        let content = match self.is_special {
            true => Content::Special,
            false => Content::Ordinary,
        };
        let kind = NormKind {
            seed,
            content,
            hidden: self.hidden,
            adds: self.has_residual,
            output: self.output,
            numbers: NormNumbers {
                epsilon: self.epsilon(),
                weight_offset: self.weight_offset(),
            },
            // Few values saturate.
            inverse_scale: 100.0 + seed as u8 as f32,
        };
        let plan = self.plan(settings.device);
        let is_symmetric = self.route.is_some_and(Route::is_symmetric);
        let elements = self.hidden * self.rows;
        let sum = SumCall::aligned(plan, elements, is_symmetric, self.in_place, content);
        let keys = Key::of_all(seed, self.world_size);
        vec![norm_call(&sum, self.dtype, kind, &keys, rank)]
    }
}

impl fmt::Display for NormCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ws{}/{}/{}/{}x{}/{}/{}{}{}{}",
            self.world_size,
            self.dtype,
            self.route.map_or("table", Route::name),
            self.rows,
            self.hidden,
            if self.is_captured { "graph" } else { "eager" },
            if self.has_residual { "add" } else { "plain" },
            if self.in_place { "_in_place" } else { "" },
            self.output.suffix(),
            if self.is_special { "_special" } else { "" },
        )
    }
}

/// Rows times hidden sizes: pairwise for the full grid, else each with the least of the other.
fn sizes(grid: GridKind) -> Vec<(usize, usize)> {
    let all = HIDDEN
        .iter()
        .flat_map(|&hidden| ROWS.iter().map(move |&rows| (hidden, rows)));
    match grid {
        GridKind::Full => all
            .filter(|(hidden, rows)| hidden * rows <= MOST_ELEMENTS)
            .collect(),
        GridKind::Smoke => all
            .filter(|&(hidden, rows)| rows <= 3 || hidden == 64)
            .collect(),
        GridKind::Sanitizer => vec![(8, 3), (2880, 2), (4096, 1), (32768, 1)],
    }
}

/// The configurations. Forms and contents take turns, so that each meets every route, type and
/// size. The numbers are drawn at random, so that no form always has the same ones.
pub(crate) fn cases(settings: &Settings) -> Vec<NormCase> {
    let mut cases = Vec::new();
    let sizes = sizes(settings.grid);
    let dtypes = settings.dtypes_of(Operation::RmsNorm);
    for &world_size in &settings.world_sizes {
        // A group of one has no route.
        let forced = settings.routes.iter().copied().map(Some);
        let routes: Vec<Option<Route>> = match world_size {
            1 => vec![None],
            _ => [None].into_iter().chain(forced).collect(),
        };
        let mut turn = world_size as usize;
        for (d, &dtype) in dtypes.iter().enumerate() {
            for (r, &route) in routes.iter().enumerate() {
                for (s, &(hidden, rows)) in sizes.iter().enumerate() {
                    // The smoke grid gives each size one of the types and one of the routes.
                    let types = dtypes.len();
                    if settings.grid == GridKind::Smoke
                        && (s + world_size as usize) % (types * routes.len())
                            != d * routes.len() + r
                    {
                        continue;
                    }
                    turn += 1;
                    let in_place = match route {
                        Some(Route::SymmetricOneShot) => false,
                        Some(Route::SymmetricTwoShot) => true,
                        _ => (turn / 2).is_multiple_of(2),
                    };
                    let output = match in_place {
                        true => NormOutput::ALL[turn % 3],
                        false => NormOutput::Same,
                    };
                    let mut case = NormCase {
                        world_size,
                        dtype,
                        route,
                        hidden,
                        rows,
                        has_residual: turn.is_multiple_of(2),
                        in_place,
                        output,
                        is_captured: (turn / 4).is_multiple_of(2),
                        is_special: turn.is_multiple_of(5),
                        numbers: 0,
                    };
                    let seed = case_seed(settings.seed, &case.to_string());
                    case.numbers = Rng::with_seed(seed).usize(..NUMBERS);
                    cases.push(case);
                }
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_smoke_grid_has_every_hidden_size_and_every_row_count_for_every_world_size() {
        let worlds = [1, 2, 3, 4, 5, 6, 7, 8];
        let settings = Settings::of(DeviceKind::Emulator, GridKind::Smoke, worlds, 1);
        let all = cases(&settings);
        for world_size in worlds {
            let own = || all.iter().filter(|case| case.world_size == world_size);
            let hidden: HashSet<usize> = own().map(|case| case.hidden).collect();
            let rows: HashSet<usize> = own().map(|case| case.rows).collect();
            assert_eq!((hidden.len(), rows.len()), (HIDDEN.len(), ROWS.len()));
        }
    }

    #[test]
    fn the_full_grid_has_every_route_type_and_form_for_every_world_size() {
        let settings = Settings::of(DeviceKind::Cuda, GridKind::Full, [2, 8], 1);
        let all = cases(&settings);
        let kinds: HashSet<_> = all
            .iter()
            .map(|case| (case.world_size, case.dtype, case.route, case.has_residual))
            .collect();
        assert_eq!(kinds.len(), 2 * 3 * (1 + Route::ALL.len()) * 2);
        let outputs: HashSet<_> = all
            .iter()
            .filter(|case| case.in_place)
            .map(|case| (case.world_size, case.dtype, case.route, case.output))
            .collect();
        assert_eq!(outputs.len(), 2 * 3 * Route::ALL.len() * 3);
    }

    #[test]
    fn no_form_has_one_epsilon_offset_or_launch_shape_alone() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let settings = Settings::of(
            DeviceKind::Cuda,
            GridKind::Full,
            [2, 3, 4, 5, 6, 7, 8],
            seed,
        );
        let all = cases(&settings);
        let kinds: HashSet<_> = all
            .iter()
            .map(|case| {
                let numbers = [case.epsilon(), case.weight_offset()].map(f32::to_bits);
                let form = (case.has_residual, case.in_place, case.output);
                (form, case.is_captured, numbers, case.shape() % 4)
            })
            .collect();
        // FP8 is in place.
        assert_eq!(kinds.len(), (2 * 4) * 2 * (3 * 2) * 4);
    }
}
