//! Ranks that make different calls.

use anyhow::{Context, Result, bail, ensure};
use peersum::device::{Device, DeviceStream};
use peersum::dispatch::{Plan, Route};
use peersum::{
    CallSignature, Communicator, Element, Error, Failure, NormSignature, Operation, RmsNorm,
};
use peersum_artifact::Dtype;

use super::stage::{ELEMENTS, SEED, Stage};
use crate::calls::{Calls, What};
use crate::data::with_element;
use crate::machine::DeviceKind;
use crate::memory::TestBuffer;
use crate::norm_output::{Fp8Buffers, NormOutput};
use crate::ranks::{Member, run_threads};

const RANKS: u32 = 3;

/// The rank whose calls differ from those of the others.
const ODD: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Called {
    dtype: Dtype,
    /// Of the message, or of a rank's chunk.
    elements: usize,
    operation: Operation,
    /// Of a call that reduces.
    route: Route,
    norm: Option<Norm>,
}

/// What a call with RMSNorm says of it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Norm {
    hidden: usize,
    epsilon: f32,
    weight_offset: f32,
    has_residual: bool,
    output: NormOutput,
}

const A: Called = Called {
    dtype: Dtype::Bf16,
    elements: 3000,
    operation: Operation::AllReduce,
    route: Route::PushOneShot,
    norm: None,
};
const B: Called = Called { elements: 128, ..A };
/// As many bytes as [`A`].
const TYPE: Called = Called {
    dtype: Dtype::F32,
    elements: 1500,
    ..A
};
const ALGORITHM: Called = Called {
    route: Route::PushTwoShot,
    ..A
};
const FAMILY: Called = Called {
    route: Route::PullOneShot,
    ..A
};

const NORM: Norm = Norm {
    hidden: 1000,
    epsilon: 1e-6,
    weight_offset: 0.0,
    has_residual: true,
    output: NormOutput::Same,
};
/// In one kernel.
const N: Called = with_norm(Route::PushOneShot, NORM);
/// In a kernel behind another family's.
const BEHIND: Called = with_norm(Route::PullTwoShot, NORM);
const HIDDEN: Norm = Norm {
    hidden: 600,
    ..NORM
};
const EPSILON: Norm = Norm {
    epsilon: 1e-5,
    ..NORM
};
const OFFSET: Norm = Norm {
    weight_offset: 1.0,
    ..NORM
};
const NO_RESIDUAL: Norm = Norm {
    has_residual: false,
    ..NORM
};

const FP8_STATIC: Norm = Norm {
    output: NormOutput::Fp8Static,
    ..NORM
};
const FP8_PER_TOKEN: Norm = Norm {
    output: NormOutput::Fp8PerToken,
    ..NORM
};

const fn with_norm(route: Route, norm: Norm) -> Called {
    Called {
        operation: Operation::RmsNorm,
        route,
        norm: Some(norm),
        ..A
    }
}

const G: Called = of_operation(Operation::AllGather);
const S: Called = of_operation(Operation::ReduceScatter);
const ROOT_0: Called = of_operation(Operation::Broadcast { root: 0 });
const ROOT_2: Called = of_operation(Operation::Broadcast { root: 2 });

const fn of_operation(operation: Operation) -> Called {
    Called { operation, ..A }
}

