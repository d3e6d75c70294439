//! The loader in several processes, and with an environment of its own: each test runs its own
//! program again as the child.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use peersum::loader::{
    CacheError, KernelSet, LoadPolicy, LoadedImage, Place, Reason, load_all_from, load_from,
};
use peersum_artifact::ModuleKey;
use tempfile::tempdir;

use crate::support::{
    Module, SM_90, device, faults, jit_policy, kernels, load_push, private_dir, pull, push,
    write_directory,
};
use crate::toolchain;

/// Set in a child, to what it shall do.
const ROLE: &str = "PEERSUM_TEST_ROLE";
/// The cache that a child is told to use.
const CACHE: &str = "PEERSUM_TEST_CACHE";

fn is_child() -> bool {
    env::var_os(ROLE).is_some()
}

/// This very test in a process of its own.
fn child(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            &format!("processes::{test}"),
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, "child")
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// What a child tells its parent: one line a module.
fn tell(key: ModuleKey, place: &Place) {
    let place = match place {
        Place::Nvrtc => "nvrtc",
        Place::JitCache(_) => "cache",
        Place::EnvDirectory(_) => "environment",
        _ => "other",
    };
    println!("\nTOLD {key} {place}");
}

/// Waits for a child that must succeed; what it told, as pairs of module and place.
fn told(mut child: Child) -> Vec<(String, String)> {
    let mut output = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{output}");
    output
        .lines()
        .filter_map(|line| line.strip_prefix("TOLD "))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(module, origin)| (module.to_owned(), origin.to_owned()))
        .collect()
}

fn cache_of_parent() -> LoadPolicy {
    jit_policy().cache_dir(env::var_os(CACHE).unwrap())
}

