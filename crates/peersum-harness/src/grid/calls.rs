//! The calls of each round of a configuration, and when each rank makes them.

use std::time::Duration;

use fastrand::Rng;
use peersum::dispatch::{Plan, Route};

use super::case::{Adversarial, Case, Variant, Work};
use super::plan::grid;
use super::settings::Settings;
use super::slot::Slot;
use crate::data::{Content, case_seed};
use crate::machine::DeviceKind;
use crate::memory::GUARD_BYTES;

/// Calls of a round, back to back.
pub(crate) const LAYERS: usize = 4;

/// Views begin fewer than this many elements behind an aligned address.
const OFFSETS: usize = 8;

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

/// How much an array has and whether it begins at an aligned address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) elements: usize,
    pub(crate) unaligned: bool,
}

impl Extent {
    /// How many elements behind an aligned address `rank`'s array begins.
    fn offset(self, place: Place, rank: u32, layer: usize) -> usize {
        match (self.unaligned, place) {
            (false, _) => 0,
            // All ranks use the same part of a symmetric buffer.
            (true, Place::Symmetric) => (layer * 2 + 1) % OFFSETS,
            (true, Place::Input) => (rank as usize * 3 + layer + 1) % OFFSETS,
            (true, Place::Output) => (rank as usize * 5 + layer * 3 + 2) % OFFSETS,
        }
    }

    /// The slot of `rank`'s array, which begins at `base`.
    pub(crate) fn slot(
        self,
        base: u64,
        place: Place,
        rank: u32,
        layer: usize,
        element_bytes: usize,
    ) -> Slot {
        let start = GUARD_BYTES + self.offset(place, rank, layer) * element_bytes;
        let bytes = self.elements * element_bytes;
        Slot {
            base,
            start,
            bytes,
            // A multiple of 4, since the GPU compares whole words.
            guarded_bytes: (start + bytes + GUARD_BYTES).next_multiple_of(4),
        }
    }
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
    pub(crate) fn new(route: Route, plan: Plan, elements: usize, variant: Variant) -> Call {
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

    fn extent(&self) -> Extent {
        Extent {
            elements: self.elements,
            unaligned: self.unaligned,
        }
    }

    /// The slot of `rank`'s array, which begins at `base`.
    pub(crate) fn slot(
        &self,
        base: u64,
        place: Place,
        rank: u32,
        layer: usize,
        element_bytes: usize,
    ) -> Slot {
        self.extent().slot(base, place, rank, layer, element_bytes)
    }
}

/// Bytes from slot to slot for arrays of at most `elements` elements.
pub(crate) fn stride(elements: usize, element_bytes: usize) -> usize {
    (2 * GUARD_BYTES + (OFFSETS + elements) * element_bytes).next_multiple_of(256)
}

/// The launch shape of a call that does not test shapes.
fn plain_shape(device: DeviceKind, elements: usize) -> (u32, u32) {
    match device {
        DeviceKind::Emulator => (2, 8),
        DeviceKind::Cuda if elements <= 65_536 => (16, 256),
        // The communicator limits this to the share of the GPU.
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

/// A random size; all orders of magnitude are equally likely.
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
        // Half of the calls are not delayed, so that a rank also catches up and runs ahead.
        Work::Adversarial(Adversarial::Delays) if rng.bool() => {
            grid.longest_delay.mul_f64(rng.f64())
        }
        // The ranks meet in set-up, so they must be delayed again before their first call.
        Work::Adversarial(Adversarial::LateStart) if round == 0 && layer == 0 => {
            (grid.longest_late_start / 4).mul_f64(rng.f64())
        }
        _ => Duration::ZERO,
    }
}

/// How long `rank` sleeps before it joins a group whose ranks start late. One rank sleeps for the
/// maximum time.
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
    use std::collections::HashSet;

    use super::*;
    use crate::grid::plan::cases;
    use crate::grid::settings::GridKind;

    #[test]
    fn adversarial_rounds_are_the_same_for_all_who_ask_and_differ_from_each_other() {
        let settings = Settings::of(DeviceKind::Emulator, GridKind::Full, [2, 8], 1);
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
            let offsets: HashSet<usize> = (0..8)
                .map(|rank| call.extent().offset(place, rank, 0))
                .collect();
            assert_eq!(offsets.len(), OFFSETS);
        }
    }
}
