//! The third part of a soak: calls of all operations behind each other, several in each burst.

use anyhow::Result;
use fastrand::Rng;
use peersum::device::Device;
use peersum::dispatch::{Plan, Route};
use peersum::{Communicator, Rendezvous};

use super::part::{Found, Part, Soak};
use crate::calls::{Calls, What};
use crate::collective::Collective;
use crate::data::case_seed;
use crate::grid::settings::{GridKind, Settings};
use crate::machine::{DeviceOf, Machine};
use crate::norm_output::NormOutput;
use crate::ranks::{Peers, run_threads};

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

/// One rank's part of a burst. The last round has data and memory of its own, so no other round
/// can have left what it must.
struct Burst<D: Device> {
    drawn: [Drawn; CALLS],
    /// The calls of all rounds but the last.
    earlier: Vec<Calls<D>>,
    last: Vec<Calls<D>>,
}

/// The seeds of the data in the burst with this seed: for each call that of all rounds but the
/// last, and that of the last. No two calls of a soak have the same.
fn data_seeds(seed: u64) -> [[u64; 2]; CALLS] {
    let of = |call, round| case_seed(seed, &format!("call {call}, {round}"));
    std::array::from_fn(|call| ["earlier", "last"].map(|round| of(call, round)))
}

impl<D: Device> Burst<D> {
    fn new(communicator: &Communicator<D>, settings: &Settings, seed: u64) -> Result<Self> {
        let drawn = draw(settings, communicator.world_size(), seed);
        let (mut earlier, mut last) = (Vec::new(), Vec::new());
        for (drawn, seeds) in drawn.iter().zip(data_seeds(seed)) {
            let [one, other] = seeds
                .map(|seed| Calls::new(communicator, drawn.what, seed, drawn.elements, HIDDEN));
            earlier.push(one?);
            last.push(other?);
        }
        Ok(Burst {
            drawn,
            earlier,
            last,
        })
    }

    /// Makes the calls of one round, without a wait.
    fn call(&self, communicator: &mut Communicator<D>, calls: &[Calls<D>]) -> Result<()> {
        for (call, drawn) in calls.iter().zip(&self.drawn) {
            communicator.force_plan(drawn.plan)?;
            call.call(communicator)?;
        }
        Ok(())
    }

    /// What is wrong with the results of some of its calls.
    fn wrong(&self, calls: &[Calls<D>]) -> Vec<String> {
        let errors = calls.iter().zip(&self.drawn).filter_map(|(call, drawn)| {
            let error = call.ensure_result().err()?;
            Some(format!("{drawn:?}: {error:#}"))
        });
        errors.collect()
    }
}

/// One rank's part of a burst: all calls, some rounds of them, without a wait. Returns how many,
/// and what is wrong.
fn run_burst<D: Device>(
    communicator: &mut Communicator<D>,
    settings: &Settings,
    seed: u64,
    corrupts: bool,
    peers: &Peers<'_>,
) -> Result<Found> {
    let mut burst = Burst::new(communicator, settings, seed)?;
    peers.meet()?;
    for call in &mut burst.last {
        call.corrupt(corrupts);
    }
    let rounds = match settings.grid {
        GridKind::Full => ROUNDS,
        _ => ROUNDS_EMULATED,
    };
    for _ in 1..rounds {
        burst.call(communicator, &burst.earlier)?;
    }
    burst.call(communicator, &burst.last)?;
    communicator.synchronize()?;
    let mut found = Found {
        calls: (rounds * CALLS) as u64,
        ..Found::default()
    };
    for calls in [&burst.earlier, &burst.last] {
        found.add(burst.wrong(calls));
    }
    Ok(found)
}

fn build<M: Machine>(
    machine: &M,
    settings: &Settings,
    rendezvous: Rendezvous,
) -> Result<Communicator<DeviceOf<M>>> {
    let stream = machine.stream(rendezvous.rank())?;
    let builder = settings.builder(rendezvous)?.max_bytes(4 * MOST);
    Ok(builder.build(&stream)?)
}

/// Makes the calls of all bursts of the part.
pub(super) fn run<M: Machine>(machine: &M, soak: &Soak, part: &Part) -> Result<()> {
    let settings = &soak.settings;
    run_threads(soak.world_size, 1, |mut member| {
        let rank = member.peers.rank();
        let mut communicator = build(machine, settings, member.next_group()?)?;
        let corrupts = soak.corrupt && rank == 0;
        part.bursts(rank, |_, seed| {
            run_burst(&mut communicator, settings, seed, corrupts, &member.peers)
        })
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::machine::{DeviceKind, Emulators};

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

    #[test]
    fn no_two_calls_of_a_soak_share_data() {
        let seeds: Vec<u64> = (0..1000).flat_map(data_seeds).flatten().collect();
        let different: HashSet<u64> = seeds.iter().copied().collect();
        assert_eq!(different.len(), seeds.len());
    }

    #[test]
    fn what_the_last_round_must_leave_no_other_round_has_left() {
        let settings = Settings::of(DeviceKind::Emulator, GridKind::Smoke, [2], 1);
        run_threads(2, 1, |mut member| {
            let group = member.next_group()?;
            let mut communicator = build(&Emulators::default(), &settings, group)?;
            let burst = Burst::new(&communicator, &settings, 1)?;
            burst.call(&mut communicator, &burst.earlier)?;
            communicator.synchronize()?;
            assert_eq!(burst.wrong(&burst.earlier), [""; 0]);
            // A broadcast leaves its root what it has.
            let roots = burst.drawn.iter().filter(|drawn| {
                let root = communicator.rank();
                drawn.what == What::Other(Collective::Broadcast { root })
            });
            let wrong = burst.wrong(&burst.last).len();
            assert_eq!(wrong + roots.count(), CALLS);
            burst.call(&mut communicator, &burst.last)?;
            communicator.synchronize()?;
            assert_eq!(burst.wrong(&burst.last), [""; 0]);
            Ok(())
        })
        .unwrap();
    }
}
