//! The rendezvous between real processes: what works, and what the others are told when one dies or breaks the protocol.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use rendezvous_stage::by_hand::{self, contribution, frame, frame_with_length, join_request};
use rendezvous_stage::{AMPLE, Rank, Stage, settle};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What a rank may take beyond its deadline.
const GRACE: Duration = Duration::from_secs(1);

#[test]
fn processes_gather_messages_of_any_length_in_rank_order() {
    let stage = Stage::enter("processes_gather_messages_of_any_length_in_rank_order");
    let steps =
        "join, gather one 1, gather two 2, barrier between, gather three 3, gather four 4, leave";
    for rank in stage.ranks(5, AMPLE, steps) {
        rank.succeed();
    }
    assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
}

#[test]
fn memory_passed_between_processes_is_the_same_memory() {
    let stage = Stage::enter("memory_passed_between_processes_is_the_same_memory");
    for rank in stage.ranks(4, AMPLE, "join, fd handles, fd again") {
        rank.succeed();
    }
}

#[test]
fn a_launcher_environment_is_enough() {
    let stage = Stage::enter("a_launcher_environment_is_enough");
    let ranks: Vec<Rank> = (0..3)
        .map(|rank: u32| {
            let script = stage.script(9, 1, AMPLE, "environment, join, gather only 5");
            let mut command = stage.command(&script);
            command
                .env("PEERSUM_RENDEZVOUS_DIR", stage.directory())
                .env("PEERSUM_GROUP", "from-the-environment")
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", "3")
                .env("LOCAL_RANK", rank.to_string());
            Rank::start(command)
        })
        .collect();
    for rank in ranks {
        rank.succeed();
    }
}

#[test]
fn two_groups_share_a_directory() {
    let stage = Stage::enter("two_groups_share_a_directory");
    let ranks: Vec<Rank> = (0..6)
        .map(|number: u32| {
            let script = stage.script(number / 2, 3, AMPLE, "join, gather same 1, gather labels 2");
            let script = script.group(if number.is_multiple_of(2) {
                "left"
            } else {
                "right"
            });
            Rank::start(stage.command(&script))
        })
        .collect();
    for rank in ranks {
        rank.succeed();
    }
}

#[test]
fn a_rank_killed_while_the_group_forms_is_named() {
    let stage = Stage::enter("a_rank_killed_while_the_group_forms_is_named");
    for victim in 0..3 {
        // Rank 3 never comes, so all others wait.
        let mut ranks: Vec<Rank> = (0..3)
            .map(|rank| stage.rank(rank, 4, AMPLE, "join"))
            .collect();
        for rank in &mut ranks {
            rank.hear("joining");
        }
        stage.await_socket();
        settle();
        ranks.remove(victim as usize).kill();
        assert_all_name_the_dead(ranks, victim, "join");
        assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
    }
}

#[test]
fn a_rank_that_comes_after_another_was_killed_learns_of_it() {
    let stage = Stage::enter("a_rank_that_comes_after_another_was_killed_learns_of_it");
    let zero = stage.rank(0, 3, AMPLE, "join");
    stage.await_socket();
    let mut one = stage.rank(1, 3, AMPLE, "join");
    one.hear("joining");
    settle();
    one.kill();
    let two = stage.rank(2, 3, AMPLE, "join");
    assert_all_name_the_dead(vec![zero, two], 1, "join");
}

#[test]
fn a_rank_killed_between_exchanges_is_named() {
    let stage = Stage::enter("a_rank_killed_between_exchanges_is_named");
    for victim in 0..3 {
        let mut ranks = stage.ranks(3, AMPLE, "join, barrier first, pause, barrier second");
        for rank in &mut ranks {
            rank.hear("paused");
        }
        ranks.remove(victim as usize).kill();
        for rank in &mut ranks {
            rank.go();
        }
        assert_all_name_the_dead(ranks, victim, "second");
    }
}

#[test]
fn a_rank_killed_inside_an_exchange_is_named() {
    let stage = Stage::enter("a_rank_killed_inside_an_exchange_is_named");
    for victim in 0..3 {
        // Rank 3 holds the exchange up, so that the victim dies in it; then it comes, too late.
        let mut ranks: Vec<Rank> = (0..3)
            .map(|rank| stage.rank(rank, 4, AMPLE, "join, pause, gather second 7"))
            .collect();
        let mut late = stage.rank(3, 4, AMPLE, "join, pause, gather second 7");
        late.hear("paused");
        for rank in &mut ranks {
            rank.hear("paused");
            rank.go();
        }
        settle();
        ranks.remove(victim as usize).kill();
        late.go();
        ranks.push(late);
        assert_all_name_the_dead(ranks, victim, "second");
    }
}

fn assert_all_name_the_dead(ranks: Vec<Rank>, victim: u32, during: &str) {
    let started = Instant::now();
    for rank in ranks {
        assert_eq!(
            rank.error(),
            format!("PeerLost {{ rank: {victim}, during: {during:?} }}")
        );
    }
    assert!(
        started.elapsed() < AMPLE,
        "the survivors waited for their deadline"
    );
}

