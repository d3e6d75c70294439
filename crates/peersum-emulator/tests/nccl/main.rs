//! `above_range`: which calls go to NCCL, what its absence and its failures look like. NCCL is a
//! small library of the test tree, which each test builds as it needs it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use peersum::device::DeviceError;
use peersum::dispatch::{Plan, Route};
use peersum::nccl::Nccl;
use peersum::{CallPath, Communicator, CommunicatorBuilder, Error, Rendezvous};
use peersum_emulator::{Emulator, EmulatorBuffer, EmulatorDevice, EmulatorStream};
use tempfile::TempDir;

const WORLD_SIZE: u32 = 3;
const MAX_BYTES: usize = 4096;
/// Elements of the largest call that peersum's kernels carry out, and of the smallest that NCCL
/// does.
const LARGEST: usize = MAX_BYTES / 4;
const ABOVE: usize = LARGEST + 1;

type Comm = Communicator<Emulator>;

/// The library, built for one test.
struct FakeNccl {
    directory: TempDir,
}

impl FakeNccl {
    fn new(defines: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl/fake_nccl.c");
        let status = Command::new("cc")
            .args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread"])
            .args(defines)
            .arg("-o")
            .arg(directory.path().join("fake.so"))
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success());
        FakeNccl { directory }
    }

    fn nccl(&self) -> Nccl {
        Nccl::new().library(self.directory.path().join("fake.so"))
    }
}

fn settings() -> CommunicatorBuilder {
    Communicator::builder()
        .max_bytes(MAX_BYTES)
        .max_blocks(2)
        .timeout(Duration::from_secs(60))
        .setup_timeout(Duration::from_secs(60))
}

fn stream(rank: u32) -> EmulatorStream {
    EmulatorDevice::new(rank).stream().unwrap()
}

