//! `peersum::nccl_shape` with ranks in processes: who meets, what is summed, what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use core::ffi::c_char;
use std::process::{Child, Command};
use std::sync::Barrier;
use std::time::Duration;

use half::{bf16, f16};
use peersum::nccl_shape::{Comm, Id, NcclError, NcclStatus, ReduceOp};
use peersum::{Communicator, Element, Error, Failure, Rendezvous, reference};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice, EmulatorStream};

/// `id in hexadecimal, rank` for a process that is one of two ranks.
const ROLE: &str = "PEERSUM_TEST_NCCL_SHAPE_ROLE";
const LEN: usize = 1000;

/// Kills the process if the test ends before it does.
struct Rank(Child);

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stream(rank: usize) -> EmulatorStream {
    EmulatorDevice::new(rank as u32).stream().unwrap()
}

fn alone() -> Comm<EmulatorStream> {
    Comm::from_rank(stream(0), 0, 1, Id::new().unwrap()).unwrap()
}

fn input<T: Element>(rank: usize) -> Vec<T> {
    (0..LEN)
        .map(|index| T::round((index * (rank + 3)) as f32 * 0.37 - 100.0))
        .collect()
}

fn bits<T: Element>(elements: &[T]) -> Vec<T::Bits> {
    elements.iter().map(|element| element.raw()).collect()
}

/// One rank's calls of one type, compared with the reference.
fn reduce<T: Element>(comm: &Comm<EmulatorStream>) {
    let inputs: Vec<Vec<T>> = (0..comm.world_size()).map(input).collect();
    let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
    let expected = reference::all_reduce(&slices);
    let own = EmulatorBuffer::from_slice(&inputs[comm.rank()]);
    let mut sum = EmulatorBuffer::<T>::zeroed(LEN);
    let status = comm.all_reduce(&own, &mut sum, &ReduceOp::Sum).unwrap();
    assert_eq!(status, NcclStatus::Success);
    let mut in_place = own;
    comm.all_reduce_in_place(&mut in_place, &ReduceOp::Sum)
        .unwrap();
    comm.synchronize().unwrap();
    assert_eq!(bits(&sum.to_vec()), bits(&expected));
    assert_eq!(bits(&in_place.to_vec()), bits(&expected));
}

/// In a process that the test has started: plays the rank and ends the process.
fn play_if_started_as_a_rank() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let mut internal = [0; 128];
    for (place, digits) in internal.iter_mut().zip(words[0].as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap();
        *place = u8::from_str_radix(digits, 16).unwrap() as c_char;
    }
    let id = Id::uninit(internal);
    let rank = words[1].parse().unwrap();
    let comm = Comm::from_rank(stream(rank), rank, 2, id).unwrap();
    reduce::<f32>(&comm);
    reduce::<bf16>(&comm);
    reduce::<f16>(&comm);
    drop(comm);
    std::process::exit(0);
}

#[test]
fn ranks_in_processes_meet_by_the_id_and_get_the_references_bits() {
    play_if_started_as_a_rank();
    let directory = tempfile::tempdir().unwrap();
    let id: String = Id::new()
        .unwrap()
        .internal()
        .iter()
        .map(|&byte| format!("{:02x}", byte as u8))
        .collect();
    let start = |rank: usize| {
        let test = "ranks_in_processes_meet_by_the_id_and_get_the_references_bits";
        Rank(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(ROLE, format!("{id} {rank}"))
                .env("PEERSUM_RENDEZVOUS_DIR", directory.path().join("sockets"))
                .spawn()
                .unwrap(),
        )
    };
    for mut rank in [start(0), start(1)] {
        assert!(rank.0.wait().unwrap().success());
    }
}

#[test]
fn an_id_that_nccl_made_is_refused_with_what_to_do() {
    let error = Comm::from_rank(stream(0), 0, 1, Id::uninit([7; 128])).unwrap_err();
    assert!(matches!(error, NcclError::ForeignId));
    assert!(error.to_string().contains("nccl_shape::Id::new"), "{error}");
    // A byte lost on the way.
    for position in [0, 15, 127] {
        let mut internal = *Id::new().unwrap().internal();
        internal[position] ^= 1;
        let error = Comm::from_rank(stream(0), 0, 1, Id::uninit(internal)).unwrap_err();
        assert!(matches!(error, NcclError::ForeignId), "{position}");
    }
}

