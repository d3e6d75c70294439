//! Modules compiled ahead of time: directories, the pack, PTX.

use std::fs;

use peersum::loader::{JitMode, KernelSet, Place, Reason, load, load_from};
use peersum_artifact::pack::pack_directory;
use peersum_artifact::{
    CudaVersion, Digest, FileProblem, MANIFEST_FILE, ManifestError, SchemaError, Target,
    VerifyError, include_closure,
};
use tempfile::tempdir;

use crate::support::{
    Module, SM_80, SM_86, SM_90, device, faults, flip_bit, jit_policy, kernels, load_push,
    not_found, policy, private_dir, pull, push, write_directory,
};

/// Writes `damaged` into a directory, offers that directory with a whole pack behind it, and
/// returns the one reason for which the directory was passed over. The module must come from the
/// pack.
fn reason_for(damaged: &Module, damage: impl FnOnce(&std::path::Path)) -> Reason {
    let whole = tempdir().unwrap();
    write_directory(whole.path(), &[Module::compile(push(), SM_90)]);
    let pack = pack_directory(whole.path()).unwrap();

    let directory = tempdir().unwrap();
    write_directory(directory.path(), std::slice::from_ref(damaged));
    damage(directory.path());
    let kernels = KernelSet {
        pack: &pack,
        ..kernels()
    };
    let policy = policy().cubin_dir(directory.path());
    let image = load_from(&policy, &kernels, push(), &device(SM_90)).unwrap();
    assert_eq!(image.report.place, Place::Pack);
    let mut passed_over = image.report.passed_over;
    assert_eq!(passed_over.len(), 1, "{passed_over:?}");
    let passed = passed_over.remove(0);
    assert_eq!(
        passed.place,
        Place::Directory(directory.path().to_path_buf())
    );
    passed.reason
}

#[test]
fn a_module_of_the_named_directory_is_loaded_with_its_launch_facts() {
    let directory = tempdir().unwrap();
    let module = Module::compile(push(), SM_90);
    write_directory(
        directory.path(),
        &[module.clone(), Module::compile(pull(), SM_90)],
    );
    let image = load_push(&policy().cubin_dir(directory.path())).unwrap();
    assert_eq!(image.bytes[..], module.bytes);
    assert_eq!(image.target, Target::Cubin(SM_90));
    assert_eq!(
        image.report.place,
        Place::Directory(directory.path().to_path_buf())
    );
    assert_eq!(image.report.file, Some(module.path(directory.path())));
    let names: Vec<&str> = image
        .entry_points
        .iter()
        .map(|entry_point| entry_point.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "peersum_push_one_shot_bf16_ws8",
            "peersum_push_reduce_scatter_bf16_ws8",
            "peersum_push_two_shot_bf16_ws8"
        ]
    );
    assert!(
        image
            .entry_points
            .iter()
            .all(|entry_point| entry_point.pdl && entry_point.max_threads == 384)
    );
}

#[test]
fn a_pull_cubin_under_a_push_name_is_named_and_passed_over() {
    let swapped = Module::compile(push(), SM_90).with_bytes(Module::compile(pull(), SM_90).bytes);
    let reason = reason_for(&swapped, |_| {});
    let Reason::File(VerifyError { problem, .. }) = reason else {
        panic!("{reason}");
    };
    assert!(
        matches!(&problem, FileProblem::EntryPoints { found, .. }
            if found[0] == "peersum_pull_one_shot_bf16_ws8"),
        "{problem}"
    );
}

#[test]
fn a_cubin_of_another_architecture_under_this_ones_name_is_named_and_passed_over() {
    let other = Module::compile(push(), SM_90).with_bytes(Module::compile(push(), SM_80).bytes);
    let reason = reason_for(&other, |_| {});
    let Reason::File(VerifyError { problem, .. }) = reason else {
        panic!("{reason}");
    };
    assert!(
        matches!(problem, FileProblem::Architecture { found, expected }
            if (found, expected) == (SM_80, SM_90)),
        "{problem}"
    );
}

#[test]
fn a_cubin_of_other_sources_is_named_and_passed_over() {
    let mut stale = Module::compile(push(), SM_90);
    stale.entry.closure_digest = Digest::of(b"what the kernels were before");
    let reason = reason_for(&stale, |_| {});
    assert!(
        matches!(&reason, Reason::StaleSources { found, .. }
            if *found == stale.entry.closure_digest),
        "{reason}"
    );
    assert!(
        reason.to_string().contains("cargo xtask precompile"),
        "{reason}"
    );
}

