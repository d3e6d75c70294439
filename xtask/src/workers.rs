//! Work on a list, several items at a time.

use anyhow::Context as _;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work` with the number of the worker and each item, and returns all results. The items
/// begin in the order of the list.
///
/// # Errors
/// The threads cannot be started.
pub(crate) fn each<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(usize, &T) -> R + Sync,
) -> anyhow::Result<Vec<R>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(at_once)
        .build()
        .context("cannot start the worker threads")?;
    let next = AtomicUsize::new(0);
    // Not a parallel iterator: those split the list in halves, and what comes first must begin
    // first.
    let of_workers = pool.broadcast(|worker| {
        let mut results = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            results.push(work(worker.index(), item));
        }
        results
    });
    Ok(of_workers.into_iter().flatten().collect())
}
