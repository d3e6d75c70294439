//! No wait is unbounded: who is missing, who disagrees and who gave up is on record on every rank,
//! and what was not reduced is NaN.

mod rig;

use std::sync::atomic::Ordering;
use std::time::Duration;

use half::{bf16, f16};
use peersum_artifact::{Algorithm, Family};
use peersum_kernels::abi::{
    PEERSUM_CAUSE_ABORT, PEERSUM_CAUSE_DISAGREEMENT, PEERSUM_CAUSE_POISON, PEERSUM_CAUSE_TIMEOUT,
    PEERSUM_HEADER_BYTES_BITS, PEERSUM_HEADER_DTYPE_SHIFT, PEERSUM_HEADER_FAMILY_SHIFT,
};
use rig::{Call, Setup, World, kinds, random_inputs, seeded, timed};

/// Far beyond any deadline of these tests, and far below a hang.
const HANG: Duration = Duration::from_secs(30);

fn setup(timeout: Duration) -> Setup {
    Setup {
        timeout,
        ..Setup::default()
    }
}

#[test]
fn a_rank_that_never_calls_is_named_by_the_others_and_their_outputs_are_nan() {
    let mut generator = seeded();
    for world_size in [2, 3, 5] {
        // At once: they wait for their deadlines and do little else.
        std::thread::scope(|scope| {
            for kind in kinds() {
                if world_size == 5 && kind.algorithm == Algorithm::OneShot {
                    continue;
                }
                let generator = generator.fork();
                scope.spawn(move || assert_absent_is_named(world_size, &kind, generator));
            }
        });
    }
}

fn assert_absent_is_named(world_size: u32, kind: &Call, mut generator: fastrand::Rng) {
    // Between two ranks there is nobody else to name. Among more, one that a busy machine holds up
    // must not be missed in the absent one's stead.
    let deadline = Duration::from_millis(if world_size == 2 { 100 } else { 1000 });
    let world = World::new(world_size, &setup(deadline));
    let absent = generator.usize(..world.size());
    let inputs = random_inputs::<bf16>(&mut generator, world.size(), 500);
    let present = (0..world.size()).filter(|&rank| rank != absent);
    let started: Vec<_> = present
        .map(|rank| {
            let arrays = world.arrays(kind, rank, &inputs[rank]);
            world.launch(kind, rank, &arrays);
            (rank, arrays)
        })
        .collect();
    let took = timed(|| world.synchronize());
    assert!(took < HANG, "{kind:?} took {took:?}");
    let mut timed_out = 0;
    for (rank, arrays) in &started {
        let failure = world
            .failure(*rank)
            .unwrap_or_else(|| panic!("rank {rank} has no record: {kind:?}"));
        assert_eq!(failure.rank as usize, *rank);
        if failure.cause == PEERSUM_CAUSE_TIMEOUT {
            timed_out += 1;
            assert_eq!(failure.peer as usize, absent, "{kind:?}: {failure:?}");
            assert_eq!(failure.origin as usize, *rank, "{kind:?}: {failure:?}");
            assert!(u128::from(failure.waited_ns) > deadline.as_nanos());
        } else {
            assert_eq!(failure.cause, PEERSUM_CAUSE_POISON, "{kind:?}: {failure:?}");
            assert!(![absent, *rank].contains(&(failure.origin as usize)));
            // Its own wait was for the same rank, unless it was told before it began to
            // wait.
            assert!(
                [absent, *rank].contains(&(failure.peer as usize)),
                "{kind:?}: {failure:?}"
            );
        }
        arrays.assert_all_nan();
    }
    assert!(timed_out > 0, "{kind:?}");

    // The absent rank was poisoned, and finds out by calling.
    let arrays = world.arrays(kind, absent, &inputs[absent]);
    world.launch(kind, absent, &arrays);
    world.synchronize();
    let failure = world
        .failure(absent)
        .unwrap_or_else(|| panic!("the late rank has no record: {kind:?}"));
    assert_eq!(failure.cause, PEERSUM_CAUSE_POISON);
    assert_ne!(failure.origin as usize, absent);
    assert_eq!(failure.peer as usize, absent, "it waited for nobody");
    arrays.assert_all_nan();
}

