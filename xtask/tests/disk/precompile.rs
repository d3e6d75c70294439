//! precompile on faulty disks, with an nvcc that repeats recorded answers of the pinned one, so
//! that a run takes a few milliseconds.

use crate::checkout::{Answer, Checkout, Snapshot, pinned_nvcc, test_file};
use crate::faulty_disk::{Fault, FaultyDisk};
use peersum_artifact::{MANIFEST_FILE, Manifest, verify_file};
use std::fs;
use std::process::Command;
use tempfile::TempDir;

/// The sources' two values, between which the output alternates.
const VALUES: [&str; 2] = ["2.0f", "3.0f"];

/// A checkout whose output changes with every run: two of its four modules are compiled, two stay.
pub(crate) struct Turns {
    pub(crate) checkout: Checkout,
    /// nvcc's recorded answers, on a healthy disk.
    answers: TempDir,
    /// The output by the sources' value.
    states: [Snapshot; 2],
    wanted: usize,
}

impl Turns {
    pub(crate) fn new(checkout: Checkout) -> Self {
        let mut turns = Self {
            checkout,
            answers: tempfile::tempdir().unwrap(),
            states: Default::default(),
            wanted: 0,
        };
        for _ in VALUES {
            turns.turn();
            Answer::of(&mut turns.precompile()).succeeded();
            turns.states[turns.wanted] = turns.checkout.whole_output();
        }
        assert_ne!(turns.states[0], turns.states[1]);
        turns
    }

    /// Edits the sources, so that the next run must reach the other state.
    pub(crate) fn turn(&mut self) {
        let next = 1 - self.wanted;
        self.checkout
            .edit("scale.cuh", VALUES[self.wanted], VALUES[next]);
        self.wanted = next;
    }

    pub(crate) fn precompile(&self) -> Command {
        let nvcc = test_file("disk/nvcc-once.sh");
        let mut command =
            self.checkout
                .precompile_with(nvcc.to_str().unwrap(), "sm_90", &["--jobs", "1"]);
        command
            .env("REAL_NVCC", pinned_nvcc())
            .env("ANSWERS", self.answers.path())
            .env("KERNELS", self.checkout.kernels());
        command
    }

    /// Checks that the output is one of the two states, or that `--check` names what is wrong with
    /// it.
    #[track_caller]
    pub(crate) fn assert_no_wrong_file_passes(
        &self,
        reached: bool,
        may_be_mixed: bool,
        what: &str,
    ) {
        let out = self.checkout.out();
        let manifest = Manifest::read_dir(&out).unwrap();
        let whole = manifest
            .modules
            .iter()
            .all(|module| verify_file(&out, module).is_ok());
        let text = fs::read(out.join(MANIFEST_FILE)).unwrap();
        let state = (0..2).find(|&state| whole && self.states[state][MANIFEST_FILE] == text);
        assert!(state.is_some() || may_be_mixed, "neither state: {what}");
        let check = Answer::of(&mut self.checkout.check());
        if state == Some(self.wanted) {
            check.succeeded();
        } else {
            assert!(!reached, "a success that was none: {what}");
            check.failed_saying(&["peersum_pull_bf16_ws"]);
        }
    }

    /// Checks that the next run reaches the state of the sources and leaves nothing else.
    #[track_caller]
    pub(crate) fn assert_the_next_run_repairs(&self) {
        Answer::of(&mut self.precompile()).succeeded();
        assert_eq!(self.checkout.whole_output(), self.states[self.wanted]);
        let mut beside: Vec<String> = fs::read_dir(self.checkout.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        beside.sort();
        assert_eq!(beside, [".cubins.lock", "cubins", "cxx.log", "kernels"]);
    }
}

/// Makes each change of a run fail in turn, until a run makes no more changes.
fn every_change(fault: Fault, exchanges: bool) {
    let mut turns = Turns::new(Checkout::new());
    for at in 1.. {
        turns.turn();
        let disk = FaultyDisk {
            fault,
            at,
            exchanges,
        };
        let run = disk.run(&turns.precompile(), true);
        let what = format!("{disk:?}, {:?}: {}", run.changes.last(), run.said());
        let succeeded = run.output.status.success();
        turns.assert_no_wrong_file_passes(succeeded, !exchanges, &what);
        if !succeeded && fault != Fault::Killed {
            assert_eq!(run.output.status.code(), Some(1), "{what}");
            assert!(run.said().contains(fault.message()), "{what}");
        }
        turns.assert_the_next_run_repairs();
        if !run.hit {
            assert!(succeeded, "{what}");
            assert!(at > 1, "no change was made to fail: {disk:?}");
            println!("{fault:?}: at each of {} changes", at - 1);
            return;
        }
    }
}

#[test]
fn killed_at_any_change_a_run_leaves_the_old_state_or_the_new_one() {
    every_change(Fault::Killed, true);
}

#[test]
fn killed_at_any_change_where_names_cannot_be_exchanged_a_mixture_is_exposed_and_repaired() {
    every_change(Fault::Killed, false);
}

#[test]
fn on_a_disk_that_fills_up_at_any_change_a_run_says_so_and_harms_nothing() {
    every_change(Fault::Full, true);
}

#[test]
fn on_a_disk_that_becomes_read_only_at_any_change_a_run_says_so_and_harms_nothing() {
    every_change(Fault::ReadOnly, true);
}

#[test]
fn an_error_of_the_disk_at_any_change_is_reported_or_does_not_matter() {
    every_change(Fault::OneError, true);
}
