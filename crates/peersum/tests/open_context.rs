//! Opening the GPU of a rank: on a machine without a driver, and with fake drivers that show some
//! GPUs or are ill. Each case is a process of its own, since a driver is opened once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

#[path = "../../peersum-harness/tests/fake_driver/mod.rs"]
mod fake_driver;
use fake_driver::{fake, whole_driver};

/// Set in a child, to its local rank.
const LOCAL_RANK: &str = "PEERSUM_TEST_LOCAL_RANK";

/// This program again, where `test` opens the GPU of `local_rank` with the driver in `directory`.
fn opened(test: &str, local_rank: u32, directory: &Path, fault: &str, visible: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(LOCAL_RANK, local_rank.to_string())
        .env("LD_LIBRARY_PATH", directory)
        .env("FAKE_CUDA", fault)
        .env_remove("CUDA_VISIBLE_DEVICES");
    if !visible.is_empty() {
        command.env("CUDA_VISIBLE_DEVICES", visible);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let panicked = String::from_utf8_lossy(&output.stderr).contains("panicked");
    assert!(output.status.success() && !panicked, "{output:#?}");
    let told = said.lines().find_map(|line| line.strip_prefix("TOLD "));
    told.unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// Whether this is a child, which has then opened its GPU and told what came of it.
fn play() -> bool {
    let Ok(local_rank) = std::env::var(LOCAL_RANK) else {
        return false;
    };
    match peersum::open_context(local_rank.parse().unwrap()) {
        Ok(context) => println!("\nTOLD GPU {}", context.ordinal()),
        Err(error) => println!("\nTOLD {error}"),
    }
    true
}

#[test]
fn a_rank_gets_the_gpu_of_its_local_rank_or_the_only_one_that_it_sees() {
    if play() {
        return;
    }
    let test = "a_rank_gets_the_gpu_of_its_local_rank_or_the_only_one_that_it_sees";
    for (gpus, local_rank, expected) in [
        (8, 0, "GPU 0"),
        (8, 7, "GPU 7"),
        (2, 1, "GPU 1"),
        // CUDA_VISIBLE_DEVICES=$LOCAL_RANK.
        (1, 0, "GPU 0"),
        (1, 1, "GPU 0"),
        (1, 7, "GPU 0"),
    ] {
        let fault = format!("gpus={gpus}");
        let told = opened(test, local_rank, whole_driver(), &fault, "");
        assert_eq!(told, expected, "{gpus} GPUs, local rank {local_rank}");
    }
}

#[test]
fn a_rank_without_a_gpu_is_told_what_it_sees_and_what_to_do() {
    if play() {
        return;
    }
    let test = "a_rank_without_a_gpu_is_told_what_it_sees_and_what_to_do";
    for (gpus, local_rank, visible, words) in [
        (
            2,
            3,
            "4,5",
            &[
                "local rank 3",
                "sees 2",
                "CUDA_VISIBLE_DEVICES=4,5",
                "0 to 1",
            ][..],
        ),
        (
            2,
            2,
            "",
            &[
                "local rank 2",
                "CUDA_VISIBLE_DEVICES is not set",
                "LOCAL_RANK",
            ],
        ),
        (0, 0, "-1", &["sees 0", "CUDA_VISIBLE_DEVICES=-1", "unset"]),
        (0, 0, "", &["sees 0", "is not set", "--gpus all"]),
    ] {
        let fault = format!("gpus={gpus}");
        let told = opened(test, local_rank, whole_driver(), &fault, visible);
        for word in words {
            assert!(told.contains(word), "`{word}`: {told}");
        }
    }
}

#[test]
fn a_driver_of_no_use_is_an_error_that_says_what_to_do() {
    if play() {
        return;
    }
    let test = "a_driver_of_no_use_is_an_error_that_says_what_to_do";
    for (fault, words) in [
        ("stub", ["toolkit's stub", "LD_LIBRARY_PATH"]),
        ("old", ["supports CUDA 11.4", "branch 580"]),
        ("mismatch", ["cuInit failed", "kernel module"]),
        (
            "fails:cuDriverGetVersion",
            ["cuDriverGetVersion failed", "dmesg"],
        ),
        (
            "fails:cuDeviceGetCount",
            ["cuDeviceGetCount failed", "CUDA_ERROR_OF_A_FAKE"],
        ),
        ("gpus=2 taken", ["GPU 0", "CUDA_ERROR_OF_A_FAKE"]),
        ("gpus=1 volta", ["compute capability 7.", "sm_80 and newer"]),
    ] {
        let told = opened(test, 0, whole_driver(), fault, "");
        for word in words {
            assert!(told.contains(word), "{fault}: `{word}`: {told}");
        }
    }
    // Functions that are missing make cudarc panic.
    let incomplete = fake("incomplete-cuda", "-DINCOMPLETE");
    let told = opened(test, 0, &incomplete, "", "");
    assert!(told.contains("lacks cuStreamBeginCapture_v2"), "{told}");
}

/// An example. A run of named tests does not build them, so they are built then: `cargo xtask test`
/// says where those are that it has built.
fn example(name: &str) -> Command {
    if let Some(built) = std::env::var_os("PEERSUM_TEST_EXAMPLES") {
        return Command::new(Path::new(&built).join(name));
    }
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let path = profile.join("examples").join(name);
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--package=peersum"])
        .arg(format!("--example={name}"))
        .env("CARGO_TARGET_DIR", profile.parent().unwrap());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success());
    Command::new(path)
}

/// An example that must fail with an error that has these words, and not panic.
#[track_caller]
fn assert_fails(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}`: {said}");
    }
}

#[test]
fn no_example_panics_where_the_driver_or_the_gpu_is_missing() {
    let names = [
        "all_reduce",
        "graph",
        "threads",
        "nccl_shape",
        "collectives",
    ];
    for name in names {
        let mut command = example(name);
        command
            .env("RANK", "0")
            .env("LOCAL_RANK", "0")
            .env("WORLD_SIZE", "2")
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env("LD_LIBRARY_PATH", whole_driver())
            .env("FAKE_CUDA", "gpus=0");
        assert_fails(
            &command.output().unwrap(),
            &["CUDA_VISIBLE_DEVICES is not set", "--gpus all"],
        );
        command.env("FAKE_CUDA", "stub");
        assert_fails(&command.output().unwrap(), &["stub of libcuda"]);
        // What follows is for a machine without a driver of its own.
        // SAFETY: NVIDIA's driver may be opened at any time and by any thread.
        if unsafe { libloading::Library::new("libcuda.so.1") }.is_err() {
            command.env_remove("LD_LIBRARY_PATH");
            let words = ["libcuda.so.1", "install NVIDIA's driver"];
            assert_fails(&command.output().unwrap(), &words);
        }
    }
}

#[test]
fn readme_s_program_is_the_example_that_it_says_to_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("../../README.md")).unwrap();
    let example = include_str!("../examples/all_reduce.rs");
    let (_, rest) = readme.split_once("```rust,no_run\n").unwrap();
    let (program, rest) = rest.split_once("```\n").unwrap();
    assert!(rest.contains("--example all_reduce"));
    assert!(example.ends_with(program), "README's program differs");
    assert!(
        example[..example.len() - program.len()]
            .lines()
            .all(|line| { line.is_empty() || line.starts_with("//!") })
    );
}
