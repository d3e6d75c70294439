//! Ranks that are real processes share memory through descriptors alone.

mod rig;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use half::bf16;
use rig::{Setup, World, kinds, random_inputs};

/// For the second process: its descriptors, four numbers.
const DESCRIPTORS: &str = "PEERSUM_EMULATOR_TEST_DESCRIPTORS";
const SEED: u64 = 20;

/// Both ranks make the same calls; each checks its own results.
fn run_rank(world: &World, rank: usize) {
    let mut generator = fastrand::Rng::with_seed(SEED);
    for round in 0..3 {
        for kind in kinds() {
            let inputs = random_inputs::<bf16>(&mut generator, 2, 300 + 77 * round);
            let arrays = world.arrays(&kind, rank, &inputs[rank]);
            world.launch(&kind, rank, &arrays);
            if let Err(found) = world.check(rank, &inputs, &arrays) {
                panic!("rank {rank}, round {round}, {kind:?}: {found}");
            }
        }
    }
}

#[test]
fn two_processes_reduce_through_memory_that_they_share_by_descriptor() {
    if let Ok(descriptors) = std::env::var(DESCRIPTORS) {
        let mut descriptors = descriptors.split(' ').map(|number| {
            let number: RawFd = number.parse().unwrap();
            // SAFETY: inherited for this purpose, and owned by nothing else in this process.
            unsafe { OwnedFd::from_raw_fd(number) }
        });
        let mut pair = || (descriptors.next().unwrap(), descriptors.next().unwrap());
        let pairs = [pair(), pair()];
        let world = World::import(&Setup::default(), &pairs);
        run_rank(&world, 1);
        return;
    }
    let world = World::new(2, &Setup::default());
    let exported = world.export();
    let numbers: Vec<String> = exported
        .iter()
        .flat_map(|(arena, symmetric)| [arena, symmetric])
        .map(|fd| {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
            fd.as_raw_fd().to_string()
        })
        .collect();
    let mut peer = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "two_processes_reduce_through_memory_that_they_share_by_descriptor",
            "--nocapture",
        ])
        .env(DESCRIPTORS, numbers.join(" "))
        .spawn()
        .unwrap();
    run_rank(&world, 0);
    assert!(peer.wait().unwrap().success(), "the other process failed");
}
