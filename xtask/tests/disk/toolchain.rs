//! The toolchain's install, with a fake pip.

use crate::faulty_disk::{Fault, FaultyDisk};
use crate::machine::Machine;
use std::fs;
use std::path::Path;

/// Makes each change of an install fail in turn, until one makes no more changes. `damaged` says
/// whether a damaged install must be replaced.
fn every_change(fault: Fault, damaged: bool) {
    let machine = Machine::new();
    machine.has_fake_pip();
    let dir = machine.ask(&["install"]).succeeded().directory();
    for at in 1.. {
        if damaged {
            fs::remove_file(dir.join("nvidia/cu13/bin/ptxas")).unwrap();
        } else {
            fs::remove_dir_all(&dir).unwrap();
        }
        let disk = FaultyDisk {
            fault,
            at,
            exchanges: true,
        };
        let run = disk.run(&machine.toolchain(&["install"]), false);
        let what = format!("{disk:?}, {:?}: {}", run.changes.last(), run.said());
        let succeeded = run.output.status.success();
        let usable = machine.ask(&["path"]).success;
        assert!(usable || !succeeded, "a success that was none: {what}");
        assert_eq!(usable, is_whole(&dir), "{what}");
        if !succeeded && fault != Fault::Killed {
            assert_eq!(run.output.status.code(), Some(1), "{what}");
            assert!(run.said().contains(fault.message()), "{what}");
            assert!(run.said().contains("PEERSUM_TOOLCHAIN_DIR"), "{what}");
        }
        machine.ask(&["install"]).succeeded();
        assert!(is_whole(&dir), "{what}");
        assert_eq!(machine.toolchains().len(), 1, "{what}");
        if !run.hit {
            assert!(succeeded, "{what}");
            assert!(at > 1, "no change was made to fail: {disk:?}");
            println!("{fault:?}: at each of {} changes", at - 1);
            return;
        }
    }
}

/// Whether every file that pip installs is there.
fn is_whole(dir: &Path) -> bool {
    ["bin/nvcc", "bin/ptxas", "nvvm/bin/cicc", "release"]
        .iter()
        .all(|file| dir.join("nvidia/cu13").join(file).is_file())
}

#[test]
fn an_install_killed_at_any_change_is_whole_or_not_there() {
    every_change(Fault::Killed, false);
}

#[test]
fn a_repair_killed_at_any_change_leaves_an_install_that_is_whole_or_unused() {
    every_change(Fault::Killed, true);
}

#[test]
fn on_a_disk_that_fills_up_at_any_change_an_install_says_so_and_is_not_used() {
    every_change(Fault::Full, false);
}

#[test]
fn on_a_disk_that_becomes_read_only_at_any_change_an_install_says_so_and_is_not_used() {
    every_change(Fault::ReadOnly, true);
}

#[test]
fn an_error_of_the_disk_at_any_change_of_an_install_is_reported_or_does_not_matter() {
    every_change(Fault::OneError, true);
}