/// What differs, the calls of most ranks, and those of the odd one.
const PROGRAMS: [(&str, &[Called], &[Called]); 23] = [
    ("size", &[A], &[B]),
    ("type, with calls behind", &[A, A, A], &[TYPE, A, A]),
    ("algorithm", &[A, A], &[ALGORITHM, A]),
    ("family", &[A], &[FAMILY]),
    ("order", &[A, B], &[B, A]),
    ("a skipped call", &[A, A, B], &[A, B]),
    ("hidden size", &[N], &[with_norm(N.route, HIDDEN)]),
    ("epsilon", &[N, A], &[with_norm(N.route, EPSILON), A]),
    ("weight offset", &[A, N], &[A, with_norm(N.route, OFFSET)]),
    ("residual", &[N], &[with_norm(N.route, NO_RESIDUAL)]),
    ("FP8", &[N], &[with_norm(N.route, FP8_STATIC)]),
    ("RMSNorm at all", &[N], &[A]),
    (
        "hidden size, in a kernel of its own",
        &[BEHIND],
        &[with_norm(BEHIND.route, HIDDEN)],
    ),
    (
        "epsilon, in a kernel of its own, with calls behind",
        &[BEHIND, N, A],
        &[with_norm(BEHIND.route, EPSILON), N, A],
    ),
    (
        "the scale of FP8, in a kernel of its own",
        &[with_norm(BEHIND.route, FP8_STATIC)],
        &[with_norm(BEHIND.route, FP8_PER_TOKEN)],
    ),
    (
        "RMSNorm at all, in a kernel of its own",
        &[BEHIND],
        &[Called {
            norm: None,
            operation: Operation::AllReduce,
            ..BEHIND
        }],
    ),
    ("all-reduce or all-gather", &[A], &[G]),
    ("all-reduce or broadcast", &[FAMILY, A], &[ROOT_2, A]),
    ("all-gather or reduce-scatter", &[G, A], &[S, A]),
    ("the root", &[ROOT_0], &[ROOT_2]),
    (
        "the root, with calls behind",
        &[A, ROOT_2, G],
        &[A, ROOT_0, G],
    ),
    (
        "the chunk of an all-gather",
        &[G, S],
        &[Called { elements: 128, ..G }, S],
    ),
    (
        "the type of a broadcast",
        &[ROOT_0],
        &[Called {
            operation: ROOT_0.operation,
            ..TYPE
        }],
    ),
];

pub(super) fn disagreements<S: DeviceStream>(stage: &Stage<'_, S>) -> Result<()> {
    for (what, rest, odd) in PROGRAMS {
        for in_graph in [false, true] {
            run_threads(RANKS, 1, |member| {
                disagree(member, stage, [rest, odd], in_graph)
                    .with_context(|| format!("{what}, in a graph: {in_graph}"))
            })?;
        }
        println!("  {what}: all ranks are told both sides, eager and in a graph");
    }
    Ok(())
}

impl Called {
    fn has_route(&self) -> bool {
        matches!(self.operation, Operation::AllReduce | Operation::RmsNorm)
    }

    /// The elements of its array.
    fn array(&self) -> usize {
        match self.operation {
            Operation::AllGather | Operation::ReduceScatter => RANKS as usize * self.elements,
            _ => self.elements,
        }
    }

    fn is(&self, signature: &CallSignature) -> bool {
        signature.dtype == Some(self.dtype)
            && signature.bytes == (self.elements * self.dtype.size_bytes()) as u64
            && signature.operation == self.operation
            && (!self.has_route()
                || signature.kind.family == self.route.family()
                    && signature.kind.algorithm == self.route.algorithm())
            && match (self.norm, &signature.norm) {
                (Some(norm), Some(told)) => norm.is(told),
                (None, Some(_)) => false,
                // A rank that has left may not have told it.
                (_, None) => true,
            }
    }
}

impl Norm {
    fn is(&self, told: &NormSignature) -> bool {
        told.hidden as usize == self.hidden
            && told.epsilon().to_bits() == self.epsilon.to_bits()
            && told.weight_offset().to_bits() == self.weight_offset.to_bits()
            && told.has_residual == self.has_residual
            && told.output
                == match self.output {
                    NormOutput::Same => peersum::NormOutput::Rows,
                    NormOutput::Fp8Static => peersum::NormOutput::Fp8Static,
                    NormOutput::Fp8PerToken => peersum::NormOutput::Fp8PerToken,
                }
    }
}

/// What one call uses.
struct Buffers<D: Device> {
    array: TestBuffer<D>,
    residual: TestBuffer<D>,
    weight: TestBuffer<D>,
    fp8_values: TestBuffer<D>,
    fp8_scales: TestBuffer<D>,
}

impl<D: Device> Buffers<D> {
    fn new<T: Element>(device: &D, called: &Called) -> Result<Self> {
        let hidden = called.norm.map_or(0, |norm| norm.hidden);
        let scales = called
            .norm
            .map_or(0, |norm| norm.output.scales(called.elements / norm.hidden));
        Ok(Buffers {
            array: TestBuffer::new::<T>(device, called.array())?,
            residual: TestBuffer::new::<T>(device, called.elements)?,
            weight: TestBuffer::new::<T>(device, hidden)?,
            fp8_values: TestBuffer::new::<u8>(device, called.elements)?,
            fp8_scales: TestBuffer::new::<f32>(device, scales)?,
        })
    }

