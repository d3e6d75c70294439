//! Ranks whose calls differ: each is told both sides of the first difference, whatever it is, eager
//! and in graphs.

use std::any::Any;
use std::sync::Barrier;
use std::time::Duration;

use half::{bf16, f16};
use peersum::dispatch::{Placement, Route};
use peersum::{CallSignature, Error, Failure, Graph};
use peersum_artifact::{Algorithm, Dtype};
use peersum_emulator::{Emulator, EmulatorBuffer};

use crate::stage::{
    Comm, Content, TestElement, assert_bits, expected, failure, input, on_ranks, plan, settings,
};

/// Beyond any wait here, so that a difference that the headers do not find would be seen as a
/// time-out or a hang.
const DEADLINE: Duration = Duration::from_secs(40);

/// A call in which ranks can differ.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Variant {
    dtype: Dtype,
    len: usize,
    route: Route,
}

const BASE: Variant = Variant {
    dtype: Dtype::F32,
    len: 300,
    route: Route::PushOneShot,
};

impl Variant {
    /// Launches it, or records it in a capture. Its buffer goes to `kept`.
    fn call(self, comm: &mut Comm, kept: &mut Vec<Box<dyn Any>>) -> Result<(), Error> {
        fn of<T: TestElement>(
            comm: &mut Comm,
            len: usize,
            kept: &mut Vec<Box<dyn Any>>,
        ) -> Result<(), Error> {
            let mut buffer = EmulatorBuffer::<T>::zeroed(len);
            let called = comm.all_reduce_in_place(&mut buffer);
            kept.push(Box::new(buffer));
            called
        }
        comm.force_plan(plan(self.route, 1, 8)).unwrap();
        match self.dtype {
            Dtype::F16 => of::<f16>(comm, self.len, kept),
            Dtype::Bf16 => of::<bf16>(comm, self.len, kept),
            Dtype::F32 => of::<f32>(comm, self.len, kept),
        }
    }

    fn is(self, signature: &CallSignature) -> bool {
        signature.dtype == Some(self.dtype)
            && signature.bytes == (self.len * self.dtype.size_bytes()) as u64
            && signature.kind.family == self.route.family()
            && signature.kind.algorithm == self.route.algorithm()
    }
}

/// Calls that differ from `base` in one thing.
fn variants(base: Variant) -> Vec<Variant> {
    let mut variants = vec![
        Variant {
            len: base.len + 1,
            ..base
        },
        Variant { len: 10, ..base },
        // As many bytes: the data alone would not show it.
        Variant {
            dtype: Dtype::F16,
            len: 2 * base.len,
            ..base
        },
        Variant {
            dtype: Dtype::Bf16,
            ..base
        },
    ];
    let staged = Route::ALL.into_iter().filter(|route| !route.is_symmetric());
    variants.extend(
        staged
            .filter(|route| *route != base.route)
            .map(|route| Variant { route, ..base }),
    );
    variants
}

/// How ranks make their calls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Eager,
    /// All in one graph.
    Graph,
}

const FORMS: [Form; 2] = [Form::Eager, Form::Graph];

/// A good call, so that the difference is not the first thing to happen. Behind it the calls of one
/// rank.
fn run(comm: &mut Comm, calls: &[Variant], form: Form, ready: &Barrier) -> Failure {
    let content = Content::Ordinary;
    let mut buffer = EmulatorBuffer::from_slice(&input::<f32>(3, comm.rank(), 500, content));
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    let sum = expected::<f32>(3, comm.world_size(), 500, content);
    assert_bits(&buffer.to_vec(), &sum, &"a good call");
    let mut kept = Vec::new();
    let mut graph: Option<Graph<'static, Emulator>> = None;
    if form == Form::Graph {
        comm.capture_begin().unwrap();
        for call in calls {
            call.call(comm, &mut kept).unwrap();
        }
        // SAFETY: the buffers are kept until the end of this function, which waits for the stream.
        graph = Some(unsafe { comm.capture_end().unwrap() });
    }
    // A rank that is still in its good call when others fail in the next would be told that.
    ready.wait();
    let launched = match &graph {
        Some(graph) => graph.launch(comm),
        None => calls.iter().try_for_each(|call| call.call(comm, &mut kept)),
    };
    let reason = failure(launched.and_then(|()| comm.synchronize()));
    // It stays so, and moves no data: neither the graph nor another call.
    let again = match &graph {
        Some(graph) => graph.launch(comm),
        None => Ok(()),
    };
    if graph.is_some() {
        assert_eq!(failure(again), reason);
    }
    let mut untouched = EmulatorBuffer::<f32>::from_slice(&[1.0; 8]);
    assert_eq!(failure(comm.all_reduce_in_place(&mut untouched)), reason);
    assert_eq!(failure(comm.synchronize()), reason);
    assert_eq!(untouched.to_vec(), [1.0; 8]);
    reason
}

