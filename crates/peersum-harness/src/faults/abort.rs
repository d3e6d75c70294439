//! Another thread aborts a rank: its waits end, and its poison ends those of its peers.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use peersum::device::DeviceStream;
use peersum::{Error, Failure};

use super::stage::{ELEMENTS, HIDDEN, SEED, Stage};
use crate::calls::{Calls, What};
use crate::ranks::{Member, run_threads};

/// Time for the calls to be launched and to start waiting.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) fn aborts<S: DeviceStream>(stage: &Stage<'_, S>) -> Result<()> {
    let mut longest = [Duration::ZERO; 2];
    for what in What::ALL {
        let aborted = Mutex::new(None);
        let waits = run_threads(3, 1, |member| abort(member, stage, what, &aborted))?;
        for (longest, wait) in longest.iter_mut().zip(waits) {
            *longest = wait.max(*longest);
        }
    }
    let milliseconds = longest.map(|wait| wait.as_secs_f64() * 1e3);
    println!(
        "  of {} aborts: synchronize returned after at most {:.2} ms on the aborted rank, \
         {:.2} ms on a rank that waited with it",
        What::ALL.len(),
        milliseconds[0],
        milliseconds[1]
    );
    let limit = Duration::from_millis(stage.args.abort_ms);
    ensure!(
        longest.iter().all(|wait| *wait <= limit),
        "an abort must end every wait within {limit:?}"
    );
    Ok(())
}

/// One rank. Returns the time from the abort to the return of its `synchronize`.
fn abort<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
    what: What,
    aborted: &Mutex<Option<Instant>>,
) -> Result<Duration> {
    let mut communicator = stage.build(member.next_group()?, |builder| {
        builder.timeout(Duration::from_secs(60))
    })?;
    let (rank, peers) = (communicator.rank(), member.peers);
    let calls = Calls::new(&communicator, what, SEED, ELEMENTS, HIDDEN)?;
    peers.meet()?;
    calls.call(&mut communicator)?;
    communicator.synchronize()?;
    calls.prepare()?;
    if rank == 2 {
        // This rank calls too late.
        peers.meet()?;
        peers.meet()?;
    } else {
        calls.call(&mut communicator)?;
        peers.meet()?;
    }
    let handle = communicator.abort_handle();
    let outcome = std::thread::scope(|scope| {
        if rank == 0 {
            scope.spawn(|| {
                std::thread::sleep(PAUSE);
                let mut aborted = aborted.lock();
                handle.abort();
                if let Ok(aborted) = &mut aborted {
                    **aborted = Some(Instant::now());
                }
            });
        }
        match rank {
            2 => calls
                .call(&mut communicator)
                .and_then(|()| communicator.synchronize()),
            _ => communicator.synchronize(),
        }
    });
    let ended = Instant::now();
    match (rank, &outcome) {
        (0, Err(Error::Failed(Failure::Aborted { rank: 0, .. }))) => {}
        (1 | 2, Err(Error::Failed(Failure::PeerFailed { origin: 0, .. }))) => {}
        other => bail!("{other:?}"),
    }
    calls.ensure_lost()?;
    if rank != 2 {
        peers.meet()?;
    }
    let aborted = *aborted
        .lock()
        .map_err(|_| anyhow::anyhow!("the aborting thread panicked"))?;
    Ok(ended.saturating_duration_since(aborted.context("no rank was aborted")?))
}
