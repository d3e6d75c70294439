//! The grids: which configurations there are.

use std::time::Duration;

use peersum_artifact::Dtype;

use super::case::{Adversarial, Case, Mode, Variant, Work};
use super::settings::{GridKind, Settings};
use crate::machine::DeviceKind;

/// What a grid is made of.
pub(crate) struct Grid {
    /// Elements, each aligned, eager and in a graph.
    sizes: &'static [usize],
    rounds: u32,
    /// Elements that are no multiple of a unit, in every variant.
    odd_sizes: &'static [usize],
    odd_variants: &'static [Variant],
    odd_rounds: u32,
    /// Whether each odd configuration runs both eager and in a graph, or alternates between the
    /// two.
    odd_in_both_modes: bool,
    adversarials: &'static [Adversarial],
    adversarial_rounds: u32,
    /// Whether adversarial cases run for every type, or for one of two bytes.
    adversarial_for_every_dtype: bool,
    /// The largest call of an adversarial case, in elements.
    pub(crate) adversarial_elements: usize,
    /// The longest pause before a call.
    pub(crate) longest_delay: Duration,
    /// How far apart ranks start at most.
    pub(crate) longest_late_start: Duration,
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

pub(crate) fn grid(kind: GridKind) -> &'static Grid {
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
    for &world_size in &settings.world_sizes {
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
                    // Alternating over variants and world sizes, so that each runs in both modes.
                    if both || (index + world_size as usize) % 2 == turn {
                        push(route, elements, mode, variant, grid.odd_rounds);
                    }
                }
            }
        }
    }
}

/// What the grids do not contain although a reader might expect it, with the reason.
pub(crate) fn left_out(settings: &Settings) -> Vec<&'static str> {
    let mut left_out = Vec::new();
    if settings.device == DeviceKind::Cuda {
        left_out.push(
            "delays injected per block: the kernels have no switch for it; the emulator delays \
             blocks, here ranks are delayed",
        );
    }
    if settings.grid == GridKind::Sanitizer {
        left_out.push(
            "sizes above 2000 elements, more than one round, launches above 8 blocks, delays, \
             two communicators: --grid smoke and --grid full have them",
        );
    }
    if settings.grid == GridKind::Smoke {
        left_out.push(
            "sizes above 4096 elements, more than 3 rounds, ranks that start seconds apart: \
             --grid full has them",
        );
    }
    left_out
}

/// The largest array of any of the cases, in elements.
pub(crate) fn largest_elements(settings: &Settings, cases: &[&Case]) -> usize {
    let elements = |case: &&Case| match case.work {
        Work::Uniform { elements, .. } => elements,
        Work::Adversarial(_) => grid(settings.grid).adversarial_elements,
    };
    cases.iter().map(elements).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use peersum::dispatch::Route;

    use super::*;
    use std::collections::HashSet;

    fn settings(grid: GridKind) -> Settings {
        Settings::of(DeviceKind::Emulator, grid, [2, 3, 4, 5, 6, 7, 8], 1)
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
}
