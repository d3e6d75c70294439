//! What each rank is told when a call fails, and what is left afterwards.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use peersum::dispatch::Route;
use peersum::{Error, Failure, Held};
use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{
    Comm, Content, TestElement, assert_all_nan, assert_bits, build, expected, failure, input,
    on_ranks, plan, settings,
};

const LEN: usize = 500;
const DEADLINE: Duration = Duration::from_millis(300);
/// What a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(1);

const STAGED: [Route; 4] = [
    Route::PushOneShot,
    Route::PushTwoShot,
    Route::PullOneShot,
    Route::PullTwoShot,
];

fn short_lived() -> peersum::CommunicatorBuilder {
    settings().timeout(DEADLINE)
}

/// One call that is good on all ranks, so that a failure is not the first thing to happen.
fn good_call(comm: &mut Comm) {
    let mut buffer =
        EmulatorBuffer::from_slice(&input::<f32>(3, comm.rank(), LEN, Content::Ordinary));
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    let expected = expected::<f32>(3, comm.world_size(), LEN, Content::Ordinary);
    assert_bits(&buffer.to_vec(), &expected, &"a good call");
}

/// Every later call gives the same reason and moves no data.
#[track_caller]
fn assert_poisoned(comm: &mut Comm, reason: &Failure) {
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
                    Failure::PeerFailed { origin, .. } => {
                        assert!(
                            world_size > 2 && origin != absent && origin != rank,
                            "{origin}"
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

/// A call in which ranks can differ.
#[derive(Debug, Clone, Copy)]
struct Variant {
    dtype: Dtype,
    len: usize,
    route: Route,
}

impl Variant {
    fn call(self, comm: &mut Comm) -> Result<(), Error> {
        fn of<T: TestElement>(comm: &mut Comm, len: usize) -> Result<(), Error> {
            comm.all_reduce_in_place(&mut EmulatorBuffer::<T>::zeroed(len))
        }
        comm.force_plan(plan(self.route, 1, 8)).unwrap();
        match self.dtype {
            Dtype::F16 => of::<f16>(comm, self.len),
            Dtype::Bf16 => of::<bf16>(comm, self.len),
            Dtype::F32 => of::<f32>(comm, self.len),
        }
    }

    /// Whether `signature` is this call.
    fn is(self, signature: &peersum::CallSignature) -> bool {
        signature.dtype == Some(self.dtype)
            && signature.bytes == (self.len * self.dtype.size_bytes()) as u64
            && signature.kind.family == self.route.family()
            && signature.kind.algorithm == self.route.algorithm()
    }
}

const BASE: Variant = Variant {
    dtype: Dtype::F32,
    len: 300,
    route: Route::PushOneShot,
};

/// Calls that differ from [`BASE`] in one thing.
fn variants() -> Vec<Variant> {
    vec![
        Variant { len: 301, ..BASE },
        Variant { len: 10, ..BASE },
        // As many bytes: the data alone would not show it.
        Variant {
            dtype: Dtype::F16,
            len: 600,
            ..BASE
        },
        Variant {
            dtype: Dtype::Bf16,
            ..BASE
        },
        Variant {
            route: Route::PushTwoShot,
            ..BASE
        },
        Variant {
            route: Route::PullOneShot,
            ..BASE
        },
        Variant {
            route: Route::PullTwoShot,
            ..BASE
        },
    ]
}

/// One rank makes another call than the rest; then all make `behind` good calls, and each must be told both sides of the difference.
fn disagree(world_size: u32, base: Variant, other: Variant, odd_one: u32, behind: usize) {
    let context = (world_size, base, other, odd_one, behind);
    // A rank that is still in its good call when the others fail in the next is told that.
    let ready = Barrier::new(world_size as usize);
    // Beyond any wait here, so that a failure that is not found by the headers would be seen as a time-out or a hang.
    let outcomes = on_ranks(
        world_size,
        || settings().timeout(Duration::from_secs(20)),
        |comm| {
            good_call(comm);
            ready.wait();
            let own = if comm.rank() == odd_one { other } else { base };
            let mut outcome = own.call(comm);
            for _ in 0..behind {
                outcome = outcome.and_then(|()| base.call(comm));
            }
            let reason = failure(outcome.and_then(|()| comm.synchronize()));
            assert_poisoned(comm, &reason);
            reason
        },
    );
    for (rank, reason) in (0..).zip(outcomes) {
        match reason {
            Failure::Disagreement {
                rank: named,
                peer,
                own,
                theirs,
            } => {
                assert_eq!(named, rank, "{context:?}");
                let side = |rank: u32| if rank == odd_one { other } else { base };
                assert!(
                    side(rank).is(&own) && side(peer).is(&theirs),
                    "{context:?}: {reason}"
                );
                assert!(
                    (rank == odd_one) != (peer == odd_one),
                    "{context:?}: {reason}"
                );
                assert_eq!(own.sequence, theirs.sequence);
                let text = reason.to_string();
                for signature in [own, theirs] {
                    assert!(text.contains(&format!("{signature}")), "{text}");
                }
            }
            ref unexpected => panic!("rank {rank} was told: {unexpected}; {context:?}"),
        }
    }
}

#[test]
fn ranks_that_call_differently_are_all_told_both_sides_also_when_no_call_follows() {
    for other in variants() {
        for behind in [0, 1, 4] {
            disagree(2, BASE, other, 1, behind);
        }
        disagree(3, BASE, other, 0, 0);
        disagree(3, BASE, other, 2, 2);
    }
}

#[test]
fn a_difference_is_told_whatever_the_routes_of_the_two_sides() {
    for route in [Route::PushTwoShot, Route::PullOneShot, Route::PullTwoShot] {
        let base = Variant { route, ..BASE };
        disagree(3, base, Variant { len: 7, ..base }, 1, 1);
        disagree(
            2,
            base,
            Variant {
                dtype: Dtype::Bf16,
                len: 600,
                ..base
            },
            0,
            0,
        );
    }
}

#[test]
fn ranks_that_use_different_parts_of_a_symmetric_buffer_are_told() {
    let outcomes = on_ranks(
        3,
        || settings().timeout(Duration::from_secs(20)),
        |comm| {
            let mut buffer = comm.symmetric_alloc::<f32>(1024).unwrap();
            comm.force_plan(plan(Route::SymmetricTwoShot, 1, 8))
                .unwrap();
            let begin = if comm.rank() == 1 { 4 } else { 0 };
            let outcome = comm.all_reduce_in_place(&mut buffer.slice_mut(begin..begin + 256));
            failure(outcome.and_then(|()| comm.synchronize()))
        },
    );
    for (rank, reason) in (0..).zip(outcomes) {
        let Failure::Disagreement {
            own, theirs, peer, ..
        } = &reason
        else {
            panic!("rank {rank}: {reason}");
        };
        assert!(
            own.symmetric && theirs.symmetric && own.buffer != theirs.buffer,
            "{reason}"
        );
        assert!((rank == 1) != (*peer == 1), "{reason}");
    }
}

#[test]
fn a_rank_that_skips_a_call_is_found_when_the_next_one_differs() {
    let outcomes = on_ranks(
        2,
        || settings().timeout(Duration::from_secs(20)),
        |comm| {
            let first = if comm.rank() == 0 {
                BASE.call(comm)
            } else {
                Ok(())
            };
            let second = first.and_then(|()| Variant { len: 20, ..BASE }.call(comm));
            failure(second.and_then(|()| comm.synchronize()))
        },
    );
    for reason in outcomes {
        assert!(matches!(reason, Failure::Disagreement { .. }), "{reason}");
    }
}

#[test]
fn a_rank_that_skips_the_last_call_is_waited_for_until_the_deadline() {
    let ready = Barrier::new(2);
    on_ranks(2, short_lived, |comm| {
        good_call(comm);
        ready.wait();
        if comm.rank() == 0 {
            BASE.call(comm).unwrap();
            let reason = failure(comm.synchronize());
            assert!(
                matches!(reason, Failure::PeerTimeout { peer: 1, .. }),
                "{reason}"
            );
        } else {
            comm.synchronize().unwrap();
            std::thread::sleep(DEADLINE + SLACK);
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
            std::thread::sleep(DEADLINE + SLACK);
            failure(comm.synchronize());
            return;
        }
        graph.launch(comm).unwrap();
        let reason = failure(comm.synchronize());
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
        held.copy_from_slice(&[1.0; LEN]);
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
