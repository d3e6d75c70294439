//! `bench-layer` where there is no GPU: its help, and the error that it ends with.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness_run;

use std::process::Command;

use harness_run::run;

#[test]
fn the_help_says_what_a_step_is_and_where_cublas_is_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let output = run("bench-layer", &["--help"], directory.path());
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for part in [
        "QKV",
        "LD_LIBRARY_PATH",
        "--nccl",
        "--pdl",
        "--model",
        "There is no attention and no activation",
        "[default: 8b]",
        "[default: 1,8,32]",
        "[default: graph]",
        "[default: on]",
        "[default: all of the model]",
    ] {
        assert!(help.contains(part), "no {part} in {help}");
    }
}

#[test]
fn without_a_gpu_it_ends_with_an_error_that_says_so_and_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for what in [&[][..], &["--model=8b,70b"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_peersum-harness"))
            .args(["bench-layer", "--json=report.json"])
            .args(what)
            // Where there is a GPU, hide it.
            .env("CUDA_VISIBLE_DEVICES", "")
            .current_dir(directory.path())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains("GPU") || error.contains("libcuda"),
            "{error}"
        );
        assert!(!error.contains("panicked"), "{error}");
        assert!(!directory.path().join("report.json").exists());
    }
}
