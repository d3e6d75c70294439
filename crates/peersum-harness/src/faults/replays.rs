//! Replayed graphs mixed with eager calls.

use anyhow::{Result, ensure};
use peersum::device::DeviceStream;

use super::work::Work;
use super::{Meeting, Stage};

/// Four layers captured, 100 replays, an eager call before every tenth.
pub(super) fn graph_replays<S: DeviceStream>(
    mut meeting: Meeting,
    stage: &Stage<'_, S>,
    pdl: bool,
) -> Result<()> {
    let mut communicator = stage.build(meeting.next_group()?, |builder| builder.pdl(pdl))?;
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let work = Work::<S::Device>::new(communicator.stream(), rank, world_size)?;
    let equal = |work: &Work<S::Device>| work.output_is(&|i| work.expected[i].to_bits());
    communicator.capture_begin()?;
    for _ in 0..4 {
        work.call(&mut communicator)?;
    }
    // SAFETY: the buffers live until the end of this function, and so does the graph.
    let graph = unsafe { communicator.capture_end()? };
    for replay in 0..100 {
        if replay % 10 == 9 {
            work.output.poison(&work.device)?;
            work.call(&mut communicator)?;
            communicator.synchronize()?;
            ensure!(
                equal(&work)?,
                "the eager call before replay {replay} is wrong"
            );
            work.output.poison(&work.device)?;
        }
        graph.launch(&mut communicator)?;
        if replay % 10 == 9 {
            communicator.synchronize()?;
            ensure!(equal(&work)?, "replay {replay} is wrong");
        }
    }
    communicator.synchronize()?;
    Ok(())
}
