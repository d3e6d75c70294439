//! `peersum::nccl_shape` with ranks in processes: who meets, what is summed and moved, what is
//! refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Child, Command};
use std::sync::Barrier;
use std::time::Duration;

use half::{bf16, f16};
use peersum::nccl_shape::{Comm, Id, NcclError, NcclStatus, ReduceOp};
use peersum::{Communicator, Element, Error, Failure, Rendezvous, Scalar, reference};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice, EmulatorStream};

/// The engine of the example `nccl_shape`, which also compiles against `cudarc::nccl`.
mod engine {
    use peersum::nccl_shape::{Id, NcclType, ReduceOp, result::NcclError};
    use peersum_emulator::{EmulatorBuffer as Buffer, EmulatorStream as Stream};

    type Comm = peersum::nccl_shape::Comm<Stream>;

    trait Allocate {
        fn alloc_zeros<T: peersum::Scalar>(&self, len: usize) -> anyhow::Result<Buffer<T>>;
    }

    impl Allocate for Stream {
        fn alloc_zeros<T: peersum::Scalar>(&self, len: usize) -> anyhow::Result<Buffer<T>> {
            Ok(Buffer::zeroed(len))
        }
    }

    include!("../../peersum/examples/nccl_shape/engine.rs");

    impl TensorParallel {
        pub(crate) fn comm(&self) -> &Comm {
            &self.comm
        }
    }
}

/// `id in hexadecimal, rank, number of ranks` for a process that is one of the ranks.
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

fn input<T: Element>(rank: usize, len: usize) -> Vec<T> {
    (0..len)
        .map(|index| T::round((index * (rank + 3)) as f32 * 0.37 - 100.0))
        .collect()
}

fn bits<T: Element>(elements: &[T]) -> Vec<T::Bits> {
    elements.iter().map(|element| element.raw()).collect()
}

/// One rank's calls of one type, compared with the reference.
fn reduce<T: Element>(comm: &Comm<EmulatorStream>) {
    let inputs: Vec<Vec<T>> = (0..comm.world_size())
        .map(|rank| input(rank, LEN))
        .collect();
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

/// What an engine does with one type in a step, compared with the reference.
fn step<T: Element>(engine: &engine::TensorParallel) {
    let (rank, world_size) = (engine.comm().rank(), engine.comm().world_size());
    // A multiple of every number of ranks here, so that it can be scattered.
    let len = LEN / world_size * world_size;
    let partials: Vec<Vec<T>> = (0..world_size).map(|rank| input(rank, len)).collect();
    let slices: Vec<&[T]> = partials.iter().map(Vec::as_slice).collect();
    let own = EmulatorBuffer::from_slice(&partials[rank]);
    let sum = engine.reduce(&own).unwrap();
    let mut sums = EmulatorBuffer::from_slice(&partials[rank]);
    engine.sum_in_place(&mut sums, 101).unwrap();
    let logits = engine.gather(&own).unwrap();
    let rows = engine.scatter(&own).unwrap();
    let all_rows = engine.gather(&rows).unwrap();
    let root = world_size - 1;
    let mut weights = EmulatorBuffer::from_slice(&partials[rank]);
    engine.share(&mut weights, root as i32).unwrap();
    engine.comm().synchronize().unwrap();
    let reduced = bits(&reference::all_reduce(&slices));
    assert_eq!(bits(&sum.to_vec()), reduced);
    assert_eq!(bits(&sums.to_vec()), reduced);
    assert_eq!(
        bits(&logits.to_vec()),
        bits(&reference::all_gather(&slices))
    );
    let own_rows = reference::reduce_scatter(&slices, rank);
    assert_eq!(bits(&rows.to_vec()), bits(&own_rows));
    assert_eq!(bits(&all_rows.to_vec()), reduced);
    let shared = reference::broadcast(&slices, root);
    assert_eq!(bits(&weights.to_vec()), bits(&shared));
}

fn sample(engine: &engine::TensorParallel) {
    let mut tokens = EmulatorBuffer::<u32>::zeroed(3);
    for place in 0..3 {
        let sampled = [u32::MAX - place, 100 + engine.comm().rank() as u32];
        let sampled = EmulatorBuffer::from_slice(&sampled);
        engine
            .put_token(&sampled, &mut tokens, place as usize)
            .unwrap();
    }
    engine.comm().synchronize().unwrap();
    let all = [u32::MAX, u32::MAX - 1, u32::MAX - 2];
    assert_eq!(tokens.to_vec(), reference::broadcast(&[&all[..]], 0));
}

/// A type that is moved and never summed. The first elements of longer buffers are the call's.
fn move_integers<T: Scalar + From<u8> + PartialEq + std::fmt::Debug>(comm: &Comm<EmulatorStream>) {
    let of_rank = |rank: usize| -> Vec<T> {
        (0..LEN)
            .map(|index| T::from((index * (rank + 3) % 127) as u8))
            .collect()
    };
    let buffers: Vec<Vec<T>> = (0..comm.world_size()).map(of_rank).collect();
    let slices: Vec<&[T]> = buffers.iter().map(Vec::as_slice).collect();
    let rest = vec![T::from(7); 5];
    let own = EmulatorBuffer::from_slice(&buffers[comm.rank()]);
    let mut gathered =
        EmulatorBuffer::from_slice(&vec![T::from(7); LEN * comm.world_size() + rest.len()]);
    let mut received = EmulatorBuffer::<T>::zeroed(LEN - 1);
    let status = comm.all_gather(&own, &mut gathered).unwrap();
    assert_eq!(status, NcclStatus::Success);
    let sent = (comm.rank() == 1).then_some(&own);
    let status = comm.broadcast(sent, &mut received, 1).unwrap();
    assert_eq!(status, NcclStatus::Success);
    comm.synchronize().unwrap();
    let expected = [reference::all_gather(&slices), rest].concat();
    assert_eq!(gathered.to_vec(), expected);
    assert_eq!(received.to_vec(), buffers[1][..LEN - 1]);
}

/// In a process that the test has started: plays the rank and ends the process.
fn play_if_started_as_a_rank() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let id = engine::decode(words[0]).unwrap();
    let (rank, world_size) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    let engine = engine::TensorParallel::new(stream(rank), rank, world_size, id).unwrap();
    step::<f32>(&engine);
    step::<bf16>(&engine);
    step::<f16>(&engine);
    sample(&engine);
    move_integers::<u8>(engine.comm());
    move_integers::<i32>(engine.comm());
    move_integers::<u64>(engine.comm());
    drop(engine);
    std::process::exit(0);
}

