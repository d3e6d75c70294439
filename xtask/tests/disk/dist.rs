//! dist of two existing modules on faulty disks: in a checkout so small that every change can fail
//! in turn, and in a copy of this checkout, where some changes fail. cargo, which packages, runs on
//! a healthy disk.

use crate::checkout::test_file;
use crate::faulty_disk::{Fault, FaultyDisk};
use crate::release::{Checkout, cubins, failed_saying, snapshot, succeeded, verify};
use crate::seeded::seeded;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Full, Fault::ReadOnly, Fault::OneError];

/// More changes than any run makes.
const NEVER: usize = i32::MAX as usize;

/// A checkout whose release changes with every run.
pub(crate) struct Turns {
    pub(crate) checkout: Checkout,
    /// Two releases' modules.
    modules: [TempDir; 2],
    states: [BTreeMap<String, Vec<u8>>; 2],
    wanted: usize,
    /// For temporary files.
    temporary: TempDir,
}

impl Turns {
    fn new(checkout: Checkout) -> Self {
        Self::with_temporary_files_within(&std::env::temp_dir(), checkout)
    }

    pub(crate) fn with_temporary_files_within(parent: &Path, checkout: Checkout) -> Self {
        let modules = [cubins(), cubins()];
        // The same modules, with a manifest that names another build of the compiler.
        let manifest = modules[1].path().join("manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("36424714_0", "36424714_1")).unwrap();
        let mut turns = Self {
            checkout,
            modules,
            states: Default::default(),
            wanted: 0,
            temporary: tempfile::tempdir_in(parent).unwrap(),
        };
        for _ in 0..2 {
            turns.turn();
            succeeded(&mut turns.dist());
            turns.states[turns.wanted] = turns.published();
        }
        assert_ne!(turns.states[0], turns.states[1]);
        turns
    }

    /// Makes the next run produce the other release.
    pub(crate) fn turn(&mut self) {
        self.wanted = 1 - self.wanted;
    }

    pub(crate) fn dist(&self) -> Command {
        let mut command = self.checkout.dist(self.modules[self.wanted].path());
        command.env("TMPDIR", self.temporary.path());
        command
    }

    fn published(&self) -> BTreeMap<String, Vec<u8>> {
        snapshot(&self.checkout.out())
    }

    /// Leaves what a killed run would leave.
    fn leave_what_a_killed_run_leaves(&self) {
        let scratch = self.temporary.path().join("peersum-dist-scratch-left");
        let staging = self.checkout.out().with_file_name(".dist.staging-1");
        for (directory, file) in [
            (scratch, "checkout/Cargo.toml"),
            (staging, "next/SHA256SUMS"),
        ] {
            let path = directory.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    /// Runs a dist of the other release after a killed one on a disk that fails, and then one that
    /// must repair everything. Returns whether the first run reached the fault.
    fn fail_and_repair(&mut self, disk: FaultyDisk) -> bool {
        self.turn();
        self.leave_what_a_killed_run_leaves();
        let run = disk.run(&self.dist(), true);
        let what = format!(
            "{disk:?}, {:?}: {}",
            run.changes.get(disk.at - 1),
            run.said()
        );
        let succeeded = run.output.status.success();
        self.assert_no_wrong_release_passes(succeeded, !disk.exchanges, &what);
        if !succeeded && disk.fault != Fault::Killed {
            assert_eq!(run.output.status.code(), Some(1), "{what}");
            assert!(run.said().contains(disk.fault.message()), "{what}");
            assert!(!run.said().contains("panicked"), "{what}");
        }
        assert!(run.hit || succeeded, "{what}");
        self.assert_the_next_run_repairs(&what);
        run.hit
    }

    /// Checks that what is published is one of the two releases, or that the check of its sums
    /// fails.
    #[track_caller]
    pub(crate) fn assert_no_wrong_release_passes(
        &self,
        reached: bool,
        may_be_mixed: bool,
        what: &str,
    ) {
        let published = self.published();
        if published != self.states[self.wanted] {
            assert!(!reached, "a success that was none: {what}");
        }
        if !self.states.contains(&published) {
            assert!(may_be_mixed, "neither release: {what}");
            failed_saying(&mut verify(&self.checkout), &["is not a whole release"]);
        }
    }

    /// Checks that the next run makes the release that is asked for and leaves nothing else.
    pub(crate) fn assert_the_next_run_repairs(&self, what: &str) {
        succeeded(&mut self.dist());
        assert!(self.published() == self.states[self.wanted], "{what}");
        let beside = self.checkout.out();
        assert_eq!(
            names(beside.parent().unwrap()),
            [".dist.lock", "checkout", "dist"],
            "{what}"
        );
        assert_eq!(names(self.temporary.path()), [""; 0], "{what}");
    }

    /// The number of changes of a run without a fault.
    fn changes(&mut self, exchanges: bool) -> Vec<String> {
        self.turn();
        self.leave_what_a_killed_run_leaves();
        let disk = FaultyDisk {
            fault: Fault::OneError,
            at: NEVER,
            exchanges,
        };
        let run = disk.run(&self.dist(), true);
        assert!(run.output.status.success(), "{run:?}");
        assert!(self.published() == self.states[self.wanted], "{run:?}");
        run.changes
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A checkout of one crate, which carries the modules.
pub(crate) fn small_checkout() -> Checkout {
    let original = tempfile::tempdir().unwrap();
    // xtask recognises a checkout by the first; it looks for workspaces in the second.
    for directory in ["xtask/prelude", "crates", "kernels/src", "kernels/pack"] {
        fs::create_dir_all(original.path().join(directory)).unwrap();
    }
    for (name, text) in [
        (
            "Cargo.toml",
            "[workspace]\nmembers = [\"kernels\"]\nresolver = \"3\"\n",
        ),
        (
            "Cargo.lock",
            "version = 4\n\n[[package]]\nname = \"peersum-kernels\"\nversion = \"0.1.0\"\n",
        ),
        ("CHANGELOG.md", "# Changelog\n\n## 0.1.0\n\n- New.\n"),
        ("README.md", "# peersum\n"),
        ("LICENSE-APACHE", "Apache-2.0\n"),
        ("LICENSE-MIT", "MIT\n"),
        (
            "kernels/Cargo.toml",
            "[package]\nname = \"peersum-kernels\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
             include = [\"/src\", \"/pack\", \"/LICENSE-*\"]\n",
        ),
        ("kernels/src/lib.rs", ""),
    ] {
        fs::write(original.path().join(name), text).unwrap();
    }
    Checkout::of(original.path(), "checkout")
}

/// Makes each change of a run fail in turn, beginning with the change `first`, until a run makes no
/// more changes.
fn every_change(turns: &mut Turns, fault: Fault, exchanges: bool, first: usize) {
    for at in first.. {
        let disk = FaultyDisk {
            fault,
            at,
            exchanges,
        };
        if !turns.fail_and_repair(disk) {
            assert!(at > first, "no change was made to fail: {disk:?}");
            println!("{fault:?}: at each of {} changes", at - first);
            return;
        }
    }
}

#[test]
fn killed_at_any_change_a_dist_leaves_the_old_release_or_the_new_one() {
    every_change(&mut Turns::new(small_checkout()), Fault::Killed, true, 1);
}

#[test]
fn killed_at_any_change_where_names_cannot_be_exchanged_a_mixed_release_is_exposed_and_repaired() {
    let mut turns = Turns::new(small_checkout());
    let changes = turns.changes(false);
    // The changes before it are the same on a disk that can exchange names.
    let exchange = changes.iter().position(|change| change == "renameat2");
    every_change(&mut turns, Fault::Killed, false, exchange.unwrap() + 1);
}

#[test]
fn on_a_disk_that_fills_up_at_any_change_a_dist_says_so_and_harms_no_release() {
    every_change(&mut Turns::new(small_checkout()), Fault::Full, true, 1);
}

#[test]
fn on_a_disk_that_becomes_read_only_at_any_change_a_dist_says_so_and_harms_no_release() {
    every_change(&mut Turns::new(small_checkout()), Fault::ReadOnly, true, 1);
}

#[test]
fn an_error_of_the_disk_at_any_change_of_a_dist_is_reported_or_does_not_matter() {
    every_change(&mut Turns::new(small_checkout()), Fault::OneError, true, 1);
}

#[test]
fn of_this_checkout_too_a_dist_on_a_faulty_disk_leaves_the_old_release_or_the_new_one() {
    let mut random = seeded();

    let mut turns = Turns::new(Checkout::of_this());
    let all = turns.changes(true).len();
    for fault in FAULTS {
        for _ in 0..2 {
            let disk = FaultyDisk {
                fault,
                at: random.usize(1..=all),
                exchanges: true,
            };
            assert!(turns.fail_and_repair(disk), "{disk:?}");
            println!("{fault:?}: at change {} of {all}", disk.at);
        }
    }
}

#[test]
fn what_a_dist_or_the_cargo_of_a_killed_one_works_in_is_not_removed_before_it_ends() {
    let turns = Turns::new(small_checkout());
    let place = tempfile::tempdir().unwrap();
    let (packages, gate) = (place.path().join("packages"), place.path().join("gate"));
    let checkout = small_checkout();
    let mut first = checkout
        .dist(turns.modules[0].path())
        .env("TMPDIR", turns.temporary.path())
        .env("CARGO", test_file("fakes/cargo-gated.sh"))
        .env("REAL_CARGO", env!("CARGO"))
        .env("PACKAGES", &packages)
        .env("GATE", &gate)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !packages.is_file() {
        assert_eq!(first.try_wait().unwrap(), None);
        sleep(Duration::from_millis(5));
    }
    let in_use = names(turns.temporary.path());
    assert_eq!(in_use.len(), 1);
    let manifest = turns
        .temporary
        .path()
        .join(&in_use[0])
        .join("checkout/kernels/Cargo.toml");

    succeeded(&mut turns.dist());
    assert_eq!(names(turns.temporary.path()), in_use);
    first.kill().unwrap();
    first.wait().unwrap();
    succeeded(&mut turns.dist());
    assert_eq!(names(turns.temporary.path()), in_use);
    assert!(manifest.is_file());

    fs::write(&gate, "").unwrap();
    // No process is told when the orphan ends.
    for _ in 0..200 {
        succeeded(&mut turns.dist());
        if names(turns.temporary.path()).is_empty() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("{in_use:?} is still there");
}
