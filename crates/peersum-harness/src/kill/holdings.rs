//! The system resources of a process: descriptors, mappings of shared memory, threads.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Maximum time to wait for resources that are freed asynchronously, such as a thread that was
/// asked to end.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// Each resource in words.
#[derive(Debug, Clone)]
pub(crate) struct Holdings(Vec<String>);

impl Holdings {
    /// This process's.
    pub(crate) fn now() -> Result<Holdings> {
        let directory = |path| std::fs::read_dir(path).with_context(|| format!("reading {path}"));
        let descriptors = directory("/proc/self/fd")?
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            // The descriptor that lists them.
            .filter(|target| !is_listing(target))
            .map(|target| format!("descriptor {}", kind(&target)));
        let maps = std::fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
        // Those of memory that has no name in the file system.
        let mappings = maps
            .lines()
            .filter_map(|line| line.split_once('/'))
            .filter(|(_, path)| path.ends_with("(deleted)") || path.starts_with("dev/"))
            .map(|(_, path)| format!("mapping /{path}"));
        let threads = directory("/proc/self/task")?.map(|_| "thread".to_owned());
        Ok(Holdings(
            descriptors.chain(mappings).chain(threads).collect(),
        ))
    }

    /// What this process holds beyond `self`, in words; empty if nothing.
    pub(crate) fn surplus(&self) -> Result<Vec<String>> {
        let began = Instant::now();
        loop {
            let surplus = self.surplus_of(Holdings::now()?);
            if surplus.is_empty() || began.elapsed() > SETTLE_PATIENCE {
                return Ok(surplus);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn surplus_of(&self, now: Holdings) -> Vec<String> {
        let mut surplus = now.0;
        for held in &self.0 {
            if let Some(index) = surplus.iter().position(|item| item == held) {
                surplus.remove(index);
            }
        }
        surplus
    }
}

fn is_listing(target: &Path) -> bool {
    target.starts_with("/proc") && target.ends_with("fd")
}

/// The number in `socket:[123]` does not matter.
fn kind(target: &Path) -> String {
    let text = target.to_string_lossy();
    match text.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_a_mapping_and_a_thread_too_many_are_named() {
        let holdings = |items: &str| Holdings(items.split(", ").map(str::to_owned).collect());
        let less = holdings("descriptor pipe, descriptor socket, thread");
        let surplus = "descriptor socket, mapping /memfd:peersum (deleted), thread";
        let more = holdings(&format!("{}, {surplus}", less.0.join(", ")));
        assert_eq!(less.surplus_of(more.clone()).join(", "), surplus);
        assert!(more.surplus_of(less).is_empty());
    }
}
