//! Replays of a graph, not waited for one by one, mixed with eager calls.

use anyhow::{Context, Result};
use peersum::device::DeviceStream;

use super::stage::{ELEMENTS, HIDDEN, SEED, Stage};
use crate::calls::{Calls, What};
use crate::collective::Collective;
use crate::ranks::Member;

const REPLAYS: usize = 100;

/// Eager calls stand before every so many replays, and the results of both are compared.
const LOOK_EVERY: usize = 10;

/// The calls of the graph.
const CALLS: [What; 4] = [
    What::AllReduce,
    What::Other(Collective::AllGather),
    What::Other(Collective::ReduceScatter),
    What::Other(Collective::Broadcast { root: 1 }),
];

/// Ranks replay a graph of these calls.
pub(super) fn graph_replays<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
    pdl: bool,
) -> Result<()> {
    let mut communicator = stage.build(member.next_group()?, |builder| builder.pdl(pdl))?;
    let calls = CALLS
        .into_iter()
        .map(|what| Calls::new(&communicator, what, SEED, ELEMENTS, HIDDEN))
        .collect::<Result<Vec<_>>>()?;
    let call_all = |communicator: &mut _| calls.iter().try_for_each(|it| it.call(communicator));
    let prepare = || calls.iter().try_for_each(Calls::prepare);
    let check = || calls.iter().try_for_each(Calls::ensure_result);
    communicator.capture_begin()?;
    call_all(&mut communicator)?;
    // SAFETY: the arrays outlive the graph.
    let graph = unsafe { communicator.capture_end()? };
    member.peers.meet()?;
    for replay in 0..REPLAYS {
        let looks = replay % LOOK_EVERY == LOOK_EVERY - 1;
        if looks {
            prepare()?;
            call_all(&mut communicator)?;
            communicator.synchronize()?;
            check().with_context(|| format!("the eager calls before replay {replay}"))?;
            prepare()?;
        }
        graph.launch(&mut communicator)?;
        if looks {
            communicator.synchronize()?;
            check().with_context(|| format!("replay {replay}"))?;
        }
    }
    Ok(communicator.synchronize()?)
}
