//! Negative controls: each protocol broken on purpose is caught, so that the other tests are known
//! to be able to fail.
#![cfg(feature = "broken-kernels")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::time::{Duration, Instant};

use peersum::dispatch::{Plan, Route};
use peersum::reference::{self, NormNumbers, ReferenceElement};
use peersum::{Communicator, Element, Rendezvous, RmsNorm};
use peersum_artifact::{Algorithm, Family};
use peersum_emulator::{Break, EmulatorBuffer, EmulatorDevice, EmulatorOptions};
use rig::{Call, Setup, World, random_inputs, seeded};

/// The types that broken modules are compiled for.
macro_rules! for_each_dtype_of_controls {
    ($T:ident => $body:expr) => {{
        {
            type $T = half::bf16;
            $body;
        }
        {
            type $T = f32;
            $body;
        }
    }};
}

/// How long a call waits for a peer. A protocol that does not count its calls ends in timeouts
/// alone, for which a test need not wait; others must not end in one because the machine is busy.
fn timeout(broken: Option<Break>) -> Duration {
    match broken {
        Some(Break::EpochNotAdvanced) => Duration::from_millis(200),
        _ => Duration::from_secs(2),
    }
}

/// Far more than any of them takes to be caught.
const PATIENCE: Duration = Duration::from_secs(60);

/// Many times as long as most of them take to be caught.
const SOUND_SEARCH: Duration = Duration::from_secs(1);

/// Repeats calls until one gives other bits or ends in a failure; says what was seen.
fn caught<T: Element>(
    broken: Option<Break>,
    world_size: u32,
    call: Call,
    patience: Duration,
) -> Option<String> {
    let mut generator = seeded();
    let mut options = EmulatorOptions::default();
    options.broken = broken;
    let setup = Setup {
        timeout: timeout(broken),
        options,
        ..Setup::default()
    };
    let began = Instant::now();
    while began.elapsed() < patience {
        let world = World::new(world_size, &setup);
        for _ in 0..20 {
            let started: Vec<_> = (0..4)
                .map(|_| {
                    let inputs = random_inputs::<T>(&mut generator, world.size(), 2000);
                    let arrays = world.start(&call, &inputs);
                    (inputs, arrays)
                })
                .collect();
            world.synchronize();
            for (inputs, arrays) in &started {
                for (rank, arrays) in arrays.iter().enumerate() {
                    if let Err(found) = world.check(rank, inputs, arrays) {
                        return Some(found);
                    }
                }
            }
        }
    }
    None
}

fn assert_caught(broken: Break, call: Call, world_sizes: &[u32]) {
    for &world_size in world_sizes {
        for_each_dtype_of_controls!(T => {
            let began = Instant::now();
            let found = caught::<T>(Some(broken), world_size, call, PATIENCE);
            let took = began.elapsed();
            println!("{broken:?} in a group of {world_size}, after {took:?}: {found:?}");
            assert!(found.is_some(), "{broken:?} in a group of {world_size} went unseen");
        });
    }
}

fn call(family: Family, algorithm: Algorithm) -> Call {
    Call::new(family, algorithm, 2, 16)
}

#[test]
fn slots_that_are_not_emptied_again_are_caught() {
    assert_caught(
        Break::NoRearm,
        call(Family::Push, Algorithm::OneShot),
        &[2, 3],
    );
    assert_caught(
        Break::NoRearm,
        call(Family::Push, Algorithm::TwoShot),
        &[2, 3],
    );
}

#[test]
fn a_missing_second_barrier_is_caught() {
    assert_caught(
        Break::NoClosingBarrier,
        call(Family::Pull, Algorithm::TwoShot),
        &[2, 3],
    );
}

#[test]
fn a_symmetric_buffer_that_is_overwritten_while_a_peer_reads_it_is_caught() {
    let symmetric = Call {
        symmetric: true,
        ..call(Family::Pull, Algorithm::OneShot)
    };
    assert_caught(Break::NoClosingBarrier, symmetric, &[2, 3]);
}

#[test]
fn a_lane_that_is_not_looked_at_is_caught() {
    assert_caught(
        Break::LaneUnchecked,
        call(Family::Push, Algorithm::OneShot),
        &[2, 3],
    );
}

#[test]
fn calls_that_are_not_counted_are_caught() {
    assert_caught(
        Break::EpochNotAdvanced,
        call(Family::Pull, Algorithm::OneShot),
        &[2, 3],
    );
    // A place for each thread, or nearly: a thread that has many sees from the last that its peers
    // have long taken the first, and no slot is written early however few are counted.
    assert_caught(
        Break::EpochNotAdvanced,
        Call::new(Family::Push, Algorithm::OneShot, 2, 128),
        &[2, 3],
    );
}

#[test]
fn a_missing_opening_barrier_is_caught() {
    assert_caught(
        Break::NoOpeningBarrier,
        call(Family::Pull, Algorithm::OneShot),
        &[2, 3],
    );
}

#[test]
fn a_sum_in_reversed_rank_order_is_caught() {
    // Two terms commute.
    assert_caught(
        Break::RankOrderReversed,
        call(Family::Push, Algorithm::OneShot),
        &[3],
    );
    assert_caught(
        Break::RankOrderReversed,
        call(Family::Pull, Algorithm::TwoShot),
        &[3],
    );
}

/// Calls with RMSNorm that a search makes with one communicator.
const NORM_CALLS: usize = 8;
/// One to four units a thread: what the fused kernel has in registers, and what it has not.
const HIDDEN: usize = 128;
/// Several rows for each of two blocks.
const ROWS: usize = 5;

