//! `cargo xtask dist` through the real binary, in copies of this checkout and with two small
//! modules.

#![allow(missing_docs)]
// Helpers that are not test functions themselves may panic too: it fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checkout;

use checkout::{Checkout, cubins, failed_saying, snapshot, succeeded, verify};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use peersum_artifact::pack::pack_directory;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// The files of a `.crate` by their path in it.
fn unpack(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(path).unwrap()));
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let path = entry.path().unwrap();
            let within: std::path::PathBuf = path.components().skip(1).collect();
            (within.to_str().unwrap().to_owned(), bytes)
        })
        .collect()
}

#[test]
fn two_checkouts_in_two_directories_give_the_same_bytes() {
    let cubins = cubins();
    let first = Checkout::of_this();
    let second = Checkout::of(first.path(), "a longer name than the first");
    // What differs between two machines and is not part of a release.
    fs::write(second.path().join("crates/peersum/notes.txt"), "to do").unwrap();
    fs::create_dir_all(second.path().join("kernels/target/debug")).unwrap();
    fs::set_permissions(
        second.path().join("crates/peersum/src/lib.rs"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let release = [&first, &second].map(|checkout| {
        succeeded(&mut checkout.dist(cubins.path()));
        snapshot(&checkout.out())
    });
    let [first, second] = &release;
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        second.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in first {
        assert!(bytes == &second[name], "{name} differs");
    }
}

#[test]
fn a_release_has_every_publishable_crate_with_licences_and_the_cubins_in_one_of_them() {
    let cubins = cubins();
    let checkout = Checkout::of_this();
    let table = succeeded(&mut checkout.dist(cubins.path()));
    let names: Vec<_> = snapshot(&checkout.out()).into_keys().collect();
    for name in &names {
        assert!(table.contains(name.as_str()), "{name} is not in\n{table}");
    }
    for name in [
        "RELEASE-NOTES.md",
        "SHA256SUMS",
        "peersum-0.1.0.crate",
        "peersum-artifact-0.1.0.crate",
        "peersum-cubins-0.1.0-cuda13.tar.zst",
        "peersum-doctor-0.1.0.crate",
        "peersum-emulator-0.1.0.crate",
        "peersum-kernels-0.1.0.crate",
    ] {
        assert!(
            names.iter().any(|found| found == name),
            "no {name} in {names:?}"
        );
    }
    let is_private = |name: &String| name.contains("harness") || name.contains("xtask");
    assert!(!names.iter().any(is_private), "{names:?}");

    for name in names.iter().filter(|name| name.ends_with(".crate")) {
        let files = unpack(&checkout.out().join(name));
        for file in ["LICENSE-MIT", "LICENSE-APACHE", "README.md", "src/lib.rs"] {
            assert!(files.contains_key(file), "{name} has no {file}");
        }
        let carries = files.get("pack/cubins.bin");
        assert_eq!(carries.is_some(), name.starts_with("peersum-kernels-"));
        if let Some(pack) = carries {
            assert!(pack == &pack_directory(cubins.path()).unwrap());
        }
    }
    let committed = checkout.path().join("kernels/pack/cubins.bin");
    assert_eq!(
        fs::metadata(committed).unwrap().len(),
        0,
        "the checkout was changed"
    );
}

#[test]
fn verify_names_a_tampered_a_missing_and_an_extra_file_before_it_builds_anything() {
    let checkout = Checkout::of_this();
    succeeded(&mut checkout.dist(cubins().path()));
    let name = "peersum-kernels-0.1.0.crate";
    let path = checkout.out().join(name);
    let whole = fs::read(&path).unwrap();

    for at in [0, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&path, flipped).unwrap();
        failed_saying(
            &mut verify(&checkout),
            &[name, "not the file that SHA256SUMS lists"],
        );
    }
    fs::remove_file(&path).unwrap();
    failed_saying(&mut verify(&checkout), &[name, "missing"]);
    fs::write(&path, whole).unwrap();
    fs::write(checkout.out().join("peersum-extra-0.1.0.crate"), "").unwrap();
    failed_saying(
        &mut verify(&checkout),
        &["peersum-extra-0.1.0.crate", "not listed in SHA256SUMS"],
    );
}

#[test]
fn a_crate_that_carries_other_modules_than_the_archive_is_refused_though_every_sum_holds() {
    let checkout = Checkout::of_this();
    let other = cubins();
    // The same modules, with a manifest that names another build of the compiler.
    let path = other.path().join("manifest.json");
    let manifest = fs::read_to_string(&path).unwrap();
    fs::write(&path, manifest.replace("36424714_0", "36424714_1")).unwrap();
    succeeded(&mut checkout.dist(other.path()));
    let name = "peersum-kernels-0.1.0.crate";
    let foreign = fs::read(checkout.out().join(name)).unwrap();

    succeeded(&mut checkout.dist(cubins().path()));
    replace(&checkout, name, &foreign);
    failed_saying(
        &mut verify(&checkout),
        &["peersum-kernels does not carry the modules"],
    );
}

#[test]
fn a_module_that_is_damaged_in_the_crate_or_in_the_archive_is_refused_though_every_sum_holds() {
    let checkout = Checkout::of_this();
    let cubins = cubins();
    succeeded(&mut checkout.dist(cubins.path()));
    let released = |name: &str| fs::read(checkout.out().join(name)).unwrap();

    let name = "peersum-kernels-0.1.0.crate";
    let whole = released(name);
    let mut crate_files = Vec::new();
    GzDecoder::new(&whole[..])
        .read_to_end(&mut crate_files)
        .unwrap();
    // Within the last compressed file.
    damage(&mut crate_files, &pack_directory(cubins.path()).unwrap());
    let mut damaged = GzEncoder::new(Vec::new(), Compression::fast());
    damaged.write_all(&crate_files).unwrap();
    replace(&checkout, name, &damaged.finish().unwrap());
    failed_saying(
        &mut verify(&checkout),
        &["peersum-kernels does not carry the modules"],
    );
    replace(&checkout, name, &whole);

    let name = "peersum-cubins-0.1.0-cuda13.tar.zst";
    let mut files = zstd::decode_all(&released(name)[..]).unwrap();
    let module = "peersum_push_bf16_ws8.sm_90.cubin";
    damage(&mut files, &fs::read(cubins.path().join(module)).unwrap());
    replace(&checkout, name, &zstd::encode_all(&files[..], 1).unwrap());
    failed_saying(&mut verify(&checkout), &["the archive's manifest", module]);
}

/// Changes a byte near the end of one of the files that an archive holds as they are. (The last
/// bits of a compressed file may mean nothing.)
fn damage(archive: &mut [u8], file: &[u8]) {
    let mut places = archive.windows(file.len());
    let begin = places.position(|place| place == file).unwrap();
    archive[begin + file.len() - 64] ^= 0xFF;
}

/// Replaces a file of a release, and its sum.
fn replace(checkout: &Checkout, name: &str, bytes: &[u8]) {
    fs::write(checkout.out().join(name), bytes).unwrap();
    let sums = Command::new("sh")
        .args(["-c", "sha256sum peersum-* RELEASE-NOTES.md > SHA256SUMS"])
        .current_dir(checkout.out())
        .status();
    assert!(sums.unwrap().success());
}

#[test]
fn a_directory_that_holds_something_else_is_not_replaced() {
    let checkout = Checkout::of_this();
    fs::create_dir_all(checkout.out()).unwrap();
    let thesis = checkout.out().join("thesis.txt");
    fs::write(&thesis, "years of work").unwrap();
    failed_saying(
        &mut checkout.dist(cubins().path()),
        &["thesis.txt", "dist did not write", "--out"],
    );
    assert_eq!(snapshot(&checkout.out()).len(), 1);
}

#[test]
fn what_keeps_a_release_from_being_made_leaves_the_earlier_one_whole() {
    let checkout = Checkout::of_this();
    let cubins = cubins();
    succeeded(&mut checkout.dist(cubins.path()));
    let earlier = snapshot(&checkout.out());

    let changelog = checkout.path().join("CHANGELOG.md");
    let text = fs::read_to_string(&changelog).unwrap();
    fs::write(&changelog, text.replace("## 0.1.0", "## 0.0.9")).unwrap();
    failed_saying(
        &mut checkout.dist(cubins.path()),
        &["CHANGELOG.md", "no section `## 0.1.0`"],
    );
    fs::write(&changelog, text).unwrap();

    let module = cubins.path().join("peersum_push_bf16_ws8.sm_90.cubin");
    let mut bytes = fs::read(&module).unwrap();
    bytes[100] ^= 1;
    fs::write(&module, bytes).unwrap();
    failed_saying(
        &mut checkout.dist(cubins.path()),
        &["peersum_push_bf16_ws8.sm_90.cubin"],
    );

    let manifest = checkout.path().join("crates/peersum/Cargo.toml");
    fs::write(&manifest, "[package]\n").unwrap();
    failed_saying(
        &mut checkout.dist(self::cubins().path()),
        &["cargo", "metadata", "crates/peersum/Cargo.toml"],
    );
    assert!(
        snapshot(&checkout.out()) == earlier,
        "the release was touched"
    );
}
