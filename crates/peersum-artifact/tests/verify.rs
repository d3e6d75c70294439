//! A file passes only if it is whole, unchanged, and the very module its name says.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::path::Path;

use peersum_artifact::{
    Digest, ElfError, Family, FileError, FileProblem, MAX_MODULE_BYTES, ManifestModule,
    VerifyError, verify_bytes, verify_file,
};
use tempfile::TempDir;

mod support;
use support::{data, data_path, directory, entry, manifest, seed, target};

/// A directory with one module whose entry describes `bytes` truly.
fn module(family: Family, name: &str, bytes: &[u8]) -> (TempDir, ManifestModule) {
    let module = entry(family, target(name), bytes);
    (directory(&manifest(vec![module.clone()]), &[bytes]), module)
}

fn refusal(directory: &Path, module: &ManifestModule) -> FileProblem {
    let error = verify_file(directory, module).unwrap_err();
    assert!(
        error.to_string().contains(&module.file_name()),
        "the file is not named: {error}"
    );
    error.problem
}

#[test]
fn a_whole_module_passes_and_its_bytes_are_given() {
    for (family, target, file) in [
        (Family::Push, "sm_80", "push.sm_80.cubin"),
        (Family::Push, "sm_90", "push.sm_90.cubin"),
        (Family::Pull, "sm_90", "pull.sm_90.cubin"),
        (Family::Push, "sm_100", "push.sm_100f.cubin"),
        (Family::Push, "sm_90", "push.cuda12.sm_90.cubin"),
        (Family::Push, "compute_80", "push.compute_80.ptx"),
    ] {
        let bytes = data(file);
        let (directory, module) = module(family, target, &bytes);
        assert_eq!(
            verify_file(directory.path(), &module).unwrap(),
            bytes,
            "{file}"
        );
    }
}

