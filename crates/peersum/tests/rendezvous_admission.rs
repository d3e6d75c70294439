//! Which processes may join a group. The others are refused with the reason, and the group is not
//! affected.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use rendezvous_stage::{AMPLE, Stage, by_hand, chmod, settle};
use std::io::Write;

#[test]
fn a_second_rank_0_is_refused_while_the_first_lives() {
    let stage = Stage::enter("a_second_rank_0_is_refused_while_the_first_lives");
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work");
    stage.await_socket();
    let intruder = stage.rank(0, 2, AMPLE, "join");
    let error = intruder.error();
    assert!(error.starts_with("GroupInUse { group: \"run\""), "{error}");
    assert!(
        error.ends_with(&format!("pid: Some({}) }}", zero.pid())),
        "{error}"
    );
    let one = stage.rank(1, 2, AMPLE, "join, barrier work");
    one.succeed();
    zero.succeed();
}

#[test]
fn a_second_claim_to_a_rank_is_refused_and_the_group_forms() {
    let stage = Stage::enter("a_second_claim_to_a_rank_is_refused_and_the_group_forms");
    let zero = stage.rank(0, 3, AMPLE, "join, gather work 1");
    let mut one = stage.rank(1, 3, AMPLE, "join, gather work 1");
    one.hear("joining");
    settle();
    let intruder = stage.rank(1, 3, AMPLE, "join");
    assert_eq!(
        intruder.error(),
        format!("Refused(RankTaken {{ rank: 1, pid: {} }})", one.pid())
    );
    let two = stage.rank(2, 3, AMPLE, "join, gather work 1");
    for rank in [zero, one, two] {
        rank.succeed();
    }
}

#[test]
fn a_late_rank_is_refused_and_the_group_goes_on() {
    let stage = Stage::enter("a_late_rank_is_refused_and_the_group_goes_on");
    let mut ranks = stage.ranks(2, AMPLE, "join, pause, gather work 1");
    for rank in &mut ranks {
        rank.hear("paused");
    }
    let late = stage.rank(1, 2, AMPLE, "join");
    assert_eq!(
        late.error(),
        format!(
            "Refused(AlreadyFormed {{ group: \"run\", rank: 1, pid: {} }})",
            ranks[1].pid()
        )
    );
    for rank in &mut ranks {
        rank.go();
    }
    for rank in ranks {
        rank.succeed();
    }
}

#[test]
fn a_rank_of_an_older_run_is_refused_and_the_group_forms() {
    let stage = Stage::enter("a_rank_of_an_older_run_is_refused_and_the_group_forms");
    let old = stage.rank(1, 2, AMPLE, "run job-6, join");
    let zero = stage.rank(0, 2, AMPLE, "run job-7, join, barrier work");
    assert_eq!(
        old.error(),
        "Refused(Run { ours: \"job-7\", theirs: \"job-6\" })"
    );
    let one = stage.rank(1, 2, AMPLE, "run job-7, join, barrier work");
    zero.succeed();
    one.succeed();
}

#[test]
fn a_late_rank_of_an_older_run_is_refused_and_the_group_goes_on() {
    let stage = Stage::enter("a_late_rank_of_an_older_run_is_refused_and_the_group_goes_on");
    let mut ranks = stage.ranks(2, AMPLE, "run job-7, join, pause, gather work 1");
    for rank in &mut ranks {
        rank.hear("paused");
    }
    let old = stage.rank(1, 2, AMPLE, "run job-6, join");
    assert_eq!(
        old.error(),
        "Refused(Run { ours: \"job-7\", theirs: \"job-6\" })"
    );
    for rank in &mut ranks {
        rank.go();
    }
    for rank in ranks {
        rank.succeed();
    }
}

#[test]
fn a_directory_opened_to_others_meanwhile_keeps_ranks_out_until_it_is_closed() {
    let stage =
        Stage::enter("a_directory_opened_to_others_meanwhile_keeps_ranks_out_until_it_is_closed");
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work");
    stage.await_socket();
    chmod(&stage.directory(), 0o755);
    let error = stage.rank(1, 2, AMPLE, "join").error();
    assert!(
        error.starts_with("Directory {") && error.ends_with("problem: WrongMode { mode: 493 } }"),
        "{error}"
    );
    chmod(&stage.directory(), 0o700);
    let one = stage.rank(1, 2, AMPLE, "join, barrier work");
    one.succeed();
    zero.succeed();
}

