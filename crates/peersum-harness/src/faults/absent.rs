//! A rank that never calls.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::device::{Device, DeviceStream};
use peersum::{Communicator, Error, Failure};

use super::stage::{ELEMENTS, NAN, POISONED, SEED, Stage, TIMEOUT};
use crate::arrays::Arrays;
use crate::norm_sides::Sides;
use crate::ranks::Member;

/// The rank that never calls.
const ABSENT: u32 = 2;

/// The length of a row with RMSNorm.
const HIDDEN: usize = 600;

/// The arrays of a rank's calls, with RMSNorm or without.
struct Calls<D: Device> {
    arrays: Arrays<bf16, D>,
    sides: Option<Sides<D>>,
    /// What the output must hold.
    expected: Vec<bf16>,
}

impl<D: Device> Calls<D> {
    fn new(
        communicator: &Communicator<D>,
        arrays: Arrays<bf16, D>,
        normalised: bool,
    ) -> Result<Self> {
        let (sides, expected) = match normalised {
            true => {
                let sum = &arrays.expected;
                let made = Sides::new(communicator, &arrays.device, sum, HIDDEN, false)?;
                (Some(made.0), made.1)
            }
            false => (None, arrays.expected.clone()),
        };
        Ok(Calls {
            arrays,
            sides,
            expected,
        })
    }

    fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let Arrays {
            device,
            input,
            output,
            ..
        } = &self.arrays;
        let Some(sides) = &self.sides else {
            return self.arrays.call(communicator);
        };
        input.with::<bf16, _>(device, |input| {
            output.with::<bf16, _>(device, |output| {
                sides.call(device, communicator, Some(&*input), output)
            })
        })
    }

    fn ensure_result(&self) -> Result<()> {
        let output = &self.arrays.output;
        self.arrays.ensure_is(output, |index| self.expected[index])
    }
}

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
    normalised: bool,
) -> Result<()> {
    let mut communicator = stage.build(member.next_group()?, |builder| builder)?;
    let rank = communicator.rank();
    let peers = member.peers;
    let calls_of = |communicator: &Communicator<S::Device>| {
        let arrays = stage.arrays(communicator, SEED, ELEMENTS)?;
        Calls::new(communicator, arrays, normalised)
    };
    let calls = calls_of(&communicator)?;
    let arrays = &calls.arrays;
    calls.call(&mut communicator)?;
    communicator.synchronize()?;
    communicator.capture_begin()?;
    for _ in 0..2 {
        calls.call(&mut communicator)?;
    }
    // SAFETY: the arrays live until the end of this function, and the graph is dropped before.
    let graph = unsafe { communicator.capture_end()? };
    graph.launch(&mut communicator)?;
    communicator.synchronize()?;
    calls.ensure_result().context("a good call")?;
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
    arrays
        .ensure_is(&arrays.output, |_| NAN)
        .context("an output that was not reduced")?;
    let reason = failure.err().context("checked above")?.to_string();
    println!("  rank {rank} after {took:?}: {reason}");

    // Every later operation fails for the same reason and moves no data.
    arrays.output.poison(&arrays.device)?;
    for later in [
        graph.launch(&mut communicator),
        calls.call(&mut communicator),
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
    let calls = calls_of(&second)?;
    calls.call(&mut second)?;
    second.synchronize()?;
    calls
        .ensure_result()
        .context("a call of the new communicator")
}
