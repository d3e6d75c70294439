//! Work on a list, several items at a time.

use anyhow::Context as _;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As many as a flag says, else as many as there are cores.
pub(crate) fn count(given: Option<NonZeroUsize>) -> usize {
    let count = given.or_else(|| std::thread::available_parallelism().ok());
    count.map_or(1, NonZeroUsize::get)
}

/// Calls `work` with the number of the worker and each item, `at_once` at a time; 0 is as many as
/// there are cores. The items begin in the order of the list, and so are the results.
///
/// # Errors
/// The threads cannot be started.
pub(crate) fn each<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(usize, &T) -> R + Sync,
) -> anyhow::Result<Vec<R>> {
    let pool = rayon_core::ThreadPoolBuilder::new()
        .num_threads(at_once)
        .build()
        .context("cannot start the worker threads")?;
    let next = AtomicUsize::new(0);
    // Not a parallel iterator: those split the list in halves, and slow items at its start must
    // begin first.
    let of_workers = pool.broadcast(|worker| {
        let mut results = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return results;
            };
            results.push((index, work(worker.index(), item)));
        }
    });
    let mut results: Vec<_> = of_workers.into_iter().flatten().collect();
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}