    fn call<T: Element>(
        &self,
        device: &D,
        called: &Called,
        communicator: &mut Communicator<D>,
    ) -> Result<(), Error> {
        self.array.with::<T, _, _>(device, |array| {
            let Some(norm) = called.norm else {
                return match called.operation {
                    Operation::AllGather => communicator.all_gather_in_place(array),
                    Operation::ReduceScatter => communicator.reduce_scatter_in_place(array),
                    Operation::Broadcast { root } => communicator.broadcast(array, root),
                    _ => communicator.all_reduce_in_place(array),
                };
            };
            self.weight.with::<T, _, _>(device, |weight| {
                let numbers = RmsNorm {
                    weight: &*weight,
                    epsilon: norm.epsilon,
                    weight_offset: norm.weight_offset,
                };
                self.residual.with::<T, _, _>(device, |residual| {
                    let residual = norm.has_residual.then_some(residual);
                    self.fp8_values.with::<u8, _, _>(device, |values| {
                        self.fp8_scales.with::<f32, _, _>(device, |scales| {
                            let (output, fp8) = (norm.output, Fp8Buffers { values, scales });
                            output.call_in_place(communicator, array, residual, &numbers, fp8)
                        })
                    })
                })
            })
        })
    }
}

fn disagree<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
    programs: [&[Called]; 2],
    in_graph: bool,
) -> Result<()> {
    // Longer than any of these calls takes: a disagreement that the headers do not find shows as a
    // timeout.
    let mut communicator = stage.build(member.next_group()?, |builder| {
        builder.timeout(std::time::Duration::from_secs(20))
    })?;
    let rank = communicator.rank();
    let good = Calls::new(&communicator, What::AllReduce, SEED, ELEMENTS, 0)?;
    member.peers.meet()?;
    good.call(&mut communicator)?;
    communicator.synchronize()?;
    let calls = |rank: u32| programs[usize::from(rank == ODD)];
    let (blocks, threads) = match stage.kind {
        DeviceKind::Cuda => (4, 128),
        DeviceKind::Emulator => (1, 8),
    };
    let device = &S::Device::open(communicator.stream())?;
    let arrays = calls(rank)
        .iter()
        .map(|called| with_element!(called.dtype, T => Buffers::new::<T>(device, called)));
    let arrays: Vec<Buffers<S::Device>> = arrays.collect::<Result<_>>()?;
    let launch = |communicator: &mut Communicator<S::Device>| {
        let mut calls = calls(rank).iter().zip(&arrays);
        calls.try_for_each(|(called, buffers)| {
            communicator.force_plan(Some(Plan {
                route: called.route,
                blocks,
                threads,
            }))?;
            with_element!(called.dtype, T => buffers.call::<T>(device, called, communicator))
        })
    };
    let mut graph = None;
    if in_graph {
        communicator.capture_begin()?;
        launch(&mut communicator)?;
        // SAFETY: the arrays live until the end of this function, which has waited for the stream
        // by then.
        graph = Some(unsafe { communicator.capture_end()? });
    }
    // Otherwise a rank that is still in its good call would report the failure of the others' next
    // call.
    member.peers.meet()?;
    let launched = match &graph {
        Some(graph) => graph.launch(&mut communicator),
        None => launch(&mut communicator),
    };
    let failure = launched.and_then(|()| communicator.synchronize());
    let first = programs[0]
        .iter()
        .zip(programs[1])
        .position(|(a, b)| a != b)
        .context("programs that agree")?;
    match &failure {
        Err(Error::Failed(Failure::Disagreement {
            peer, own, theirs, ..
        })) => ensure!(
            calls(rank)[first].is(own)
                && calls(*peer)[first].is(theirs)
                && own != theirs
                && (rank == ODD) != (*peer == ODD),
            "rank {rank} was told {own} and, of rank {peer}, {theirs}"
        ),
        other => bail!("rank {rank} got {other:?}"),
    }
    Ok(())
}
