//! Children that a rank has made by fork, without executing a program: they have copies of all that
//! the rank has, and their parent's group must not notice them.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use rendezvous_stage::{AMPLE, Rank, Stage};
use rustix::process::{Pid, Signal, kill_process};
use std::time::Instant;

/// The child that a rank has made with `fork-stay`; killed at the end of the test.
struct Child(Pid);

impl Child {
    fn of(rank: &mut Rank) -> Self {
        let heard = rank.hear_beginning("child ");
        Self(Pid::from_raw(heard.parse().unwrap()).unwrap())
    }

    fn lives(&self) -> bool {
        // A dead child of which nobody has taken the exit status counts as dead.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.as_raw_pid()));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

#[test]
fn a_child_that_drops_its_copy_of_the_group_changes_nothing() {
    let stage = Stage::enter("a_child_that_drops_its_copy_of_the_group_changes_nothing");
    let steps = "join, gather one 1, fork leave, pause, gather two 2, barrier end, leave";
    let mut ranks = stage.ranks(3, AMPLE, steps);
    for rank in &mut ranks {
        rank.hear("paused");
    }
    assert_eq!(stage.files(), ["run.lock", "run.sock"]);
    // Rank 0 still answers late ranks, and still holds the group's name.
    let late = stage.rank(1, 3, AMPLE, "join").error();
    assert!(late.contains("AlreadyFormed"), "{late}");
    let second = stage.rank(0, 3, AMPLE, "join").error();
    let pid = ranks[0].pid();
    assert!(second.contains(&format!("pid: Some({pid})")), "{second}");
    for rank in &mut ranks {
        rank.go();
    }
    for rank in ranks {
        rank.succeed();
    }
    assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
}

#[test]
fn a_child_that_uses_its_copy_of_the_group_is_refused_and_the_group_goes_on() {
    let stage =
        Stage::enter("a_child_that_uses_its_copy_of_the_group_is_refused_and_the_group_goes_on");
    for misuse in ["barrier", "abandon"] {
        let steps = format!("join, fork {misuse}, gather one 1, leave");
        for rank in stage.ranks(3, AMPLE, &steps) {
            let heard = rank.succeed();
            let refused = heard
                .iter()
                .any(|line| line.starts_with("child Err(Forked"));
            assert!(refused || misuse == "abandon", "{heard:?}");
        }
    }
}

#[test]
fn a_rank_that_leaves_is_missed_at_once_although_its_child_lives_on() {
    let stage = Stage::enter("a_rank_that_leaves_is_missed_at_once_although_its_child_lives_on");
    for quitter in 0..3 {
        let started = Instant::now();
        let mut ranks: Vec<Rank> = (0..3)
            .map(|rank| {
                let steps = if rank == quitter {
                    "join, fork-stay, leave"
                } else {
                    "join, barrier work"
                };
                stage.rank(rank, 3, AMPLE, steps)
            })
            .collect();
        let mut left = ranks.remove(quitter as usize);
        let child = Child::of(&mut left);
        left.succeed();
        for rank in ranks {
            let expected = format!("PeerLost {{ rank: {quitter}, during: \"work\" }}");
            assert_eq!(rank.error(), expected);
        }
        assert!(child.lives() && started.elapsed() < AMPLE);
        assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
    }
}

#[test]
fn a_dead_rank_0_holds_no_name_although_its_child_lives_on() {
    let stage = Stage::enter("a_dead_rank_0_holds_no_name_although_its_child_lives_on");
    let mut first = stage.rank(0, 2, AMPLE, "join, fork-stay, pause");
    let one = stage.rank(1, 2, AMPLE, "join");
    let child = Child::of(&mut first);
    first.hear("paused");
    first.kill();
    one.succeed();
    // The rank that comes first finds the dead one's socket, which the child keeps open.
    let mut one = stage.rank(1, 2, AMPLE, "join, barrier work, leave");
    one.hear("joining");
    rendezvous_stage::settle();
    let zero = stage.rank(0, 2, AMPLE, "join, barrier work, leave");
    zero.succeed();
    one.succeed();
    assert!(child.lives());
    assert!(stage.files().is_empty(), "left behind: {:?}", stage.files());
}