#[test]
fn eight_cold_processes_compile_each_module_exactly_once() {
    // The real kernels if the stand-ins would compile too fast; all of the matrix in the stand-ins.
    let real = [push()];
    if is_child() {
        let policy = cache_of_parent();
        for (kernels, keys) in [
            (KernelSet::embedded(), real.to_vec()),
            (kernels(), ModuleKey::all().collect()),
        ] {
            let policy = policy.clone().jit(peersum::loader::JitMode::Force);
            // As many at a time as a communicator loads.
            for keys in keys.chunks(10) {
                let images = load_all_from(&policy, &kernels, keys, &device(SM_90)).unwrap();
                for LoadedImage { report, .. } in images {
                    assert!(faults(&report.passed_over).is_empty(), "{report}");
                    tell(report.module, &report.place);
                }
            }
        }
        return;
    }
    let cache = private_dir();
    let children: Vec<Child> = (0..8)
        .map(|_| {
            child("eight_cold_processes_compile_each_module_exactly_once")
                .env(CACHE, cache.path())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut compiled: BTreeMap<String, usize> = BTreeMap::new();
    let mut loaded = 0;
    for child in children {
        for (module, origin) in told(child) {
            loaded += 1;
            *compiled.entry(module).or_default() += usize::from(origin == "nvrtc");
        }
    }
    assert_eq!(loaded, 8 * (real.len() + ModuleKey::all().count()));
    for key in ModuleKey::all() {
        let times = 1 + usize::from(real.contains(&key));
        assert_eq!(compiled[&key.name()], times, "{key}");
    }
}

#[test]
fn a_module_that_another_process_compiles_holds_up_no_other() {
    let cache = private_dir();
    let policy = jit_policy().cache_dir(cache.path());
    let files = |extension: Option<&str>| -> Vec<_> {
        let files = std::fs::read_dir(cache.path()).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let has_it = |path: &PathBuf| path.extension() == extension.map(OsStr::new);
        files.filter(has_it).collect()
    };
    // Its lock is held by a process that never ends its compilation.
    load_from(&policy, &kernels(), push(), &device(SM_90)).unwrap();
    let lock = files(Some("lock")).remove(0);
    std::fs::remove_dir_all(lock.with_extension("")).unwrap();
    let held = std::fs::File::open(&lock).unwrap();
    held.lock().unwrap();

    std::thread::scope(|scope| {
        let (kernels, keys) = (kernels(), [push(), pull()]);
        let policy = &policy;
        let both = scope.spawn(move || load_all_from(policy, &kernels, &keys, &device(SM_90)));
        // The other module is stored meanwhile.
        while files(None).is_empty() {
            assert!(!both.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!both.is_finished());
        drop(held);
        let images = both.join().unwrap().unwrap();
        let compiled = images.iter().map(|image| image.report.place.clone());
        assert_eq!(compiled.collect::<Vec<_>>(), [Place::Nvrtc, Place::Nvrtc]);
    });
}

#[test]
fn a_cache_killed_while_it_is_written_serves_whole_modules_ever_after() {
    let keys: Vec<ModuleKey> = ModuleKey::all().collect();
    if is_child() {
        let policy = cache_of_parent();
        // Until it is killed.
        loop {
            let key = keys[fastrand::usize(..keys.len())];
            let image = load_from(&policy, &kernels(), key, &device(SM_90)).unwrap();
            // Storing is what shall be interrupted, so every entry is stored again and again.
            let entry = match (image.report.file, image.report.compilation) {
                (Some(file), None) => file.parent().unwrap().to_owned(),
                (None, Some(compilation)) => compilation.stored.unwrap(),
                _ => panic!("from {}", image.report.place),
            };
            let _ = std::fs::remove_dir_all(entry);
        }
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let cache = private_dir();
    let policy = jit_policy().cache_dir(cache.path());
    for _ in 0..20 {
        let mut victim =
            child("a_cache_killed_while_it_is_written_serves_whole_modules_ever_after")
                .env(CACHE, cache.path())
                .spawn()
                .unwrap();
        std::thread::sleep(Duration::from_millis(random.u64(20..400)));
        victim.kill().unwrap();
        victim.wait().unwrap();
        for _ in 0..3 {
            let key = keys[random.usize(..keys.len())];
            let image = load_from(&policy, &kernels(), key, &device(SM_90)).unwrap();
            // A removal cut short may have left an entry that is not whole: then that is reported,
            // and the entry is made again. A lock that its dead holder kept would show here as a
            // timeout.
            for reason in faults(&image.report.passed_over) {
                assert!(
                    matches!(
                        reason,
                        Reason::Cache(
                            CacheError::EntryManifest { .. } | CacheError::EntryFile { .. }
                        )
                    ),
                    "{}",
                    image.report
                );
            }
            let again = load_from(&policy, &kernels(), key, &device(SM_90)).unwrap();
            assert!(
                matches!(again.report.place, Place::JitCache(_)),
                "{}",
                again.report
            );
            assert_eq!(again.bytes, image.bytes);
        }
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_reported_and_never_fatal() {
    if is_child() {
        // Root may write anywhere, so the child gives that right up.
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut sets = capabilities(None).unwrap();
        sets.effective
            .remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
        let image = load_push(&cache_of_parent()).unwrap();
        assert!(
            matches!(
                faults(&image.report.passed_over)[..],
                [Reason::Cache(CacheError::Lock { .. })]
            ),
            "{}",
            image.report
        );
        assert!(
            matches!(&image.report.compilation, Some(compilation) if compilation.stored.is_none()),
            "{}",
            image.report
        );
        tell(push(), &image.report.place);
        return;
    }
    let cache = private_dir();
    set_mode(cache.path(), 0o500);
    let run = child("a_cache_that_cannot_be_written_is_reported_and_never_fatal")
        .env(CACHE, cache.path())
        .spawn();
    let told = told(run.unwrap());
    set_mode(cache.path(), 0o700);
    assert_eq!(told, [(push().name(), "nvrtc".to_owned())]);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn the_environment_names_the_directory_the_cache_and_whether_to_compile() {
    const TEST: &str = "the_environment_names_the_directory_the_cache_and_whether_to_compile";
    if is_child() {
        let policy = LoadPolicy::from_env()
            .unwrap()
            .nvrtc_library(toolchain::nvrtc());
        match load_push(&policy) {
            Ok(image) => tell(push(), &image.report.place),
            Err(error) => println!("\nTOLD {} {error}", push()),
        }
        return;
    }
    let directory = tempdir().unwrap();
    write_directory(directory.path(), &[Module::compile(push(), SM_90)]);
    let cache = private_dir();
    let run = |variables: &[(&str, &Path)]| {
        let mut command = child(TEST);
        for name in ["PEERSUM_CUBIN_DIR", "PEERSUM_CACHE_DIR", "PEERSUM_JIT"] {
            command.env_remove(name);
        }
        let told = told(command.envs(variables.iter().copied()).spawn().unwrap());
        let [(_, origin)] = &told[..] else {
            panic!("{told:?}")
        };
        origin.clone()
    };
    let cubin_dir = ("PEERSUM_CUBIN_DIR", directory.path());
    let cache_dir = ("PEERSUM_CACHE_DIR", cache.path());
    let jit = |mode: &'static str| ("PEERSUM_JIT", Path::new(mode));

    assert_eq!(run(&[cubin_dir, jit("deny")]), "environment");
    assert_eq!(run(&[cache_dir]), "nvrtc");
    assert_eq!(run(&[cache_dir]), "cache");
    assert_eq!(run(&[cubin_dir, cache_dir, jit("force")]), "cache");
    let denied = run(&[cache_dir, jit("deny")]);
    assert!(denied.contains("JIT is set to deny"), "{denied}");
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
