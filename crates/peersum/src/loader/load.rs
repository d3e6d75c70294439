//! The search for a module, from the first place to the last.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::thread;

use peersum_artifact::ModuleKey;
use tracing::dispatcher;

use super::image::{DeviceTarget, KernelSet, LoadedImage};
use super::policy::LoadPolicy;
use super::report::LoadError;
use super::search::{ImageKind, Search};

/// Finds the module `key` of this build's kernels for `device`.
///
/// A missing library is no panic. Compiles at most once per machine, if a JIT cache can be used:
/// processes that need the same module at the same time wait for the first.
///
/// # Errors
///
/// [`LoadError::NotFound`] if no place has the module and none can make it; it lists every place
/// and the reason. [`LoadError::ArchTooOld`] for a device that no kernel can be compiled for.
pub fn load(
    policy: &LoadPolicy,
    key: ModuleKey,
    device: &DeviceTarget,
) -> Result<LoadedImage, LoadError> {
    let mut images = load_all(policy, &[key], device)?;
    Ok(images.remove(0))
}

/// As [`load`], for several modules, in their order. Those that must be compiled are compiled at
/// once, as many as there are cores but at least two: if eight processes do so, one of them
/// compiles each module, and another one the next.
///
/// # Errors
///
/// As [`load`], for the first module that is not found.
pub fn load_all(
    policy: &LoadPolicy,
    keys: &[ModuleKey],
    device: &DeviceTarget,
) -> Result<Vec<LoadedImage>, LoadError> {
    let Some(build) = policy.harness_build else {
        return load_all_from(policy, &KernelSet::embedded(), keys, device);
    };
    let sources = build.sources();
    let kernels = KernelSet {
        sources: sources
            .iter()
            .map(|(path, text)| (*path, &**text))
            .collect(),
        pack: &[],
    };
    load_all_from(policy, &kernels, keys, device)
}

/// As [`load`], for a given set of kernels.
///
/// # Errors
///
/// As [`load`].
pub fn load_from(
    policy: &LoadPolicy,
    kernels: &KernelSet<'_>,
    key: ModuleKey,
    device: &DeviceTarget,
) -> Result<LoadedImage, LoadError> {
    let mut images = load_all_from(policy, kernels, &[key], device)?;
    Ok(images.remove(0))
}

/// As [`load_all`], for a given set of kernels.
///
/// # Errors
///
/// As [`load_all`].
pub fn load_all_from(
    policy: &LoadPolicy,
    kernels: &KernelSet<'_>,
    keys: &[ModuleKey],
    device: &DeviceTarget,
) -> Result<Vec<LoadedImage>, LoadError> {
    if !device.arch.runs_kernels() {
        return Err(LoadError::ArchTooOld {
            device: device.arch,
        });
    }
    let searches = keys.iter().map(|&key| {
        let mut search = Search::begin(policy, kernels, key, device)?;
        search.timed(|search| search.compiled_ahead(ImageKind::Cubin));
        Ok(search)
    });
    let mut searches = searches.collect::<Result<Vec<_>, LoadError>>()?;
    let missing = searches.iter_mut().filter(|search| search.found.is_none());
    let missing: Vec<_> = missing.collect();
    let at_once = u32::try_from(missing.len()).unwrap_or(u32::MAX);
    each_on_a_thread(missing, |search| {
        search.at_once = at_once;
        search.timed(|search| {
            let compiled = search.compiled_here();
            compiled.or_else(|| search.compiled_ahead(ImageKind::Ptx))
        });
    });
    searches.into_iter().map(Search::end).collect()
}

/// The most threads that compile at once. Two also on one core: one of them may wait for another
/// process meanwhile.
fn most_threads() -> usize {
    thread::available_parallelism()
        .map_or(2, NonZeroUsize::get)
        .max(2)
}

/// Calls `work` with every item, on a thread for each, but at most [`most_threads`]. If the system
/// gives fewer threads, those that there are do the rest. They log where the caller does.
fn each_on_a_thread<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    let helpers = items.len().min(most_threads()).saturating_sub(1);
    let log = dispatcher::get_default(Clone::clone);
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some(item) = next() {
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            let builder = thread::Builder::new().name("peersum-nvrtc".to_owned());
            let helper = || dispatcher::with_default(&log, run);
            if let Err(error) = builder.spawn_scoped(scope, helper) {
                tracing::debug!(%error, "cannot start a thread that compiles");
            }
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    #[test]
    fn at_least_two_threads_work_at_once_and_no_more_than_there_are_cores() {
        let both = Barrier::new(2);
        each_on_a_thread(vec![(), ()], |()| {
            both.wait();
        });
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        each_on_a_thread(vec![(); 4 * most_threads()], |()| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(5));
            now.fetch_sub(1, Ordering::SeqCst);
        });
        assert!((1..=most_threads()).contains(&most.into_inner()));
    }

    #[test]
    fn what_is_said_on_every_thread_reaches_the_subscriber_of_the_caller() {
        let (log, both) = (tempfile::NamedTempFile::new().unwrap(), Barrier::new(2));
        let file = Arc::new(log.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(file);
        tracing::subscriber::with_default(subscriber.finish(), || {
            each_on_a_thread(vec![(), ()], |()| {
                both.wait();
                tracing::info!("at work");
            });
        });
        let log = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!(log.matches("at work").count(), 2, "{log}");
    }
}
