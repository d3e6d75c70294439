//! Replays of a graph, not waited for one by one, mixed with eager calls.

use anyhow::{Context, Result};
use peersum::device::DeviceStream;

use super::stage::{ELEMENTS, SEED, Stage};
use crate::ranks::Member;

const REPLAYS: usize = 100;

/// An eager call stands before every so many replays, and both results are compared.
const LOOK_EVERY: usize = 10;

/// Ranks replay a graph of four calls.
pub(super) fn graph_replays<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
    pdl: bool,
) -> Result<()> {
    let mut communicator = stage.build(member.next_group()?, |builder| builder.pdl(pdl))?;
    let arrays = stage.arrays(&communicator, SEED, ELEMENTS)?;
    communicator.capture_begin()?;
    for _ in 0..4 {
        arrays.call(&mut communicator)?;
    }
    // SAFETY: the arrays outlive the graph.
    let graph = unsafe { communicator.capture_end()? };
    member.peers.meet()?;
    for replay in 0..REPLAYS {
        let looks = replay % LOOK_EVERY == LOOK_EVERY - 1;
        if looks {
            arrays.output.poison(&arrays.device)?;
            arrays.call(&mut communicator)?;
            communicator.synchronize()?;
            let sum = arrays.ensure_sum(&arrays.output);
            sum.with_context(|| format!("the eager call before replay {replay}"))?;
            arrays.output.poison(&arrays.device)?;
        }
        graph.launch(&mut communicator)?;
        if looks {
            communicator.synchronize()?;
            let sum = arrays.ensure_sum(&arrays.output);
            sum.with_context(|| format!("replay {replay}"))?;
        }
    }
    Ok(communicator.synchronize()?)
}