#[test]
fn a_pull_cubin_under_a_push_name_is_refused_even_with_a_manifest_to_match() {
    let (directory, module) = module(Family::Push, "sm_90", &data("pull.sm_90.cubin"));
    match refusal(directory.path(), &module) {
        FileProblem::EntryPoints { found, expected } => {
            assert_eq!(found[0], "peersum_pull_one_shot_bf16_ws8");
            assert_eq!(expected[0], "peersum_push_one_shot_bf16_ws8");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_files_that_were_swapped_are_both_refused() {
    // Of one length, so that the digest alone tells them apart.
    let (older, newer) = (data("push.sm_90.cubin"), data("push.sm_90a.cubin"));
    let modules = vec![
        entry(Family::Push, target("sm_90"), &older),
        entry(Family::Push, target("sm_100"), &newer),
    ];
    let directory = directory(&manifest(modules.clone()), &[&newer, &older]);
    for module in &modules {
        assert!(matches!(
            refusal(directory.path(), module),
            FileProblem::Digest { .. }
        ));
    }
}

#[test]
fn a_cubin_of_another_architecture_is_refused_even_with_a_manifest_to_match() {
    for (name, file) in [
        ("sm_90", "push.sm_80.cubin"),
        ("sm_80", "push.sm_90.cubin"),
        ("sm_90", "push.sm_100f.cubin"),
        ("compute_90", "push.compute_80.ptx"),
    ] {
        let (directory, module) = module(Family::Push, name, &data(file));
        assert!(
            matches!(
                refusal(directory.path(), &module),
                FileProblem::Architecture { .. }
            ),
            "{file} as {name}"
        );
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let whole = data("push.sm_90.cubin");
    let module = entry(Family::Push, target("sm_90"), &whole);
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..1000 {
        let mut bytes = whole.clone();
        let at = random.usize(0..bytes.len());
        bytes[at] ^= 1 << random.u8(0..8);
        assert!(
            matches!(
                verify_bytes(&bytes, &module),
                Err(VerifyError {
                    problem: FileProblem::Digest { .. },
                    ..
                })
            ),
            "byte {at}"
        );
    }
}

#[test]
fn a_truncated_or_longer_file_is_found_by_its_length() {
    let whole = data("push.sm_90.cubin");
    let (directory, module) = module(Family::Push, "sm_90", &whole);
    let path = directory.path().join(module.file_name());
    for bytes in [
        &whole[..whole.len() - 1],
        &whole[..100],
        b"",
        &[whole.as_slice(), b"\0"].concat(),
    ] {
        std::fs::write(&path, bytes).unwrap();
        match refusal(directory.path(), &module) {
            FileProblem::Length { found, expected } => {
                assert_eq!((found, expected), (bytes.len() as u64, whole.len() as u64));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_truncated_cubin_is_refused_even_with_a_manifest_to_match() {
    let whole = data("push.sm_90.cubin");
    let (directory, module) = module(Family::Push, "sm_90", &whole[..whole.len() - 1]);
    let error = refusal(directory.path(), &module);
    assert!(
        matches!(error, FileProblem::Elf(ElfError::Truncated { .. })),
        "{error:?}"
    );
}

#[test]
fn a_cubin_for_one_architecture_alone_is_refused_even_with_a_manifest_to_match() {
    for file in ["push.sm_90a.cubin", "push.cuda12.sm_90a.cubin"] {
        let (directory, module) = module(Family::Push, "sm_90", &data(file));
        let error = refusal(directory.path(), &module);
        assert!(
            matches!(error, FileProblem::Elf(ElfError::Specific { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn a_ptx_version_other_than_the_manifests_is_refused() {
    let ptx = data("push.compute_80.ptx");
    let newer = String::from_utf8(ptx)
        .unwrap()
        .replace(".version 9.0", ".version 9.1");
    let (directory, module) = module(Family::Push, "compute_80", newer.as_bytes());
    assert!(matches!(
        refusal(directory.path(), &module),
        FileProblem::PtxVersion { .. }
    ));
}

#[test]
fn a_cubin_under_a_ptx_name_and_the_reverse_are_refused() {
    let (directory, cubin) = module(Family::Push, "compute_90", &data("push.sm_90.cubin"));
    assert!(matches!(
        refusal(directory.path(), &cubin),
        FileProblem::Ptx(_)
    ));
    let (directory, ptx) = module(Family::Push, "sm_80", &data("push.compute_80.ptx"));
    assert!(matches!(
        refusal(directory.path(), &ptx),
        FileProblem::Elf(ElfError::NotElf)
    ));
}

#[test]
fn what_is_no_regular_file_of_the_directory_is_refused_without_being_read() {
    let bytes = data("push.sm_90.cubin");
    let (directory, module) = module(Family::Push, "sm_90", &bytes);
    let path = directory.path().join(module.file_name());

    std::fs::remove_file(&path).unwrap();
    let error = refusal(directory.path(), &module);
    assert!(matches!(
        &error,
        FileProblem::Read(FileError::Io(io))
            if io.kind() == std::io::ErrorKind::NotFound
    ));

    // The link's target is the right file: it is the link that is refused.
    std::os::unix::fs::symlink(data_path("push.sm_90.cubin"), &path).unwrap();
    assert!(matches!(
        refusal(directory.path(), &module),
        FileProblem::Read(FileError::SymbolicLink)
    ));

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(
        refusal(directory.path(), &module),
        FileProblem::Read(FileError::NotRegular)
    ));

    std::fs::remove_dir(&path).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    assert!(matches!(
        refusal(directory.path(), &module),
        FileProblem::Read(FileError::NotRegular)
    ));

    std::fs::remove_file(&path).unwrap();
    std::fs::File::create(&path)
        .unwrap()
        .set_len(MAX_MODULE_BYTES + 1)
        .unwrap();
    assert!(matches!(
        refusal(directory.path(), &module),
        FileProblem::Read(FileError::TooLarge { .. })
    ));
}

#[test]
fn the_messages_say_both_values() {
    let bytes = data("push.sm_90.cubin");
    let mut module = entry(Family::Push, target("sm_90"), &bytes);
    module.sha256 = Digest::of(b"another");
    let message = verify_bytes(&bytes, &module).unwrap_err().to_string();
    assert!(
        message.contains(&Digest::of(&bytes).to_string()),
        "{message}"
    );
    assert!(
        message.contains(&Digest::of(b"another").to_string()),
        "{message}"
    );
}