/// Rank `odd_one` makes other calls than the rest; every rank must be told both sides of the first
/// difference.
#[track_caller]
fn disagree(world_size: u32, form: Form, rest: &[Variant], odd: &[Variant], odd_one: u32) {
    let context = (world_size, form, rest, odd, odd_one);
    let first = rest.iter().zip(odd).position(|(a, b)| a != b).unwrap();
    let ready = Barrier::new(world_size as usize);
    let calls = |rank: u32| if rank == odd_one { odd } else { rest };
    let outcomes = on_ranks(
        world_size,
        || settings().timeout(DEADLINE),
        |comm| run(comm, calls(comm.rank()), form, &ready),
    );
    for (rank, reason) in (0..).zip(outcomes) {
        let Failure::Disagreement {
            rank: named,
            peer,
            own,
            theirs,
        } = &reason
        else {
            panic!("rank {rank} was told: {reason}; {context:?}");
        };
        assert_eq!(*named, rank, "{context:?}");
        assert!(
            (rank == odd_one) != (*peer == odd_one),
            "{context:?}: {reason}"
        );
        assert!(
            calls(rank)[first].is(own) && calls(*peer)[first].is(theirs),
            "{context:?}: {reason}"
        );
        assert_eq!(own.sequence, theirs.sequence);
        let text = reason.to_string();
        for signature in [own, theirs] {
            assert!(text.contains(&format!("{signature}")), "{text}");
        }
    }
}

#[test]
fn ranks_that_call_differently_are_all_told_both_sides_also_when_no_call_follows() {
    for form in FORMS {
        for other in variants(BASE) {
            for behind in [0, 3] {
                let with = |call| [vec![call], vec![BASE; behind]].concat();
                disagree(2, form, &with(BASE), &with(other), 1);
            }
            disagree(3, form, &[BASE], &[other], 0);
            disagree(3, form, &[BASE, BASE], &[other, BASE], 2);
        }
    }
}

#[test]
fn a_difference_between_eight_ranks_is_told_to_all_of_them() {
    for form in FORMS {
        for (other, odd_one) in variants(BASE).into_iter().zip([0, 7, 3, 5, 1, 6, 2]) {
            disagree(8, form, &[BASE, BASE], &[other, BASE], odd_one);
        }
    }
}

#[test]
fn a_difference_is_told_whatever_the_routes_of_the_two_sides() {
    for form in FORMS {
        for route in [Route::PushTwoShot, Route::PullOneShot, Route::PullTwoShot] {
            let base = Variant { route, ..BASE };
            for (index, other) in variants(base).into_iter().enumerate() {
                let world_size = 2 + index as u32 % 2;
                let behind = vec![base; index % 3];
                let rest = [vec![base], behind.clone()].concat();
                let odd = [vec![other], behind].concat();
                disagree(world_size, form, &rest, &odd, index as u32 % world_size);
            }
        }
    }
}

#[test]
fn calls_in_another_order_are_told_where_they_first_differ() {
    let (a, b) = (BASE, Variant { len: 64, ..BASE });
    let pull = Variant {
        route: Route::PullOneShot,
        ..BASE
    };
    for form in FORMS {
        for world_size in [2, 8] {
            disagree(world_size, form, &[a, b], &[b, a], 1);
            disagree(world_size, form, &[a, a, pull, b], &[a, pull, a, b], 0);
        }
    }
}

#[test]
fn a_skipped_call_is_told_where_the_next_ones_differ() {
    let (a, b) = (BASE, Variant { len: 20, ..BASE });
    for form in FORMS {
        for world_size in [2, 8] {
            // The first, and one in the middle of the same calls: then the difference shows where
            // these end.
            disagree(world_size, form, &[a, b], &[b], 0);
            disagree(world_size, form, &[a, a, a, b], &[a, a, b], 1);
        }
    }
}

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
fn sides(reason: &Failure) -> (u32, &CallSignature, &CallSignature) {
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
