//! Ranks that make different calls.

use anyhow::{Context, Result, bail, ensure};
use peersum::device::DeviceStream;
use peersum::dispatch::{Plan, Route};
use peersum::{CallSignature, Communicator, Error, Failure};
use peersum_artifact::Dtype;

use super::stage::{ELEMENTS, SEED, Stage};
use crate::data::with_element;
use crate::machine::DeviceKind;
use crate::memory::TestBuffer;
use crate::ranks::{Member, run_threads};

/// The rank whose calls differ from those of the others.
const ODD: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Called {
    dtype: Dtype,
    elements: usize,
    route: Route,
}

const A: Called = Called {
    dtype: Dtype::Bf16,
    elements: 3000,
    route: Route::PushOneShot,
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

/// What differs, the calls of most ranks, and those of the odd one.
const PROGRAMS: [(&str, &[Called], &[Called]); 6] = [
    ("size", &[A], &[B]),
    ("type, with calls behind", &[A, A, A], &[TYPE, A, A]),
    ("algorithm", &[A, A], &[ALGORITHM, A]),
    ("family", &[A], &[FAMILY]),
    ("order", &[A, B], &[B, A]),
    ("a skipped call", &[A, A, B], &[A, B]),
];

pub(super) fn disagreements<S: DeviceStream>(stage: &Stage<'_, S>) -> Result<()> {
    for (what, rest, odd) in PROGRAMS {
        for in_graph in [false, true] {
            run_threads(3, 1, |member| {
                disagree(member, stage, [rest, odd], in_graph)
                    .with_context(|| format!("{what}, in a graph: {in_graph}"))
            })?;
        }
        println!("  {what}: all ranks are told both sides, eager and in a graph");
    }
    Ok(())
}

impl Called {
    fn is(&self, signature: &CallSignature) -> bool {
        signature.dtype == Some(self.dtype)
            && signature.bytes == (self.elements * self.dtype.size_bytes()) as u64
            && signature.kind.family == self.route.family()
            && signature.kind.algorithm == self.route.algorithm()
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
    let good = stage.arrays(&communicator, SEED, ELEMENTS)?;
    good.call(&mut communicator)?;
    communicator.synchronize()?;
    let calls = |rank: u32| programs[usize::from(rank == ODD)];
    let (blocks, threads) = match stage.kind {
        DeviceKind::Cuda => (4, 128),
        DeviceKind::Emulator => (1, 8),
    };
    let device = &good.device;
    let arrays = calls(rank).iter().map(
        |called| with_element!(called.dtype, T => TestBuffer::new::<T>(device, called.elements)),
    );
    let arrays: Vec<TestBuffer<S::Device>> = arrays.collect::<Result<_>>()?;
    let launch = |communicator: &mut Communicator<S::Device>| {
        let mut calls = calls(rank).iter().zip(&arrays);
        calls.try_for_each(|(called, array)| {
            communicator.force_plan(Some(Plan {
                route: called.route,
                blocks,
                threads,
            }))?;
            with_element!(called.dtype, T => {
                array.with::<T, _>(device, |array| communicator.all_reduce_in_place(array))
            })
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
                && (rank == ODD) != (*peer == ODD),
            "rank {rank} was told {own} and, of rank {peer}, {theirs}"
        ),
        other => bail!("rank {rank} got {other:?}"),
    }
    Ok(())
}
