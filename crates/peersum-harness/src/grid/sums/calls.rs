//! The calls of each round of a configuration, and when each rank makes them.

use std::time::Duration;

use fastrand::Rng;
use peersum::dispatch::Plan;

use super::super::case::{Case, Form, GroupKind, LAYERS, Mode, Room};
use super::super::settings::Settings;
use super::case::{Adversarial, SumCase, Work};
use super::plan::grid;
use crate::call::{RankCall, SumCall, Variant, stride};
use crate::data::Key;
use crate::machine::DeviceKind;
use crate::operation::Operation;

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
fn round_calls(settings: &Settings, case: &SumCase, seed: u64, round: u32) -> Vec<SumCall> {
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
            return vec![SumCall::new(plan(route, shape), elements, variant); LAYERS];
        }
        Work::Adversarial(kind) => kind,
    };
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
            let mut call = SumCall::new(plan(route, shape), elements, variant);
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

/// How long a rank sleeps before a call. `place` is that of the call on this rank.
fn delay(settings: &Settings, case: &SumCase, seed: u64, place: u64) -> Duration {
    let grid = grid(settings.grid);
    let mut rng = delay_rng(seed, place);
    let is_first = place >> 8 == 0;
    match case.work {
        // Half of the calls are not delayed, so that a rank also catches up and runs ahead.
        Work::Adversarial(Adversarial::Delays) if rng.bool() => {
            grid.longest_delay.mul_f64(rng.f64())
        }
        // The ranks meet in set-up, so they must be delayed again before their first call.
        Work::Adversarial(Adversarial::LateStart) if is_first => {
            (grid.longest_late_start / 4).mul_f64(rng.f64())
        }
        _ => Duration::ZERO,
    }
}

fn delay_rng(seed: u64, place: u64) -> Rng {
    Rng::with_seed(seed ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

impl SumCase {
    pub(crate) fn case(self, settings: &Settings) -> Case {
        let (elements, mode) = match self.work {
            Work::Uniform { elements, mode, .. } => (elements, mode),
            Work::Adversarial(_) => (grid(settings.grid).adversarial_elements, Mode::Eager),
        };
        let most_bytes = elements * size_of::<f32>();
        Case {
            name: self.to_string(),
            op: Operation::AllReduce,
            group: self.group(),
            world_size: self.world_size,
            kind: match self.work {
                Work::Adversarial(Adversarial::TwoCommunicators) => GroupKind::SumsOnTwo,
                _ => GroupKind::Sums,
            },
            rounds: self.rounds,
            is_captured: mode == Mode::Graph,
            room: Room {
                region_bytes: LAYERS * stride(most_bytes),
                max_bytes: (most_bytes / 2).max(1024),
                push_half_bytes: None,
            },
            form: Box::new(self),
        }
    }
}

impl Form for SumCase {
    fn calls(&self, settings: &Settings, seed: u64, rank: u32, round: u32) -> Vec<RankCall> {
        let of_rank = |(layer, call): (usize, &SumCall)| {
            let keys = Key::of_call(seed, round, layer as u32, self.world_size);
            let place = u64::from(round) << 32 | (layer as u64) << 8 | u64::from(rank);
            RankCall {
                delay: delay(settings, self, seed, place),
                ..call.of_rank(self.dtype, &keys, rank)
            }
        };
        let calls = round_calls(settings, self, seed, round);
        calls.iter().enumerate().map(of_rank).collect()
    }

    /// One rank sleeps for the maximum time.
    fn late_start(&self, settings: &Settings, seed: u64, rank: u32) -> Duration {
        let longest = grid(settings.grid).longest_late_start;
        match self.work {
            Work::Adversarial(Adversarial::LateStart) => {
                if delay_rng(seed, u64::MAX).u32(..self.world_size) == rank {
                    return longest;
                }
                longest.mul_f64(delay_rng(seed, u64::MAX - u64::from(rank) - 1).f64())
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use peersum::dispatch::Route;

    use super::*;
    use crate::grid::settings::GridKind;
    use crate::grid::sums::plan::cases;

    #[test]
    fn adversarial_rounds_are_the_same_for_all_who_ask_and_differ_from_each_other() {
        let settings = Settings::of(DeviceKind::Emulator, GridKind::Full, [2, 8], 1);
        let all = cases(&settings);
        let mixed = all
            .iter()
            .find(|case| case.work == Work::Adversarial(Adversarial::Mixed))
            .unwrap();
        let text = |round| format!("{:?}", round_calls(&settings, mixed, 1, round));
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
        let routes: HashSet<Route> = (0..16)
            .flat_map(|round| round_calls(&settings, mixed, 1, round))
            .filter_map(|call| call.plan.map(|plan| plan.route))
            .collect();
        assert_eq!(routes.len(), Route::ALL.len());
    }
}
