//! What is dropped while the stream still uses it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use peersum::device::Device;
use peersum::{Held, Rendezvous};
use peersum_emulator::{Emulator, EmulatorBuffer, EmulatorDevice};

use crate::{
    Comm, LATE, LEN, alone, good_call, in_child, on_processes, on_ranks, ranks_buffer, settings,
};

/// Rank 0 drops its communicator by `drop_it` while its kernel waits for rank 1, which calls late.
fn dropped_in_a_call(test: &str, drop_it: impl FnOnce(Comm)) {
    on_processes(test, |mut comm| {
        let rank = comm.rank();
        if rank == 1 {
            std::thread::sleep(LATE);
        }
        let mut buffer = ranks_buffer(rank);
        comm.all_reduce_in_place(&mut buffer).unwrap();
        if rank == 0 {
            drop_it(comm);
        } else {
            comm.synchronize().unwrap();
        }
        assert_eq!(buffer.to_vec(), [3.0; LEN]);
    });
}

#[test]
fn a_communicator_that_is_dropped_while_its_stream_records_waits_for_its_kernels() {
    dropped_in_a_call(
        "drops::a_communicator_that_is_dropped_while_its_stream_records_waits_for_its_kernels",
        |mut comm| {
            comm.capture_begin().unwrap();
            let mut recorded = EmulatorBuffer::<f32>::zeroed(LEN);
            comm.all_reduce_in_place(&mut recorded).unwrap();
            drop(comm);
        },
    );
}

#[test]
fn a_capture_of_the_program_is_ended_before_memory_is_unmapped() {
    dropped_in_a_call(
        "drops::a_capture_of_the_program_is_ended_before_memory_is_unmapped",
        |comm| {
            comm.device().capture_begin().unwrap();
            drop(comm);
        },
    );
}

#[test]
fn memory_is_leaked_if_something_else_has_a_graph_of_the_communicator_s_calls() {
    let test = "drops::memory_is_leaked_if_something_else_has_a_graph_of_the_communicator_s_calls";
    on_processes(test, |mut comm| {
        let mut buffer = ranks_buffer(comm.rank());
        comm.capture_begin().unwrap();
        comm.all_reduce_in_place(&mut buffer).unwrap();
        let graph = comm.device().capture_end().unwrap();
        let device = Emulator::open(comm.stream()).unwrap();
        drop(comm);
        // SAFETY: the buffer is alive. The program did nothing unsafe to get here on a GPU, where
        // cudarc ends captures and launches graphs.
        unsafe { device.launch_graph(&graph).unwrap() };
        device.synchronize().unwrap();
        assert_eq!(buffer.to_vec(), [3.0; LEN]);
    });
}

#[test]
fn memory_is_leaked_if_something_else_has_a_graph_of_its_calls_and_has_begun_another_capture() {
    let test = "drops::memory_is_leaked_if_something_else_has_a_graph_of_its_calls_and_has_begun_\
                another_capture";
    on_processes(test, |mut comm| {
        let device = Emulator::open(comm.stream()).unwrap();
        let mut buffer = ranks_buffer(comm.rank());
        comm.capture_begin().unwrap();
        comm.all_reduce_in_place(&mut buffer).unwrap();
        let graph = device.capture_end().unwrap();
        device.capture_begin().unwrap();
        drop(comm);
        // SAFETY: as above. The capture of the program was ended, because the memory could not be
        // given back within it.
        unsafe { device.launch_graph(&graph).unwrap() };
        device.synchronize().unwrap();
        assert_eq!(buffer.to_vec(), [3.0; LEN]);
    });
}

#[test]
fn memory_is_leaked_if_another_thread_began_the_capture() {
    dropped_in_a_call(
        "drops::memory_is_leaked_if_another_thread_began_the_capture",
        |mut comm| {
            comm.capture_begin().unwrap();
            std::thread::spawn(move || drop(comm)).join().unwrap();
        },
    );
}

#[test]
fn a_panic_in_a_capture_ends_it_and_the_communicator_stays_usable() {
    in_child(
        "drops::a_panic_in_a_capture_ends_it_and_the_communicator_stays_usable",
        || {
            on_ranks(2, |mut comm| {
                if comm.rank() == 1 {
                    std::thread::sleep(LATE);
                }
                let mut buffer = ranks_buffer(comm.rank());
                comm.all_reduce_in_place(&mut buffer).unwrap();
                let mut recorded = EmulatorBuffer::<f32>::zeroed(LEN);
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    let mut held = Held::new(&mut recorded);
                    let _ = comm.capture(|capture| {
                        capture.all_reduce_in_place(&mut held)?;
                        resume_unwind(Box::new("the program gives up"))
                    });
                }));
                assert!(panicked.is_err());
                comm.synchronize().unwrap();
                assert_eq!(buffer.to_vec(), [3.0; LEN]);
                assert_eq!(recorded.to_vec(), [0.0; LEN], "nothing was launched");
                good_call(&mut comm);
            });
        },
    );
}

/// Elements of which a copy takes milliseconds.
const MANY: usize = 8 << 20;
const COPIES: usize = 12;

#[test]
fn a_symmetric_buffer_waits_for_the_copies_of_a_group_of_one() {
    in_child(
        "drops::a_symmetric_buffer_waits_for_the_copies_of_a_group_of_one",
        || {
            let mut comm = alone(0);
            let mut output = EmulatorBuffer::<f32>::zeroed(MANY);
            let symmetric = comm.symmetric_alloc::<f32>(MANY).unwrap();
            for _ in 0..COPIES {
                comm.all_reduce(&*symmetric, &mut output).unwrap();
            }
            drop(symmetric);
            comm.synchronize().unwrap();
        },
    );
}

#[test]
fn a_symmetric_buffer_waits_for_other_streams_when_its_communicator_went_first() {
    in_child(
        "drops::a_symmetric_buffer_waits_for_other_streams_when_its_communicator_went_first",
        || {
            on_ranks(2, |mut comm| {
                let symmetric = comm.symmetric_alloc::<f32>(MANY).unwrap();
                // The same device, another stream.
                let mut other = alone(comm.rank());
                let mut output = EmulatorBuffer::<f32>::zeroed(MANY);
                for _ in 0..COPIES {
                    other.all_reduce(&*symmetric, &mut output).unwrap();
                }
                drop(comm);
                drop(symmetric);
                other.synchronize().unwrap();
            });
        },
    );
}

#[test]
fn a_symmetric_buffer_waits_for_its_last_call_when_its_communicator_went_first() {
    in_child(
        "drops::a_symmetric_buffer_waits_for_its_last_call_when_its_communicator_went_first",
        || {
            let stream = EmulatorDevice::new(0).stream().unwrap();
            let rendezvous = Rendezvous::threads(1).remove(0);
            let mut comm = settings().rendezvous(rendezvous).build(&stream).unwrap();
            let symmetric = comm.symmetric_alloc::<f32>(MANY).unwrap();
            let mut output = EmulatorBuffer::<f32>::zeroed(MANY);
            for _ in 0..COPIES {
                comm.all_reduce(&*symmetric, &mut output).unwrap();
            }
            // A group of one has nothing to wait for when it is dropped.
            drop(comm);
            drop(symmetric);
            stream.synchronize();
        },
    );
}
