//! All-gather, reduce-scatter and broadcast that fail: what each rank is told, what is left in its
//! arrays, and that later calls are refused.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use peersum::dispatch::Route;
use peersum::{Failure, Operation, reference};
use peersum_artifact::{Algorithm, Family};
use peersum_emulator::EmulatorBuffer;

use crate::collectives::{Moved, View, assert_words, moved_input, moved_inputs, slices};
use crate::failures::{DEADLINE, SLACK, assert_poisoned, good_call, short_lived};
use crate::stage::{
    Comm, Content, TestElement, assert_all_nan, assert_bits, failure, input, on_ranks, plan,
    settings,
};

const LEN: usize = 500;
const SEED: u64 = 9;

/// What a call leaves in this rank's arrays when it fails, to be looked at then.
type Check = Box<dyn FnOnce()>;

/// Launches an operation with arrays of some type.
type Launch = fn(&mut Comm, Operation) -> Check;

/// Ones in all bits, or for a part what would have arrived.
#[track_caller]
fn assert_lost<T: Moved>(found: &[T], expected: &[T]) {
    let ones = T::from_word(u64::MAX).word();
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let found = found.word();
        assert!(
            found == ones || found == expected.word(),
            "element {index} is {found:#x}"
        );
    }
    // The first unit needs every rank, also in a broadcast.
    let first = &found[..16 / size_of::<T>()];
    assert!(first.iter().all(|element| element.word() == ones));
}

fn gather<T: Moved>(comm: &mut Comm, _: Operation) -> Check {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let own = moved_input::<T>(SEED, rank, LEN);
    let input = View::new(rank as usize % 3, &own);
    let blank = vec![T::from_word(1); LEN * world_size as usize];
    let mut output = View::new(rank as usize % 2, &blank);
    let (from, to) = (input.buffer.slice(input.range()), output.range());
    comm.all_gather(&from, &mut output.buffer.slice_mut(to))
        .unwrap();
    Box::new(move || {
        // Every unit needs every rank.
        let ones = vec![T::from_word(u64::MAX); blank.len()];
        assert_words(&output.take(&"output"), &ones, &rank);
        assert_words(&input.take(&"input"), &own, &rank);
    })
}

fn scatter<T: TestElement>(comm: &mut Comm, _: Operation) -> Check {
    let (rank, world_size) = (comm.rank() as usize, comm.world_size() as usize);
    let own = input::<T>(SEED, comm.rank(), LEN * world_size, Content::Ordinary);
    let whole = EmulatorBuffer::from_slice(&own);
    let mut output = EmulatorBuffer::<T>::zeroed(LEN);
    let mut in_place = EmulatorBuffer::from_slice(&own);
    comm.reduce_scatter(&whole, &mut output).unwrap();
    // Lost as well, whether or not the first has failed by now.
    let _ = comm.reduce_scatter_in_place(&mut in_place.slice_mut(..));
    Box::new(move || {
        assert_all_nan(&output.to_vec());
        assert_bits(&whole.to_vec(), &own, &"input");
        let kept = in_place.to_vec();
        let chunk = rank * LEN..(rank + 1) * LEN;
        let untouched = kept[chunk.start].raw() == own[chunk.start].raw();
        if !untouched {
            assert_all_nan(&kept[chunk.clone()]);
        }
        assert_bits(&kept[..chunk.start], &own[..chunk.start], &"in front");
        assert_bits(&kept[chunk.end..], &own[chunk.end..], &"behind");
    })
}

fn broadcast<T: Moved>(comm: &mut Comm, operation: Operation) -> Check {
    let Operation::Broadcast { root } = operation else {
        unreachable!("{operation}");
    };
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let own = moved_input::<T>(SEED, rank, LEN);
    let mut buffer = View::new(rank as usize % 3, &own);
    let range = buffer.range();
    comm.broadcast(&mut buffer.buffer.slice_mut(range), root)
        .unwrap();
    Box::new(move || {
        let found = buffer.take(&"buffer");
        if rank == root {
            assert_words(&found, &own, &"the root");
        } else {
            let sent = moved_inputs::<T>(SEED, world_size, LEN);
            assert_lost(&found, &reference::broadcast(&slices(&sent), root as usize));
        }
    })
}

/// Each operation with a type of its own. `roots` are the roots of broadcasts.
fn launches(roots: &[u32]) -> Vec<(Operation, Launch)> {
    let broadcasts: [Launch; 3] = [broadcast::<u64>, broadcast::<i8>, broadcast::<f16>];
    let mut all: Vec<(Operation, Launch)> = vec![
        (Operation::AllGather, gather::<u8>),
        (Operation::AllGather, gather::<bf16>),
        (Operation::ReduceScatter, scatter::<f32>),
        (Operation::ReduceScatter, scatter::<bf16>),
    ];
    all.extend(
        roots
            .iter()
            .zip(broadcasts)
            .map(|(&root, launch)| (Operation::Broadcast { root }, launch)),
    );
    all
}

