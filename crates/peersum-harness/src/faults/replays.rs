//! Replayed graphs mixed with eager calls.

use anyhow::{Context, Result};
use peersum::device::DeviceStream;

use super::stage::{ELEMENTS, SEED, Stage};
use crate::ranks::Member;

/// Four layers captured, 100 replays, an eager call before every tenth.
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
    // SAFETY: the buffers live until the end of this function, and so does the graph.
    let graph = unsafe { communicator.capture_end()? };
    for replay in 0..100 {
        if replay % 10 == 9 {
            arrays.output.poison(&arrays.device)?;
            arrays.call(&mut communicator)?;
            communicator.synchronize()?;
            arrays
                .ensure_sum(&arrays.output)
                .with_context(|| format!("the eager call before replay {replay}"))?;
            arrays.output.poison(&arrays.device)?;
        }
        graph.launch(&mut communicator)?;
        if replay % 10 == 9 {
            communicator.synchronize()?;
            arrays
                .ensure_sum(&arrays.output)
                .with_context(|| format!("replay {replay}"))?;
        }
    }
    communicator.synchronize()?;
    Ok(())
}
