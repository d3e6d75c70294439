//! Ranks that are started in places of their own: containers, sessions, launchers, set-uid
//! programs.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use rendezvous_stage::{AMPLE, Rank, Stage};
use std::process::Command;
use std::time::Duration;

const NOBODY: u32 = 65534;
/// The loop of README's example, with the program as its arguments.
const README_LOOP: &str = concat!(
    "for r in 0 1; do ",
    "PEERSUM_GROUP=loop-$$ RANK=$r LOCAL_RANK=$r WORLD_SIZE=2 \"$@\" & done; wait"
);

#[test]
fn ranks_that_are_process_1_of_pid_namespaces_of_their_own_meet_and_stay_apart() {
    let stage =
        Stage::enter("ranks_that_are_process_1_of_pid_namespaces_of_their_own_meet_and_stay_apart");
    let steps = "join, apart, gather work 1, fd handles, leave";
    let ranks: Option<Vec<Rank>> = (0..3).map(|rank| stage.contained(rank, 3, steps)).collect();
    for rank in ranks.into_iter().flatten() {
        let heard = rank.succeed();
        assert!(heard.contains(&"pids [1, 1, 1]".to_owned()), "{heard:?}");
    }
    assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
}

#[test]
fn a_second_rank_0_in_another_pid_namespace_is_refused_without_a_process_id() {
    let stage =
        Stage::enter("a_second_rank_0_in_another_pid_namespace_is_refused_without_a_process_id");
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work");
    stage.await_socket();
    let Some(intruder) = stage.contained(0, 2, "join") else {
        return;
    };
    let heard = intruder.end();
    let message = the(&heard, "message ");
    assert!(
        message.contains("a process of another PID namespace"),
        "{message}"
    );
    let one = stage.rank(1, 2, AMPLE, "join, barrier work");
    one.succeed();
    zero.succeed();
}

/// The rest of the line that begins so.
fn the<'a>(heard: &'a [String], beginning: &str) -> &'a str {
    let found = heard.iter().find_map(|line| line.strip_prefix(beginning));
    found.unwrap_or_else(|| panic!("no {beginning:?}; heard {heard:#?}"))
}

/// A rank as a launcher starts it, without a directory and a group unless they are added.
fn launched(stage: &Stage, rank: u32, timeout: Duration, steps: &str) -> Command {
    let script = stage.script(9, 1, timeout, &format!("environment, {steps}"));
    let mut command = stage.command(&script);
    command
        .env_remove("PEERSUM_RENDEZVOUS_DIR")
        .env_remove("PEERSUM_GROUP")
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", "2");
    command
}