/// Makes calls with RMSNorm until one gives other bits or ends in a failure; says what was seen.
fn norm_caught<T: Element>(
    broken: Option<Break>,
    world_size: u32,
    route: Route,
    patience: Duration,
) -> Option<String> {
    let began = Instant::now();
    let mut generator = seeded();
    while began.elapsed() < patience {
        // A NaN would hide all else in its row.
        let mut array = |len| {
            let element = |_| <T as ReferenceElement>::round(generator.f32() * 8.0 - 4.0);
            (0..len).map(element).collect::<Vec<T>>()
        };
        let calls: Vec<NormInputs<T>> = (0..NORM_CALLS)
            .map(|_| NormInputs {
                inputs: (0..world_size).map(|_| array(HIDDEN * ROWS)).collect(),
                residual: array(HIDDEN * ROWS),
                weight: array(HIDDEN),
            })
            .collect();
        let calls = &calls;
        let found = std::thread::scope(|scope| {
            let ranks: Vec<_> = Rendezvous::threads(world_size)
                .into_iter()
                .map(|rendezvous| scope.spawn(move || norm_rank(broken, route, rendezvous, calls)))
                .collect();
            let found = ranks.into_iter().map(|rank| rank.join().unwrap());
            found.collect::<Vec<_>>().into_iter().flatten().next()
        });
        if found.is_some() {
            return found;
        }
    }
    None
}

/// What one call reads on all ranks.
struct NormInputs<T> {
    inputs: Vec<Vec<T>>,
    residual: Vec<T>,
    weight: Vec<T>,
}

/// All calls of one rank. Returns what was wrong first.
fn norm_rank<T: Element>(
    broken: Option<Break>,
    route: Route,
    rendezvous: Rendezvous,
    calls: &[NormInputs<T>],
) -> Option<String> {
    let mut options = EmulatorOptions::default();
    options.broken = broken;
    let rank = rendezvous.rank();
    let stream = EmulatorDevice::with_options(rank, &options)
        .stream()
        .unwrap();
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .max_blocks(2)
        .max_bytes(64 << 10)
        .timeout(timeout(broken))
        .build(&stream)
        .unwrap();
    let numbers = NormNumbers {
        epsilon: 1e-6,
        weight_offset: 1.0,
    };
    let mut found = None;
    for (number, call) in calls.iter().enumerate() {
        // A block of another size from call to call.
        let plan = Plan {
            route,
            blocks: 2,
            threads: [8, 16][number % 2],
        };
        communicator.force_plan(Some(plan)).unwrap();
        let weight = EmulatorBuffer::from_slice(&call.weight);
        let norm = RmsNorm {
            weight: &weight,
            epsilon: numbers.epsilon,
            weight_offset: numbers.weight_offset,
        };
        let mut residual = EmulatorBuffer::from_slice(&call.residual);
        let mut buffer = EmulatorBuffer::from_slice(&call.inputs[rank as usize]);
        let called = communicator
            .all_reduce_add_rms_norm_in_place(&mut buffer, &mut residual, &norm)
            .and_then(|()| communicator.synchronize());
        if let Err(error) = called {
            return found.or(Some(error.to_string()));
        }
        let inputs: Vec<&[T]> = call.inputs.iter().map(Vec::as_slice).collect();
        let kept = reference::add_residual(&reference::all_reduce(&inputs), &call.residual);
        let expected = reference::rms_norm(&kept, &call.weight, numbers);
        let wrong = (buffer.to_vec().iter().zip(&expected))
            .position(|(found, expected)| found.raw() != expected.raw());
        if let Some(index) = wrong {
            // The peers go on, and wait for this rank.
            found.get_or_insert(format!("call {number}, element {index}"));
        }
    }
    found
}

fn assert_norm_caught<T: Element>(broken: Break, route: Route) {
    for world_size in [2, 3] {
        let found = norm_caught::<T>(Some(broken), world_size, route, PATIENCE);
        let context = format!("{broken:?} by {route:?} in a group of {world_size}");
        println!("{context}: {found:?}");
        assert!(found.is_some(), "{context}");
    }
}

/// In one kernel, and behind another family's.
const NORM_ROUTES: [Route; 2] = [Route::PushOneShot, Route::PullTwoShot];

#[test]
fn a_missing_barrier_of_a_row_is_caught() {
    for route in NORM_ROUTES {
        for_each_dtype_of_controls!(T => assert_norm_caught::<T>(Break::NoRowBarrier, route));
    }
}

#[test]
fn a_sum_of_squares_that_depends_on_the_block_is_caught() {
    // Few results of 16 bits show the last bit of the sum.
    for route in NORM_ROUTES {
        assert_norm_caught::<f32>(Break::TreeOfBlock, route);
    }
}

#[test]
fn a_weight_that_is_loaded_before_the_wait_for_the_kernel_before_is_caught() {
    for route in NORM_ROUTES {
        for_each_dtype_of_controls!(T => assert_norm_caught::<T>(Break::WeightBeforeWait, route));
    }
}

#[test]
fn what_breaks_a_push_breaks_a_push_that_normalises() {
    for broken in [Break::NoRearm, Break::EpochNotAdvanced] {
        for_each_dtype_of_controls!(T => assert_norm_caught::<T>(broken, Route::PushOneShot));
    }
}

#[test]
fn the_same_search_finds_nothing_in_whole_protocols() {
    for algorithm in [Algorithm::OneShot, Algorithm::TwoShot] {
        for family in [Family::Push, Family::Pull] {
            assert_eq!(
                caught::<f32>(None, 3, call(family, algorithm), SOUND_SEARCH),
                None
            );
        }
    }
    for route in NORM_ROUTES {
        assert_eq!(norm_caught::<f32>(None, 3, route, SOUND_SEARCH), None);
    }
}
