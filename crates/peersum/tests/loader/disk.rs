//! The JIT cache on a disk that fails at every change that is made to it. Each failure happens in a
//! process of its own, which runs this very test.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use peersum::loader::{LoadPolicy, LoadedImage, Place, load_from};
use peersum_artifact::Digest;

use crate::faulty_disk::{Fault, FaultyDisk};
use crate::support::{SM_90, device, flip_bit, jit_policy, kernels, load_push, private_dir, push};

/// The cache that a child is told to use.
const CACHE: &str = "PEERSUM_TEST_DISK_CACHE";

/// What there is before each run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Not even the cache's directory.
    Nothing,
    /// An entry with a flipped bit.
    DamagedEntry,
}

/// In a child: loads the module and says where from and what.
fn play() -> bool {
    let Some(cache) = env::var_os(CACHE) else {
        return false;
    };
    let image = load_push(&jit_policy().cache_dir(cache)).unwrap();
    println!("\nTOLD {}\n{}", told(&image), image.report);
    true
}

fn told(image: &LoadedImage) -> String {
    let compiled = image.report.compilation.is_some();
    format!("compiled {compiled}, {}", Digest::of(&image.bytes))
}

fn child(test: &str, cache: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .arg(format!("disk::{test}"))
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .env(CACHE, cache);
    command
}

/// Lets every change that storing a module makes fail in turn, until no more is made.
fn every_change(test: &str, fault: Fault, before: Before) {
    if play() {
        return;
    }
    let sound = load_push(&jit_policy()).unwrap();
    let parent = private_dir();
    let cache = parent.path().join("cache");
    let policy = jit_policy().cache_dir(&cache);
    for at in 1.. {
        match before {
            Before::Nothing => drop(fs::remove_dir_all(&cache)),
            Before::DamagedEntry => flip_bit(&entry(&policy), at as u64),
        }
        let disk = FaultyDisk {
            fault,
            at,
            exchanges: true,
        };
        let run = disk.run(&child(test, &cache), true);
        let what = format!("{disk:?}, {:?}: {}", run.changes.last(), run.said());
        if fault != Fault::Killed || !run.hit {
            assert!(run.output.status.success(), "{what}");
            assert!(
                run.said().contains(&format!("TOLD {}", told(&sound))),
                "{what}"
            );
        }
        if fault != Fault::Killed && run.hit {
            assert!(run.said().contains(fault.message()), "not reported: {what}");
        }
        // Whatever was left, the right module is loaded, and the next process finds it in the
        // cache and nothing else there.
        for _ in 0..2 {
            assert_eq!(load_push(&policy).unwrap().bytes, sound.bytes, "{what}");
        }
        let entry = entry(&policy).parent().unwrap().to_owned();
        let mut names: Vec<_> = fs::read_dir(&cache)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        let key = entry.file_name().unwrap().to_owned();
        let mut lock = key.clone();
        lock.push(".lock");
        assert_eq!(names, [key, lock], "{what}");
        if !run.hit {
            assert!(at > 1, "no change was made to fail: {disk:?}");
            println!("{fault:?}, {before:?}: at each of {} changes", at - 1);
            return;
        }
    }
}

/// The module's file in the cache, where it must be.
fn entry(policy: &LoadPolicy) -> std::path::PathBuf {
    for _ in 0..2 {
        let image = load_from(policy, &kernels(), push(), &device(SM_90)).unwrap();
        if matches!(image.report.place, Place::JitCache(_)) {
            return image.report.file.unwrap();
        }
    }
    panic!("a module that was stored is not in the cache");
}

#[test]
fn killed_at_any_change_of_a_new_cache_no_wrong_module_is_ever_loaded() {
    every_change(
        "killed_at_any_change_of_a_new_cache_no_wrong_module_is_ever_loaded",
        Fault::Killed,
        Before::Nothing,
    );
}

#[test]
fn killed_at_any_change_that_replaces_a_damaged_entry_no_wrong_module_is_ever_loaded() {
    every_change(
        "killed_at_any_change_that_replaces_a_damaged_entry_no_wrong_module_is_ever_loaded",
        Fault::Killed,
        Before::DamagedEntry,
    );
}

#[test]
fn a_disk_that_fills_up_at_any_change_of_the_cache_keeps_no_module_from_loading() {
    every_change(
        "a_disk_that_fills_up_at_any_change_of_the_cache_keeps_no_module_from_loading",
        Fault::Full,
        Before::Nothing,
    );
}

#[test]
fn a_disk_that_becomes_read_only_at_any_change_of_the_cache_keeps_no_module_from_loading() {
    every_change(
        "a_disk_that_becomes_read_only_at_any_change_of_the_cache_keeps_no_module_from_loading",
        Fault::ReadOnly,
        Before::DamagedEntry,
    );
}

#[test]
fn an_error_of_the_disk_at_any_change_of_the_cache_keeps_no_module_from_loading() {
    every_change(
        "an_error_of_the_disk_at_any_change_of_the_cache_keeps_no_module_from_loading",
        Fault::OneError,
        Before::DamagedEntry,
    );
}