#[test]
fn a_poisoned_rank_gives_nan_at_once_whatever_it_calls_next() {
    let mut generator = seeded();
    let world = World::new(3, &setup(Duration::from_millis(50)));
    let inputs = random_inputs::<f32>(&mut generator, 3, 100);
    let first = Call::new(Family::Push, Algorithm::OneShot, 2, 8);
    for (rank, input) in inputs.iter().enumerate().take(2) {
        let arrays = world.arrays(&first, rank, input);
        world.launch(&first, rank, &arrays);
        world.synchronize();
    }
    for kind in kinds() {
        for misaligned in [false, true] {
            let call = Call { misaligned, ..kind };
            let arrays = world.start(&call, &inputs);
            let took = timed(|| world.synchronize());
            assert!(took < HANG, "{took:?}");
            arrays.iter().for_each(rig::Arrays::assert_all_nan);
        }
    }
}

#[test]
fn the_abort_word_ends_a_wait_long_before_its_deadline() {
    let mut generator = seeded();
    for kind in kinds() {
        let world = World::new(3, &setup(Duration::from_secs(600)));
        let inputs = random_inputs::<f16>(&mut generator, 3, 300);
        let arrays = [1, 2].map(|rank| {
            let arrays = world.arrays(&kind, rank, &inputs[rank]);
            world.launch(&kind, rank, &arrays);
            arrays
        });
        world.ranks[1]
            .status
            .abort_word()
            .store(1, Ordering::Release);
        let took = timed(|| world.synchronize());
        assert!(took < HANG, "{took:?}");
        assert_eq!(
            world.failure(1).expect("rank 1 was aborted").cause,
            PEERSUM_CAUSE_ABORT
        );
        let relayed = world.failure(2).expect("rank 2 was poisoned");
        assert_eq!((relayed.cause, relayed.origin), (PEERSUM_CAUSE_POISON, 1));
        arrays.iter().for_each(rig::Arrays::assert_all_nan);
    }
}

/// After a call that disagreed and one more that agreed: every rank has a record, and one at least
/// has both headers.
fn assert_disagreement(world: &World, what: &str) {
    let failures: Vec<_> = (0..world.size())
        .map(|rank| {
            world
                .failure(rank)
                .unwrap_or_else(|| panic!("{what}: rank {rank} has no record"))
        })
        .collect();
    let found = failures
        .iter()
        .find(|failure| failure.cause == PEERSUM_CAUSE_DISAGREEMENT);
    let found =
        found.unwrap_or_else(|| panic!("{what}: nobody saw the disagreement: {failures:?}"));
    assert_ne!(found.own_header, found.peer_header, "{what}");
    assert_eq!(
        found.own_header >> 48,
        found.peer_header >> 48,
        "{what}: headers of the same call"
    );
    for failure in &failures {
        assert!(
            [PEERSUM_CAUSE_DISAGREEMENT, PEERSUM_CAUSE_POISON].contains(&failure.cause),
            "{what}: {failure:?}"
        );
    }
}

