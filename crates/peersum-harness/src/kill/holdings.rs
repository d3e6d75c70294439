//! The system resources of a process: descriptors, mappings of shared memory, threads.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Maximum time to wait for resources that are freed asynchronously, such as a thread that was
/// asked to end.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// The lists are sorted, so that two values can be compared directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holdings {
    /// What each open file descriptor is.
    descriptors: Vec<String>,
    /// Mappings of memory that has no name in the file system.
    mappings: Vec<String>,
    threads: usize,
}

impl Holdings {
    /// This process's.
    pub(crate) fn now() -> Result<Holdings> {
        let listing = Path::new("/proc/self/fd");
        let own = std::fs::read_dir(listing).context("reading /proc/self/fd")?;
        let mut descriptors: Vec<String> = own
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            // The descriptor that lists them.
            .filter(|target| !is_listing(target))
            .map(|target| kind(&target))
            .collect();
        descriptors.sort();
        let maps = std::fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
        let mut mappings: Vec<String> = maps
            .lines()
            .filter_map(|line| line.split_once('/').map(|(_, path)| format!("/{path}")))
            .filter(|path| path.ends_with("(deleted)") || path.starts_with("/dev/"))
            .collect();
        mappings.sort();
        let threads = std::fs::read_dir("/proc/self/task")
            .context("reading /proc/self/task")?
            .count();
        Ok(Holdings {
            descriptors,
            mappings,
            threads,
        })
    }

    /// What this process holds beyond `self`, in words; empty if nothing.
    pub(crate) fn surplus(&self) -> Result<Vec<String>> {
        let began = Instant::now();
        loop {
            let now = Holdings::now()?;
            let surplus = self.surplus_of(&now);
            if surplus.is_empty() || began.elapsed() > SETTLE_PATIENCE {
                return Ok(surplus);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn surplus_of(&self, now: &Holdings) -> Vec<String> {
        let mut surplus = Vec::new();
        for (what, before, now) in [
            ("descriptor", &self.descriptors, &now.descriptors),
            ("mapping", &self.mappings, &now.mappings),
        ] {
            let mut before = before.clone();
            for item in now {
                match before.iter().position(|other| other == item) {
                    Some(index) => drop(before.swap_remove(index)),
                    None => surplus.push(format!("{what} {item}")),
                }
            }
        }
        if now.threads > self.threads {
            surplus.push(format!(
                "{} threads instead of {}",
                now.threads, self.threads
            ));
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
        let less = Holdings {
            descriptors: vec!["pipe".into(), "socket".into()],
            mappings: Vec::new(),
            threads: 1,
        };
        let more = Holdings {
            descriptors: vec!["pipe".into(), "socket".into(), "socket".into()],
            mappings: vec!["/memfd:peersum (deleted)".into()],
            threads: 2,
        };
        assert_eq!(
            less.surplus_of(&more),
            [
                "descriptor socket",
                "mapping /memfd:peersum (deleted)",
                "2 threads instead of 1"
            ]
        );
        assert!(more.surplus_of(&less).is_empty());
    }
}
