//! Where the ranks of one process meet. Unlike a barrier it has a deadline, and a rank that fails
//! tells the others.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

type Deposit = Arc<dyn Any + Send + Sync>;

/// Another rank failed, for this reason.
#[derive(Debug)]
pub(crate) struct Abandoned(String);

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Abandoned {}

/// A meeting place for a fixed number of ranks.
pub(crate) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
    patience: Duration,
}

struct State {
    /// Meetings held so far.
    held: u64,
    /// What each rank has brought to the next meeting.
    brought: Vec<Option<Deposit>>,
    /// What was brought to the last meeting. It stays until all ranks have come to the next one.
    collected: Vec<Deposit>,
    /// Why ranks have failed, the first failure first.
    failures: Vec<String>,
}

impl Meeting {
    /// A place where `ranks` ranks meet, each waiting for the others at most `patience`.
    pub(crate) fn new(ranks: u32, patience: Duration) -> Meeting {
        Meeting {
            state: Mutex::new(State {
                held: 0,
                brought: vec![None; ranks as usize],
                collected: Vec::new(),
                failures: Vec::new(),
            }),
            changed: Condvar::new(),
            patience,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all ranks and returns what each has brought, by rank. All must bring the same
    /// type.
    ///
    /// # Errors
    /// A rank failed or did not come in time.
    pub(crate) fn gather<T: Clone + Send + Sync + 'static>(
        &self,
        rank: u32,
        value: T,
    ) -> Result<Vec<T>> {
        let mut state = self.state();
        let meeting = state.held;
        match state.brought.get_mut(rank as usize) {
            Some(place @ None) => *place = Some(Arc::new(value)),
            _ => bail!("rank {rank} came to one meeting twice"),
        }
        if state.brought.iter().all(Option::is_some) {
            let all = state.brought.iter_mut().filter_map(Option::take).collect();
            state.collected = all;
            state.held += 1;
            self.changed.notify_all();
        }
        let waits = |state: &mut State| state.held == meeting && state.failures.is_empty();
        let waited = self.changed.wait_timeout_while(state, self.patience, waits);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.held == meeting {
            if let Some(reason) = state.failures.first() {
                return Err(Abandoned(reason.clone()).into());
            }
            let brought = state.brought.iter().enumerate();
            let missing: Vec<String> = brought
                .filter(|(_, brought)| brought.is_none())
                .map(|(rank, _)| rank.to_string())
                .collect();
            bail!(
                "rank {rank} waited {:?} for rank {}",
                self.patience,
                missing.join(", ")
            );
        }
        state
            .collected
            .iter()
            .map(|deposit| {
                deposit
                    .downcast_ref::<T>()
                    .cloned()
                    .ok_or_else(|| anyhow!("ranks meet for different reasons"))
            })
            .collect()
    }

    /// Ends every wait, now and later. The waiting ranks are told the first reason.
    pub(crate) fn abandon(&self, reason: String) {
        self.state().failures.push(reason);
        self.changed.notify_all();
    }

    /// Why ranks have abandoned the meeting, the first one first.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.state().failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_what_each_has_brought_time_after_time() {
        let meeting = Meeting::new(4, Duration::from_secs(60));
        std::thread::scope(|scope| {
            for rank in 0..4 {
                let meeting = &meeting;
                scope.spawn(move || {
                    for round in 0..1000 {
                        let all = meeting.gather(rank, (rank, round)).unwrap();
                        assert_eq!(all, [0, 1, 2, 3].map(|rank| (rank, round)));
                    }
                });
            }
        });
    }

    #[test]
    fn a_rank_that_fails_ends_the_others_wait_with_its_reason() {
        let meeting = Meeting::new(2, Duration::from_secs(600));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| meeting.gather(0, ()));
            meeting.abandon("rank 1: out of memory".to_owned());
            meeting.abandon("a later reason".to_owned());
            let error = waiting.join().unwrap().unwrap_err().to_string();
            assert_eq!(error, "rank 1: out of memory");
            let failures = meeting.failures();
            assert_eq!(failures, ["rank 1: out of memory", "a later reason"]);
        });
    }

    #[test]
    fn a_rank_that_does_not_come_is_named() {
        let meeting = Meeting::new(3, Duration::from_millis(20));
        let error = meeting.gather(1, ()).unwrap_err().to_string();
        assert!(error.ends_with("for rank 0, 2"), "{error}");
    }
}
