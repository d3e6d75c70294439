//! Captures of the communicator's stream that the program itself begins.

use peersum::device::Device;
use peersum::{Error, Held, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

use crate::{Comm, LEN, alone, good_call, on_ranks, ranks_buffer, settings};

#[track_caller]
fn assert_names_the_remedy(outcome: Result<(), Error>) {
    let Err(Error::Capture(text)) = outcome else {
        panic!("{outcome:?}");
    };
    for remedy in ["capture_begin", "capture_end", "allow_outside_capture"] {
        assert!(text.contains(remedy), "{text}");
    }
}

#[test]
fn a_call_in_a_capture_of_the_program_is_refused_with_the_remedy_and_records_nothing() {
    let program = |mut comm: Comm| {
        let mut buffer = ranks_buffer(comm.rank());
        let mut output = ranks_buffer(comm.rank());
        let mut captured = EmulatorBuffer::<f32>::zeroed(LEN);
        let mut held = Held::new(&mut captured);
        let graph = comm
            .capture(|capture| capture.all_reduce_in_place(&mut held))
            .unwrap();

        comm.device().capture_begin().unwrap();
        assert_names_the_remedy(comm.all_reduce_in_place(&mut buffer));
        assert_names_the_remedy(comm.all_reduce(&buffer, &mut output));
        // It would become a part of the program's graph.
        assert_names_the_remedy(graph.launch(&mut comm));
        assert!(matches!(comm.capture_begin(), Err(Error::Capture(_))));
        let recorded = comm.device().capture_end().unwrap();
        // SAFETY: nothing was recorded, so nothing uses any address.
        unsafe { comm.device().launch_graph(&recorded).unwrap() };
        comm.synchronize().unwrap();
        assert_eq!(buffer.to_vec(), [comm.rank() as f32 + 1.0; LEN]);
        graph.launch(&mut comm).unwrap();
        if comm.world_size() == 2 {
            good_call(&mut comm);
        }
        comm.synchronize().unwrap();
    };
    on_ranks(2, program);
    program(alone(0));
}

#[test]
fn a_capture_that_something_else_ended_is_told_at_the_next_call() {
    on_ranks(2, |mut comm| {
        comm.capture_begin().unwrap();
        comm.device().capture_end().unwrap();
        let outcome = comm.all_reduce_in_place(&mut ranks_buffer(comm.rank()));
        assert!(
            matches!(outcome, Err(Error::Capture(text)) if text.contains("capture_end")),
            "{outcome:?}"
        );
        // SAFETY: nothing was recorded, and there is no graph.
        assert!(unsafe { comm.capture_end() }.is_err());
        good_call(&mut comm);
    });
}

#[test]
fn a_capture_that_something_else_has_begun_in_place_of_the_communicators_ends_without_a_graph() {
    on_ranks(2, |mut comm| {
        comm.capture_begin().unwrap();
        comm.device().capture_end().unwrap();
        comm.device().capture_begin().unwrap();
        let outcome = comm.all_reduce_in_place(&mut ranks_buffer(comm.rank()));
        // SAFETY: the call was refused, so nothing was recorded, and there is no graph.
        let ended = unsafe { comm.capture_end() }.map(drop);
        for outcome in [outcome, ended] {
            assert!(
                matches!(outcome, Err(Error::Capture(text)) if text.contains("capture_end")),
                "{outcome:?}"
            );
        }
        assert!(comm.device().capture_end().is_err());
        good_call(&mut comm);
    });
}

#[test]
fn the_unsafe_setting_lets_a_capture_of_the_program_hold_calls() {
    std::thread::scope(|scope| {
        for rendezvous in Rendezvous::threads(2) {
            scope.spawn(move || {
                let rank = rendezvous.rank();
                let stream = EmulatorDevice::new(rank).stream().unwrap();
                // SAFETY: the graph below is launched while communicator and buffer live, on the
                // communicator's stream, one launch after the other.
                let settings = unsafe { settings().allow_outside_capture() };
                let mut comm = settings.rendezvous(rendezvous).build(&stream).unwrap();
                let mut buffer = ranks_buffer(rank);
                comm.device().capture_begin().unwrap();
                comm.all_reduce_in_place(&mut buffer).unwrap();
                let recorded = comm.device().capture_end().unwrap();
                // SAFETY: as above.
                unsafe { comm.device().launch_graph(&recorded).unwrap() };
                comm.synchronize().unwrap();
                assert_eq!(buffer.to_vec(), [3.0; LEN]);
                good_call(&mut comm);
            });
        }
    });
}