/// Every later call gives the same reason and moves no data.
#[track_caller]
fn assert_refused(comm: &mut Comm, reason: &Failure) {
    assert_poisoned(comm, reason);
    let world_size = comm.world_size() as usize;
    let part = EmulatorBuffer::from_slice(&[1f32; 8]);
    let mut whole = EmulatorBuffer::from_slice(&vec![1f32; 8 * world_size]);
    assert_eq!(&failure(comm.all_gather(&part, &mut whole)), reason);
    assert_eq!(&failure(comm.reduce_scatter_in_place(&mut whole)), reason);
    for root in 0..comm.world_size() {
        assert_eq!(&failure(comm.broadcast(&mut whole, root)), reason);
    }
    assert_eq!(&failure(comm.synchronize()), reason);
    assert_eq!(whole.to_vec(), vec![1f32; 8 * world_size]);
}

/// Whether it is what `rank` must be told when `absent` never calls.
#[track_caller]
fn assert_names_absent(
    reason: &Failure,
    operation: Operation,
    (rank, world_size, absent): (u32, u32, u32),
) {
    match *reason {
        Failure::PeerTimeout {
            rank: own,
            peer,
            algorithm,
            epoch,
            block,
            waited,
            ..
        } => {
            assert_eq!((own, peer), (rank, absent));
            let kernel = match operation {
                Operation::AllGather => (Family::Move, Algorithm::AllGather),
                Operation::Broadcast { .. } => (Family::Move, Algorithm::Broadcast),
                _ => (Family::Push, Algorithm::ReduceScatter),
            };
            assert_eq!((algorithm.family, algorithm.algorithm), kernel);
            // One good push call came before.
            assert_eq!(epoch, 1);
            assert!(block < 2, "{block}");
            assert!(
                waited >= DEADLINE && waited < DEADLINE + SLACK,
                "{waited:?}"
            );
        }
        // Another rank's deadline was a little earlier.
        Failure::PeerFailed {
            origin, waited_for, ..
        } => {
            assert!(world_size > 2 && origin != absent && origin != rank);
            assert!(waited_for.is_none_or(|peer| peer == absent), "{reason}");
        }
        ref other => panic!("{other}"),
    }
}

#[test]
fn a_rank_that_never_calls_is_named_by_every_other_rank_the_root_included() {
    // Of the smaller group all; of the larger one broadcasts from the absent rank and from others.
    let pair = launches(&[0, 1]);
    let four = launches(&[2, 0, 3]);
    let cases = [(2, 1, &pair[..]), (4, 2, &four[1..])];
    for (world_size, absent, launches) in cases {
        for &(operation, launch) in launches {
            let done = Barrier::new(world_size as usize);
            on_ranks(world_size, short_lived, |comm| {
                good_call(comm);
                comm.force_plan(plan(Route::PushOneShot, 2, 8)).unwrap();
                done.wait();
                let rank = comm.rank();
                if rank == absent {
                    done.wait();
                    let told = failure(comm.synchronize());
                    assert!(matches!(told, Failure::PeerFailed { .. }), "{told}");
                    assert_refused(comm, &told);
                    return;
                }
                let began = Instant::now();
                let check = launch(comm, operation);
                let reason = failure(comm.synchronize());
                let took = began.elapsed();
                done.wait();
                println!("{operation}, rank {rank} of {world_size} after {took:?}: {reason}");
                assert_names_absent(&reason, operation, (rank, world_size, absent));
                assert!(took < DEADLINE + SLACK, "{took:?}");
                check();
                assert_refused(comm, &reason);
            });
        }
    }
}

#[test]
fn calls_launched_behind_one_that_fails_are_lost_too() {
    on_ranks(2, short_lived, |comm| {
        if comm.rank() == 1 {
            return;
        }
        comm.force_plan(plan(Route::PushTwoShot, 2, 8)).unwrap();
        // Before the first has failed.
        let mut checks = vec![broadcast::<u8>(comm, Operation::Broadcast { root: 0 })];
        checks.extend(
            launches(&[0, 1])
                .into_iter()
                .map(|(it, launch)| launch(comm, it)),
        );
        let reason = failure(comm.synchronize());
        assert!(matches!(reason, Failure::PeerTimeout { peer: 1, .. }));
        checks.into_iter().for_each(|check| check());
    });
}

#[test]
fn an_abort_ends_the_wait_of_each_operation_and_the_peers_are_told() {
    for (operation, launch) in launches(&[2, 0, 1]) {
        let waiting = Barrier::new(3);
        on_ranks(3, settings, |comm| {
            comm.force_plan(plan(Route::PushOneShot, 1, 8)).unwrap();
            let rank = comm.rank();
            if rank == 2 {
                waiting.wait();
                // Never calls; learns of it all the same.
                let began = Instant::now();
                while comm.synchronize().is_ok() && began.elapsed() < SLACK * 5 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let told = failure(comm.synchronize());
                assert!(
                    matches!(told, Failure::PeerFailed { origin: 0, .. }),
                    "{told}"
                );
                return;
            }
            let check = launch(comm, operation);
            let handle = comm.abort_handle();
            waiting.wait();
            let began = Instant::now();
            if rank == 0 {
                std::thread::spawn(move || handle.abort());
            }
            let reason = failure(comm.synchronize());
            // The timeout is a minute: only the abort can end it.
            assert!(began.elapsed() < SLACK, "{operation}");
            match reason {
                Failure::Aborted { rank: 0, .. } => assert_eq!(rank, 0),
                Failure::PeerFailed { origin: 0, .. } => assert_eq!(rank, 1),
                ref other => panic!("rank {rank} in {operation}: {other}"),
            }
            check();
            assert_refused(comm, &reason);
        });
    }
}