#[test]
fn ranks_that_look_in_different_directories_are_told_where_each_looked() {
    let stage = Stage::enter("ranks_that_look_in_different_directories_are_told_where_each_looked");
    let ranks = [0, 1].map(|rank| {
        let session = stage.home().join(format!("session-{rank}"));
        std::fs::create_dir(&session).unwrap();
        let mut command = launched(&stage, rank, Duration::from_secs(1), "join");
        command.env("XDG_RUNTIME_DIR", &session);
        (Rank::start(command), session.join("peersum"))
    });
    for (rank, (process, directory)) in (0..).zip(ranks) {
        let heard = process.end();
        let message = the(&heard, "message ");
        for part in [
            &format!(
                "rank {rank} of 2 of group \"default\" in {}",
                directory.display()
            ),
            "XDG_RUNTIME_DIR",
            "PEERSUM_RENDEZVOUS_DIR",
            "PEERSUM_GROUP",
        ] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

#[test]
fn ranks_of_different_groups_are_told_which_group_each_was_in() {
    let stage = Stage::enter("ranks_of_different_groups_are_told_which_group_each_was_in");
    let ranks = [(0, "left"), (1, "right")].map(|(rank, group)| {
        let script = stage.script(rank, 2, Duration::from_secs(1), "join");
        (
            Rank::start(stage.command(&script.group(group))),
            rank,
            group,
        )
    });
    for (process, rank, group) in ranks {
        let heard = process.end();
        let message = the(&heard, "message ");
        let place = stage.directory();
        let expected = format!("rank {rank} of 2 of group {group:?} in {}", place.display());
        assert!(
            message.contains(&expected),
            "{expected:?} is not in {message:?}"
        );
        assert!(message.contains("PEERSUM_GROUP"), "{message}");
    }
}

#[test]
fn a_rank_that_is_missed_in_an_exchange_is_named_with_its_group_and_directory() {
    let stage =
        Stage::enter("a_rank_that_is_missed_in_an_exchange_is_named_with_its_group_and_directory");
    let mut idle = stage.rank(1, 3, AMPLE, "join, pause");
    let waiting = [0, 2].map(|rank| {
        let timeout = Duration::from_secs(2);
        (stage.rank(rank, 3, timeout, "join, barrier work"), rank)
    });
    for (process, rank) in waiting {
        let heard = process.end();
        let message = the(&heard, "message ");
        let place = stage.directory();
        let expected = format!("rank {rank} of 3 of group \"run\" in {}", place.display());
        assert!(
            message.contains(&expected),
            "{expected:?} is not in {message:?}"
        );
        assert!(message.contains("for rank 1"), "{message}");
    }
    idle.go();
    idle.end();
}

/// Ranks of two shell loops that are started together, as far as the test lets them.
fn loops_share_a_directory(stage: &Stage, rank: u32, steps: &str) -> Rank {
    let mut command = launched(stage, rank, AMPLE, steps);
    command.env("PEERSUM_RENDEZVOUS_DIR", stage.directory());
    Rank::start(command)
}

#[test]
fn ranks_that_another_loop_s_ranks_take_the_place_of_are_told_to_set_peersum_group() {
    let stage = Stage::enter(
        "ranks_that_another_loop_s_ranks_take_the_place_of_are_told_to_set_peersum_group",
    );
    // Rank 0 of one loop is first, rank 1 of the other: the two pair.
    let mut zero = loops_share_a_directory(&stage, 0, "join, pause, leave");
    let mut one = loops_share_a_directory(&stage, 1, "join, pause, leave");
    zero.hear("paused");
    one.hear("paused");
    for rank in [0, 1] {
        let heard = loops_share_a_directory(&stage, rank, "join").end();
        let message = the(&heard, "message ");
        assert!(message.contains("PEERSUM_GROUP"), "{message}");
    }
    for mut rank in [zero, one] {
        rank.go();
        rank.succeed();
    }
}

#[test]
fn two_shell_loops_with_peersum_group_of_their_shell_pair_their_own_ranks() {
    let stage =
        Stage::enter("two_shell_loops_with_peersum_group_of_their_shell_pair_their_own_ranks");
    let readme = include_str!("../../../README.md");
    let (variables, _) = README_LOOP.split_once(" \"$@\"").unwrap();
    assert!(readme.contains(variables), "README shows another loop");
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        let loops = [0, 1].map(|_| {
            let rank = launched(&stage, 0, AMPLE, "join, pids, leave");
            let mut shell = Command::new("sh");
            // The loop that README shows.
            shell
                .args(["-c", README_LOOP, "sh"])
                .arg(rank.get_program())
                .args(rank.get_args())
                .env("PEERSUM_RENDEZVOUS_DIR", stage.directory());
            for (name, value) in rank.get_envs() {
                if let Some(value) = value {
                    shell.env(name, value);
                }
            }
            Rank::start(shell)
        });
        let pairs = loops.map(|run| {
            let heard = run.end();
            let pids: Vec<String> = heard
                .iter()
                .filter_map(|line| line.strip_prefix("pids ").map(str::to_owned))
                .collect();
            assert_eq!(pids.len(), 2, "{heard:#?}");
            assert_eq!(pids[0], pids[1], "the two ranks are of one group");
            pids[0].clone()
        });
        assert_ne!(pairs[0], pairs[1]);
    }
}

#[test]
fn a_set_uid_program_follows_the_environment_neither_to_ranks_nor_to_modules() {
    let stage =
        Stage::enter("a_set_uid_program_follows_the_environment_neither_to_ranks_nor_to_modules");
    let environment = [
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("PEERSUM_RENDEZVOUS_DIR", "/nowhere/of/the/caller"),
        ("XDG_RUNTIME_DIR", "/nowhere/of/the/caller"),
        ("PEERSUM_CACHE_DIR", "/nowhere/of/the/caller"),
    ];
    let play = |steps: &str| {
        let mut command = stage.set_uid(NOBODY, steps)?;
        command.envs(environment);
        Some(Rank::start(command).end())
    };
    let (Some(heard), Some(places)) = (play("environment"), play("policy")) else {
        return;
    };
    assert_eq!(the(&heard, "error "), "EnvironmentIgnored");
    assert!(the(&heard, "message ").contains("Rendezvous::unix"));
    assert_eq!(the(&places, "cache "), "None");
    assert_eq!(
        the(&places, "meet in "),
        // The default of a user without a runtime directory: README, "Environment".
        format!("{:?}", ["", "tmp", &format!("peersum-{NOBODY}")].join("/"))
    );
}
