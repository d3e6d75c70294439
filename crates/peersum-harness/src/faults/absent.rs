//! A rank that never calls.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use peersum::device::DeviceStream;
use peersum::{Error, Failure};

use super::work::{POISON, Work};
use super::{Meeting, Stage, TIMEOUT};

/// The rank that never calls.
const ABSENT: u32 = 2;

pub(super) fn absent_rank<S: DeviceStream>(
    mut meeting: Meeting,
    stage: &Stage<'_, S>,
) -> Result<()> {
    let mut communicator = stage.build(meeting.next_group()?, |builder| builder)?;
    let rank = communicator.rank();
    let work = Work::<S::Device>::new(communicator.stream(), rank, communicator.world_size())?;
    work.call(&mut communicator)?;
    communicator.synchronize()?;
    communicator.capture_begin()?;
    for _ in 0..2 {
        work.call(&mut communicator)?;
    }
    // SAFETY: the arrays live until the end of this function, and the graph is dropped before.
    let graph = unsafe { communicator.capture_end()? };
    graph.launch(&mut communicator)?;
    communicator.synchronize()?;
    ensure!(
        work.output_is(&|i| work.expected[i].to_bits())?,
        "a good call is wrong"
    );
    meeting.barrier.wait();
    if rank == ABSENT {
        // Until the others have failed; then it finds out by calling.
        meeting.barrier.wait();
    }
    let began = Instant::now();
    let failure = work
        .call(&mut communicator)
        .and_then(|()| communicator.synchronize());
    let took = began.elapsed();
    ensure!(took < TIMEOUT + stage.grace, "took {took:?}");
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
        meeting.barrier.wait();
    }
    ensure!(
        work.output_is(&|_| 0x7FFF)?,
        "an output that was not reduced is not NaN"
    );
    let reason = failure.err().context("checked above")?.to_string();
    println!("  rank {rank} after {took:?}: {reason}");

    // Whatever comes now is refused for the same reason and moves no data.
    work.output.poison(&work.device)?;
    for later in [
        graph.launch(&mut communicator),
        work.call(&mut communicator),
        communicator.synchronize(),
    ] {
        let later = later.err().context("a failed communicator said Ok")?;
        ensure!(later.to_string() == reason, "first {reason}, then {later}");
    }
    ensure!(
        work.output_is(&|_| POISON)?,
        "a call that was refused has written"
    );

    // The process and its device live on.
    drop(graph);
    drop(communicator);
    let mut second = stage.build(meeting.next_group()?, |builder| builder)?;
    let work = Work::<S::Device>::new(second.stream(), rank, second.world_size())?;
    work.call(&mut second)?;
    second.synchronize()?;
    ensure!(
        work.output_is(&|i| work.expected[i].to_bits())?,
        "a call of the new communicator is wrong"
    );
    Ok(())
}
