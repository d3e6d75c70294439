//! What each rank is told when a call fails, and what is left afterwards.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use half::bf16;
use peersum::dispatch::Route;
use peersum::{Failure, Held};
use peersum_artifact::{Algorithm, Family};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{
    Comm, Content, assert_all_nan, assert_bits, build, expected, failure, input, on_ranks, plan,
    settings,
};

const LEN: usize = 500;
pub(crate) const DEADLINE: Duration = Duration::from_millis(500);
/// What a busy machine may add to a deadline. (What a quiet one adds is a figure that
/// `peersum-harness faults` and `kill` give.)
pub(crate) const SLACK: Duration = Duration::from_secs(10);

const STAGED: [Route; 4] = [
    Route::PushOneShot,
    Route::PushTwoShot,
    Route::PullOneShot,
    Route::PullTwoShot,
];

pub(crate) fn short_lived() -> peersum::CommunicatorBuilder {
    settings().timeout(DEADLINE)
}

/// One call that is good on all ranks, so that a failure is not the first thing to happen.
pub(crate) fn good_call(comm: &mut Comm) {
    let mut buffer =
        EmulatorBuffer::from_slice(&input::<f32>(3, comm.rank(), LEN, Content::Ordinary));
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    let expected = expected::<f32>(3, comm.world_size(), LEN, Content::Ordinary);
    assert_bits(&buffer.to_vec(), &expected, &"a good call");
}

/// Every later call gives the same reason and moves no data.
#[track_caller]
pub(crate) fn assert_poisoned(comm: &mut Comm, reason: &Failure) {
    let mut buffer = EmulatorBuffer::<f32>::from_slice(&[1.0; 8]);
    for _ in 0..2 {
        assert_eq!(&failure(comm.all_reduce_in_place(&mut buffer)), reason);
        assert_eq!(&failure(comm.synchronize()), reason);
        assert_eq!(&failure(comm.status()), reason);
        assert_eq!(&failure(comm.symmetric_alloc::<f32>(8).map(drop)), reason);
        assert_eq!(&failure(comm.capture_begin()), reason);
    }
    assert_eq!(buffer.to_vec(), [1.0; 8]);
}

#[test]
fn a_rank_that_never_calls_is_named_by_every_other_rank_within_the_deadline() {
    for route in STAGED {
        for (world_size, absent) in [(2, 1), (5, 2)] {
            let done = Barrier::new(world_size as usize);
            on_ranks(world_size, short_lived, |comm| {
                good_call(comm);
                comm.force_plan(plan(route, 2, 8)).unwrap();
                done.wait();
                let rank = comm.rank();
                if rank == absent {
                    // It learns that it was left behind.
                    done.wait();
                    let told = failure(comm.synchronize());
                    assert!(matches!(told, Failure::PeerFailed { .. }), "{told}");
                    assert_poisoned(comm, &told);
                    return;
                }
                let source =
                    EmulatorBuffer::from_slice(&input::<f32>(4, rank, LEN, Content::Ordinary));
                let mut output = EmulatorBuffer::<f32>::zeroed(LEN);
                let began = Instant::now();
                comm.all_reduce(&source, &mut output).unwrap();
                let reason = failure(comm.synchronize());
                let took = began.elapsed();
                done.wait();
                match reason {
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
                        assert_eq!(algorithm.family, route.family());
                        assert_eq!(algorithm.algorithm, route.algorithm());
                        // One good push call came before; the pull family starts at 1.
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
                        assert!(
                            world_size > 2 && origin != absent && origin != rank,
                            "{origin}"
                        );
                        // Whom it waited for itself, unless it was told before it began to wait.
                        assert!(
                            waited_for.is_none_or(|peer| peer == absent),
                            "{waited_for:?}"
                        );
                    }
                    ref other => panic!("{other}"),
                }
                assert!(took < DEADLINE + SLACK, "{took:?}");
                assert!(output.to_vec().iter().any(|element| element.is_nan()));
                assert_poisoned(comm, &reason);
            });
        }
    }
}

#[test]
fn outputs_of_a_call_that_was_not_reduced_are_nan_also_in_calls_behind_it() {
    on_ranks(2, short_lived, |comm| {
        if comm.rank() == 1 {
            return;
        }
        let mut outputs: Vec<_> = (0..3)
            .map(|_| EmulatorBuffer::<bf16>::zeroed(LEN))
            .collect();
        let source = EmulatorBuffer::<bf16>::zeroed(LEN);
        for (output, route) in outputs.iter_mut().zip(STAGED) {
            comm.force_plan(plan(route, 1, 8)).unwrap();
            // Launched before the first has failed.
            comm.all_reduce(&source, output).unwrap();
        }
        failure(comm.synchronize());
        for output in &outputs {
            assert_all_nan(&output.to_vec());
        }
    });
}

