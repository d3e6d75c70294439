//! Ranks whose calls differ: each is told both sides of the first difference, whatever it is, eager
//! and in graphs.

use std::any::Any;
use std::sync::Barrier;
use std::time::Duration;

use half::{bf16, f16};
use peersum::dispatch::Route;
use peersum::{CallSignature, Element, Error, Failure, Graph, Operation, Scalar};
use peersum_artifact::Dtype;
use peersum_emulator::{Emulator, EmulatorBuffer};

use crate::stage::{
    Comm, Content, assert_bits, expected, failure, input, on_ranks, plan, settings,
};

/// Beyond any wait here, so that a difference that the headers do not find would be seen as a
/// time-out or a hang.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// A call in which ranks can differ.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Variant {
    operation: Operation,
    dtype: Dtype,
    /// Of the message, or of a rank's chunk.
    len: usize,
    /// Of an all-reduce.
    route: Route,
}

const BASE: Variant = Variant {
    operation: Operation::AllReduce,
    dtype: Dtype::F32,
    len: 300,
    route: Route::PushOneShot,
};

/// Buffers that live as long as the calls that use them.
type Kept = Vec<Box<dyn Any>>;

impl Variant {
    /// Launches it, or records it in a capture. Its buffers go to `kept`.
    fn call(self, comm: &mut Comm, kept: &mut Kept) -> Result<(), Error> {
        comm.force_plan(plan(self.route, 1, 8)).unwrap();
        match self.dtype {
            Dtype::F16 => self.reduce::<f16>(comm, kept),
            Dtype::Bf16 => self.reduce::<bf16>(comm, kept),
            Dtype::F32 => self.reduce::<f32>(comm, kept),
            Dtype::U8 => self.transfer::<u8>(comm, kept),
            _ => self.transfer::<u32>(comm, kept),
        }
    }

    fn reduce<T: Element>(self, comm: &mut Comm, kept: &mut Kept) -> Result<(), Error> {
        let ranks = comm.world_size() as usize;
        let mut message = EmulatorBuffer::<T>::zeroed(self.len);
        let mut chunks = EmulatorBuffer::<T>::zeroed(self.len * ranks);
        let called = match self.operation {
            Operation::AllReduce => comm.all_reduce_in_place(&mut message),
            Operation::ReduceScatter => comm.reduce_scatter_in_place(&mut chunks),
            _ => self.transfer::<T>(comm, kept),
        };
        kept.push(Box::new((message, chunks)));
        called
    }

    fn transfer<T: Scalar>(self, comm: &mut Comm, kept: &mut Kept) -> Result<(), Error> {
        let ranks = comm.world_size() as usize;
        let mut message = EmulatorBuffer::<T>::zeroed(self.len);
        let mut chunks = EmulatorBuffer::<T>::zeroed(self.len * ranks);
        let called = match self.operation {
            Operation::Broadcast { root } => comm.broadcast(&mut message, root),
            _ => comm.all_gather_in_place(&mut chunks),
        };
        kept.push(Box::new((message, chunks)));
        called
    }

    fn is(self, signature: &CallSignature) -> bool {
        signature.operation == self.operation
            && signature.dtype == Some(self.dtype)
            && signature.bytes == (self.len * self.dtype.size_bytes()) as u64
            && (self.operation != Operation::AllReduce
                || signature.kind.family == self.route.family()
                    && signature.kind.algorithm == self.route.algorithm())
    }
}

/// The operations with a header of their own. A broadcast takes any root of the group.
const OPERATIONS: [Operation; 5] = [
    Operation::AllReduce,
    Operation::AllGather,
    Operation::ReduceScatter,
    Operation::Broadcast { root: 0 },
    Operation::Broadcast { root: 1 },
];

/// Calls that differ from `base`, which is no all-reduce, in one thing. Other operations have as
/// many bytes.
fn other_collectives(base: Variant) -> Vec<Variant> {
    let mut others: Vec<Variant> = OPERATIONS
        .into_iter()
        .filter(|operation| *operation != base.operation)
        .map(|operation| Variant { operation, ..base })
        .collect();
    others.extend([
        Variant {
            operation: Operation::AllReduce,
            route: Route::PullTwoShot,
            ..base
        },
        Variant {
            len: base.len + 1,
            ..base
        },
        Variant { len: 10, ..base },
        // As many bytes.
        Variant {
            dtype: Dtype::F16,
            len: 2 * base.len,
            ..base
        },
    ]);
    if base.operation != Operation::ReduceScatter {
        others.extend([
            Variant {
                dtype: Dtype::U32,
                ..base
            },
            Variant {
                dtype: Dtype::U8,
                len: 4 * base.len,
                ..base
            },
        ]);
    }
    others
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
pub(crate) enum Form {
    Eager,
    /// All in one graph.
    Graph,
}

pub(crate) const FORMS: [Form; 2] = [Form::Eager, Form::Graph];

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
fn ranks_that_gather_scatter_or_broadcast_differently_are_told_both_sides() {
    for form in FORMS {
        for operation in &OPERATIONS[1..] {
            let base = Variant {
                operation: *operation,
                ..BASE
            };
            for (index, other) in other_collectives(base).into_iter().enumerate() {
                // Nothing behind it; an all-reduce; the same calls.
                let behind = [vec![], vec![BASE], vec![base; 3]][index % 3].clone();
                let with = |call| [vec![call], behind.clone()].concat();
                disagree(2, form, &with(base), &with(other), index as u32 % 2);
                disagree(3, form, &[base], &[other], index as u32 % 3);
            }
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
