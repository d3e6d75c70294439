//! Real disks: small ones that fill up, and ones that are mounted read-only.
//!
//! Each test mounts them in a mount namespace of its own, which ends with the test, even if that
//! fails.

use crate::checkout::{Answer, Checkout};
#[cfg(feature = "dist")]
use crate::dist;
use crate::machine::Machine;
use crate::precompile;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// Calls `test` with an empty directory in a new mount namespace, or prints that the machine does
/// not allow one.
fn with_own_mounts(test: fn(&Path)) {
    let root = tempfile::tempdir().unwrap();
    let ended = thread::scope(|scope| {
        let in_namespace = scope.spawn(|| {
            // SAFETY: a mount namespace changes what paths mean to this thread and the programs
            // that it starts, and takes memory and descriptors from nobody.
            let apart = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
            if apart.is_ok() && mount(&["--make-rprivate", "/"]) {
                test(root.path());
            } else {
                println!("NOT TESTED: mounting takes root, and a machine that lets it");
            }
        });
        in_namespace.join()
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn mount(arguments: &[&str]) -> bool {
    let mut command = Command::new("mount");
    let status = command.args(arguments).stdin(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A mounted disk.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let disk = Self(path);
        disk.with_options("size=64m");
        disk
    }

    fn with_options(&self, options: &str) {
        let path = self.0.to_str().unwrap();
        assert!(mount(&["-t", "tmpfs", "-o", options, "tmpfs", path]));
    }

    /// Fills the disk except for so many blocks.
    fn leave(&self, blocks: u64) {
        let status = rustix::fs::statvfs(&self.0).unwrap();
        // A tmpfs of size 0 is one without a limit.
        let all = (status.f_blocks - status.f_bfree + blocks).max(1);
        self.with_options(&format!("remount,size={}", all * status.f_frsize));
    }

    fn make_large(&self) {
        self.with_options("remount,size=64m");
    }
}

/// Runs precompile on a disk with more and more room, until there is enough.
fn precompile_with_ever_more_room(mut turns: precompile::Turns, disk: &Disk, may_be_mixed: bool) {
    for blocks in 0.. {
        turns.turn();
        disk.leave(blocks);
        let run = Answer::of(&mut turns.precompile());
        let what = format!("{blocks} blocks: {run:?}");
        let succeeded = run.code == Some(0);
        turns.assert_no_wrong_file_passes(succeeded, may_be_mixed, &what);
        disk.make_large();
        if succeeded {
            println!("{blocks} blocks are enough");
            assert!(blocks > 0, "{what}");
            return;
        }
        run.failed_saying(&["No space left on device"]);
        turns.assert_the_next_run_repairs();
    }
}

#[test]
fn on_a_disk_without_room_precompile_says_so_and_harms_nothing() {
    with_own_mounts(|root| {
        let disk = Disk::mount(root.to_owned());
        let turns = precompile::Turns::new(Checkout::within(root, "checkout"));
        precompile_with_ever_more_room(turns, &disk, false);
    });
}

#[test]
fn in_an_output_that_is_a_disk_of_its_own_without_room_a_mixture_is_exposed_and_repaired() {
    with_own_mounts(|root| {
        let checkout = Checkout::within(root, "checkout");
        let disk = Disk::mount(checkout.out());
        precompile_with_ever_more_room(precompile::Turns::new(checkout), &disk, true);
    });
}

#[test]
fn on_a_disk_mounted_read_only_precompile_says_so_and_a_check_still_answers() {
    with_own_mounts(|root| {
        let disk = Disk::mount(root.to_owned());
        let mut turns = precompile::Turns::new(Checkout::within(root, "checkout"));
        Answer::of(&mut turns.checkout.check()).succeeded();
        turns.turn();
        disk.with_options("remount,ro");
        Answer::of(&mut turns.precompile()).failed_saying(&["Read-only file system", "--out"]);
        turns.assert_no_wrong_file_passes(false, false, "read-only");
        disk.with_options("remount,rw");
        turns.assert_the_next_run_repairs();
    });
}

#[cfg(feature = "dist")]
#[test]
fn on_a_disk_without_room_for_temporary_files_a_dist_says_so_and_harms_no_release() {
    with_own_mounts(|root| {
        let disk = Disk::mount(root.to_owned());
        let mut turns = dist::Turns::with_temporary_files_within(root, dist::small_checkout());
        for blocks in 0.. {
            turns.turn();
            disk.leave(blocks);
            let run = Answer::of(&mut turns.dist());
            let what = format!("{blocks} blocks: {run:?}");
            let succeeded = run.code == Some(0);
            turns.assert_no_wrong_release_passes(succeeded, false, &what);
            disk.make_large();
            if succeeded {
                println!("{blocks} blocks are enough");
                assert!(blocks > 1, "{what}");
                return;
            }
            run.failed_saying(&["No space left on device"]);
            turns.assert_the_next_run_repairs(&what);
        }
    });
}

#[test]
fn on_a_disk_without_room_an_install_says_so_and_leaves_nothing_that_is_used() {
    with_own_mounts(|root| {
        let disk = Disk::mount(root.to_owned());
        let machine = Machine::new();
        machine.has_fake_pip();
        let toolchain = |command| {
            let mut command = machine.toolchain(&[command]);
            command.env("PEERSUM_TOOLCHAIN_DIR", root);
            crate::machine::Answer::of(&mut command)
        };
        for blocks in 0.. {
            disk.leave(blocks);
            let install = toolchain("install");
            assert_eq!(toolchain("path").success, install.success, "{install:?}");
            if install.success {
                println!("{blocks} blocks are enough");
                assert!(blocks > 1);
                break;
            }
            install.failed().says(&["No space left on device"]);
        }
        // An existing install is used, whether or not the disk can be written.
        disk.with_options("remount,ro");
        let dir = toolchain("install").succeeded().directory();
        disk.with_options("remount,rw");
        fs::remove_file(dir.join("nvidia/cu13/bin/ptxas")).unwrap();
        disk.with_options("remount,ro");
        toolchain("install")
            .failed()
            .says(&["Read-only file system", "PEERSUM_TOOLCHAIN_DIR"]);
    });
}
