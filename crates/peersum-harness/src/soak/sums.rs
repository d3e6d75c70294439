//! The first part of a soak: all-reduces.

use anyhow::Result;
use fastrand::Rng;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;

use super::part::{Part, Soak};
use crate::call::Variant;
use crate::grid::case::Mode;
use crate::grid::settings::{GridKind, Settings};
use crate::grid::sums::{Adversarial, SumCase, Work};
use crate::machine::Machine;

/// Rounds of a burst of small calls: as many as the check on the GPU has room for. Other bursts
/// have fewer rounds and take as long.
const ROUNDS: u32 = 64;
const FEW_ROUNDS: u32 = 4;
/// Small calls are those up to here, in elements.
const SMALL: usize = 4096;
/// The most elements of a call.
const MOST: usize = 300_001;
/// The same on the emulator, which is a thousand times slower.
const MOST_EMULATED: usize = 2000;

/// Makes the calls of all bursts of the part.
pub(super) fn run<M: Machine>(machine: &M, soak: &Soak, part: &Part) -> Result<()> {
    // Only for its size: no burst has larger calls.
    let largest = SumCase {
        world_size: soak.world_size,
        dtype: Dtype::F32,
        work: Work::Adversarial(Adversarial::Mixed),
        rounds: 1,
    };
    let draw = |settings: &_, world_size| draw(settings, world_size).case(settings);
    part.run_cases(machine, soak, &largest.case(&soak.settings), draw)
}

/// The calls of the burst whose seed the settings hold. Each is a function of its seed, so that all
/// ranks make the same calls.
fn draw(settings: &Settings, world_size: u32) -> SumCase {
    let mut rng = Rng::with_seed(settings.seed);
    let emulated = settings.grid != GridKind::Full;
    let most = if emulated { MOST_EMULATED } else { MOST };
    let rounds = |small: bool| {
        if small && !emulated {
            ROUNDS
        } else {
            FEW_ROUNDS
        }
    };
    let dtype = Dtype::REDUCED[rng.usize(..Dtype::REDUCED.len())];
    let adversarial = |kind, rounds| SumCase {
        world_size,
        dtype,
        work: Work::Adversarial(kind),
        rounds,
    };
    match rng.u32(..32) {
        0 => return adversarial(Adversarial::Delays, FEW_ROUNDS),
        1 => return adversarial(Adversarial::Sizes, FEW_ROUNDS),
        2 | 3 => return adversarial(Adversarial::Grids, rounds(true)),
        4 | 5 => return adversarial(Adversarial::Mixed, FEW_ROUNDS),
        _ => {}
    }
    let route = Route::ALL[rng.usize(..Route::ALL.len())];
    let variant = Variant::any(route, &mut rng);
    let bound = if rng.u32(..8) == 0 {
        most
    } else {
        SMALL.min(most)
    };
    // All orders of magnitude are equally likely.
    let digits = rng.u32(0..=bound.ilog2());
    let elements = rng.usize(1..=2 << digits).min(bound);
    let mode = if rng.bool() { Mode::Eager } else { Mode::Graph };
    SumCase {
        world_size,
        dtype,
        work: Work::Uniform {
            route,
            elements,
            mode,
            variant,
        },
        rounds: rounds(elements <= SMALL),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::grid::case::LAYERS;
    use crate::grid::device_check::PLACES;
    use crate::machine::DeviceKind;

    #[test]
    fn bursts_have_every_route_mode_variant_and_type_and_small_calls_dominate() {
        let settings = |seed| Settings::of(DeviceKind::Cuda, GridKind::Full, [2], seed);
        let (mut uniform, mut kinds, mut small, mut calls) = (HashSet::new(), HashSet::new(), 0, 0);
        for seed in 0..4000 {
            let case = draw(&settings(seed), 2);
            assert_eq!(case, draw(&settings(seed), 2));
            // An input and an output of each call.
            assert!(case.rounds as usize * LAYERS * 2 <= PLACES);
            match case.work {
                Work::Adversarial(kind) => {
                    kinds.insert(kind);
                }
                Work::Uniform {
                    route,
                    elements,
                    mode,
                    variant,
                } => {
                    assert!((1..=MOST).contains(&elements));
                    uniform.insert((route, mode, variant, case.dtype));
                    calls += case.rounds;
                    small += if elements <= SMALL { case.rounds } else { 0 };
                }
            }
        }
        // Ordinary routes know six variants, symmetric ones four.
        assert_eq!(uniform.len(), (4 * 6 + 2 * 4) * 2 * 3);
        assert_eq!(kinds.len(), 4);
        assert!(small * 10 > calls * 9, "{small} of {calls}");
    }
}
