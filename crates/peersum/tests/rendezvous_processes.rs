//! The rendezvous between real processes: what works, and what the others are told when a rank
//! dies, stops or gives up.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use rendezvous_stage::{AMPLE, Rank, Stage, settle};
use rustix::process::Signal;
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
        // Only a rank 0 that was killed before any rank had met it leaves its socket; the next rank
        // 0 replaces it.
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
