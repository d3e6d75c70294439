//! Another thread ends the waits of a rank, and through its poison those of its peers.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use peersum::device::DeviceStream;
use peersum::{Error, Failure};

use super::work::Work;
use super::{Meeting, Stage, threads};

/// Communicators that are aborted.
const ABORTS: usize = 5;

/// For the calls to be launched and to spin.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Times {
    aborted: Mutex<Option<Instant>>,
    /// Rank, and from the abort to the return of its `synchronize`.
    waits: Mutex<Vec<(u32, Duration)>>,
}

pub(super) fn aborts<S: DeviceStream>(stage: &Stage<'_, S>) -> Result<()> {
    let mut longest = [Duration::ZERO; 2];
    for _ in 0..ABORTS {
        let times = Times::default();
        threads(3, 1, &|meeting| abort(meeting, stage, &times))?;
        let waits = times
            .waits
            .into_inner()
            .map_err(|_| anyhow::anyhow!("a rank panicked"))?;
        for (rank, wait) in waits {
            longest[rank as usize] = longest[rank as usize].max(wait);
        }
    }
    let milliseconds = longest.map(|wait| wait.as_secs_f64() * 1e3);
    println!(
        "  of {ABORTS} aborts: synchronize returned after at most {:.2} ms on the aborted rank, {:.2} ms on a rank that waited with it",
        milliseconds[0], milliseconds[1]
    );
    let limit = Duration::from_millis(stage.args.abort_ms);
    ensure!(
        longest.iter().all(|wait| *wait <= limit),
        "an abort must end every wait within {limit:?}"
    );
    Ok(())
}

fn abort<S: DeviceStream>(mut meeting: Meeting, stage: &Stage<'_, S>, times: &Times) -> Result<()> {
    let mut communicator = stage.build(meeting.next_group()?, |builder| {
        builder.timeout(Duration::from_secs(60))
    })?;
    let rank = communicator.rank();
    let work = Work::<S::Device>::new(communicator.stream(), rank, communicator.world_size())?;
    work.call(&mut communicator)?;
    communicator.synchronize()?;
    if rank == 2 {
        // Never calls in time.
        meeting.barrier.wait();
        meeting.barrier.wait();
    } else {
        work.call(&mut communicator)?;
        meeting.barrier.wait();
    }
    let handle = communicator.abort_handle();
    let outcome = std::thread::scope(|scope| {
        if rank == 0 {
            scope.spawn(|| {
                std::thread::sleep(PAUSE);
                let mut aborted = times.aborted.lock();
                handle.abort();
                if let Ok(aborted) = &mut aborted {
                    **aborted = Some(Instant::now());
                }
            });
        }
        match rank {
            2 => work
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
    ensure!(
        work.output_is(&|_| 0x7FFF)?,
        "an output that was not reduced is not NaN"
    );
    if rank != 2 {
        let aborted = *times
            .aborted
            .lock()
            .map_err(|_| anyhow::anyhow!("the aborting thread panicked"))?;
        let wait = ended.saturating_duration_since(aborted.context("nobody aborted")?);
        if let Ok(mut waits) = times.waits.lock() {
            waits.push((rank, wait));
        }
        meeting.barrier.wait();
    }
    Ok(())
}