#[test]
fn ranks_in_processes_meet_by_the_id_and_get_the_references_bits() {
    play_if_started_as_a_rank();
    for world_size in [2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let id = engine::new_id().unwrap();
        let start = |rank: usize| {
            let test = "ranks_in_processes_meet_by_the_id_and_get_the_references_bits";
            Rank(
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", test, "--nocapture"])
                    .env(ROLE, format!("{id} {rank} {world_size}"))
                    .env("PEERSUM_RENDEZVOUS_DIR", directory.path().join("sockets"))
                    .spawn()
                    .unwrap(),
            )
        };
        let ranks: Vec<Rank> = (0..world_size).map(start).collect();
        for mut rank in ranks {
            assert!(rank.0.wait().unwrap().success());
        }
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
        let whole = EmulatorBuffer::from_slice(&[1.0_f32, 2.0]);
        let error = comm.reduce_scatter(&whole, &mut buffer, &operation);
        let error = error.unwrap_err();
        assert!(matches!(error, NcclError::Operation(other) if other == operation));
    }
    assert_eq!(buffer.to_vec(), [1.0, 2.0]);
}

#[test]
fn a_root_that_is_no_rank_or_has_nothing_to_send_is_refused() {
    let comm = alone();
    let mut buffer = EmulatorBuffer::from_slice(&[1_u32, 2]);
    for root in [-1, 1, i32::MIN, i32::MAX] {
        let named = |error: NcclError| {
            let is_named = matches!(error, NcclError::Root { root: named, .. } if named == root);
            assert!(is_named, "{error}");
        };
        named(comm.broadcast_in_place(&mut buffer, root).unwrap_err());
        let sent = Some(&EmulatorBuffer::from_slice(&[3_u32, 4]));
        named(comm.broadcast(sent, &mut buffer, root).unwrap_err());
    }
    let nothing = None::<&EmulatorBuffer<u32>>;
    let error = comm.broadcast(nothing, &mut buffer, 0).unwrap_err();
    assert!(
        matches!(error, NcclError::NoSendbuff { root: 0 }),
        "{error}"
    );
    assert!(error.to_string().contains("broadcast_in_place"), "{error}");
    comm.synchronize().unwrap();
    assert_eq!(buffer.to_vec(), [1, 2]);
}

#[test]
fn the_length_of_a_call_is_that_of_the_buffer_from_which_nccl_takes_it() {
    let comm = alone();
    let input = EmulatorBuffer::from_slice(&[1.0_f32, 2.0]);
    let mut longer = EmulatorBuffer::from_slice(&[7.0_f32; 3]);
    let mut shorter = EmulatorBuffer::from_slice(&[7.0_f32]);
    comm.all_gather(&input, &mut longer).unwrap();
    assert_eq!(longer.to_vec(), [1.0, 2.0, 7.0]);
    comm.reduce_scatter(&input, &mut shorter, &ReduceOp::Sum)
        .unwrap();
    assert_eq!(shorter.to_vec(), [1.0]);
    let mut last = EmulatorBuffer::from_slice(&[7.0_f32]);
    comm.broadcast(Some(&input.slice(1..)), &mut last, 0)
        .unwrap();
    assert_eq!(last.to_vec(), [2.0]);
    comm.broadcast(Some(&input), &mut last, 0).unwrap();
    assert_eq!(last.to_vec(), [1.0]);
    for error in [
        comm.all_gather(&input, &mut shorter),
        comm.reduce_scatter(&input, &mut longer, &ReduceOp::Sum),
        comm.broadcast(Some(&input), &mut longer, 0),
    ] {
        let error = error.unwrap_err();
        let is_length = matches!(
            error,
            NcclError::Communicator(Error::ChunkLength { .. } | Error::LengthMismatch { .. })
        );
        assert!(is_length, "{error}");
    }
    comm.synchronize().unwrap();
    assert_eq!(longer.to_vec(), [1.0, 2.0, 7.0]);
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
