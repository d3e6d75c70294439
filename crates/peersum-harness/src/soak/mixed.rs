//! The third part of a soak: calls of all operations behind each other, several in each burst.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use fastrand::Rng;
use peersum::Communicator;
use peersum::device::Device;
use peersum::dispatch::{Plan, Route};
use peersum::loader::LoadPolicy;

use super::found::Found;
use super::turns::Turns;
use crate::calls::{Calls, What};
use crate::collective::Collective;
use crate::grid::settings::{GridKind, Settings};
use crate::machine::Machine;
use crate::norm_output::NormOutput;
use crate::ranks::run_threads;

/// Different calls of a burst.
const CALLS: usize = 6;
/// The most elements of one: the data of a rank, or its chunk.
const MOST: usize = 100_000;
/// The same on the emulator.
const MOST_EMULATED: usize = 2000;
/// How often the calls of a burst are made before their results are compared.
const ROUNDS: usize = 8;
const ROUNDS_EMULATED: usize = 2;
/// The length of rows.
const HIDDEN: usize = 64;

/// One call of a burst.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Drawn {
    what: What,
    elements: usize,
    plan: Option<Plan>,
}

/// The calls of the burst with this seed.
fn draw(settings: &Settings, world_size: u32, seed: u64) -> [Drawn; CALLS] {
    let mut rng = Rng::with_seed(seed);
    let is_emulated = settings.grid != GridKind::Full;
    let most: usize = if is_emulated { MOST_EMULATED } else { MOST };
    std::array::from_fn(|_| {
        let what = match rng.u8(..6) {
            0 => What::AllReduce,
            // FP8 has its own part of the soak: such a call sums what it has written.
            1 => What::Norm(NormOutput::Same),
            _ => What::Other(Collective::any(&mut rng, world_size)),
        };
        // All orders of magnitude are equally likely.
        let digits = rng.u32(..most.ilog2());
        let elements = rng.usize(1..=2 << digits);
        let (blocks, threads) = match is_emulated {
            true => (rng.u32(1..=3), [8, 12][rng.usize(..2)]),
            false => (rng.u32(1..=33), 32 * rng.u32(1..=16)),
        };
        let routes = [
            Route::PushOneShot,
            Route::PushTwoShot,
            Route::PullOneShot,
            Route::PullTwoShot,
        ];
        let plan = Plan {
            route: routes[rng.usize(..4)],
            blocks,
            threads,
        };
        Drawn {
            what,
            elements: match what {
                What::Norm(_) => elements.next_multiple_of(HIDDEN),
                _ => elements,
            },
            plan: Some(plan).filter(|_| rng.u8(..4) != 0),
        }
    })
}

/// One rank's part of a burst: all calls, some rounds of them, without a wait. Returns how many,
/// and what is wrong.
fn run_burst<D: Device>(
    communicator: &mut Communicator<D>,
    settings: &Settings,
    seed: u64,
    corrupts: bool,
) -> Result<Found> {
    let drawn = draw(settings, communicator.world_size(), seed);
    let mut calls = Vec::new();
    for (seed, drawn) in (seed..).zip(&drawn) {
        let mut call = Calls::new(communicator, drawn.what, seed, drawn.elements, HIDDEN)?;
        call.corrupt(corrupts);
        calls.push(call);
    }
    let rounds = match settings.grid {
        GridKind::Full => ROUNDS,
        _ => ROUNDS_EMULATED,
    };
    for _ in 0..rounds {
        for (call, drawn) in calls.iter().zip(&drawn) {
            communicator.force_plan(drawn.plan)?;
            call.call(communicator)?;
        }
    }
    communicator.synchronize()?;
    let wrong = calls.iter().zip(&drawn).filter_map(|(call, drawn)| {
        let error = call.ensure_result().err()?;
        Some(format!("seed {seed}, {drawn:?}: {error:#}"))
    });
    Ok(Found {
        calls: (rounds * CALLS) as u64,
        wrong: wrong.collect(),
    })
}

/// Calls in all bursts of `turns`. Returns how many, and the mismatches. With `corrupt` rank 0 has
/// some.
pub(super) fn run<M: Machine>(
    machine: &M,
    settings: &Settings,
    world_size: u32,
    turns: &Turns,
    corrupt: bool,
) -> Result<Found> {
    let found = Mutex::new(Found::default());
    run_threads(world_size, 1, |mut member| {
        let rank = member.peers.rank();
        let stream = machine.stream(rank)?;
        let (push_epoch, pull_epoch) = settings.start_epochs;
        let mut communicator = Communicator::builder()
            .rendezvous(member.next_group()?)
            .load_policy(LoadPolicy::from_env()?)
            .max_bytes(4 * MOST)
            .start_epochs(push_epoch, pull_epoch)
            .timeout(settings.timeout)
            .build(&stream)?;
        for burst in (0..).take_while(|burst| turns.enter(*burst)) {
            let seed = settings.seed.wrapping_add(burst as u64);
            let outcome = run_burst(&mut communicator, settings, seed, corrupt && rank == 0);
            let of_burst = outcome.with_context(|| format!("seed {seed}"))?;
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.calls += if rank == 0 { of_burst.calls } else { 0 };
            found.wrong.extend(of_burst.wrong);
        }
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::machine::DeviceKind;

    #[test]
    fn bursts_have_every_operation_by_every_plan() {
        let settings = Settings::of(DeviceKind::Cuda, GridKind::Full, [3], 1);
        let mut seen = HashSet::new();
        for seed in 0..1000 {
            let burst = draw(&settings, 3, seed);
            assert_eq!(burst, draw(&settings, 3, seed));
            for call in burst {
                assert!(call.elements <= 2 * MOST);
                seen.insert((call.what.to_string(), call.plan.map(|plan| plan.route)));
            }
        }
        // All-reduces with RMSNorm and without; two operations, and broadcasts from three roots.
        assert_eq!(seen.len(), (2 + 2 + 3) * 5);
    }
}