#[test]
fn a_build_that_only_the_harness_measures_is_loaded_by_nobody_who_does_not_ask_for_it() {
    use peersum_kernels::HarnessBuild;
    for build in HarnessBuild::ALL {
        let sources = build.sources();
        let sources: Vec<(&str, &str)> = sources
            .iter()
            .map(|(path, text)| (*path, &**text))
            .collect();
        let mut module = Module::compile(push(), SM_90);
        let closure = include_closure(push().source_root(), &sources).unwrap();
        module.entry.closure_digest = closure.digest;
        let directory = tempdir().unwrap();
        write_directory(directory.path(), &[module]);

        let policy = policy().cubin_dir(directory.path());
        let (passed_over, _) = not_found(load(&policy, push(), &device(SM_90)));
        assert!(
            matches!(faults(&passed_over)[..], [Reason::StaleSources { .. }]),
            "{passed_over:?}"
        );
        for asked in HarnessBuild::ALL {
            let loaded = load(&policy.clone().harness_build(asked), push(), &device(SM_90));
            assert_eq!(loaded.is_ok(), asked == build, "{asked:?} {build:?}");
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let module = Module::compile(push(), SM_90);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    for seed in seed..seed + 8 {
        let reason = reason_for(&module, |directory| flip_bit(&module.path(directory), seed));
        assert!(
            matches!(
                reason,
                Reason::File(VerifyError {
                    problem: FileProblem::Digest { .. },
                    ..
                })
            ),
            "{reason}"
        );
    }
}

#[test]
fn a_truncated_cubin_is_named_and_passed_over() {
    let module = Module::compile(push(), SM_90);
    let half = module.bytes[..module.bytes.len() / 2].to_vec();
    let reason = reason_for(&module, |directory| {
        fs::write(module.path(directory), &half).unwrap();
    });
    assert!(
        matches!(
            reason,
            Reason::File(VerifyError {
                problem: FileProblem::Length { .. },
                ..
            })
        ),
        "{reason}"
    );

    // A manifest that agrees to the truncation does not help: the ELF itself must be whole.
    let reason = reason_for(&module.with_bytes(half), |_| {});
    assert!(
        matches!(
            reason,
            Reason::File(VerifyError {
                problem: FileProblem::Elf(_),
                ..
            })
        ),
        "{reason}"
    );
}

#[test]
fn a_manifest_of_a_newer_schema_is_named_and_passed_over() {
    let reason = reason_for(&Module::compile(push(), SM_90), |directory| {
        let path = directory.join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).unwrap();
        let newer = text.replace("\"schema\": 2,", "\"schema\": 3,");
        assert_ne!(newer, text);
        fs::write(path, newer).unwrap();
    });
    assert!(
        matches!(
            reason,
            Reason::Manifest(ManifestError::Schema {
                error: SchemaError::NewerSchema { found: 3 },
                ..
            })
        ),
        "{reason}"
    );
}

#[test]
fn a_directory_without_a_manifest_is_named_and_passed_over() {
    let reason = reason_for(&Module::compile(push(), SM_90), |directory| {
        fs::remove_file(directory.join(MANIFEST_FILE)).unwrap();
    });
    assert!(
        matches!(reason, Reason::Manifest(ManifestError::NotFound { .. })),
        "{reason}"
    );
}

#[test]
fn a_cubin_of_a_newer_toolkit_than_the_driver_is_passed_over() {
    let directory = tempdir().unwrap();
    write_directory(directory.path(), &[Module::compile(push(), SM_90)]);
    let policy = policy().cubin_dir(directory.path());
    let mut device = device(SM_90);
    let driver = |major, minor| Some(CudaVersion { major, minor });

    device.driver_version = driver(13, 0);
    load_from(&policy, &kernels(), push(), &device).unwrap();

    device.driver_version = driver(12, 8);
    let (passed_over, text) = not_found(load_from(&policy, &kernels(), push(), &device));
    assert!(
        matches!(faults(&passed_over)[..], [Reason::DriverTooOld { .. }]),
        "{text}"
    );
    assert!(text.contains("branch 580 or newer"), "{text}");
}

#[test]
fn the_nearest_architecture_serves_and_a_lower_one_when_it_is_damaged() {
    let directory = tempdir().unwrap();
    let nearest = Module::compile(push(), SM_86);
    write_directory(
        directory.path(),
        &[
            Module::compile(push(), SM_80),
            nearest.clone(),
            Module::compile(push(), SM_90),
        ],
    );
    let policy = policy().cubin_dir(directory.path());
    let load = || {
        load_from(
            &policy,
            &kernels(),
            push(),
            &device(peersum_artifact::Arch::new(8, 9)),
        )
    };
    assert_eq!(load().unwrap().target, Target::Cubin(SM_86));

    flip_bit(&nearest.path(directory.path()), 1);
    let image = load().unwrap();
    assert_eq!(image.target, Target::Cubin(SM_80));
    assert!(
        matches!(
            faults(&image.report.passed_over)[..],
            [Reason::File(VerifyError {
                problem: FileProblem::Digest { .. },
                ..
            })]
        ),
        "{}",
        image.report
    );
}

#[test]
fn a_device_that_no_cubin_serves_is_told_what_there_is() {
    let directory = tempdir().unwrap();
    write_directory(directory.path(), &[Module::compile(push(), SM_80)]);
    let (_, text) = not_found(load_push(&policy().cubin_dir(directory.path())));
    assert!(
        text.contains("has no cubin for peersum_push_bf16_ws8 on sm_90 (it has sm_80)"),
        "{text}"
    );
}

#[test]
fn deny_turns_a_miss_into_an_error_that_lists_every_place_and_its_reason() {
    let directory = tempdir().unwrap();
    // PTX would be compiled by the driver, so deny does not take it.
    write_directory(directory.path(), &[Module::ptx(push())]);
    let cache = private_dir();
    let policy = jit_policy()
        .jit(JitMode::Deny)
        .cubin_dir(directory.path())
        .cache_dir(cache.path());
    let (passed_over, text) = not_found(load_push(&policy));
    let places: Vec<Place> = passed_over
        .iter()
        .map(|passed| passed.place.clone())
        .collect();
    assert_eq!(
        places,
        [
            Place::Directory(directory.path().to_path_buf()),
            Place::Pack,
            Place::JitCache(Some(cache.path().to_path_buf())),
            Place::Nvrtc,
            Place::Ptx(None),
        ]
    );
    assert!(
        passed_over
            .iter()
            .all(|passed| text.contains(&passed.to_string())),
        "{text}"
    );
    assert!(text.contains("JIT is set to deny"), "{text}");
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn ptx_is_the_last_step_and_only_for_a_driver_that_knows_its_version() {
    let directory = tempdir().unwrap();
    write_directory(directory.path(), &[Module::ptx(push())]);
    let pack = pack_directory(directory.path()).unwrap();
    let packed = KernelSet {
        pack: &pack,
        ..kernels()
    };
    let policy = jit_policy()
        .jit(JitMode::Allow)
        .nvrtc_library("/nowhere/libnvrtc.so.13");
    let mut device = device(SM_90);
    device.driver_version = Some(CudaVersion {
        major: 13,
        minor: 0,
    });

    let from_pack = load_from(&policy, &packed, push(), &device).unwrap();
    assert_eq!(from_pack.report.place, Place::Ptx(None));
    assert!(matches!(from_pack.target, Target::Ptx(_)));
    // cuModuleLoadData takes PTX as a C string.
    assert_eq!(from_pack.bytes.last(), Some(&0));
    assert!(
        from_pack
            .entry_points
            .iter()
            .all(|entry_point| !entry_point.pdl)
    );

    let in_code = policy.clone().cubin_dir(directory.path());
    let from_directory = load_from(&in_code, &packed, push(), &device).unwrap();
    assert_eq!(
        from_directory.report.place,
        Place::Ptx(Some(directory.path().to_path_buf()))
    );
    let file = Module::ptx(push()).path(directory.path());
    assert_eq!(from_directory.report.file, Some(file));

    device.driver_version = Some(CudaVersion {
        major: 12,
        minor: 9,
    });
    let (passed_over, text) = not_found(load_from(&policy, &packed, push(), &device));
    assert!(
        faults(&passed_over)
            .iter()
            .any(|reason| matches!(reason, Reason::PtxTooNew { .. })),
        "{text}"
    );
}

#[test]
fn a_damaged_pack_is_named_and_never_panics() {
    let directory = tempdir().unwrap();
    write_directory(
        directory.path(),
        &[
            Module::compile(push(), SM_90),
            Module::compile(pull(), SM_90),
            Module::ptx(push()),
        ],
    );
    let whole = pack_directory(directory.path()).unwrap();
    let load = |pack: &[u8]| {
        let kernels = KernelSet { pack, ..kernels() };
        load_from(&policy(), &kernels, push(), &device(SM_90))
    };
    assert_eq!(
        load(&whole).unwrap().bytes[..],
        Module::compile(push(), SM_90).bytes
    );

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let length = random.usize(1..whole.len());
        let (passed_over, text) = not_found(load(&whole[..length]));
        assert!(
            matches!(faults(&passed_over)[..], [Reason::Pack(_)]),
            "{text}"
        );
    }
    for _ in 0..200 {
        let mut damaged = whole.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..damaged.len());
            damaged[at] = random.u8(..);
        }
        // Damage that the module's own entry and bytes do not see is none of its business.
        if let Ok(image) = load(&damaged) {
            assert_eq!(image.bytes[..], Module::compile(push(), SM_90).bytes);
        }
    }
}

#[test]
fn a_manifest_that_was_rewritten_counts_at_the_next_load() {
    let directory = tempdir().unwrap();
    let module = Module::compile(push(), SM_90);
    let policy = policy().cubin_dir(directory.path());
    write_directory(directory.path(), std::slice::from_ref(&module));
    load_push(&policy).unwrap();

    // Of the same length, and written within one tick of the file system's clock: only the text
    // differs.
    let mut other = module.clone();
    other.entry.sha256 = Digest::of(b"something else");
    write_directory(directory.path(), &[other]);
    let (passed_over, text) = not_found(load_push(&policy));
    assert!(
        matches!(
            faults(&passed_over)[..],
            [
                Reason::File(VerifyError {
                    problem: FileProblem::Digest { .. },
                    ..
                }),
                ..
            ]
        ),
        "{text}"
    );

    write_directory(directory.path(), &[module]);
    load_push(&policy).unwrap();
}
