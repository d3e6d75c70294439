//! The grids: which configurations there are, and what the calls of each round are.

use std::time::Duration;

use fastrand::Rng;
use peersum::dispatch::{Plan, Route};
use peersum_artifact::Dtype;

use super::case::{Adversarial, Case, Mode, Variant, Work};
use super::settings::{GridKind, Settings};
use crate::data::{Content, case_seed};
use crate::machine::DeviceKind;

/// Calls of a round, back to back.
pub(crate) const LAYERS: usize = 4;

/// A view begins at most so many elements behind an aligned address, less one.
pub(crate) const OFFSETS: usize = 8;

/// What a grid is made of.
struct Grid {
    /// Elements, each aligned, eager and in a graph.
    sizes: &'static [usize],
    rounds: u32,
    /// Elements that are no multiple of a unit, in every variant.
    odd_sizes: &'static [usize],
    odd_variants: &'static [Variant],
    odd_rounds: u32,
    /// Whether each odd configuration is eager and in a graph, or one of the two in turn.
    odd_in_both_modes: bool,
    adversarials: &'static [Adversarial],
    adversarial_rounds: u32,
    /// Whether adversarial cases run for every type, or for one of two bytes.
    adversarial_for_every_dtype: bool,
    /// The largest call of an adversarial case, in elements.
    adversarial_elements: usize,
    /// The longest pause before a call.
    longest_delay: Duration,
    /// How far apart ranks start at most.
    longest_late_start: Duration,
}

const SMOKE: Grid = Grid {
    sizes: &[16, 1040, 4096],
    rounds: 3,
    odd_sizes: &[1, 1037],
    odd_variants: &[
        Variant::Unaligned,
        Variant::UnalignedInPlace,
        Variant::SpecialUnaligned,
    ],
    odd_rounds: 2,
    odd_in_both_modes: false,
    adversarials: &Adversarial::ALL,
    adversarial_rounds: 3,
    adversarial_for_every_dtype: false,
    adversarial_elements: 2000,
    longest_delay: Duration::from_millis(3),
    longest_late_start: Duration::from_millis(300),
};

const FULL: Grid = Grid {
    sizes: &[
        16, 32, 512, 1024, 1040, 4096, 32_768, 262_144, 2_097_152, 4_194_304,
    ],
    rounds: 16,
    odd_sizes: &[1, 7, 1037, 65_537, 300_001],
    odd_variants: &Variant::ALL,
    odd_rounds: 4,
    odd_in_both_modes: true,
    adversarials: &Adversarial::ALL,
    adversarial_rounds: 16,
    adversarial_for_every_dtype: true,
    adversarial_elements: 300_001,
    longest_delay: Duration::from_millis(1),
    longest_late_start: Duration::from_millis(1500),
};

const SANITIZER: Grid = Grid {
    sizes: &[16, 1040],
    rounds: 1,
    odd_sizes: &[1037],
    odd_variants: &[Variant::Unaligned, Variant::UnalignedInPlace],
    odd_rounds: 1,
    odd_in_both_modes: false,
    adversarials: &[Adversarial::Sizes, Adversarial::Mixed, Adversarial::Grids],
    adversarial_rounds: 1,
    adversarial_for_every_dtype: false,
    adversarial_elements: 2000,
    longest_delay: Duration::ZERO,
    longest_late_start: Duration::ZERO,
};

fn grid(kind: GridKind) -> &'static Grid {
    match kind {
        GridKind::Sanitizer => &SANITIZER,
        GridKind::Smoke => &SMOKE,
        GridKind::Full => &FULL,
    }
}