#[test]
fn ranks_killed_at_random_moments_are_named_by_all_survivors() {
    let stage = Stage::enter("ranks_killed_at_random_moments_are_named_by_all_survivors");
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..40 {
        let timeout = Duration::from_secs(3);
        let mut ranks = stage.ranks(3, timeout, "join, endless");
        let (victim, delay) = (random.usize(..3), random.u64(..60));
        std::thread::sleep(Duration::from_millis(delay));
        ranks.remove(victim).kill();
        let killed = Instant::now();
        for rank in ranks {
            let error = rank.error();
            // One that was killed before it had come is not lost but missing.
            let lost = error.starts_with(&format!("PeerLost {{ rank: {victim},"));
            let missing =
                error.starts_with("Timeout") && error.ends_with(&format!("missing: [{victim}] }}"));
            assert!(
                lost || missing,
                "round {round}, rank {victim} killed after {delay} ms: {error}"
            );
        }
        assert!(
            killed.elapsed() < timeout + GRACE,
            "round {round}: {:?}",
            killed.elapsed()
        );
        // Only a rank 0 that was killed before anyone had met it leaves its socket; the next one takes its place.
        if victim != 0 {
            assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
        }
    }
}

#[test]
fn ranks_that_do_not_come_are_named_by_all_who_wait() {
    let stage = Stage::enter("ranks_that_do_not_come_are_named_by_all_who_wait");
    let started = Instant::now();
    let timeout = Duration::from_secs(1);
    let ranks: Vec<Rank> = [0, 2]
        .map(|rank| stage.rank(rank, 5, timeout, "join"))
        .into();
    for rank in ranks {
        let error = rank.error();
        assert!(
            error.contains("during: \"join\"") && error.ends_with("missing: [1, 3, 4] }"),
            "{error}"
        );
    }
    assert!(started.elapsed() < timeout + GRACE);
    let alone = stage.rank(3, 5, Duration::from_millis(300), "join");
    assert!(alone.error().ends_with("missing: [0] }"));
}

#[test]
fn a_rank_that_stands_still_is_named_by_all_who_wait() {
    let stage = Stage::enter("a_rank_that_stands_still_is_named_by_all_who_wait");
    for victim in 0..3 {
        let timeout = Duration::from_millis(2500);
        let mut ranks = stage.ranks(3, timeout, "join, pause, gather work 3");
        for rank in &mut ranks {
            rank.hear("paused");
        }
        let mut stopped = ranks.remove(victim);
        stopped.signal(Signal::STOP);
        let started = Instant::now();
        for rank in &mut ranks {
            rank.go();
        }
        for rank in ranks {
            let error = rank.error();
            assert!(
                error.ends_with(&format!("missing: [{victim}] }}")),
                "rank {victim} stopped: {error}"
            );
        }
        assert!(started.elapsed() < timeout + GRACE);
        // Once it goes on it learns that the others have left.
        stopped.signal(Signal::CONT);
        stopped.go();
        let error = stopped.error();
        assert!(
            error.starts_with("Timeout") || error.starts_with("PeerLost"),
            "{error}"
        );
    }
}

#[test]
fn ranks_in_different_exchanges_are_named_with_both_labels() {
    let stage = Stage::enter("ranks_in_different_exchanges_are_named_with_both_labels");
    let ranks: Vec<Rank> = ["weights", "weights", "buffers"]
        .into_iter()
        .zip(0..)
        .map(|(label, rank)| stage.rank(rank, 3, AMPLE, &format!("join, barrier {label}")))
        .collect();
    for rank in ranks {
        assert_eq!(
            rank.error(),
            "LabelMismatch { rank: 2, label: \"buffers\", other_rank: 0, other_label: \"weights\" }"
        );
    }
}

#[test]
fn a_rank_that_gives_up_tells_the_others_why() {
    let stage = Stage::enter("a_rank_that_gives_up_tells_the_others_why");
    for quitter in 0..3 {
        let ranks: Vec<Rank> = (0..3)
            .map(|rank| {
                let steps = if rank == quitter {
                    "join, abandon out of memory"
                } else {
                    "join, barrier work"
                };
                stage.rank(rank, 3, AMPLE, steps)
            })
            .collect();
        for (rank, process) in (0..).zip(ranks) {
            if rank == quitter {
                process.succeed();
            } else {
                let expected =
                    format!("PeerFailed {{ rank: {quitter}, reason: \"out of memory\" }}");
                assert_eq!(process.error(), expected);
            }
        }
    }
}

#[test]
fn the_socket_of_a_killed_rank_0_is_replaced() {
    let stage = Stage::enter("the_socket_of_a_killed_rank_0_is_replaced");
    let mut first = stage.rank(0, 2, AMPLE, "join");
    stage.await_socket();
    first.kill();
    assert_eq!(stage.files(), ["run.lock", "run.sock"]);
    // Rank 1 comes first and meets the stale socket.
    let one = stage.rank(1, 2, AMPLE, "join, barrier work, leave");
    settle();
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work, leave");
    one.succeed();
    zero.succeed();
    assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
}