/// Two calls that differ, each with its number of elements, and in what they differ.
fn differing_calls() -> [(&'static str, Call, usize, Call, usize); 8] {
    let call = |family, algorithm| Call::new(family, algorithm, 2, 8);
    let one_shot = call(Family::Push, Algorithm::OneShot);
    [
        ("size, push one-shot", one_shot, 400, one_shot, 800),
        (
            "size, push two-shot",
            call(Family::Push, Algorithm::TwoShot),
            400,
            call(Family::Push, Algorithm::TwoShot),
            416,
        ),
        (
            "size, pull one-shot",
            call(Family::Pull, Algorithm::OneShot),
            400,
            call(Family::Pull, Algorithm::OneShot),
            401,
        ),
        (
            "size, pull two-shot",
            call(Family::Pull, Algorithm::TwoShot),
            400,
            call(Family::Pull, Algorithm::TwoShot),
            800,
        ),
        (
            "algorithm, push",
            one_shot,
            400,
            call(Family::Push, Algorithm::TwoShot),
            400,
        ),
        (
            "algorithm, pull",
            call(Family::Pull, Algorithm::OneShot),
            400,
            call(Family::Pull, Algorithm::TwoShot),
            400,
        ),
        (
            "family",
            one_shot,
            400,
            call(Family::Pull, Algorithm::OneShot),
            400,
        ),
        (
            "source",
            call(Family::Pull, Algorithm::OneShot),
            400,
            Call {
                symmetric: true,
                ..call(Family::Pull, Algorithm::OneShot)
            },
            400,
        ),
    ]
}

#[test]
fn ranks_that_disagree_in_size_algorithm_or_family_learn_what_the_other_called() {
    let mut generator = seeded();
    let timeout = Duration::from_secs(20);
    let one_shot = Call::new(Family::Push, Algorithm::OneShot, 2, 8);
    let cases = differing_calls();
    for world_size in [2, 3] {
        for (what, usual, usual_len, odd, odd_len) in cases {
            let world = World::new(world_size, &setup(timeout));
            let mut kept = Vec::new();
            for rank in 0..world.size() {
                let (call, len) = if rank == 1 {
                    (odd, odd_len)
                } else {
                    (usual, usual_len)
                };
                let arrays = world.arrays(
                    &call,
                    rank,
                    &random_inputs::<bf16>(&mut generator, 1, len)[0],
                );
                world.launch(&call, rank, &arrays);
                kept.push(arrays);
            }
            let inputs = random_inputs::<bf16>(&mut generator, world.size(), 64);
            let second = world.start(&one_shot, &inputs);
            let took = timed(|| world.synchronize());
            assert!(
                took < timeout,
                "{what}: ended by its deadline only: {took:?}"
            );
            assert_disagreement(&world, what);
            let failure = world.failure(1).expect("checked above");
            if failure.cause == PEERSUM_CAUSE_DISAGREEMENT && failure.own_header >> 48 == 1 {
                assert_eq!(
                    failure.own_header & ((1 << PEERSUM_HEADER_BYTES_BITS) - 1),
                    2 * odd_len as u64,
                    "{what}"
                );
                assert_eq!(
                    failure.peer_header & ((1 << PEERSUM_HEADER_BYTES_BITS) - 1),
                    2 * usual_len as u64,
                    "{what}"
                );
                assert_eq!(
                    failure.peer_header >> PEERSUM_HEADER_FAMILY_SHIFT & 1,
                    u64::from(usual.family == Family::Pull),
                    "{what}"
                );
            }
            drop((kept, second));
        }
    }
}

#[test]
fn a_disagreement_in_type_that_moves_the_same_bytes_is_seen_by_the_next_call() {
    let mut generator = seeded();
    for kind in kinds() {
        let world = World::new(2, &setup(Duration::from_secs(20)));
        let halves = world.arrays(&kind, 0, &random_inputs::<f16>(&mut generator, 1, 200)[0]);
        let brains = world.arrays(&kind, 1, &random_inputs::<bf16>(&mut generator, 1, 200)[0]);
        world.launch(&kind, 0, &halves);
        world.launch(&kind, 1, &brains);
        let inputs = random_inputs::<f32>(&mut generator, 2, 50);
        let second = world.start(&Call::new(Family::Push, Algorithm::OneShot, 1, 8), &inputs);
        world.synchronize();
        assert_disagreement(&world, "dtype");
        let failure = (0..2)
            .filter_map(|rank| world.failure(rank))
            .find(|failure| failure.cause == PEERSUM_CAUSE_DISAGREEMENT);
        let failure = failure.expect("checked above");
        assert_eq!(
            (failure.own_header ^ failure.peer_header) >> PEERSUM_HEADER_DTYPE_SHIFT,
            1,
            "only the type differs: {failure:?}"
        );
        // Units of the second call that were reduced before the disagreement was seen are right;
        // the third call reduces nothing.
        let third = world.start(&kind, &inputs);
        world.synchronize();
        third.iter().for_each(rig::Arrays::assert_all_nan);
        drop(second);
    }
}
