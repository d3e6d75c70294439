//! Ranks that are threads of this process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use peersum::Rendezvous;

use super::meeting::{Abandoned, Meeting};

/// Maximum time that a rank waits for the others outside calls.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A rank and the place where it meets the others.
#[derive(Clone, Copy)]
pub(crate) struct Peers<'a> {
    meeting: &'a Meeting,
    rank: u32,
}

impl Peers<'_> {
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    /// Waits for all ranks. Call it between allocations and the first call: if the ranks share a
    /// GPU, the driver can make a rank that allocates wait for the running kernels of the others.
    ///
    /// # Errors
    /// A rank failed or did not come in time.
    pub(crate) fn meet(&self) -> Result<()> {
        self.gather(()).map(|_| ())
    }

    /// Waits for all ranks and returns what each has brought, by rank. All must bring the same
    /// type.
    ///
    /// # Errors
    /// As [`Peers::meet`].
    pub(crate) fn gather<T: Clone + Send + Sync + 'static>(&self, value: T) -> Result<Vec<T>> {
        self.meeting.gather(self.rank, value)
    }
}

/// One of the ranks that [`run_threads`] runs.
pub(crate) struct Member<'a> {
    pub(crate) peers: Peers<'a>,
    /// The groups that it has not joined yet, the next one at the end.
    groups: Vec<Rendezvous>,
}

impl Member<'_> {
    /// The rendezvous of the next group.
    ///
    /// # Errors
    /// There is no group left.
    pub(crate) fn next_group(&mut self) -> Result<Rendezvous> {
        self.groups.pop().context("no further group was asked for")
    }
}

/// Runs `body` on `world_size` threads, one per rank. The ranks can form `groups` groups. If a rank
/// fails, the others' waits in [`Peers`] end.
///
/// # Errors
/// The failures of all ranks, the first one first: the failure of one rank is often the cause of
/// another's.
pub(crate) fn run_threads<R: Send>(
    world_size: u32,
    groups: usize,
    body: impl Fn(Member<'_>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let meeting = Meeting::new(world_size, PATIENCE);
    let (meeting, body) = (&meeting, &body);
    let groups = (0..groups).map(|_| Rendezvous::threads(world_size).into_iter());
    let mut groups: Vec<_> = groups.collect();
    let members = (0..world_size).map(|rank| Member {
        peers: Peers { meeting, rank },
        groups: groups.iter_mut().filter_map(Iterator::next).collect(),
    });
    let results: Vec<Option<R>> = std::thread::scope(|scope| {
        let threads: Vec<_> = members
            .map(|member| {
                let rank = member.peers.rank;
                scope.spawn(move || {
                    // If a rank panics, the others must not wait for it either.
                    let outcome = catch_unwind(AssertUnwindSafe(|| body(member)))
                        .unwrap_or_else(|_| Err(anyhow!("it panicked")));
                    match outcome {
                        Ok(result) => Some(result),
                        Err(error) => {
                            if !error.is::<Abandoned>() {
                                meeting.abandon(format!("rank {rank}: {error:#}"));
                            }
                            None
                        }
                    }
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|result| result.ok().flatten()).collect()
    });
    let failures = meeting.failures();
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    results
        .into_iter()
        .collect::<Option<_>>()
        .context("a rank ended without a result")
}
