//! The kernels under ThreadSanitizer: no data race in the protocols, and the planted ones are found.
//!
//! The C++ side alone, since a sanitised Rust program needs a nightly compiler: `thread_sanitizer/driver.cpp` plays the ranks. To look at a
//! report by hand, build it with the command that a failing test prints, and run it with `TSAN_OPTIONS=halt_on_error=1`.
//!
//! What the tool can see: relaxed atomics never race, so the accesses of the pull family that carry elements are made ordinary ones
//! (`PEERSUM_EMULATOR_PLAIN_DATA`): there the barriers alone keep them apart. In the push family the data is the flag, and remains atomic;
//! what is checked there is everything else (epochs, own headers, scratch memory, outputs). A relaxed flag of the pull family counts as a
//! release here, since what it announces rests on the end of an earlier kernel or on loads that have returned; one that is relaxed by
//! mistake is not seen.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Build {
    family: &'static str,
    world_size: u32,
    /// `PEERSUM_BREAK` of `protocol.cuh`.
    broken: u32,
}

/// Compiles the driver and runs it; returns what it did and the command that built it.
fn run(build: &Build) -> (Output, String) {
    let directory = tempfile::tempdir().unwrap();
    for source in peersum_kernels::SOURCES {
        std::fs::write(directory.path().join(source.path), source.text).unwrap();
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program: PathBuf = directory.path().join("driver");
    let pull = build.family == "pull";
    let mut compile = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    compile
        .args([
            "-std=c++17",
            "-O1",
            "-g",
            "-fsanitize=thread",
            "-pthread",
            "-w",
        ])
        .args([
            "-fno-exceptions",
            "-fno-rtti",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
        ])
        .arg(format!("-DKERNEL=\"{}.cu\"", build.family))
        .arg(format!("-DFAMILY={}", build.family))
        .arg(format!("-DPEERSUM_SYMMETRIC={}", u32::from(pull)))
        .args([
            "-DPEERSUM_DTYPE=f32".to_owned(),
            format!("-DPEERSUM_WORLD_SIZE={}", build.world_size),
        ])
        .arg(format!("-DPEERSUM_BREAK={}", build.broken))
        .args(pull.then_some("-DPEERSUM_EMULATOR_PLAIN_DATA"))
        .arg("-I")
        .arg(directory.path())
        .arg("-I")
        .arg(here.join("src/cpp"))
        .arg(here.join("tests/thread_sanitizer/driver.cpp"))
        .arg(here.join("src/cpp/runtime.cpp"))
        .arg("-o")
        .arg(&program);
    let command = format!("{compile:?}");
    let compiled = compile
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(
        compiled.status.success(),
        "the compiler and its ThreadSanitizer library are needed here\n{command}\n{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(&program)
        .env("TSAN_OPTIONS", "halt_on_error=1")
        .output()
        .unwrap();
    (output, command)
}

#[test]
fn the_protocols_have_no_data_race() {
    for family in ["push", "pull"] {
        for world_size in [2, 3] {
            let (output, command) = run(&Build {
                family,
                world_size,
                broken: 0,
            });
            let report = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command}\n{report}");
        }
    }
}

#[test]
fn a_missing_barrier_is_reported_as_a_data_race() {
    // 5: no opening barrier. 2: no second one.
    for broken in [5, 2] {
        for world_size in [2, 3] {
            let (output, command) = run(&Build {
                family: "pull",
                world_size,
                broken,
            });
            let report = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && report.contains("ThreadSanitizer: data race"),
                "{command}\n{report}"
            );
        }
    }
}
