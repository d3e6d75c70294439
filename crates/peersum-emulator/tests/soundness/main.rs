//! Safe calls that once freed, unmapped or overran memory that something still used. Tests whose
//! fault would be a fault of memory run in a process of their own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod captures;
mod drops;
mod handles;
mod hostile;
mod sharing;
mod sizes;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use peersum::{Communicator, CommunicatorBuilder, Rendezvous};
use peersum_emulator::{Emulator, EmulatorBuffer, EmulatorDevice};

type Comm = Communicator<Emulator>;

/// Beyond what any call that succeeds takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);
/// By how much one rank calls later than another, whose kernel is in the stream meanwhile.
const LATE: Duration = Duration::from_millis(300);
const LEN: usize = 1000;

/// The test that a process plays.
const ROLE: &str = "PEERSUM_SOUNDNESS_TEST";

/// Runs `body` in a process of its own, which must end well.
fn in_child(test: &str, body: impl FnOnce()) {
    if std::env::var(ROLE).as_deref() == Ok(test) {
        body();
        std::process::exit(0);
    }
    assert_ends_well(start(test, test.to_owned()));
}

/// Runs `program` on two ranks that are processes, which map each other's memory and must end well.
fn on_processes(test: &str, program: impl FnOnce(Comm)) {
    if let Ok(role) = std::env::var(ROLE) {
        let (rank, directory) = role.split_once(' ').unwrap();
        let rendezvous = Rendezvous::unix(directory, "pair", rank.parse().unwrap(), 2);
        program(build(settings(), rendezvous));
        std::process::exit(0);
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("sockets");
    let ranks = [0, 1].map(|rank| start(test, format!("{rank} {}", place.display())));
    ranks.into_iter().for_each(assert_ends_well);
}

/// This test binary, for one test in a role.
fn start(test: &str, role: String) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn assert_ends_well(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn settings() -> CommunicatorBuilder {
    Communicator::builder()
        .max_bytes(64 << 10)
        .max_blocks(2)
        .timeout(PATIENCE)
        .setup_timeout(PATIENCE)
}

/// Runs `program` once a rank, each on a thread and an emulated device of its own.
fn on_ranks<T: Send>(world_size: u32, program: impl Fn(Comm) -> T + Sync) -> Vec<T> {
    let program = &program;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(world_size)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || program(build(settings(), rendezvous))))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn build(settings: CommunicatorBuilder, rendezvous: Rendezvous) -> Comm {
    let stream = EmulatorDevice::new(rendezvous.rank()).stream().unwrap();
    settings.rendezvous(rendezvous).build(&stream).unwrap()
}

/// A group of one on an emulated device.
fn alone(device: u32) -> Comm {
    let rendezvous = Rendezvous::threads(1).remove(0);
    let stream = EmulatorDevice::new(device).stream().unwrap();
    settings().rendezvous(rendezvous).build(&stream).unwrap()
}

/// A buffer that every rank fills with its rank + 1.
fn ranks_buffer(rank: u32) -> EmulatorBuffer<f32> {
    EmulatorBuffer::from_slice(&[rank as f32 + 1.0; LEN])
}

/// A call of a group of two after which each element is 3.
fn good_call(comm: &mut Comm) {
    let mut buffer = ranks_buffer(comm.rank());
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    assert_all_are(&buffer, 3.0);
}

/// Every element; a message of [`LEN`] numbers would tell nothing.
#[track_caller]
fn assert_all_are(buffer: &EmulatorBuffer<f32>, expected: f32) {
    let elements = buffer.to_vec();
    let wrong = elements.iter().position(|element| *element != expected);
    assert_eq!(wrong, None, "the first element that is not {expected}");
}
