//! Ranks that use different symmetric buffers, or different parts of one, or one in place: every
//! rank is told both sides.

use peersum::dispatch::{Placement, Route};
use peersum::{CallSignature, Failure};
use peersum_artifact::Algorithm;
use peersum_emulator::EmulatorBuffer;

use crate::disagreements::{DEADLINE, FORMS, Form};
use crate::stage::{
    Comm, Content, assert_bits, expected, failure, input, on_ranks, plan, settings,
};

/// A part of one of several symmetric buffers, all of one size.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    buffer: usize,
    begin_bytes: usize,
}

/// Elements of a symmetric call here.
const PART_LEN: usize = 256;

/// A call on a symmetric buffer's part, and what may follow it.
#[derive(Debug, Clone, Copy)]
struct Symmetric {
    route: Route,
    behind: Option<Route>,
    form: Form,
}

/// The peer from which a rank differs, and what the two called.
#[track_caller]
pub(crate) fn sides(reason: &Failure) -> (u32, &CallSignature, &CallSignature) {
    let Failure::Disagreement {
        peer, own, theirs, ..
    } = reason
    else {
        panic!("not told of a difference: {reason}");
    };
    (*peer, own, theirs)
}

/// Makes the call on `part` of `buffers` buffers; what the rank is told.
fn run_symmetric(comm: &mut Comm, buffers: usize, part: Part, call: Symmetric) -> Failure {
    let len = part.begin_bytes / size_of::<f32>() + PART_LEN;
    let mut all: Vec<_> = (0..buffers)
        .map(|_| comm.symmetric_alloc::<f32>(len.max(32 << 10)).unwrap())
        .collect();
    let mut output = EmulatorBuffer::<f32>::zeroed(PART_LEN);
    let mut ordinary = EmulatorBuffer::<f32>::zeroed(PART_LEN);
    let begin = part.begin_bytes / size_of::<f32>();
    let mut reduce = |comm: &mut Comm, route: Route| {
        comm.force_plan(plan(route, 2, 8)).unwrap();
        let buffer = &mut all[part.buffer];
        let range = begin..begin + PART_LEN;
        match route {
            Route::SymmetricOneShot => comm.all_reduce(&buffer.slice(range), &mut output),
            Route::SymmetricTwoShot => {
                comm.all_reduce_in_place(&mut buffer.as_view_mut().slice_mut(range))
            }
            _ => comm.all_reduce_in_place(&mut ordinary),
        }
    };
    let mut calls = |comm: &mut Comm| {
        reduce(comm, call.route)?;
        call.behind.map_or(Ok(()), |route| reduce(comm, route))
    };
    let outcome = match call.form {
        Form::Eager => calls(comm).and_then(|()| comm.synchronize()),
        Form::Graph => {
            comm.capture_begin().unwrap();
            calls(comm).unwrap();
            // SAFETY: the buffers live until the end of this function, which waits for the stream.
            let graph = unsafe { comm.capture_end().unwrap() };
            let launched = graph.launch(comm);
            launched.and_then(|()| comm.synchronize())
        }
    };
    failure(outcome)
}

/// Rank 1 uses another part than the rest; every rank must be told both.
fn differ_in_part(world_size: u32, rest: Part, odd: Part, call: Symmetric) {
    let context = (world_size, rest, odd, call);
    let buffers = 1 + rest.buffer.max(odd.buffer);
    let part_of = |rank: u32| if rank == 1 { odd } else { rest };
    let outcomes = on_ranks(
        world_size,
        || settings().timeout(DEADLINE),
        |comm| run_symmetric(comm, buffers, part_of(comm.rank()), call),
    );
    for (rank, reason) in (0..).zip(outcomes) {
        let (peer, own, theirs) = sides(&reason);
        assert!((rank == 1) != (peer == 1), "{context:?}: {reason}");
        for (signature, rank) in [(own, rank), (theirs, peer)] {
            let Part {
                buffer,
                begin_bytes,
            } = part_of(rank);
            let part = signature.part.unwrap();
            assert_eq!(
                (usize::from(part.buffer), part.offset_bytes as usize),
                (buffer, begin_bytes),
                "{context:?}: {reason}"
            );
            let named = format!("symmetric buffer {buffer} from byte {begin_bytes} on");
            assert!(reason.to_string().contains(&named), "{reason}");
        }
    }
}

/// Pairs of parts, among them those that 0.1 could not tell apart.
fn different_parts() -> Vec<(Part, Part)> {
    let at = |buffer, begin_bytes| Part {
        buffer,
        begin_bytes,
    };
    let mut pairs = vec![
        (at(0, 0), at(7, 0)),
        (at(0, 0), at(0, 53248)),
        (at(0, 0), at(0, 16)),
        (at(1, 8192), at(0, 8192)),
        (at(2, 4096), at(1, 12288)),
    ];
    // Neighbours of 8 KiB.
    pairs.extend((0..12).map(|part| (at(0, part << 13), at(0, (part + 1) << 13))));
    pairs
}

