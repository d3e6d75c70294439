//! The rendezvous between threads of one process: the same protocol over pairs of sockets.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use peersum::rendezvous::{
    Group, MAX_LABEL_BYTES, MAX_MESSAGE_BYTES, ProcessId, Refusal, Rendezvous, RendezvousError,
};
use rendezvous_stage::{by_hand, exchange_memory, gather};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const AMPLE: Duration = Duration::from_secs(30);

/// Runs `body` as every rank of a group and returns what each returned.
fn as_ranks<T: Send>(world_size: u32, body: impl Fn(Group) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = Rendezvous::threads(world_size)
            .into_iter()
            .map(|rendezvous| {
                let body = &body;
                scope.spawn(move || body(rendezvous.join(AMPLE).unwrap()))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn threads_gather_messages_of_any_length_in_rank_order() {
    let seed = fastrand::u64(..1 << 40);
    println!("seed {seed:#x}");
    for world_size in [1, 2, 3, 8] {
        as_ranks(world_size, |mut group| {
            assert_eq!(group.world_size(), world_size);
            for round in 0..12 {
                gather(&mut group, &format!("round {round}"), seed + round, AMPLE).unwrap();
            }
        });
    }
}

#[test]
fn threads_pass_memory_to_each_other() {
    as_ranks(8, |mut group| {
        exchange_memory(&mut group, "memory", AMPLE).unwrap()
    });
    as_ranks(1, |mut group| {
        exchange_memory(&mut group, "memory", AMPLE).unwrap()
    });
}

#[test]
fn a_group_may_move_to_another_thread() {
    let group = Rendezvous::threads(1).remove(0).join(AMPLE).unwrap();
    let mut group = std::thread::spawn(move || group).join().unwrap();
    gather(&mut group, "alone", 1, AMPLE).unwrap();
}

#[test]
fn threads_know_that_they_share_a_process() {
    as_ranks(3, |group| {
        assert!((0..3).all(|rank| group.is_same_process(rank)));
        assert!(!group.is_same_process(3));
        let current = ProcessId::current().unwrap();
        assert_eq!(current.pid, std::process::id());
        assert!(
            (0..)
                .zip(group.peers())
                .all(|(rank, peer)| peer.rank == rank && peer.process == current)
        );
    });
}

#[test]
fn a_descriptor_reaches_every_rank_each_time_from_the_ranks_that_give_one() {
    let file = tempfile::tempfile().unwrap();
    as_ranks(8, |mut group| {
        for round in 0..20 {
            let gives = |rank: u32| !(rank + round).is_multiple_of(3);
            let descriptor = gives(group.rank()).then(|| file.as_fd());
            let label = format!("round {round}");
            let received = group.all_gather_fd(&label, b"", descriptor, AMPLE).unwrap();
            for (rank, (message, descriptor)) in (0..).zip(received) {
                assert!(message.is_empty());
                assert_eq!(descriptor.is_some(), gives(rank));
            }
        }
    });
}

#[test]
fn a_rank_whose_descriptor_cannot_be_duplicated_tells_the_others_at_once() {
    as_ranks(2, |mut group| {
        // SAFETY: a number that no process has a file under is only looked up and refused.
        let closed = unsafe { BorrowedFd::borrow_raw(i32::MAX) };
        let descriptor = (group.rank() == 1).then_some(closed);
        let error = group
            .all_gather_fd("memory", b"", descriptor, AMPLE)
            .unwrap_err();
        match (group.rank(), error) {
            (1, RendezvousError::Io { .. }) | (0, RendezvousError::PeerFailed { rank: 1, .. }) => {}
            (rank, error) => panic!("rank {rank}: {error:?}"),
        }
    });
}

/// The other rank is of another build: nothing that it says is understood but its version.
#[test]
fn ranks_of_different_protocol_versions_are_refused_with_both_versions() {
    const THEIRS: u32 = 9;
    let stranger = by_hand::frame_of_version(THEIRS, 4, "{}..", &[]);
    let mut ranks = Rendezvous::threads(2);
    let (one, zero) = (ranks.pop().unwrap(), ranks.pop().unwrap().into_socket());
    rustix::io::write(zero.as_ref().unwrap(), &stranger).unwrap();
    let error = one.join(AMPLE).unwrap_err();
    let (ours, theirs) = (THEIRS, by_hand::VERSION);
    let expected = Refusal::Version { ours, theirs };
    assert!(
        matches!(&error, RendezvousError::Refused(refusal) if *refusal == expected),
        "{error}"
    );
    assert!(error.to_string().contains("9") && error.to_string().contains("2"));

    let mut ranks = Rendezvous::threads(2);
    let (one, zero) = (ranks.pop().unwrap().into_socket(), ranks.pop().unwrap());
    let mut one = UnixStream::from(one.unwrap());
    one.set_nonblocking(false).unwrap();
    one.write_all(&stranger).unwrap();
    let error = zero.join(Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, RendezvousError::Timeout { .. }), "{error}");
    assert_eq!(
        by_hand::read(&mut one),
        r#"{"Refused":{"Version":{"ours":2,"theirs":9}}}"#
    );
}

#[test]
fn what_may_not_be_sent_is_refused_and_the_group_is_as_it_was() {
    as_ranks(2, |mut group| {
        let too_long = vec![0; MAX_MESSAGE_BYTES + 1];
        let error = group.all_gather("work", &too_long, AMPLE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the message of 16385 bytes is longer than the 16384 allowed"
        );
        let label = "x".repeat(MAX_LABEL_BYTES + 1);
        let error = group.barrier(&label, AMPLE).unwrap_err();
        assert!(
            matches!(error, RendezvousError::MessageTooLong { what: "label", .. }),
            "{error}"
        );
        gather(&mut group, "work", 1, AMPLE).unwrap();
    });
}

#[test]
fn a_thread_that_ends_is_named_on_all_others() {
    for leaver in 0..3 {
        let errors = as_ranks(3, |mut group| {
            group.barrier("before", AMPLE).unwrap();
            (group.rank() != leaver).then(|| group.barrier("after", AMPLE).unwrap_err())
        });
        for error in errors.into_iter().flatten() {
            assert_eq!(
                error.to_string(),
                format!(
                    "rank {leaver} was lost in \"after\": its process ended or dropped its group"
                )
            );
        }
    }
}

#[test]
fn a_rendezvous_that_is_dropped_is_lost_to_the_others() {
    for absent in 0..3 {
        let mut ranks = Rendezvous::threads(3);
        drop(ranks.remove(absent));
        std::thread::scope(|scope| {
            for rank in ranks {
                scope.spawn(move || {
                    let error = rank.join(AMPLE).unwrap_err();
                    let RendezvousError::PeerLost { rank, .. } = error else {
                        panic!("{error}");
                    };
                    assert_eq!(rank as usize, absent);
                });
            }
        });
    }
}

#[test]
fn a_thread_that_does_not_come_is_named_within_the_deadline() {
    let mut ranks = Rendezvous::threads(4);
    let _absent = ranks.remove(2);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for rank in ranks {
            scope.spawn(move || {
                let error = rank.join(Duration::from_millis(500)).unwrap_err();
                let RendezvousError::Timeout { missing, .. } = error else {
                    panic!("{error}");
                };
                assert_eq!(missing, [2]);
            });
        }
    });
    assert!(
        started.elapsed() < Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_failed_group_returns_its_first_error_again() {
    as_ranks(3, |mut group| {
        if group.rank() == 1 {
            group.abandon("no memory left");
            return;
        }
        let first = group.barrier("one", AMPLE).unwrap_err();
        assert_eq!(first.to_string(), "rank 1 gave up: no memory left");
        let second = group.all_gather("two", b"", AMPLE).unwrap_err();
        assert_eq!(first.to_string(), second.to_string());
    });
}

#[test]
fn a_rank_that_comes_to_a_failed_group_later_learns_the_cause() {
    as_ranks(3, |mut group| {
        group.barrier("formed", AMPLE).unwrap();
        if group.rank() == 2 {
            // The others' deadlines are long past.
            std::thread::sleep(Duration::from_millis(600));
        }
        let error = group
            .barrier("work", Duration::from_millis(200))
            .unwrap_err();
        assert!(
            matches!(&error, RendezvousError::Timeout { missing, .. } if missing[..] == [2]),
            "{error}"
        );
    });
}

#[test]
fn a_reason_that_is_too_long_is_cut_between_characters() {
    as_ranks(2, |mut group| {
        if group.rank() == 1 {
            group.abandon(&"é".repeat(5000));
        } else {
            let error = group.barrier("work", AMPLE).unwrap_err();
            let RendezvousError::PeerFailed { reason, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(reason.len(), 4096);
        }
    });
}

#[test]
fn a_rank_outside_the_world_is_refused() {
    for (rank, world_size) in [(0, 0), (2, 2), (0, 9), (7, 3)] {
        let error = Rendezvous::unix("/nowhere", "group", rank, world_size)
            .join(AMPLE)
            .unwrap_err();
        assert!(
            matches!(error, RendezvousError::InvalidRank { .. }),
            "{error}"
        );
    }
    assert!(Rendezvous::threads(0).is_empty());
    let error = Rendezvous::threads(9).remove(8).join(AMPLE).unwrap_err();
    assert!(
        matches!(
            error,
            RendezvousError::InvalidRank {
                rank: 8,
                world_size: 9
            }
        ),
        "{error}"
    );
    let error = Rendezvous::unix("/nowhere", "a/b", 0, 2)
        .join(AMPLE)
        .unwrap_err();
    assert!(
        matches!(error, RendezvousError::InvalidGroup { .. }),
        "{error}"
    );
}
