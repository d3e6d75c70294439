//! Negative controls: each protocol broken on purpose is caught, so that the other tests are known
//! to be able to fail.
#![cfg(feature = "broken-kernels")]

mod rig;

use std::time::{Duration, Instant};

use peersum::Element;
use peersum_artifact::{Algorithm, Family};
use peersum_emulator::{Break, EmulatorOptions};
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

/// Far more than any of them takes to be caught.
const PATIENCE: Duration = Duration::from_secs(60);

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
        timeout: Duration::from_secs(2),
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

#[test]
fn the_same_search_finds_nothing_in_whole_protocols() {
    for algorithm in [Algorithm::OneShot, Algorithm::TwoShot] {
        for family in [Family::Push, Family::Pull] {
            assert_eq!(
                caught::<f32>(None, 3, call(family, algorithm), Duration::from_secs(2)),
                None
            );
        }
    }
}
