//! A rank that never calls.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use peersum::device::DeviceStream;
use peersum::{Error, Failure};

use super::stage::{ELEMENTS, NAN, POISONED, SEED, Stage, TIMEOUT};
use crate::ranks::Member;

/// The rank that never calls.
const ABSENT: u32 = 2;

pub(super) fn absent_rank<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
) -> Result<()> {
    let mut communicator = stage.build(member.next_group()?, |builder| builder)?;
    let rank = communicator.rank();
    let peers = member.peers;
    let arrays = stage.arrays(&communicator, SEED, ELEMENTS)?;
    arrays.call(&mut communicator)?;
    communicator.synchronize()?;
    communicator.capture_begin()?;
    for _ in 0..2 {
        arrays.call(&mut communicator)?;
    }
    // SAFETY: the arrays live until the end of this function, and the graph is dropped before.
    let graph = unsafe { communicator.capture_end()? };
    graph.launch(&mut communicator)?;
    communicator.synchronize()?;
    arrays.ensure_sum(&arrays.output).context("a good call")?;
    peers.meet()?;
    if rank == ABSENT {
        // It waits until the others have failed, and learns of it by its own call.
        peers.meet()?;
    }
    let began = Instant::now();
    let failure = arrays
        .call(&mut communicator)
        .and_then(|()| communicator.synchronize());
    let took = began.elapsed();
    ensure!(took < TIMEOUT + stage.grace(), "took {took:?}");
    match &failure {
        Err(Error::Failed(Failure::PeerTimeout {
            peer: ABSENT,
            rank: own,
            ..
        })) if *own == rank => {}
        // The other waiting rank may be the first to give up.
        Err(Error::Failed(Failure::PeerFailed {
            origin, waited_for, ..
        })) if *origin != ABSENT
            && waited_for.is_none_or(|peer| peer == ABSENT && rank != ABSENT) => {}
        other => bail!("rank {rank} got {other:?}"),
    }
    if rank != ABSENT {
        peers.meet()?;
    }
    arrays
        .ensure_is(&arrays.output, |_| NAN)
        .context("an output that was not reduced")?;
    let reason = failure.err().context("checked above")?.to_string();
    println!("  rank {rank} after {took:?}: {reason}");

    // Every later operation fails for the same reason and moves no data.
    arrays.output.poison(&arrays.device)?;
    for later in [
        graph.launch(&mut communicator),
        arrays.call(&mut communicator),
        communicator.synchronize(),
    ] {
        let later = later.err().context("a failed communicator said Ok")?;
        ensure!(later.to_string() == reason, "first {reason}, then {later}");
    }
    arrays
        .ensure_is(&arrays.output, |_| POISONED)
        .context("the output of a refused call")?;

    // The process and its device stay usable.
    drop(graph);
    drop(communicator);
    let mut second = stage.build(member.next_group()?, |builder| builder)?;
    let arrays = stage.arrays(&second, SEED, ELEMENTS)?;
    arrays.call(&mut second)?;
    second.synchronize()?;
    arrays
        .ensure_sum(&arrays.output)
        .context("a call of the new communicator")?;
    Ok(())
}
