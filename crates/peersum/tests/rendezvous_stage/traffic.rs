//! What the ranks send each other, and how they check it.

use peersum::rendezvous::{Group, RendezvousError};
use std::os::fd::AsFd;
use std::time::Duration;

pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// The message of `rank`, of a length and content of its own.
pub fn message(rank: u32, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed << 8 | u64::from(rank));
    let lengths = [0, 1, 1000, peersum::rendezvous::MAX_MESSAGE_BYTES];
    let length = lengths[random.usize(..lengths.len())];
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

pub fn gather(
    group: &mut Group,
    label: &str,
    seed: u64,
    timeout: Duration,
) -> Result<(), RendezvousError> {
    let messages = group.all_gather(label, &message(group.rank(), seed), timeout)?;
    assert_eq!(messages.len() as u32, group.world_size());
    for (rank, received) in (0..).zip(messages) {
        assert!(
            received == message(rank, seed),
            "the message of rank {rank} in {label}, seed {seed}"
        );
    }
    Ok(())
}

/// Every rank writes to every rank's memory and finds what all have written to its own.
pub fn exchange_memory(
    group: &mut Group,
    label: &str,
    timeout: Duration,
) -> Result<(), RendezvousError> {
    const BYTES: usize = 4096;
    let rank = group.rank() as u8;
    let memory = rustix::fs::memfd_create("peersum-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, BYTES as u64).unwrap();
    let received = group.all_gather_fd(label, &[rank], Some(memory.as_fd()), timeout)?;
    let maps: Vec<&[std::sync::atomic::AtomicU8]> = received
        .iter()
        .zip(0..)
        .map(|((message, descriptor), rank)| {
            assert_eq!(message[..], [rank]);
            let descriptor = descriptor.as_ref().unwrap();
            let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
            assert!(
                flags.contains(rustix::io::FdFlags::CLOEXEC),
                "a received descriptor survives exec"
            );
            map(descriptor.as_fd(), BYTES)
        })
        .collect();
    for map in &maps {
        map[usize::from(rank)].store(rank + 1, std::sync::atomic::Ordering::Relaxed);
    }
    group.barrier(&format!("{label}: written"), timeout)?;
    for map in &maps {
        let read: Vec<u8> = map[..maps.len()]
            .iter()
            .map(|byte| byte.load(std::sync::atomic::Ordering::Relaxed))
            .collect();
        let expected: Vec<u8> = (1..=maps.len() as u8).collect();
        assert_eq!(read, expected);
    }
    group.barrier(&format!("{label}: read"), timeout)
}

fn map<'a>(memory: std::os::fd::BorrowedFd<'_>, bytes: usize) -> &'a [std::sync::atomic::AtomicU8] {
    use rustix::mm::{MapFlags, ProtFlags};
    // SAFETY: a new mapping at an address of the system's choice replaces none. It is never
    // unmapped, all of it lies in the file, which was sized before it was sent, and other
    // processes' writes to it are races only to atomics.
    unsafe {
        let start = rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            memory,
            0,
        )
        .unwrap();
        std::slice::from_raw_parts(start.cast(), bytes)
    }
}
