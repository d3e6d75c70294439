//! The grids: which configurations there are.

use std::time::Duration;

use clap::ValueEnum;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;

use super::super::case::Mode;
use super::super::settings::{GridKind, Settings};
use super::case::{Adversarial, SumCase, Work};
use crate::call::Variant;
use crate::operation::Operation;

/// What a grid is made of.
pub(crate) struct Grid {
    /// The same calls over and over. Elements that are no multiple of a unit come in the second.
    sweeps: [Sweep; 2],
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

/// Every size in every variant.
struct Sweep {
    /// Elements.
    sizes: &'static [usize],
    variants: &'static [Variant],
    rounds: u32,
    /// Whether each runs both eager and in a graph, or alternates between the two.
    in_both_modes: bool,
}

fn smoke() -> Grid {
    Grid {
        sweeps: [
            Sweep {
                sizes: &[16, 1040, 4096],
                variants: &[Variant::Aligned],
                rounds: 3,
                in_both_modes: true,
            },
            Sweep {
                sizes: &[1, 1037],
                variants: &[
                    Variant::Unaligned,
                    Variant::UnalignedInPlace,
                    Variant::SpecialUnaligned,
                ],
                rounds: 2,
                in_both_modes: false,
            },
        ],
        adversarials: Adversarial::value_variants(),
        adversarial_rounds: 3,
        adversarial_for_every_dtype: false,
        adversarial_elements: 2000,
        longest_delay: Duration::from_millis(3),
        longest_late_start: Duration::from_millis(300),
    }
}

fn full() -> Grid {
    Grid {
        sweeps: [
            Sweep {
                sizes: &[
                    16, 32, 512, 1024, 1040, 4096, 32_768, 262_144, 2_097_152, 4_194_304,
                ],
                variants: &[Variant::Aligned],
                rounds: 16,
                in_both_modes: true,
            },
            Sweep {
                sizes: &[1, 7, 1037, 65_537, 300_001],
                variants: Variant::value_variants(),
                rounds: 4,
                in_both_modes: true,
            },
        ],
        adversarials: Adversarial::value_variants(),
        adversarial_rounds: 16,
        adversarial_for_every_dtype: true,
        adversarial_elements: 300_001,
        longest_delay: Duration::from_millis(1),
        longest_late_start: Duration::from_millis(1500),
    }
}

fn sanitizer() -> Grid {
    Grid {
        sweeps: [
            Sweep {
                sizes: &[16, 1040],
                variants: &[Variant::Aligned],
                rounds: 1,
                in_both_modes: true,
            },
            Sweep {
                sizes: &[1037],
                variants: &[Variant::Unaligned, Variant::UnalignedInPlace],
                rounds: 1,
                in_both_modes: false,
            },
        ],
        adversarials: &[Adversarial::Sizes, Adversarial::Mixed, Adversarial::Grids],
        adversarial_rounds: 1,
        adversarial_for_every_dtype: false,
        adversarial_elements: 2000,
        longest_delay: Duration::ZERO,
        longest_late_start: Duration::ZERO,
    }
}

pub(crate) fn grid(kind: GridKind) -> Grid {
    match kind {
        GridKind::Sanitizer => sanitizer(),
        GridKind::Smoke => smoke(),
        GridKind::Full => full(),
    }
}

/// The configurations, in the order in which they run.
pub(crate) fn cases(settings: &Settings) -> Vec<SumCase> {
    let grid = grid(settings.grid);
    let dtypes = settings.dtypes_of(Operation::AllReduce);
    let bf16 = dtypes.iter().find(|dtype| **dtype == Dtype::Bf16);
    let preferred = bf16.or(dtypes.first()).copied();
    let mut cases = Vec::new();
    // A group of one launches nothing.
    for &world_size in settings.world_sizes.iter().filter(|size| **size > 1) {
        let mut push = |dtype, work, rounds| {
            cases.push(SumCase {
                world_size,
                dtype,
                work,
                rounds,
            });
        };
        for &dtype in &dtypes {
            for &route in &settings.routes {
                for sweep in &grid.sweeps {
                    for work in sweep.work(route, world_size) {
                        push(dtype, work, sweep.rounds);
                    }
                }
            }
        }
        for &dtype in &dtypes {
            for &kind in grid.adversarials {
                // Ranks start once, whatever the type.
                if Some(dtype) == preferred
                    || grid.adversarial_for_every_dtype && kind != Adversarial::LateStart
                {
                    push(dtype, Work::Adversarial(kind), grid.adversarial_rounds);
                }
            }
        }
    }
    cases
}

impl Sweep {
    /// The calls of a route.
    fn work(&self, route: Route, world_size: u32) -> Vec<Work> {
        let mut all = Vec::new();
        for &elements in self.sizes {
            let variants = self.variants.iter().filter(|variant| variant.serves(route));
            for (index, &variant) in variants.enumerate() {
                for (turn, mode) in [Mode::Eager, Mode::Graph].into_iter().enumerate() {
                    // Alternating over variants and world sizes, so that each runs in both modes.
                    if self.in_both_modes || (index + world_size as usize) % 2 == turn {
                        all.push(Work::Uniform {
                            route,
                            elements,
                            mode,
                            variant,
                        });
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::machine::DeviceKind;

    /// The rounds of each configuration of a grid, by its name.
    fn rounds(grid: GridKind) -> BTreeMap<String, u32> {
        let world_sizes = [2, 3, 4, 5, 6, 7, 8];
        let cases = cases(&Settings::of(DeviceKind::Emulator, grid, world_sizes, 1));
        let of_case = |case: &SumCase| (case.to_string(), case.rounds);
        cases.iter().map(of_case).collect()
    }

    #[test]
    fn the_full_grid_has_every_size_type_algorithm_mode_and_world_size() {
        let rounds = rounds(GridKind::Full);
        for world_size in 2..=8 {
            for dtype in Dtype::REDUCED {
                for route in Route::ALL.map(Route::name) {
                    for elements in [
                        16, 32, 512, 1024, 1040, 4096, 32768, 262144, 2097152, 4194304,
                    ] {
                        for mode in ["eager", "graph"] {
                            let case = format!("{route}/{elements}/{mode}/aligned");
                            let case = format!("ws{world_size}/{dtype}/{case}");
                            assert_eq!(rounds.get(&case), Some(&16), "{case}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_grid_for_sanitizers_has_every_algorithm_eager_and_in_a_graph() {
        let rounds = rounds(GridKind::Sanitizer);
        for route in Route::ALL.map(Route::name) {
            for mode in ["eager", "graph"] {
                let case = format!("ws2/bf16/{route}/1040/{mode}/aligned");
                assert!(rounds.contains_key(&case), "{case}");
            }
        }
    }
}