#[test]
fn ranks_that_use_different_parts_of_symmetric_buffers_are_told_both_parts() {
    // The next call is what looks at the details of the one before, whatever its kind.
    let behind = [
        None,
        Some(Route::PushOneShot),
        Some(Route::PullOneShot),
        Some(Route::SymmetricOneShot),
        Some(Route::SymmetricTwoShot),
    ];
    let routes = [Route::SymmetricOneShot, Route::SymmetricTwoShot];
    for (index, (rest, odd)) in different_parts().into_iter().enumerate() {
        for (turn, route) in routes.into_iter().enumerate() {
            for (form, offset) in FORMS.into_iter().zip([0, 2]) {
                let behind = behind[(index + turn + offset) % behind.len()];
                let call = Symmetric {
                    route,
                    behind,
                    form,
                };
                differ_in_part(2 + index as u32 % 2, rest, odd, call);
            }
        }
    }
    let (rest, odd) = different_parts()[1];
    for route in routes {
        for (behind, form) in [(None, Form::Eager), (Some(Route::PushTwoShot), Form::Graph)] {
            let call = Symmetric {
                route,
                behind,
                form,
            };
            differ_in_part(8, rest, odd, call);
        }
    }
}

#[test]
fn a_symmetric_buffer_whose_parts_a_call_could_not_tell_is_refused_and_nothing_is_lost() {
    on_ranks(2, settings, |comm| {
        let refused = comm.symmetric_alloc::<f32>((64 << 30) / size_of::<f32>() + 1);
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("at most 68719476736"), "{text}");
        let mut buffer = EmulatorBuffer::<f32>::from_slice(&[1.0; 8]);
        comm.all_reduce_in_place(&mut buffer).unwrap();
        comm.synchronize().unwrap();
        assert_eq!(buffer.to_vec(), [2.0; 8]);
    });
}

#[test]
fn ranks_of_which_one_calls_with_another_part_or_route_of_a_symmetric_buffer_are_told() {
    for world_size in [2, 3, 8] {
        for (route, route_odd) in [
            (Route::SymmetricTwoShot, Route::SymmetricTwoShot),
            (Route::SymmetricTwoShot, Route::PullTwoShot),
        ] {
            let outcomes = on_ranks(
                world_size,
                || settings().timeout(DEADLINE),
                |comm| {
                    let mut buffer = comm.symmetric_alloc::<f32>(1024).unwrap();
                    let is_odd = comm.rank() == 1;
                    let begin = if is_odd { 4 } else { 0 };
                    let route = if is_odd { route_odd } else { route };
                    comm.force_plan(plan(route, 1, 8)).unwrap();
                    let outcome = comm.all_reduce_in_place(
                        &mut buffer.as_view_mut().slice_mut(begin..begin + 256),
                    );
                    failure(outcome.and_then(|()| comm.synchronize()))
                },
            );
            for (rank, reason) in (0..).zip(outcomes) {
                let (peer, own, theirs) = sides(&reason);
                assert!(
                    (own.symmetric, own.part) != (theirs.symmetric, theirs.part),
                    "{reason}"
                );
                assert!((rank == 1) != (peer == 1), "{reason}");
            }
        }
    }
}

#[test]
fn a_symmetric_buffer_in_place_on_one_rank_only_is_told_to_all_with_both_sides() {
    for world_size in [2, 3] {
        let outcomes = on_ranks(
            world_size,
            || settings().timeout(DEADLINE),
            |comm| {
                let plan = |placement, bytes| comm.plan(placement, bytes).route;
                let bytes = (10..26)
                    .map(|power| 1 << power)
                    .find(|&bytes| {
                        plan(Placement::Symmetric, bytes) == Route::SymmetricOneShot
                            && plan(Placement::SymmetricInPlace, bytes) == Route::SymmetricTwoShot
                    })
                    .expect("the table has sizes for which peers' memory is read directly");
                let len = bytes as usize / size_of::<f32>();
                let mut symmetric = comm.symmetric_alloc::<f32>(len).unwrap();
                let mut output = EmulatorBuffer::<f32>::zeroed(len);
                let called = match comm.rank() {
                    1 => comm.all_reduce_in_place(&mut symmetric.as_view_mut()),
                    _ => comm.all_reduce(&*symmetric, &mut output),
                };
                failure(called.and_then(|()| comm.synchronize()))
            },
        );
        for (rank, reason) in (0..).zip(outcomes) {
            let (peer, own, theirs) = sides(&reason);
            assert!((rank == 1) != (peer == 1), "{reason}");
            let (in_place, out_of_place) = match rank {
                1 => (own, theirs),
                _ => (theirs, own),
            };
            assert_eq!(in_place.kind.algorithm, Algorithm::TwoShot, "{reason}");
            assert_eq!(out_of_place.kind.algorithm, Algorithm::OneShot, "{reason}");
            assert!(own.symmetric && theirs.symmetric, "{reason}");
            let text = reason.to_string();
            for side in ["pull_two_shot", "pull_one_shot"] {
                assert!(text.contains(side), "{text}");
            }
        }
    }
}

