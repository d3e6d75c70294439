//! A rank that never calls.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use peersum::device::DeviceStream;
use peersum::{Communicator, Error, Failure};

use super::stage::{ELEMENTS, HIDDEN, SEED, Stage, TIMEOUT};
use crate::calls::{Calls, What};
use crate::ranks::Member;

/// The rank that never calls.
const ABSENT: u32 = 2;

/// Whether the failure of a call on `rank` is the one that the absent rank causes.
fn names_absent(rank: u32, failure: &Result<(), Error>) -> bool {
    match failure {
        Err(Error::Failed(Failure::PeerTimeout {
            peer, rank: own, ..
        })) => (*peer, *own) == (ABSENT, rank),
        // The other waiting rank may be the first to give up.
        Err(Error::Failed(Failure::PeerFailed {
            origin, waited_for, ..
        })) => *origin != ABSENT && waited_for.is_none_or(|peer| peer == ABSENT && rank != ABSENT),
        _ => false,
    }
}

pub(super) fn absent_rank<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
    what: What,
) -> Result<()> {
    let mut communicator = stage.build(member.next_group()?, |builder| builder)?;
    let rank = communicator.rank();
    let peers = member.peers;
    let calls_of = |communicator: &Communicator<S::Device>| {
        Calls::new(communicator, what, SEED, ELEMENTS, HIDDEN)
    };
    let calls = calls_of(&communicator)?;
    peers.meet()?;
    calls.call(&mut communicator)?;
    communicator.synchronize()?;
    communicator.capture_begin()?;
    let layers = if calls.is_in_place() { 1 } else { 2 };
    for _ in 0..layers {
        calls.call(&mut communicator)?;
    }
    // SAFETY: the arrays live until the end of this function, and the graph is dropped before.
    let graph = unsafe { communicator.capture_end()? };
    calls.prepare()?;
    graph.launch(&mut communicator)?;
    communicator.synchronize()?;
    calls.ensure_result().context("a good call")?;
    calls.prepare()?;
    peers.meet()?;
    if rank == ABSENT {
        // It waits until the others have failed, and learns of it by its own call.
        peers.meet()?;
    }
    let began = Instant::now();
    let failure = calls
        .call(&mut communicator)
        .and_then(|()| communicator.synchronize());
    let took = began.elapsed();
    ensure!(took < TIMEOUT + stage.grace(), "took {took:?}");
    ensure!(names_absent(rank, &failure), "rank {rank} got {failure:?}");
    if rank != ABSENT {
        peers.meet()?;
    }
    calls.ensure_lost()?;
    let reason = failure.err().context("checked above")?.to_string();
    println!("  rank {rank} after {took:?}: {reason}");

    // Every later operation fails for the same reason and moves no data.
    calls.prepare()?;
    for later in [
        graph.launch(&mut communicator),
        calls.call(&mut communicator),
        communicator.synchronize(),
    ] {
        let later = later.err().context("a failed communicator said Ok")?;
        ensure!(later.to_string() == reason, "first {reason}, then {later}");
    }
    calls.ensure_untouched()?;

    // The process and its device stay usable.
    drop(graph);
    drop(communicator);
    let mut second = stage.build(member.next_group()?, |builder| builder)?;
    let calls = calls_of(&second)?;
    calls.call(&mut second)?;
    second.synchronize()?;
    calls
        .ensure_result()
        .context("a call of the new communicator")
}