/// The configurations that the settings select, in the order in which they run.
pub(crate) fn cases(settings: &Settings) -> Vec<Case> {
    let grid = grid(settings.grid);
    let bf16 = settings.dtypes.iter().find(|dtype| **dtype == Dtype::Bf16);
    let preferred = bf16.or(settings.dtypes.first()).copied();
    let mut cases = Vec::new();
    for &world_size in settings.world_sizes.iter().filter(|size| **size > 1) {
        for &dtype in &settings.dtypes {
            uniform_cases(grid, settings, world_size, dtype, &mut cases);
        }
        for &dtype in &settings.dtypes {
            // Ranks start once, whatever the type.
            let runs = |kind: &Adversarial| {
                Some(dtype) == preferred
                    || (grid.adversarial_for_every_dtype && *kind != Adversarial::LateStart)
            };
            let kinds = grid.adversarials.iter().copied().filter(runs);
            cases.extend(kinds.map(|kind| Case {
                world_size,
                dtype,
                work: Work::Adversarial(kind),
                rounds: grid.adversarial_rounds,
            }));
        }
    }
    if let Some(filter) = &settings.filter {
        cases.retain(|case| filter.selects(&case.to_string()));
    }
    cases
}

fn uniform_cases(
    grid: &Grid,
    settings: &Settings,
    world_size: u32,
    dtype: Dtype,
    cases: &mut Vec<Case>,
) {
    let mut push = |route, elements, mode, variant, rounds| {
        cases.push(Case {
            world_size,
            dtype,
            work: Work::Uniform {
                route,
                elements,
                mode,
                variant,
            },
            rounds,
        });
    };
    for &route in &settings.routes {
        for &elements in grid.sizes {
            for mode in [Mode::Eager, Mode::Graph] {
                push(route, elements, mode, Variant::Aligned, grid.rounds);
            }
        }
        for &elements in grid.odd_sizes {
            let variants = grid
                .odd_variants
                .iter()
                .filter(|variant| variant.serves(route));
            for (index, &variant) in variants.enumerate() {
                let both = grid.odd_in_both_modes;
                for (turn, mode) in [Mode::Eager, Mode::Graph].into_iter().enumerate() {
                    // In turn over variants and world sizes, so that each comes to both.
                    if both || (index + world_size as usize) % 2 == turn {
                        push(route, elements, mode, variant, grid.odd_rounds);
                    }
                }
            }
        }
    }
}

/// What the grids leave out of what a reader might expect, with the reason.
pub(crate) fn left_out(settings: &Settings) -> Vec<(String, String)> {
    let mut left_out = Vec::new();
    if settings.device == DeviceKind::Cuda {
        left_out.push((
            "delays injected per block".to_owned(),
            "the kernels have no switch for it; the emulator holds blocks back, here ranks are"
                .to_owned(),
        ));
    }
    if settings.grid == GridKind::Sanitizer {
        left_out.push((
            "sizes above 2000 elements, more than one round, launches above 8 blocks, delays, two communicators".to_owned(),
            "the grid for sanitizers; --grid smoke and --grid full have them".to_owned(),
        ));
    }
    if settings.grid == GridKind::Smoke {
        left_out.push((
            "sizes above 4096 elements, more than 3 rounds, ranks that start seconds apart"
                .to_owned(),
            "the smoke grid; --grid full has them".to_owned(),
        ));
    }
    if settings.world_sizes.contains(&1) {
        left_out.push((
            "world size 1".to_owned(),
            "a group of one launches nothing".to_owned(),
        ));
    }
    left_out
}

/// The largest array of any of the cases, in elements.
pub(crate) fn largest_elements(settings: &Settings, cases: &[&Case]) -> usize {
    let adversarial = grid(settings.grid).adversarial_elements;
    cases
        .iter()
        .map(|case| case.largest_elements(adversarial))
        .max()
        .unwrap_or(1)
}

/// Where an array of a call lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Memory that is only read.
    Input,
    /// Memory that is written.
    Output,
    /// The symmetric buffer.
    Symmetric,
}

/// One call of a round. Equal on all ranks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Which communicator makes it.
    pub(crate) lane: usize,
    /// `None`: as the dispatch table says.
    pub(crate) plan: Option<Plan>,
    pub(crate) elements: usize,
    pub(crate) source: Place,
    pub(crate) target: Place,
    pub(crate) unaligned: bool,
    pub(crate) content: Content,
}