/// What `build` says on each rank of a group of threads, and then what the program makes of it.
fn on_ranks<T: Send>(
    settings: impl Fn(u32) -> CommunicatorBuilder + Sync,
    program: impl Fn(Result<Comm, Error>) -> T + Sync,
) -> Vec<T> {
    let (settings, program) = (&settings, &program);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(WORLD_SIZE)
            .into_iter()
            .map(|rendezvous| {
                scope.spawn(move || {
                    let rank = rendezvous.rank();
                    let builder = settings(rank).rendezvous(rendezvous);
                    program(builder.build(&stream(rank)))
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// `1 + 1e8 - 1e8`: 0 in the order of ranks, 1 in the reverse order.
fn input(rank: u32, len: usize) -> EmulatorBuffer<f32> {
    EmulatorBuffer::from_slice(&vec![[1.0, 1e8, -1e8][rank as usize]; len])
}

const BY_KERNELS: f32 = 0.0;
const BY_NCCL: f32 = 1.0;

/// One call out of place and one in place. Every element of both is `expected`.
fn reduce(comm: &mut Comm, len: usize, expected: f32) {
    let mut in_place = input(comm.rank(), len);
    let mut output = EmulatorBuffer::<f32>::zeroed(len);
    comm.all_reduce(&in_place, &mut output).unwrap();
    comm.all_reduce_in_place(&mut in_place).unwrap();
    comm.synchronize().unwrap();
    assert_eq!(output.to_vec(), vec![expected; len]);
    assert_eq!(in_place.to_vec(), vec![expected; len]);
}

#[test]
fn calls_above_max_bytes_go_to_nccl_and_all_others_to_the_kernels() {
    let fake = FakeNccl::new(&[]);
    on_ranks(
        |_| settings().above_range(fake.nccl()),
        |comm| {
            let mut comm = comm.unwrap();
            assert_eq!(comm.path(0), CallPath::Nothing);
            assert_eq!(comm.path(MAX_BYTES), CallPath::Kernels);
            assert_eq!(comm.path(MAX_BYTES + 1), CallPath::Nccl);
            comm.all_reduce_in_place(&mut EmulatorBuffer::<f32>::zeroed(0))
                .unwrap();
            // In turns, so that each finds what the other left.
            for _ in 0..3 {
                reduce(&mut comm, LARGEST, BY_KERNELS);
                reduce(&mut comm, ABOVE, BY_NCCL);
            }
            let plan = Plan {
                route: Route::PullTwoShot,
                blocks: 2,
                threads: 8,
            };
            comm.force_plan(Some(plan)).unwrap();
            assert_eq!(comm.path(MAX_BYTES + 1), CallPath::Kernels);
            reduce(&mut comm, ABOVE, BY_KERNELS);
        },
    );
}

#[test]
fn without_above_range_larger_calls_stay_with_the_kernels() {
    on_ranks(
        |_| settings(),
        |comm| {
            let mut comm = comm.unwrap();
            assert_eq!(comm.path(MAX_BYTES + 1), CallPath::Kernels);
            reduce(&mut comm, ABOVE, BY_KERNELS);
        },
    );
}

#[test]
fn a_group_across_hosts_sends_every_call_to_nccl() {
    let fake = FakeNccl::new(&[]);
    let id = fake.nccl().unique_id().unwrap();
    let nccl = &fake.nccl();
    std::thread::scope(|scope| {
        for rank in 0..WORLD_SIZE {
            scope.spawn(move || {
                let nccl = nccl.clone().across_hosts(id, rank, WORLD_SIZE);
                let mut comm = settings().above_range(nccl).build(&stream(rank)).unwrap();
                assert_eq!((comm.rank(), comm.world_size()), (rank, WORLD_SIZE));
                assert_eq!(comm.path(1), CallPath::Nccl);
                assert_eq!(comm.memory_bytes(), 0);
                reduce(&mut comm, 1, BY_NCCL);
                reduce(&mut comm, ABOVE, BY_NCCL);
            });
        }
    });
}

#[test]
fn settings_of_a_group_across_hosts_that_contradict_each_other_are_refused() {
    let fake = FakeNccl::new(&[]);
    let id = fake.nccl().unique_id().unwrap();
    let build = |builder: CommunicatorBuilder| builder.build(&stream(0)).map(drop).unwrap_err();
    let both = settings()
        .above_range(fake.nccl().across_hosts(id, 0, 2))
        .rendezvous(Rendezvous::threads(1).remove(0));
    let error = build(both);
    assert!(error.to_string().contains("one of the two"), "{error}");
    let error = build(settings().above_range(fake.nccl().across_hosts(id, 2, 2)));
    assert!(matches!(error, Error::Rendezvous(_)), "{error}");
}

#[test]
fn a_group_of_one_needs_no_nccl() {
    let absent = || Nccl::new().library("/nowhere/libnccl.so.2");
    let rendezvous = Rendezvous::threads(1).remove(0);
    let local = settings().above_range(absent()).rendezvous(rendezvous);
    let across_hosts = settings().above_range(absent().across_hosts([0; 128], 0, 1));
    for builder in [local, across_hosts] {
        let mut comm = builder.build(&stream(0)).unwrap();
        assert_eq!(comm.path(MAX_BYTES + 1), CallPath::Copy);
        reduce(&mut comm, ABOVE, 1.0);
    }
}

#[test]
fn nccl_that_is_not_there_is_named_on_its_rank_and_reported_to_the_others_at_once() {
    let fake = FakeNccl::new(&[]);
    let errors = on_ranks(
        |rank| match rank {
            1 => settings().above_range(Nccl::new().library("/nowhere/libnccl.so.2")),
            _ => settings().above_range(fake.nccl()),
        },
        |comm| comm.map(drop).unwrap_err(),
    );
    for (rank, error) in errors.iter().enumerate() {
        match (rank, error) {
            (1, Error::Device(DeviceError::LibraryMissing { library, .. })) => {
                assert_eq!(library, "/nowhere/libnccl.so.2");
            }
            (0 | 2, Error::Rendezvous(error)) => {
                let said = error.to_string();
                assert!(
                    said.contains("rank 1") && said.contains("/nowhere"),
                    "{said}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Whether the machine has NCCL is not the test's to decide.
#[test]
fn nccl_by_its_usual_name_is_opened_or_the_error_says_what_to_install() {
    match Nccl::new().unique_id() {
        Err(Error::Device(DeviceError::LibraryMissing { library, help })) => {
            assert_eq!(library, "libnccl.so.2");
            assert!(
                help.contains("libnccl2") && help.contains("nvidia-nccl-cu13"),
                "{help}"
            );
        }
        // It is there: it makes an id, or says that there is no GPU.
        Ok(_) | Err(Error::Nccl { .. }) => {}
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_library_that_is_not_nccl_or_too_old_is_refused_with_the_reason() {
    for (defines, reason) in [
        (
            ["-DWITHOUT_ALL_REDUCE"],
            "is not NCCL: it has no ncclCommInitRank",
        ),
        (["-DVERSION=20903"], "the one here is 2.9.3"),
        (["-DVERSION=2804"], "the one here is 2.8.4"),
    ] {
        let error = FakeNccl::new(&defines).nccl().unique_id().unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn ranks_of_which_some_use_nccl_are_refused_with_both_values() {
    let fake = FakeNccl::new(&[]);
    let errors = on_ranks(
        |rank| match rank {
            2 => settings(),
            _ => settings().above_range(fake.nccl()),
        },
        |comm| comm.map(drop).unwrap_err().to_string(),
    );
    for error in errors {
        for part in ["above_range", "rank 2", "NCCL 2.28.9", "peersum's kernels"] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}

#[test]
fn a_failure_of_nccl_carries_its_function_and_its_own_words() {
    let fake = FakeNccl::new(&["-DINIT_FAILS"]);
    let errors = on_ranks(
        |_| settings().above_range(fake.nccl()),
        |comm| comm.map(drop).unwrap_err().to_string(),
    );
    for error in errors {
        assert!(
            error.contains("ncclCommInitRank failed: fake trouble"),
            "{error}"
        );
    }
    // Its own kinds of element: the fake sums float32 alone.
    let fake = FakeNccl::new(&[]);
    on_ranks(
        |_| settings().above_range(fake.nccl()),
        |comm| {
            let mut buffer = EmulatorBuffer::<half::bf16>::zeroed(MAX_BYTES);
            let error = comm.unwrap().all_reduce_in_place(&mut buffer).unwrap_err();
            assert!(matches!(
                error,
                Error::Nccl {
                    call: "ncclAllReduce",
                    ..
                }
            ));
        },
    );
}

#[test]
fn what_nccl_notices_by_itself_fails_the_next_synchronize() {
    let fake = FakeNccl::new(&["-DA_RANK_DIES"]);
    on_ranks(
        |_| settings().above_range(fake.nccl()),
        |comm| {
            let error = comm.unwrap().synchronize().unwrap_err();
            assert!(
                error.to_string().contains("remote process exited"),
                "{error}"
            );
        },
    );
}

#[test]
fn every_rank_gives_its_nccl_communicator_back() {
    let fake = FakeNccl::new(&[]);
    on_ranks(
        |_| settings().above_range(fake.nccl()),
        |comm| reduce(&mut comm.unwrap(), ABOVE, BY_NCCL),
    );
    // SAFETY: the library is the test's own and has no initialisers; the function takes nothing and
    // gives an int.
    let aborts = unsafe {
        let library = libloading::Library::new(fake.directory.path().join("fake.so")).unwrap();
        library
            .get::<extern "C" fn() -> i32>("fake_nccl_aborts")
            .unwrap()()
    };
    assert_eq!(aborts, WORLD_SIZE as i32);
}

#[test]
fn a_capture_on_a_stream_that_nccl_cannot_record_is_an_error_and_ends() {
    let fake = FakeNccl::new(&[]);
    on_ranks(
        |_| settings().above_range(fake.nccl()),
        |comm| {
            let mut comm = comm.unwrap();
            let mut buffer = input(comm.rank(), ABOVE);
            let mut held = peersum::Held::new(&mut buffer);
            let recorded = comm.capture(|capture| capture.all_reduce_in_place(&mut held));
            assert!(matches!(recorded, Err(Error::Device(_))));
            reduce(&mut comm, ABOVE, BY_NCCL);
            reduce(&mut comm, LARGEST, BY_KERNELS);
        },
    );
}
