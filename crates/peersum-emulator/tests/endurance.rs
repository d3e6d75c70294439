//! A thousand communicators made, used and dropped leave a process as it was: ranks that are
//! threads, and ranks that are processes.
//!
//! What is measured belongs to a whole process, so each measurement has one of its own: this
//! binary, started again.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use peersum::{Communicator, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

/// What a process that this test has started is to do: `threads`, or `process RANK DIRECTORY`.
const ROLE: &str = "PEERSUM_TEST_ROLE";
const COMMUNICATORS: u32 = 1000;
/// Stacks, arenas of the allocator and tables of the system's libraries reach their size by then.
const WARM_UP: u32 = 200;
/// What resident memory may grow by after that: a kilobyte a communicator would be nearly as much.
const RESIDENT_SLACK_BYTES: usize = 1 << 20;
/// The C library keeps stacks of threads that have ended for the next ones: as many as there ever
/// were at once. A mapping that every fiftieth communicator left behind would be as many.
const MAPPINGS_SLACK: usize = 16;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Usage {
    resident_bytes: usize,
    descriptors: usize,
    mappings: usize,
    threads: usize,
}

impl Usage {
    fn now() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap();
        let pages = read("/proc/self/statm");
        let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
        let count = |directory: &str| std::fs::read_dir(directory).unwrap().count();
        Self {
            resident_bytes: pages * rustix::param::page_size(),
            descriptors: count("/proc/self/fd"),
            mappings: read("/proc/self/maps").lines().count(),
            threads: count("/proc/self/task"),
        }
    }
}

/// One rank's communicator: made, used once, dropped.
fn live_once(rendezvous: Rendezvous) {
    let rank = rendezvous.rank();
    let stream = EmulatorDevice::new(rank).stream().unwrap();
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(4096)
        .timeout(PATIENCE)
        .setup_timeout(PATIENCE)
        .build(&stream)
        .unwrap();
    let symmetric = communicator.symmetric_alloc::<f32>(64).unwrap();
    let input = EmulatorBuffer::from_slice(&[rank as f32 + 1.0; 100]);
    let mut output = EmulatorBuffer::zeroed(100);
    communicator.all_reduce(&input, &mut output).unwrap();
    communicator.synchronize().unwrap();
    assert_eq!(output.to_vec(), [3.0_f32; 100]);
    drop(communicator);
    drop(symmetric);
}

/// Runs `live` once for each communicator and looks at what the process holds.
fn endure(live: impl Fn(u32)) {
    (0..WARM_UP).for_each(&live);
    let before = Usage::now();
    (WARM_UP..COMMUNICATORS).for_each(live);
    let after = Usage::now();
    println!("{before:?}\n{after:?}");
    assert_eq!(
        after.descriptors, before.descriptors,
        "{before:?} {after:?}"
    );
    assert_eq!(after.threads, before.threads, "{before:?} {after:?}");
    let most = before.mappings + MAPPINGS_SLACK;
    assert!(after.mappings <= most, "{before:?} {after:?}");
    let most = before.resident_bytes + RESIDENT_SLACK_BYTES;
    assert!(after.resident_bytes <= most, "{before:?} {after:?}");
}

/// In a process that a test has started: plays its role and ends the process.
fn play_if_started() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["threads"] => endure(|_| {
            let ranks = Rendezvous::threads(2).into_iter();
            let ranks: Vec<_> = ranks
                .map(|rendezvous| std::thread::spawn(|| live_once(rendezvous)))
                .collect();
            // Joined one by one: the end of a scope does not wait for its threads to be gone.
            ranks.into_iter().for_each(|rank| rank.join().unwrap());
        }),
        ["process", rank, directory] => {
            let rank = rank.parse().unwrap();
            endure(|index| {
                let group = format!("number-{index}");
                live_once(Rendezvous::unix(directory, group, rank, 2));
            });
        }
        _ => panic!("{role}"),
    }
    std::process::exit(0);
}

/// Killed if the test ends before it.
struct Started(Child);

impl Started {
    fn new(test: &str, role: String) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            // One heap: how many there are depends on which threads happen to meet.
            .env("MALLOC_ARENA_MAX", "1")
            .spawn();
        Self(child.unwrap())
    }

    fn assert_success(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_thousand_communicators_of_threads_leave_memory_descriptors_and_mappings_as_they_were() {
    play_if_started();
    let test =
        "a_thousand_communicators_of_threads_leave_memory_descriptors_and_mappings_as_they_were";
    Started::new(test, "threads".to_owned()).assert_success();
}

#[test]
fn a_thousand_communicators_of_processes_leave_memory_descriptors_and_mappings_as_they_were() {
    play_if_started();
    let test =
        "a_thousand_communicators_of_processes_leave_memory_descriptors_and_mappings_as_they_were";
    let directory = tempfile::tempdir().unwrap();
    let sockets = directory.path().join("sockets");
    let ranks =
        [0, 1].map(|rank| Started::new(test, format!("process {rank} {}", sockets.display())));
    ranks.into_iter().for_each(Started::assert_success);
    let left: Vec<PathBuf> = list(&sockets);
    assert!(left.is_empty(), "{left:?}");
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}
