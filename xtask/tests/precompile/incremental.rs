use crate::checkout::{Checkout, module, target};
use std::fs;
use std::os::unix::fs::MetadataExt as _;

#[test]
fn nothing_changed_starts_no_compiler_and_touches_nothing() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    assert_eq!(checkout.compiled(), 4);
    let before = fs::metadata(checkout.out()).unwrap();
    let answer = crate::checkout::Answer::of(&mut checkout.precompile(&[])).succeeded();
    assert!(
        answer.stderr.contains("0 built, 4 reused, 0 failed"),
        "{answer:#?}"
    );
    assert_eq!(checkout.compiled(), 0);
    let after = fs::metadata(checkout.out()).unwrap();
    assert_eq!(
        (before.ino(), before.mtime_nsec()),
        (after.ino(), after.mtime_nsec())
    );
}

#[test]
fn an_edited_source_rebuilds_only_the_modules_that_include_it() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    let before = checkout.manifest();
    checkout.compiled();

    checkout.edit("scale.cuh", "2.0f", "3.0f");
    assert!(checkout.precompile(&[]).status().unwrap().success());
    assert_eq!(checkout.compiled(), 2, "pull includes it, push does not");
    let after = checkout.manifest();
    for (name, same) in [
        ("peersum_push_bf16_ws2", true),
        ("peersum_pull_bf16_ws2", false),
    ] {
        let of = |manifest: &peersum_artifact::Manifest| {
            manifest
                .find(module(name), target("sm_90"))
                .unwrap()
                .clone()
        };
        assert_eq!(
            of(&before).cache_key == of(&after).cache_key,
            same,
            "{name}"
        );
        assert_eq!(of(&before).sha256 == of(&after).sha256, same, "{name}");
    }
    checkout.whole_output();

    checkout.edit("names.cuh", "#pragma once", "#pragma once\n// seen by all");
    assert!(checkout.precompile(&[]).status().unwrap().success());
    assert_eq!(checkout.compiled(), 4);
}

#[test]
fn a_subset_replaces_the_output_by_exactly_itself_and_compiles_nothing() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    let all = checkout.whole_output();
    checkout.compiled();
    assert!(
        checkout
            .precompile(&["--family", "push"])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(checkout.compiled(), 0);
    let subset = checkout.whole_output();
    assert_eq!(subset.len(), 3);
    for (name, bytes) in subset.iter().filter(|(name, _)| *name != "manifest.json") {
        assert_eq!(Some(bytes), all.get(name));
    }
}

#[test]
fn a_damaged_file_is_listed_by_check_and_made_anew_by_the_next_run() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    let good = checkout.whole_output();
    let (push, pull) = (
        "peersum_push_bf16_ws2.sm_90.cubin",
        "peersum_pull_bf16_ws2.sm_90.cubin",
    );
    let mut edited = good[push].clone();
    let middle = edited.len() / 2;
    edited[middle] ^= 1;
    let damages = [
        ("truncated", &good[push][..middle]),
        ("empty", &[]),
        ("edited", &edited),
        ("swapped", &good[pull]),
    ];
    for (what, damage) in damages {
        // Not through the hard link: the file is replaced, as an editor or a bad copy would do it.
        fs::remove_file(checkout.out().join(push)).unwrap();
        fs::write(checkout.out().join(push), damage).unwrap();
        let answer = crate::checkout::Answer::of(&mut checkout.check())
            .failed_saying(&[push, "cargo xtask precompile"]);
        assert!(!answer.stdout.contains(pull), "{what}: {answer:#?}");
        checkout.compiled();
        assert!(checkout.precompile(&[]).status().unwrap().success());
        assert_eq!(checkout.compiled(), 1, "{what}");
        assert_eq!(checkout.whole_output(), good, "{what}");
    }
}

#[test]
fn a_missing_file_is_listed_by_check_and_made_anew() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    let good = checkout.whole_output();
    fs::remove_file(checkout.out().join("peersum_pull_bf16_ws3.sm_90.cubin")).unwrap();
    crate::checkout::Answer::of(&mut checkout.check())
        .failed_saying(&["peersum_pull_bf16_ws3.sm_90.cubin"]);
    assert!(checkout.precompile(&[]).status().unwrap().success());
    assert_eq!(checkout.whole_output(), good);
}

#[test]
fn a_damaged_manifest_costs_a_rebuild_and_a_note() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    let good = checkout.whole_output();
    checkout.compiled();
    fs::write(
        checkout.out().join("manifest.json"),
        "{ \"schema\": 1, \"modu",
    )
    .unwrap();
    crate::checkout::Answer::of(&mut checkout.check()).failed_saying(&["manifest"]);
    let answer = crate::checkout::Answer::of(&mut checkout.precompile(&[])).succeeded();
    assert!(
        answer.stderr.contains("note: everything is rebuilt"),
        "{answer:#?}"
    );
    assert_eq!(checkout.compiled(), 4);
    assert_eq!(checkout.whole_output(), good);
}

#[test]
fn check_says_that_the_output_is_of_other_sources() {
    let checkout = Checkout::new();
    checkout.precompile(&[]).status().unwrap();
    crate::checkout::Answer::of(&mut checkout.check()).succeeded();
    checkout.edit("scale.cuh", "2.0f", "5.0f");
    let answer = crate::checkout::Answer::of(&mut checkout.check())
        .failed_saying(&["peersum_pull_bf16_ws2", "other sources"]);
    assert!(!answer.stdout.contains("peersum_push"), "{answer:#?}");
}
