//! The JIT cache within one process.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use peersum::loader::{CacheError, LoadPolicy, LoadedImage, Place, Reason, load_from};
use peersum_artifact::MANIFEST_FILE;
use tempfile::{TempDir, tempdir};

use crate::support::{
    Module, SM_90, device, faults, flip_bit, jit_policy, kernels, load_push, policy, private_dir,
    pull, push, write_directory,
};

fn with_cache() -> (TempDir, LoadPolicy) {
    let cache = private_dir();
    let policy = jit_policy().cache_dir(cache.path());
    (cache, policy)
}

/// Where a compiled module was stored.
fn stored(image: &LoadedImage) -> Option<&Path> {
    match &image.report.compilation {
        Some(compilation) => compilation.stored.as_deref(),
        None => panic!("not compiled: {}", image.report),
    }
}

/// The file of a module that came from the cache.
fn cached(image: &LoadedImage) -> &Path {
    match (&image.report.place, &image.report.file) {
        (Place::JitCache(_), Some(file)) => file,
        _ => panic!("not from the cache: {}", image.report),
    }
}

#[test]
fn what_was_compiled_once_is_taken_from_the_cache_the_next_time() {
    let (cache, policy) = with_cache();
    let first = load_push(&policy).unwrap();
    let entry = stored(&first).unwrap();
    assert!(entry.starts_with(cache.path()));
    let second = load_push(&policy).unwrap();
    assert!(cached(&second).starts_with(entry));
    assert_eq!(first.bytes, second.bytes);
    assert_eq!(first.entry_points, second.entry_points);
}

#[test]
fn the_cache_is_made_closed_to_others() {
    let parent = tempdir().unwrap();
    let directory = parent.path().join("user/cache");
    let image = load_push(&jit_policy().cache_dir(&directory)).unwrap();
    assert!(stored(&image).is_some());
    let mode = fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_damaged_entry_is_reported_and_replaced() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(&str, Damage<'_>); 5] = [
        ("a flipped bit", &|cubin| flip_bit(cubin, seed)),
        ("a truncated file", &|cubin| {
            File::options()
                .write(true)
                .open(cubin)
                .unwrap()
                .set_len(100)
                .unwrap();
        }),
        ("a missing file", &|cubin| fs::remove_file(cubin).unwrap()),
        ("a missing manifest", &|cubin| {
            fs::remove_file(cubin.with_file_name(MANIFEST_FILE)).unwrap();
        }),
        ("an empty manifest", &|cubin| {
            fs::write(cubin.with_file_name(MANIFEST_FILE), "").unwrap();
        }),
    ];
    for (what, damage) in damages {
        let (_cache, policy) = with_cache();
        let first = load_push(&policy).unwrap();
        let cubin = cached(&load_push(&policy).unwrap()).to_owned();
        damage(&cubin);
        let second = load_push(&policy).unwrap();
        assert!(
            matches!(
                faults(&second.report.passed_over)[..],
                [Reason::Cache(
                    CacheError::EntryFile { .. } | CacheError::EntryManifest { .. }
                )]
            ),
            "{what}: {}",
            second.report
        );
        assert!(stored(&second).is_some(), "{what}: {}", second.report);
        assert_eq!(second.bytes, first.bytes, "{what}");
        cached(&load_push(&policy).unwrap());
    }
}

#[test]
fn an_entry_of_another_module_is_reported_and_replaced() {
    let (_cache, policy) = with_cache();
    let push_entry = stored(&load_push(&policy).unwrap()).unwrap().to_owned();
    let load_pull = || load_from(&policy, &kernels(), pull(), &device(SM_90)).unwrap();
    let pull_entry = stored(&load_pull()).unwrap().to_owned();
    fs::remove_dir_all(&push_entry).unwrap();
    fs::rename(&pull_entry, &push_entry).unwrap();

    let image = load_push(&policy).unwrap();
    assert!(
        matches!(
            faults(&image.report.passed_over)[..],
            [Reason::Cache(CacheError::EntrySwapped { .. })]
        ),
        "{}",
        image.report
    );
    assert_eq!(image.bytes[..], Module::compile(push(), SM_90).bytes);
    cached(&load_push(&policy).unwrap());
}

#[test]
fn changed_sources_are_compiled_anew() {
    let (_cache, policy) = with_cache();
    stored(&load_push(&policy).unwrap()).unwrap();
    let mut changed = kernels();
    let header = changed
        .sources
        .iter_mut()
        .find(|(path, _)| *path == "stand_in.cuh")
        .unwrap();
    let text = format!("{}// One line more.\n", header.1);
    header.1 = &text;
    let image = load_from(&policy, &changed, push(), &device(SM_90)).unwrap();
    assert!(stored(&image).is_some());
}

#[test]
fn a_cache_that_others_can_enter_is_skipped_and_reported() {
    let (cache, policy) = with_cache();
    stored(&load_push(&policy).unwrap()).unwrap();
    fs::set_permissions(cache.path(), Permissions::from_mode(0o755)).unwrap();
    let image = load_push(&policy).unwrap();
    assert_eq!(stored(&image), None);
    assert!(
        matches!(
            faults(&image.report.passed_over)[..],
            [Reason::Cache(CacheError::OpenToOthers { mode: 0o755, .. })]
        ),
        "{}",
        image.report
    );
}

#[test]
fn a_cache_of_another_user_is_skipped_and_reported() {
    let (cache, policy) = with_cache();
    let root = rustix::process::geteuid().is_root();
    // Only root can give a directory away; everybody else finds one of root's.
    let policy = if root {
        chown(cache.path(), Some(65534), None).unwrap();
        policy
    } else {
        policy.cache_dir("/usr")
    };
    let image = load_push(&policy).unwrap();
    assert_eq!(stored(&image), None);
    assert!(
        matches!(
            faults(&image.report.passed_over)[..],
            [Reason::Cache(CacheError::NotOurs { .. })]
        ),
        "{}",
        image.report
    );
}