#[test]
fn silent_and_senseless_connections_keep_nobody_waiting() {
    let stage = Stage::enter("silent_and_senseless_connections_keep_nobody_waiting");
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    let zero = stage.rank(0, 2, AMPLE, "join, gather work 1");
    stage.await_socket();
    let started = Instant::now();
    // Held open until the group is done. More than rank 0 bears at a time.
    let mut noise = Vec::new();
    for number in 0..300 {
        let mut stream = stage.connect();
        let bytes: Vec<u8> = match number % 4 {
            0 => Vec::new(),
            1 => {
                let length = random.usize(1..2000);
                std::iter::repeat_with(|| random.u8(..))
                    .take(length)
                    .collect()
            }
            // A header that announces 4 GiB, and a message that stops in the middle.
            2 => frame_with_length(u32::MAX, "", &[]),
            _ => frame_with_length(100, r#"{"Join":"#, &[]),
        };
        // Rank 0 may have closed it already.
        let _ = stream.write_all(&bytes);
        noise.push(stream);
    }
    let one = stage.rank(1, 2, AMPLE, "join, gather work 1");
    one.succeed();
    zero.succeed();
    assert!(started.elapsed() < AMPLE, "the group waited for the noise");
}

#[test]
fn a_member_that_breaks_the_protocol_is_named_to_all() {
    let stage = Stage::enter("a_member_that_breaks_the_protocol_is_named_to_all");
    let misdeeds: [(&str, Vec<u8>); 8] = [
        ("ends too early", frame_with_length(u32::MAX, "", &[])),
        ("more than 49152 bytes", vec![0x55; 50_000]),
        (
            "a payload of 16385 bytes",
            contribution(2, "work", &[0; (16 << 10) + 1]),
        ),
        ("not a rendezvous message", vec![0x55; 200]),
        (
            "a Welcome message",
            frame(r#"{"Welcome":{"peers":[]}}"#, &[]),
        ),
        ("cannot be read", frame(r#"{"Unknown":{}}"#, &[])),
        ("a Contribution message", contribution(1, "work", b"forged")),
        (
            "protocol version 9",
            by_hand::frame_of_version(9, 0, "", &[]),
        ),
    ];
    for (complaint, bytes) in misdeeds {
        let ranks = [0, 1].map(|rank| stage.rank(rank, 3, AMPLE, "join, gather work 1"));
        let mut member = stage.connect();
        member.write_all(&join_request(2)).unwrap();
        while !by_hand::read(&mut member).starts_with(r#"{"Welcome""#) {}
        member.write_all(&bytes).unwrap();
        for rank in ranks {
            let error = rank.error();
            assert!(
                error.starts_with("Protocol { rank: 2") && error.contains(complaint),
                "{complaint}: {error}"
            );
        }
    }
}

/// Sends `bytes` with `count` descriptors attached.
fn send_with_descriptors(stream: &UnixStream, bytes: &[u8], count: usize) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let descriptors = vec![stream.as_fd(); count];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = rustix::net::sendmsg(
        stream,
        &[std::io::IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let stage = Stage::enter("descriptors_that_nobody_asked_for_are_closed");
    let count = |noise: bool| {
        let zero = stage.rank(0, 2, AMPLE, "join, descriptors, barrier work");
        stage.await_socket();
        for number in 0..if noise { 60 } else { 0_usize } {
            let stream = stage.connect();
            // As many as a contribution may carry, and more.
            let descriptors = [1, 2, 200][number % 3];
            send_with_descriptors(&stream, &join_request(1), descriptors);
            // Until rank 0 has closed it.
            let _ = (&stream).read(&mut [0]);
        }
        let one = stage.rank(1, 2, AMPLE, "join, barrier work");
        one.succeed();
        let heard = zero.succeed();
        heard
            .iter()
            .find_map(|line| line.strip_prefix("descriptors "))
            .unwrap()
            .to_owned()
    };
    let quiet = count(false);
    assert_eq!(count(true), quiet);
}

#[test]
fn a_group_that_is_left_keeps_no_descriptor_open() {
    let stage = Stage::enter("a_group_that_is_left_keeps_no_descriptor_open");
    let steps = "descriptors, join, fd handles, descriptors, leave, descriptors";
    for rank in stage.ranks(3, AMPLE, steps) {
        let heard = rank.succeed();
        let counts: Vec<usize> = heard
            .iter()
            .filter_map(|line| {
                line.strip_prefix("descriptors ")
                    .and_then(|count| count.parse().ok())
            })
            .collect();
        assert_eq!(counts.len(), 3, "{heard:?}");
        assert_eq!(counts[0], counts[2], "{heard:?}");
        assert!(counts[1] > counts[0], "{heard:?}");
    }
}