impl Call {
    fn new(route: Route, plan: Plan, elements: usize, variant: Variant) -> Call {
        let (source, target) = match route {
            Route::SymmetricOneShot => (Place::Symmetric, Place::Output),
            Route::SymmetricTwoShot => (Place::Symmetric, Place::Symmetric),
            _ if variant.is_in_place() => (Place::Output, Place::Output),
            _ => (Place::Input, Place::Output),
        };
        Call {
            lane: 0,
            plan: Some(plan),
            elements,
            source,
            target,
            unaligned: variant.is_unaligned(),
            content: if variant.is_special() {
                Content::Special
            } else {
                Content::Ordinary
            },
        }
    }
}

/// How many elements behind an aligned address `rank`'s array of a call begins.
pub(crate) fn offset(call: &Call, place: Place, rank: u32, layer: usize) -> usize {
    match (call.unaligned, place) {
        (false, _) => 0,
        // All ranks use the same part of a symmetric buffer.
        (true, Place::Symmetric) => (layer * 2 + 1) % OFFSETS,
        (true, Place::Input) => (rank as usize * 3 + layer + 1) % OFFSETS,
        (true, Place::Output) => (rank as usize * 5 + layer * 3 + 2) % OFFSETS,
    }
}

/// Grid and block of a call whose shape does not matter.
fn plain_shape(device: DeviceKind, elements: usize) -> (u32, u32) {
    match device {
        DeviceKind::Emulator => (2, 8),
        DeviceKind::Cuda if elements <= 65_536 => (16, 256),
        // Cut to the ranks' share of the card.
        DeviceKind::Cuda => (132, 512),
    }
}

fn any_shape(device: DeviceKind, rng: &mut Rng) -> (u32, u32) {
    match device {
        DeviceKind::Emulator => (rng.u32(1..=3), [8, 12][rng.usize(..2)]),
        DeviceKind::Cuda => (
            [1, 2, 3, 5, 8, 13, 16, 33, 66][rng.usize(..9)],
            [32, 64, 96, 128, 256, 512][rng.usize(..6)],
        ),
    }
}

/// The calls of one round, and of every round for a uniform case.
pub(crate) fn round_calls(settings: &Settings, case: &Case, round: u32) -> Vec<Call> {
    let plan = |route, (blocks, threads)| Plan {
        route,
        blocks,
        threads,
    };
    let kind = match case.work {
        Work::Uniform {
            route,
            elements,
            variant,
            ..
        } => {
            let shape = plain_shape(settings.device, elements);
            return vec![Call::new(route, plan(route, shape), elements, variant); LAYERS];
        }
        Work::Adversarial(kind) => kind,
    };
    let seed = case_seed(settings.seed, &case.to_string());
    let mut rng = Rng::with_seed(seed.wrapping_add(u64::from(round)));
    let most = grid(settings.grid).adversarial_elements;
    (0..LAYERS)
        .map(|layer| {
            let elements = match kind {
                Adversarial::Sizes | Adversarial::Mixed | Adversarial::TwoCommunicators => {
                    any_size(&mut rng, most)
                }
                _ => 1037.min(most),
            };
            let route = settings.routes[rng.usize(..settings.routes.len())];
            let variant = Variant::any(route, &mut rng);
            let shape = match kind {
                Adversarial::Grids | Adversarial::Mixed => any_shape(settings.device, &mut rng),
                _ => plain_shape(settings.device, elements),
            };
            let mut call = Call::new(route, plan(route, shape), elements, variant);
            match kind {
                Adversarial::Sizes => call.plan = None,
                Adversarial::TwoCommunicators => call.lane = layer % 2,
                _ => {}
            }
            call
        })
        .collect()
}

/// Few elements as likely as many.
fn any_size(rng: &mut Rng, most: usize) -> usize {
    let bits = rng.u32(0..=most.ilog2());
    rng.usize(1..=(2 << bits)).min(most)
}

/// How long `rank` sleeps before a call.
pub(crate) fn delay(
    settings: &Settings,
    case: &Case,
    round: u32,
    layer: usize,
    rank: u32,
) -> Duration {
    let grid = grid(settings.grid);
    let mut rng = delay_rng(
        settings,
        case,
        u64::from(round) << 32 | (layer as u64) << 8 | u64::from(rank),
    );
    match case.work {
        // Every second call is not delayed, so that a rank also catches up and runs ahead.
        Work::Adversarial(Adversarial::Delays) if rng.bool() => {
            grid.longest_delay.mul_f64(rng.f64())
        }
        // The ranks meet in set-up; from there they come to their first call at different times.
        Work::Adversarial(Adversarial::LateStart) if round == 0 && layer == 0 => {
            (grid.longest_late_start / 4).mul_f64(rng.f64())
        }
        _ => Duration::ZERO,
    }
}

