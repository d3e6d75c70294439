//! Every name of the matrix is unique, has one spelling, and is read back.

use std::collections::BTreeSet;

use peersum_artifact::{
    Algorithm, CacheKeyInputs, Digest, Dtype, Family, ModuleKey, RELEASE_SET, Target, WorldSize,
    cache_key, include_closure,
};

mod support;
use support::{compiler, key, target};

/// The release set, and every other kind of target beside it.
fn targets() -> Vec<Target> {
    let others = ["sm_86", "sm_103", "compute_90", "compute_100"];
    RELEASE_SET.into_iter().chain(others.map(target)).collect()
}

/// Inserts a name and fails if it was there.
fn claim(names: &mut BTreeSet<String>, name: String) {
    assert!(names.insert(name.clone()), "`{name}` occurs twice");
}

#[test]
fn the_matrix_has_73_modules_in_sorted_order() {
    let keys: Vec<ModuleKey> = ModuleKey::all().collect();
    assert_eq!(keys.len(), 2 * 3 * 7 + 3 * 8 + 7);
    assert!(keys.is_sorted());
}

#[test]
fn no_two_modules_or_entry_points_share_a_name() {
    let mut names = BTreeSet::new();
    for key in ModuleKey::all() {
        claim(&mut names, key.name());
        for entry_point in key.entry_points() {
            claim(&mut names, entry_point);
        }
    }
    // Each module and its two entry points; push has three, and norm one for one rank, else three.
    assert_eq!(names.len(), 73 * 3 + 7 * 3 - 3 + 7 * 3);
}

#[test]
fn no_two_modules_share_a_file_on_any_architecture() {
    let mut files = BTreeSet::new();
    for key in ModuleKey::all() {
        for target in targets() {
            // Lower-cased, since some file systems ignore case.
            claim(&mut files, target.file_name(&key).to_lowercase());
        }
    }
    assert_eq!(files.len(), 73 * targets().len());
}

#[test]
fn no_two_modules_share_a_cache_key_even_from_one_source() {
    // One closure and no definitions for all: the name alone must keep the keys apart.
    let closure = include_closure("kernel.cu", &[("kernel.cu", "")]).unwrap();
    let compiler = compiler();
    let mut keys = BTreeSet::new();
    for module in ModuleKey::all() {
        for target in targets() {
            let inputs = CacheKeyInputs {
                module,
                target,
                closure: &closure,
                prelude: None,
                flags: &[],
                defines: &[],
                compiler: &compiler,
                entry_points: &[],
            };
            claim(&mut keys, cache_key(&inputs).to_string());
        }
    }
}

#[test]
fn names_are_those_of_the_design() {
    let key = key(Family::Push);
    assert_eq!(key.name(), "peersum_push_bf16_ws8");
    assert_eq!(
        key.entry_points(),
        [
            "peersum_push_one_shot_bf16_ws8",
            "peersum_push_reduce_scatter_bf16_ws8",
            "peersum_push_two_shot_bf16_ws8"
        ]
    );
    assert_eq!(
        target("sm_90").file_name(&key),
        "peersum_push_bf16_ws8.sm_90.cubin"
    );
    assert_eq!(
        target("compute_80").file_name(&key),
        "peersum_push_bf16_ws8.compute_80.ptx"
    );
    assert_eq!(key.source_root(), "push.cu");
    assert_eq!(
        key.defines(),
        ["PEERSUM_DTYPE=bf16", "PEERSUM_WORLD_SIZE=8"]
    );
}

#[test]
fn a_module_name_is_read_back_and_nothing_near_it_is() {
    for key in ModuleKey::all() {
        assert_eq!(key.name().parse(), Ok(key));
    }
    for wrong in [
        "peersum_push_bf16_ws9",
        // One rank exchanges nothing.
        "peersum_push_bf16_ws1",
        "peersum_push_bf16_ws08",
        "peersum_push_bf16_ws+8",
        "peersum_push_bf16_ws8 ",
        "peersum_push_one_shot_bf16_ws8",
        "PEERSUM_PUSH_BF16_WS8",
        "push_bf16_ws8",
        "",
    ] {
        let error = wrong.parse::<ModuleKey>().unwrap_err();
        assert!(error.to_string().contains("peersum_{push|pull}"), "{error}");
    }
}

#[test]
fn an_unknown_name_is_refused_with_the_valid_ones() {
    let message = |error: peersum_artifact::ParseNameError| error.to_string();
    assert_eq!(
        "pusj".parse::<Family>().map_err(message),
        Err("unknown family `pusj`; valid: push, pull, norm, move".to_owned())
    );
    assert_eq!(
        "fp16".parse::<Dtype>().map_err(message),
        Err("unknown dtype `fp16`; valid: f16, bf16, f32, u8, i8, u32, i32, u64, i64".to_owned())
    );
    assert_eq!(
        "3shot".parse::<Algorithm>().map_err(message),
        Err(
            "unknown algorithm `3shot`; valid: one_shot, two_shot, rows, clustered, \
             reduce_scatter, all_gather, broadcast"
                .to_owned()
        )
    );
    for ranks in [0, 9, 256 + 8, u32::MAX] {
        let error = WorldSize::try_from(ranks).map_err(message).unwrap_err();
        assert_eq!(
            error,
            format!("unknown world size `{ranks}`; valid: 1 to 8")
        );
    }
    for name in ["", "0", "9", "08", "+8", " 8", "8 ", "two"] {
        assert!(name.parse::<WorldSize>().is_err(), "{name:?}");
    }
}

#[test]
fn a_digest_is_64_lower_case_digits_and_nothing_else() {
    // FIPS 180-2, appendix B.1.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(Digest::of(b"abc").to_string(), abc);
    assert_eq!(abc.parse(), Ok(Digest::of(b"abc")));
    for wrong in [
        &abc[1..],
        &format!("{abc}0"),
        &abc.to_uppercase(),
        &abc.replacen('b', "g", 1),
        "",
    ] {
        assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
    }
    // 64 characters of two bytes each, and 32: neither may be taken for digits.
    assert!("é".repeat(32).parse::<Digest>().is_err());
    assert!("é".repeat(64).parse::<Digest>().is_err());
}
