//! The commands that run the harness: its flags are its own, and xtask passes them on as they are.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

/// Runs xtask with a fake harness, which exits with `status`.
fn xtask(arguments: &[&str], status: i32) -> Output {
    let fakes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fakes");
    let directory = tempfile::tempdir().unwrap();
    let harness = directory.path().join("peersum-harness");
    symlink(fakes.join("harness.sh"), &harness).unwrap();
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .env("CARGO", fakes.join("cargo-harness.sh"))
        .env("HARNESS", harness)
        .env("HARNESS_STATUS", status.to_string())
        .env_remove("CUDA_DEVICE_MAX_CONNECTIONS")
        .env("PEERSUM_CUBIN_DIR", "/nowhere")
        .output()
        .unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_harness_gets_every_flag_as_it_was_typed_and_its_exit_status_counts() {
    for (command, name) in [
        (&["test-allreduce"][..], "grid"),
        (&["bench", "allreduce"], "bench-allreduce"),
        (&["bench", "layer"], "bench-layer"),
        (&["tune"], "tune"),
        (&["doctor"], "doctor"),
    ] {
        for status in [0, 1, 3] {
            let flags = [
                "--device",
                "auto",
                "--new=a b",
                "-x",
                "--",
                "",
                "--toolkits",
            ];
            let output = xtask(&[command, &flags].concat(), status);
            let expected = format!("[{name}]\n[--device]\n[auto]\n[--new=a b]\n[-x]\n[--]\n[]\n");
            assert!(printed(&output).starts_with(&expected), "{output:?}");
            assert_eq!(output.status.code(), Some(status), "{output:?}");
        }
    }
}

#[test]
fn reports_lists_and_emulated_ranks_need_no_compiler() {
    for flags in [
        &["--list", "--toolkit", "/nowhere"][..],
        &["--device", "emulator", "--toolkit=/nowhere"],
        &[
            "--device=emulator",
            "--compile-for",
            "sm_90",
            "--toolkit=/nowhere",
        ],
        &["--from-json", "report.json", "--toolkit=/nowhere"],
    ] {
        let output = xtask(&[&["test-allreduce"], flags].concat(), 0);
        assert!(output.status.success(), "{output:?}");
        let printed = printed(&output);
        assert!(printed.starts_with("[grid]\n"), "{printed}");
        assert!(!printed.contains("toolkit"), "{printed}");
        assert!(!printed.contains("compile-for"), "{printed}");
    }
}

#[test]
fn the_help_is_the_harnesses_and_adds_the_flags_of_xtask() {
    for command in [&["test-allreduce"][..], &["bench", "layer"], &["tune"]] {
        for flag in ["--help", "-h"] {
            let output = xtask(&[command, &[flag]].concat(), 0);
            let printed = printed(&output);
            assert!(printed.contains(&format!("[{flag}]")), "{printed}");
            for own in ["--compile-for", "--toolkit"] {
                assert!(printed.contains(own), "{printed}");
            }
        }
    }
}

#[test]
fn ranks_get_a_hardware_queue_each_and_the_doctor_sees_the_environment_as_it_is() {
    for (command, connections) in [(&["tune"][..], "32"), (&["doctor"], "unset")] {
        let output = xtask(command, 0);
        let expected = format!("connections {connections}\n");
        assert!(printed(&output).ends_with(&expected), "{output:?}");
    }
}
