//! The fuzz targets of `fuzz/` as an ordinary test: the committed seeds, seeded mutations of them,
//! and the texts that cost a reader most. Every allocation is counted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod allocations;
mod mutation;
mod seeds;
#[path = "../../../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library of its own under libFuzzer")]
mod targets;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use allocations::Watch;
use mutation::mutate;

/// No input may make a reader allocate more at once, or hold more in all.
const MOST_BYTES: usize = 64 << 20;

type Target = fn(&[u8]) -> bool;

/// Runs one target over its seeds and `mutations` mutants of them.
fn attack(name: &str, target: Target, mutations: usize) {
    let seed = std::env::var("PEERSUM_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("PEERSUM_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let seeds = seeds::committed(name);
    let mut watch = Watch::begin();
    let mut run = |input: &[u8], what: &str| {
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| target(input)));
        let most = watch.take();
        if ran.is_err() || most > MOST_BYTES {
            let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.crash"));
            std::fs::write(&kept, input).unwrap();
            panic!("{what} of {name} (took {most} bytes): {}", kept.display());
        }
        ran.unwrap()
    };
    for (file, input) in &seeds {
        let accepted = run(input, file);
        assert_eq!(
            accepted,
            seeds::is_whole(file),
            "{name}/{file}: record the seeds anew (fuzz/README.md)"
        );
    }
    let mut accepted = 0;
    for index in 0..mutations {
        let (_, whole) = &seeds[random.usize(..seeds.len())];
        let (_, other) = &seeds[random.usize(..seeds.len())];
        let mutant = mutate(&mut random, whole, other);
        accepted += usize::from(run(&mutant, &format!("mutant {index}")));
    }
    println!("{name}: {accepted} of {mutations} mutants accepted");
    // A target that refuses everything is shown nothing.
    assert!(accepted > 0, "{name}");
}

#[test]
fn no_manifest_makes_its_reader_panic_or_grow() {
    attack("manifest", targets::manifest, 8_000);
}

#[test]
fn no_cubin_makes_its_reader_panic_or_grow() {
    attack("cubin", targets::cubin, 8_000);
}

#[test]
fn no_pack_makes_its_reader_panic_or_grow() {
    attack("pack", targets::pack, 8_000);
}

#[test]
fn no_dispatch_table_makes_its_reader_panic_or_grow() {
    attack("dispatch_table", targets::dispatch_table, 8_000);
}

#[test]
fn nothing_that_a_rank_sends_makes_the_other_panic_or_grow() {
    attack("rendezvous", targets::rendezvous, 8_000);
}

/// Texts of `bytes` bytes with many copies of an item in the place of `%` in `around`: each item is
/// short as text and large in memory.
fn dearest(around: &str, bytes: usize) -> Vec<String> {
    let (before, behind) = around.split_once('%').unwrap();
    ["0", "{}", r#"{"":0}"#, r#""\n""#, "["]
        .into_iter()
        .map(|item| {
            let separator = if item.ends_with(['[', ':']) { "" } else { "," };
            let item = format!("{item}{separator}");
            let times = (bytes - around.len()) / item.len();
            let items = item.repeat(times);
            format!("{before}{}{behind}", items.trim_end_matches(','))
        })
        .collect()
}

#[test]
fn the_dearest_texts_of_the_largest_size_take_less_than_64_mib() {
    let mut watch = Watch::begin();
    let mut check = |text: String, target: Target| {
        watch.take();
        assert!(!target(text.as_bytes()));
        let most = watch.take();
        assert!(most < MOST_BYTES, "{most} bytes for {}", &text[..200]);
    };
    let largest = usize::try_from(peersum_artifact::MAX_MANIFEST_BYTES).unwrap();
    for around in [
        "[%]",
        concat!(
            r#"{"schema":2,"peersum_version":"","#,
            r#""toolkit":{"compiler":"nvcc","version":"","build":""},"flags":[%]}"#
        ),
    ] {
        for text in dearest(around, largest) {
            check(text, targets::manifest);
        }
    }
    let rows = r#"[{"route":"push_one_shot","blocks":1,"threads":32}]"#;
    for around in [
        format!(
            r#"{{"schema":1,"tables":[{{"arch":null,"world_sizes":[%],{}{rows}}}]}}"#,
            r#""link":"shared","origin":"","ordinary":"#
        ),
        concat!(
            r#"{"schema":1,"tables":[{"arch":null,"world_sizes":[2],"#,
            r#""link":"shared","origin":"","ordinary":[{"unknown":[%]}]}]}"#
        )
        .to_owned(),
    ] {
        for text in dearest(&around, 4 << 20) {
            check(text, targets::dispatch_table);
        }
    }
}
