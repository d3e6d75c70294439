//! Manifest schema 2: written one way only, and read back.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use peersum_artifact::{
    Family, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, ManifestError, SchemaError,
};
use serde_json::{Value, json};

mod support;
use support::{data, directory, entry, key, manifest, sample_manifest, seed, target};

fn sample() -> Value {
    serde_json::from_str(&sample_manifest().to_json_string()).unwrap()
}

#[test]
fn a_manifest_is_written_byte_for_byte_as_the_schema_says() {
    let expected = String::from_utf8(data("manifest.json")).unwrap();
    assert_eq!(sample_manifest().to_json_string(), expected);
    assert!(expected.ends_with("}\n"));
}

#[test]
fn a_manifest_that_was_written_is_read_back() {
    let written = sample_manifest();
    assert_eq!(Manifest::parse(&written.to_json_string()).unwrap(), written);
}

#[test]
fn modules_are_written_in_one_order_whatever_order_they_have() {
    let bytes = data("push.sm_90.cubin");
    let targets = ["sm_120", "compute_80", "sm_100", "sm_90", "sm_80"].map(target);
    let mut modules: Vec<_> = [Family::Pull, Family::Push]
        .into_iter()
        .flat_map(|family| targets.map(|target| entry(family, target, &bytes)))
        .collect();
    let written = manifest(modules.clone()).to_json_string();
    modules.reverse();
    assert_eq!(manifest(modules).to_json_string(), written);

    let read = Manifest::parse(&written).unwrap();
    let order: Vec<String> = read
        .modules
        .iter()
        .map(|module| format!("{} {}", module.key.family, module.target))
        .collect();
    assert_eq!(
        order,
        [
            "push sm_80",
            "push compute_80",
            "push sm_90",
            "push sm_100",
            "push sm_120",
            "pull sm_80",
            "pull compute_80",
            "pull sm_90",
            "pull sm_100",
            "pull sm_120"
        ]
    );
}

#[test]
fn unknown_fields_are_ignored() {
    let mut edited = sample();
    for place in [
        "",
        "/toolkit",
        "/sources/0",
        "/modules/0",
        "/modules/1/entry_points/0",
    ] {
        let object = edited.pointer_mut(place).unwrap().as_object_mut().unwrap();
        object.insert("added_later".to_owned(), json!({"schema": 7}));
    }
    assert_eq!(
        Manifest::parse(&edited.to_string()).unwrap(),
        sample_manifest()
    );
}

#[test]
fn a_directory_is_read_and_every_failure_names_its_path() {
    let manifest = sample_manifest();
    let directory = directory(&manifest, &[]);
    let path = directory.path().join(MANIFEST_FILE);
    assert_eq!(
        Manifest::read_dir(directory.path()).unwrap(),
        sample_manifest()
    );

    let fails = |what: &str| {
        let error = Manifest::read_dir(directory.path()).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(&path.display().to_string()) && message.contains(what),
            "{message}"
        );
        error
    };
    std::fs::write(&path, "{\"schema\": 9}").unwrap();
    assert!(matches!(
        fails("update peersum"),
        ManifestError::Schema { .. }
    ));
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(matches!(
        fails("UTF-8"),
        ManifestError::Schema {
            error: SchemaError::NotText,
            ..
        }
    ));

    // A sparse file: it must not be read into memory.
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(matches!(
        fails(&MAX_MANIFEST_BYTES.to_string()),
        ManifestError::File { .. }
    ));

    std::fs::remove_file(&path).unwrap();
    assert!(matches!(
        fails("cargo xtask precompile"),
        ManifestError::NotFound { .. }
    ));
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(
        fails("not a regular file"),
        ManifestError::File { .. }
    ));
    std::fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink(support::data_path("manifest.json"), &path).unwrap();
    assert!(matches!(fails("symbolic link"), ManifestError::File { .. }));
}

#[test]
fn a_module_is_found_by_its_exact_target() {
    let manifest = sample_manifest();
    let push = key(Family::Push);
    assert_eq!(
        manifest.find(push, target("sm_90")).unwrap().file_name(),
        "peersum_push_bf16_ws8.sm_90.cubin"
    );
    assert!(manifest.find(push, target("sm_80")).is_none());
    assert!(manifest.find(key(Family::Pull), target("sm_90")).is_none());
}

#[test]
fn no_edit_makes_the_reader_panic_and_what_it_accepts_it_writes_back() {
    let mut random = fastrand::Rng::with_seed(seed());
    let whole = sample_manifest().to_json_string().into_bytes();
    let mut accepted = 0_u32;
    for _ in 0..5000 {
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(0..bytes.len());
            match random.u8(0..3) {
                0 => bytes[at] = random.u8(0x20..0x7f),
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"0123456789\"{}[],:-./\\"[random.usize(0..21)]),
            }
        }
        if let Ok(read) = Manifest::parse(&String::from_utf8(bytes).unwrap()) {
            accepted += 1;
            assert_eq!(Manifest::parse(&read.to_json_string()).unwrap(), read);
        }
    }
    // Some edits hit white space, free text or the name of an ignored field.
    assert!(accepted > 0);
}