#[test]
fn a_file_where_the_cache_should_be_is_skipped_and_reported() {
    let parent = tempdir().unwrap();
    let file = parent.path().join("cache");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let image = load_push(&jit_policy().cache_dir(path)).unwrap();
        assert_eq!(stored(&image), None);
        assert!(
            matches!(
                faults(&image.report.passed_over)[..],
                [Reason::Cache(CacheError::Directory { .. })]
            ),
            "{}",
            image.report
        );
    }
}

#[test]
fn a_lock_that_is_never_released_is_waited_for_only_so_long() {
    let (_cache, policy) = with_cache();
    let entry = stored(&load_push(&policy).unwrap()).unwrap().to_owned();
    fs::remove_dir_all(&entry).unwrap();
    let holder = File::open(lock_of(&entry)).unwrap();
    holder.lock().unwrap();

    let impatient = policy.clone().lock_patience(Duration::from_millis(50));
    let image = load_push(&impatient).unwrap();
    assert_eq!(stored(&image), None);
    assert!(
        matches!(
            faults(&image.report.passed_over)[..],
            [Reason::Cache(CacheError::LockTimeout { .. })]
        ),
        "{}",
        image.report
    );

    holder.unlock().unwrap();
    assert!(stored(&load_push(&policy).unwrap()).is_some());
}

#[test]
fn a_module_that_is_stored_while_its_lock_is_never_released_is_used() {
    let (cache, policy) = with_cache();
    let entry = stored(&load_push(&policy).unwrap()).unwrap().to_owned();
    let aside = cache.path().join("aside");
    fs::rename(&entry, &aside).unwrap();
    let holder = File::open(lock_of(&entry)).unwrap();
    holder.lock().unwrap();
    let patient = policy.lock_patience(Duration::from_secs(2));
    let image = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load_push(&patient).unwrap());
        std::thread::sleep(Duration::from_millis(500));
        fs::rename(&aside, &entry).unwrap();
        loading.join().unwrap()
    });
    assert!(cached(&image).starts_with(&entry));
}

#[test]
fn what_a_killed_process_left_half_written_is_cleared_away() {
    let (_cache, policy) = with_cache();
    let entry = stored(&load_push(&policy).unwrap()).unwrap().to_owned();
    fs::remove_dir_all(&entry).unwrap();
    let staged = entry.with_extension("tmp");
    fs::create_dir(&staged).unwrap();
    fs::write(staged.join(MANIFEST_FILE), "half").unwrap();
    assert!(stored(&load_push(&policy).unwrap()).is_some());
    assert!(!staged.exists());
    cached(&load_push(&policy).unwrap());
}

#[test]
fn what_killed_processes_left_of_other_modules_is_cleared_away_and_what_living_ones_write_stays() {
    let (cache, policy) = with_cache();
    let staged = |key: char| {
        let entry = cache.path().join(String::from(key).repeat(64));
        let staged = entry.with_extension("tmp");
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join(MANIFEST_FILE), "half").unwrap();
        (staged, File::create(lock_of(&entry)).unwrap())
    };
    let ((left, _), (written, lock)) = (staged('a'), staged('b'));
    lock.lock().unwrap();
    let other = cache.path().join("not-an-entry.tmp");
    fs::write(&other, "").unwrap();
    assert!(stored(&load_push(&policy).unwrap()).is_some());
    assert!(!left.exists() && written.exists() && other.exists());
}

#[test]
fn force_passes_compiled_modules_over_and_uses_the_cache() {
    let (_cache, jit) = with_cache();
    let directory = tempdir().unwrap();
    write_directory(directory.path(), &[Module::compile(push(), SM_90)]);
    assert!(matches!(
        load_push(&policy().cubin_dir(directory.path()))
            .unwrap()
            .report
            .place,
        Place::Directory(_)
    ));
    let force = jit
        .cubin_dir(directory.path())
        .jit(peersum::loader::JitMode::Force);
    assert!(stored(&load_push(&force).unwrap()).is_some());
    cached(&load_push(&force).unwrap());
}

#[test]
fn threads_that_miss_together_compile_once() {
    let (_cache, policy) = with_cache();
    let compiled = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| load_push(&policy).unwrap()))
            .collect();
        let images = threads.into_iter().map(|thread| thread.join().unwrap());
        images
            .filter(|image| image.report.compilation.is_some())
            .count()
    });
    assert_eq!(compiled, 1);
}

fn lock_of(entry: &Path) -> PathBuf {
    entry.with_extension("lock")
}

#[test]
fn of_too_many_entries_those_stored_first_are_removed() {
    let (cache, policy) = with_cache();
    let name = |number: usize| format!("{number:064}");
    for number in 0..520 {
        let entry = cache.path().join(name(number));
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join(MANIFEST_FILE), "{}").unwrap();
        let stored = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + number as u64);
        File::open(&entry).unwrap().set_modified(stored).unwrap();
    }
    fs::write(cache.path().join("not-an-entry"), "").unwrap();
    let image = load_push(&policy).unwrap();
    assert!(stored(&image).unwrap().is_dir());
    // 511 of the old ones and the new one.
    for number in 0..520 {
        assert_eq!(
            cache.path().join(name(number)).exists(),
            number >= 9,
            "{number}"
        );
    }
    assert!(cache.path().join("not-an-entry").exists());
    assert!(matches!(
        load_push(&policy).unwrap().report.place,
        Place::JitCache(_)
    ));
}