#[test]
fn a_rank_outside_the_group_is_refused() {
    for (rank, world_size) in [(1, 1), (2, 2), (usize::MAX, 2), (0, 0), (0, usize::MAX)] {
        let error = Comm::from_rank(stream(0), rank, world_size, Id::new().unwrap()).unwrap_err();
        assert!(matches!(error, NcclError::Communicator(_)), "{error}");
    }
}

#[test]
fn operations_other_than_the_sum_are_refused_by_name() {
    let comm = alone();
    let mut buffer = EmulatorBuffer::from_slice(&[1.0_f32, 2.0]);
    for (operation, name) in [
        (ReduceOp::Prod, "Prod"),
        (ReduceOp::Max, "Max"),
        (ReduceOp::Min, "Min"),
        (ReduceOp::Avg, "Avg"),
    ] {
        let error = comm
            .all_reduce_in_place(&mut buffer, &operation)
            .unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        // Engines print NCCL's errors by `{:?}`.
        assert_eq!(format!("{error:?}"), error.to_string());
    }
    assert_eq!(buffer.to_vec(), [1.0, 2.0]);
}

#[test]
fn a_longer_output_keeps_its_rest_and_a_shorter_one_is_refused() {
    let comm = alone();
    let input = EmulatorBuffer::from_slice(&[1.0_f32, 2.0]);
    let mut longer = EmulatorBuffer::from_slice(&[7.0_f32; 3]);
    comm.all_reduce(&input, &mut longer, &ReduceOp::Sum)
        .unwrap();
    comm.synchronize().unwrap();
    assert_eq!(longer.to_vec(), [1.0, 2.0, 7.0]);
    let mut shorter = EmulatorBuffer::from_slice(&[7.0_f32]);
    let error = comm
        .all_reduce(&input, &mut shorter, &ReduceOp::Sum)
        .unwrap_err();
    assert!(
        matches!(
            error,
            NcclError::Communicator(Error::LengthMismatch {
                input: 2,
                output: 1
            })
        ),
        "{error}"
    );
    assert_eq!(shorter.to_vec(), [7.0]);
}

#[test]
fn a_communicator_with_settings_of_its_own_takes_the_shape_and_keeps_its_failures() {
    let reduced = &Barrier::new(2);
    std::thread::scope(|scope| {
        for rendezvous in Rendezvous::threads(2) {
            scope.spawn(move || {
                let stream = stream(rendezvous.rank() as usize);
                let comm = Comm::from(
                    Communicator::builder()
                        .rendezvous(rendezvous)
                        .max_bytes(4096)
                        .max_blocks(2)
                        .timeout(Duration::from_secs(60))
                        .build(&stream)
                        .unwrap(),
                );
                assert_eq!(comm.world_size(), 2);
                reduce::<f32>(&comm);
                reduced.wait();
                // Rank 1 aborts, and rank 0 learns of it in a call that rank 1 does not make.
                let mut buffer = EmulatorBuffer::<f32>::zeroed(LEN);
                if comm.rank() == 1 {
                    comm.communicator().lock().abort_handle().abort();
                } else {
                    comm.all_reduce_in_place(&mut buffer, &ReduceOp::Sum)
                        .unwrap();
                }
                let failure = |outcome: Result<(), NcclError>| match outcome {
                    Err(NcclError::Communicator(Error::Failed(failure))) => failure,
                    other => panic!("expected a failure, not {other:?}"),
                };
                let first = failure(comm.synchronize());
                match comm.rank() {
                    0 => assert!(
                        matches!(
                            first,
                            Failure::PeerFailed {
                                rank: 0,
                                origin: 1,
                                ..
                            }
                        ),
                        "{first}"
                    ),
                    _ => assert_eq!(first, Failure::AbortedIdle { rank: 1 }),
                }
                let later = comm.all_reduce_in_place(&mut buffer, &ReduceOp::Sum);
                assert_eq!(failure(later.map(|_| ())), first);
            });
        }
    });
}