/// How long `rank` sleeps before it joins a group whose ranks start late. One rank sleeps as long as any may.
pub(crate) fn late_start(settings: &Settings, case: &Case, rank: u32) -> Duration {
    let longest = grid(settings.grid).longest_late_start;
    if delay_rng(settings, case, u64::MAX).u32(..case.world_size) == rank {
        return longest;
    }
    longest.mul_f64(delay_rng(settings, case, u64::MAX - u64::from(rank) - 1).f64())
}

fn delay_rng(settings: &Settings, case: &Case, place: u64) -> Rng {
    let seed = case_seed(settings.seed, &case.to_string());
    Rng::with_seed(seed ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn settings(grid: GridKind) -> Settings {
        Settings::of(DeviceKind::Emulator, grid, (2..=8).collect(), 1)
    }

    #[test]
    fn the_full_grid_has_every_size_type_algorithm_mode_and_world_size() {
        let cases: HashSet<Case> = cases(&settings(GridKind::Full)).into_iter().collect();
        for world_size in 2..=8 {
            for &dtype in Dtype::ALL {
                for route in Route::ALL {
                    for elements in [
                        16, 32, 512, 1024, 1040, 4096, 32768, 262144, 2097152, 4194304,
                    ] {
                        for mode in [Mode::Eager, Mode::Graph] {
                            let case = Case {
                                world_size,
                                dtype,
                                work: Work::Uniform {
                                    route,
                                    elements,
                                    mode,
                                    variant: Variant::Aligned,
                                },
                                rounds: 16,
                            };
                            assert!(cases.contains(&case), "{case}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_grid_for_sanitizers_has_every_algorithm_eager_and_in_a_graph() {
        let cases = cases(&settings(GridKind::Sanitizer));
        for route in Route::ALL {
            for mode in [Mode::Eager, Mode::Graph] {
                let has = cases.iter().any(|case| match case.work {
                    Work::Uniform {
                        route: its_route,
                        mode: its_mode,
                        ..
                    } => (its_route, its_mode) == (route, mode),
                    Work::Adversarial(_) => false,
                });
                assert!(has, "{route:?} {mode:?}");
            }
        }
    }

    #[test]
    fn every_configuration_has_a_name_of_its_own() {
        for grid in [GridKind::Smoke, GridKind::Full, GridKind::Sanitizer] {
            let cases = cases(&settings(grid));
            let names: HashSet<String> = cases.iter().map(Case::to_string).collect();
            assert_eq!(names.len(), cases.len());
        }
    }

    #[test]
    fn adversarial_rounds_are_the_same_for_all_who_ask_and_differ_from_each_other() {
        let settings = settings(GridKind::Full);
        let all = cases(&settings);
        let mixed = all
            .iter()
            .find(|case| case.work == Work::Adversarial(Adversarial::Mixed))
            .unwrap();
        let text = |round| format!("{:?}", round_calls(&settings, mixed, round));
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
        let routes: HashSet<Route> = (0..16)
            .flat_map(|round| round_calls(&settings, mixed, round))
            .filter_map(|call| call.plan.map(|plan| plan.route))
            .collect();
        assert_eq!(routes.len(), Route::ALL.len());
    }

    #[test]
    fn unaligned_views_begin_at_another_element_on_different_ranks() {
        let plan = Plan {
            route: Route::PushOneShot,
            blocks: 1,
            threads: 8,
        };
        let call = Call::new(Route::PushOneShot, plan, 1037, Variant::Unaligned);
        for place in [Place::Input, Place::Output] {
            let offsets: HashSet<usize> =
                (0..8).map(|rank| offset(&call, place, rank, 0)).collect();
            assert_eq!(offsets.len(), OFFSETS);
        }
    }
}