#[test]
fn a_message_longer_than_allowed_is_refused_where_it_is_sent_and_the_group_goes_on() {
    let stage = Stage::enter(
        "a_message_longer_than_allowed_is_refused_where_it_is_sent_and_the_group_goes_on",
    );
    for rank in stage.ranks(3, AMPLE, "join, overlong work, gather work 1") {
        let heard = rank.succeed();
        let refused = "refused MessageTooLong { what: \"message\", length: 16385, limit: 16384 }";
        assert!(heard.iter().any(|line| line == refused), "{heard:?}");
    }
}

#[test]
fn a_rank_that_expects_another_world_size_is_refused_and_the_group_forms() {
    let stage =
        Stage::enter("a_rank_that_expects_another_world_size_is_refused_and_the_group_forms");
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work");
    let stray = stage.rank(1, 4, AMPLE, "join");
    assert_eq!(stray.error(), "Refused(WorldSize { ours: 2, theirs: 4 })");
    let one = stage.rank(1, 2, AMPLE, "join, barrier work");
    zero.succeed();
    one.succeed();
}

#[test]
fn a_process_of_another_protocol_version_is_refused_and_the_group_forms() {
    let stage =
        Stage::enter("a_process_of_another_protocol_version_is_refused_and_the_group_forms");
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work");
    stage.await_socket();
    let mut stranger = stage.connect();
    let request = by_hand::frame_of_version(9, 4, "????", &[]);
    stranger.write_all(&request).unwrap();
    let refusal = by_hand::read(&mut stranger);
    assert_eq!(refusal, r#"{"Refused":{"Version":{"ours":2,"theirs":9}}}"#);
    let one = stage.rank(1, 2, AMPLE, "join, barrier work");
    one.succeed();
    zero.succeed();
}

#[test]
fn a_process_of_another_user_is_refused_and_the_group_forms() {
    let stage = Stage::enter("a_process_of_another_user_is_refused_and_the_group_forms");
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work");
    stage.await_socket();
    const NOBODY: u32 = 65534;
    let Some(locked_out) = stage.stranger(NOBODY, "join") else {
        return;
    };
    let error = locked_out.error();
    assert!(
        error.contains(&format!(
            "problem: WrongOwner {{ owner: 0, ours: {NOBODY} }}"
        )),
        "{error}"
    );
    let barred = stage.stranger(NOBODY, "knock").unwrap().end();
    assert!(
        barred.iter().any(|line| line.contains("Permission denied")),
        "{barred:?}"
    );

    // Were the directory open to all, the socket would still ask who it is.
    chmod(&stage.directory(), 0o777);
    chmod(&stage.directory().join("run.sock"), 0o777);
    let heard = stage.stranger(NOBODY, "knock").unwrap().end();
    let refusal = format!(r#"{{"Refused":{{"User":{{"ours":0,"theirs":{NOBODY}}}}}}}"#);
    assert!(heard.contains(&format!("answer {refusal}")), "{heard:?}");

    chmod(&stage.directory(), 0o700);
    let one = stage.rank(1, 2, AMPLE, "join, barrier work");
    one.succeed();
    zero.succeed();
}

#[test]
fn a_listener_of_another_user_is_not_believed() {
    let stage = Stage::enter("a_listener_of_another_user_is_not_believed");
    const NOBODY: u32 = 65534;
    let trap = stage.home().join("trap");
    std::fs::create_dir(&trap).unwrap();
    chmod(&trap, 0o777);
    let Some(mut listener) = stage.stranger(NOBODY, &format!("bind {}/socket", trap.display()))
    else {
        return;
    };
    listener.hear("bound");
    std::fs::create_dir(stage.directory()).unwrap();
    chmod(&stage.directory(), 0o700);
    std::fs::rename(trap.join("socket"), stage.directory().join("run.sock")).unwrap();
    let error = stage.rank(1, 2, AMPLE, "join").error();
    assert!(
        error.ends_with(&format!("theirs: {NOBODY}, ours: 0 }}")),
        "{error}"
    );
    listener.go();
    listener.end();
}