#[test]
fn an_abort_from_another_thread_ends_the_wait_and_the_peers_are_told() {
    for route in STAGED {
        let waiting = Barrier::new(3);
        on_ranks(3, settings, |comm| {
            comm.force_plan(plan(route, 1, 8)).unwrap();
            let rank = comm.rank();
            let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
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
            comm.all_reduce_in_place(&mut buffer).unwrap();
            let handle = comm.abort_handle();
            waiting.wait();
            let began = Instant::now();
            if rank == 0 {
                std::thread::spawn(move || handle.abort());
            }
            let reason = failure(comm.synchronize());
            let took = began.elapsed();
            println!("{route:?}: rank {rank} returned {took:?} after the abort");
            // The timeout is a minute: only the abort can end it.
            assert!(took < SLACK, "{took:?}");
            match reason {
                Failure::Aborted { rank: 0, .. } => assert_eq!(rank, 0),
                Failure::PeerFailed { origin: 0, .. } => assert_eq!(rank, 1),
                ref other => panic!("rank {rank}: {other}"),
            }
            assert_poisoned(comm, &reason);
        });
    }
}

#[test]
fn an_abort_while_no_call_waits_is_known_at_once_and_told_to_the_peers() {
    let aborted = Barrier::new(2);
    on_ranks(2, settings, |comm| {
        good_call(comm);
        aborted.wait();
        if comm.rank() == 0 {
            comm.abort_handle().abort();
            let reason = failure(comm.status());
            assert_eq!(reason, Failure::AbortedIdle { rank: 0 });
            assert_poisoned(comm, &reason);
            aborted.wait();
            return;
        }
        aborted.wait();
        let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
        let began = Instant::now();
        comm.all_reduce_in_place(&mut buffer).unwrap();
        let told = failure(comm.synchronize());
        assert!(
            matches!(told, Failure::PeerFailed { origin: 0, .. }),
            "{told}"
        );
        assert!(began.elapsed() < SLACK);
        assert_all_nan(&buffer.to_vec());
    });
}

#[test]
fn a_rank_that_skips_the_last_call_is_waited_for_until_the_deadline() {
    let ready = Barrier::new(2);
    on_ranks(2, short_lived, |comm| {
        good_call(comm);
        ready.wait();
        if comm.rank() == 0 {
            let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
            comm.all_reduce_in_place(&mut buffer).unwrap();
            let reason = failure(comm.synchronize());
            assert!(
                matches!(reason, Failure::PeerTimeout { peer: 1, .. }),
                "{reason}"
            );
            ready.wait();
        } else {
            comm.synchronize().unwrap();
            ready.wait();
            let told = failure(comm.synchronize());
            assert!(
                matches!(told, Failure::PeerFailed { origin: 0, .. }),
                "{told}"
            );
        }
    });
}

#[test]
fn a_graph_is_not_launched_after_a_failure_and_a_failure_inside_one_is_found() {
    let ready = Barrier::new(2);
    on_ranks(2, short_lived, |comm| {
        let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
        let mut held = Held::new(&mut buffer);
        let graph = comm
            .capture(|capture| (0..4).try_for_each(|_| capture.all_reduce_in_place(&mut held)))
            .unwrap();
        graph.launch(comm).unwrap();
        comm.synchronize().unwrap();
        ready.wait();
        if comm.rank() == 1 {
            // Makes one call of the four.
            let mut one = EmulatorBuffer::<f32>::zeroed(LEN);
            comm.all_reduce_in_place(&mut one).unwrap();
            ready.wait();
            failure(comm.synchronize());
            return;
        }
        graph.launch(comm).unwrap();
        let reason = failure(comm.synchronize());
        ready.wait();
        let Failure::PeerTimeout {
            peer: 1,
            epoch,
            algorithm,
            ..
        } = reason
        else {
            panic!("{reason}");
        };
        assert_eq!(algorithm.family, Family::Push);
        assert_eq!(algorithm.algorithm, Algorithm::OneShot);
        assert_eq!(
            epoch, 5,
            "four calls of the first launch and one of the second were whole"
        );
        assert_all_nan(&held.to_vec());
        held.as_view_mut().copy_from_slice(&[1.0; LEN]);
        assert_eq!(failure(graph.launch(comm)), reason);
        assert_eq!(failure(comm.synchronize()), reason);
        assert_eq!(held.to_vec(), [1.0; LEN], "nothing was launched");
    });
}

#[test]
fn a_process_builds_a_new_communicator_after_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sockets");
    on_ranks(2, short_lived, |comm| {
        let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
        if comm.rank() == 0 {
            comm.all_reduce_in_place(&mut buffer).unwrap();
            failure(comm.synchronize());
        }
        // Beside the poisoned one, which is never reset.
        let rendezvous = peersum::Rendezvous::unix(&path, "second", comm.rank(), 2);
        let mut second = build(settings(), rendezvous);
        good_call(&mut second);
    });
}

#[test]
fn ranks_dropped_one_after_the_other_in_one_thread_end_within_the_teardown_bound() {
    let ranks: Vec<Comm> = std::thread::scope(|scope| {
        let ranks: Vec<_> = peersum::Rendezvous::threads(3)
            .into_iter()
            .map(|rendezvous| {
                scope.spawn(move || {
                    let mut comm = build(settings(), rendezvous);
                    good_call(&mut comm);
                    comm
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let began = Instant::now();
    drop(ranks);
    // Each waits for the others for five seconds at most, and the first to give up tells the rest.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    println!("three ranks in {:?}", began.elapsed());
}
