//! The second part of a soak: calls with RMSNorm, one in each burst.

use anyhow::Result;
use fastrand::Rng;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;

use super::part::{Part, Soak};
use crate::grid::norms::{NUMBERS, NormCase};
use crate::grid::settings::{GridKind, Settings};
use crate::machine::Machine;
use crate::norm_output::NormOutput;

/// The lengths of rows, in elements of 16 bits: one unit to the longest.
const HIDDEN: [usize; 9] = [8, 64, 200, 1024, 2880, 4096, 8192, 12288, 32768];
/// The most elements of a call.
const MOST: usize = 300_000;
/// The same on the emulator, which is a thousand times slower.
const MOST_EMULATED: usize = 9000;

/// Makes the calls of all bursts of the part.
pub(super) fn run<M: Machine>(machine: &M, soak: &Soak, part: &Part) -> Result<()> {
    let largest = NormCase {
        hidden: HIDDEN[0],
        rows: most(&soak.settings) / HIDDEN[0],
        ..draw(&soak.settings, soak.world_size)
    };
    let draw = |settings: &_, world_size| draw(settings, world_size).case();
    part.run_cases(machine, soak, &largest.case(), draw)
}

fn most(settings: &Settings) -> usize {
    match settings.grid {
        GridKind::Full => MOST,
        _ => MOST_EMULATED,
    }
}

/// The call of the burst whose seed the settings hold.
fn draw(settings: &Settings, world_size: u32) -> NormCase {
    let mut rng = Rng::with_seed(settings.seed);
    let hidden: Vec<usize> = HIDDEN
        .into_iter()
        .filter(|&hidden| hidden <= most(settings))
        .collect();
    let hidden = hidden[rng.usize(..hidden.len())];
    // All orders of magnitude are equally likely.
    let digits = rng.u32(0..=(most(settings) / hidden).ilog2());
    let route = rng.choice(Route::ALL).filter(|_| rng.u8(..4) != 0);
    let in_place = match route {
        Some(Route::SymmetricOneShot) => false,
        Some(Route::SymmetricTwoShot) => true,
        _ => rng.bool(),
    };
    let output = NormOutput::ALL[rng.usize(..3)];
    NormCase {
        world_size,
        dtype: Dtype::REDUCED[rng.usize(..Dtype::REDUCED.len())],
        route,
        hidden,
        rows: rng.usize(1..=1 << digits),
        has_residual: rng.bool(),
        in_place,
        output: if in_place { output } else { NormOutput::Same },
        is_captured: rng.bool(),
        is_special: rng.u8(..4) == 0,
        numbers: rng.usize(..NUMBERS),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::machine::DeviceKind;

    #[test]
    fn bursts_have_every_route_type_and_form_and_no_call_is_larger_than_its_arrays() {
        let mut settings = Settings::of(DeviceKind::Cuda, GridKind::Full, [2], 1);
        let mut seen = HashSet::new();
        for seed in 0..4000 {
            settings.seed = seed;
            let case = draw(&settings, 2);
            assert_eq!(case, draw(&settings, 2));
            assert!(case.rows * case.hidden <= MOST);
            seen.insert((case.dtype, case.route, case.has_residual, case.output));
        }
        // Symmetric one-shot calls work not in place, and make no FP8.
        assert_eq!(seen.len(), 3 * (Route::ALL.len() * 3 + 1) * 2);
    }
}