#[test]
fn an_ordinary_buffer_may_be_in_place_on_one_rank_only() {
    on_ranks(3, settings, |comm| {
        let own = input::<f32>(6, comm.rank(), 500, Content::Ordinary);
        let mut buffer = EmulatorBuffer::from_slice(&own);
        let mut output = EmulatorBuffer::<f32>::zeroed(500);
        match comm.rank() {
            1 => comm.all_reduce_in_place(&mut buffer).unwrap(),
            _ => comm.all_reduce(&buffer, &mut output).unwrap(),
        }
        comm.synchronize().unwrap();
        let found = match comm.rank() {
            1 => buffer.to_vec(),
            _ => output.to_vec(),
        };
        let expected = expected::<f32>(6, 3, 500, Content::Ordinary);
        assert_bits(&found, &expected, &"ordinary");
    });
}

#[test]
fn a_symmetric_buffer_on_one_rank_only_changes_no_sum_of_a_route_that_does_not_read_it() {
    let row = |blocks, threads| {
        let shape = format!(r#""blocks":{blocks},"threads":{threads}"#);
        format!(r#"[{{"max_bytes":null,"route":"pull_one_shot",{shape}}}]"#)
    };
    let (ordinary, symmetric) = (row(3, 8), row(1, 32));
    let tables = format!(
        r#"{{"schema":1,"tables":[{{"arch":null,"world_sizes":[3],"link":"emulator",
        "ordinary":{ordinary},"symmetric":{symmetric},"symmetric_in_place":{symmetric}}}]}}"#
    );
    let settings = || settings().dispatch_tables(tables.as_str());
    on_ranks(3, settings, |comm| {
        let mut symmetric = comm.symmetric_alloc::<f32>(256).unwrap();
        for call in 0..50 {
            let len = [256, 40, 128][call as usize % 3];
            let own: Vec<f32> = input(call, comm.rank(), len, Content::Ordinary);
            let found = if comm.rank() == 0 {
                let mut whole = symmetric.as_view_mut();
                let mut buffer = whole.slice_mut(0..len);
                buffer.copy_from_slice(&own);
                comm.all_reduce_in_place(&mut buffer).unwrap();
                comm.synchronize().unwrap();
                buffer.to_vec()
            } else {
                let mut buffer = EmulatorBuffer::from_slice(&own);
                comm.all_reduce_in_place(&mut buffer).unwrap();
                comm.synchronize().unwrap();
                buffer.to_vec()
            };
            let sum: Vec<f32> = expected(call, 3, len, Content::Ordinary);
            assert_bits(&found, &sum, &(call, len));
        }
    });
}

#[test]
fn a_symmetric_buffer_larger_than_max_bytes_is_summed_into_an_output_at_any_address() {
    // Two staging halves of 4 KiB, in which units of a misaligned output are put together.
    let settings = || settings().max_bytes(4 << 10);
    on_ranks(2, settings, |comm| {
        comm.force_plan(plan(Route::SymmetricOneShot, 2, 16))
            .unwrap();
        let len = 20_001;
        let mut symmetric = comm.symmetric_alloc::<f32>(len).unwrap();
        for call in 0..4 {
            let own: Vec<f32> = input(call, comm.rank(), len, Content::Ordinary);
            symmetric.as_view_mut().copy_from_slice(&own);
            let poison = vec![f32::from_bits(0x7F80_0001); len + 3];
            let mut output = EmulatorBuffer::from_slice(&poison);
            let from = call as usize;
            comm.all_reduce(
                &symmetric.as_view_mut(),
                &mut output.slice_mut(from..from + len),
            )
            .unwrap();
            comm.synchronize().unwrap();
            let found = output.to_vec();
            let sum: Vec<f32> = expected(call, 2, len, Content::Ordinary);
            assert_bits(&found[from..from + len], &sum, &call);
            assert_bits(&found[..from], &poison[..from], &call);
            assert_bits(&found[from + len..], &poison[from + len..], &call);
        }
    });
}
