//! Ranks in processes of their own that are killed and stopped, on the emulator: what
//! `peersum-harness kill` finds, and that it finds faults.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

use serde_json::Value;

/// A machine that is busy with other tests may hold a rank up for long; what a quiet one adds to a
/// deadline is a figure of the command, not of this test.
const GRACE_MS: &str = "20000";

fn kill(flags: &[&str]) -> (Output, Value) {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_peersum-harness"))
        .args(["kill", "--device", "emulator", "--grace-ms", GRACE_MS])
        .args(flags)
        .arg("--report")
        .arg(&report)
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    (output, report)
}

#[test]
fn a_rank_killed_or_stopped_in_any_phase_is_named_to_all_others_which_then_hold_nothing() {
    let (output, report) = kill(&["--runs", "200", "--jobs", "6"]);
    assert!(output.status.success(), "{:#?}", report["failed"]);
    let lines = report["lines"].as_object().unwrap();
    assert_eq!(lines.len(), 6 * 2, "each phase, killed and stopped");
    let runs: Vec<u64> = lines
        .values()
        .map(|line| line["runs"].as_u64().unwrap())
        .collect();
    assert_eq!(runs.iter().sum::<u64>(), 200);
    assert!(runs.iter().all(|runs| *runs >= 9), "{runs:?}");
}

#[test]
fn a_survivor_that_hangs_leaks_lies_or_litters_is_found_with_the_flags_that_repeat_its_run() {
    for (plant, phase, found) in [
        ("hang", "set-up", "a survivor did not report"),
        ("leak", "inside-call", "still holds descriptor"),
        ("leak", "teardown", "mapping /memfd:peersum"),
        ("corrupt", "graph-replay", "the reference"),
        ("litter", "before-first-call", "files are left: litter"),
    ] {
        let flags = ["--plant", plant, "--phase", phase, "--seed", "7"];
        let (output, report) =
            kill(&[&flags[..], &["--run", "3", "--patience-ms", "8000"]].concat());
        assert_eq!(output.status.code(), Some(1), "{plant} in {phase}");
        let failed = report["failed"].as_array().unwrap();
        assert_eq!(failed.len(), 1);
        let failed = failed[0].as_str().unwrap();
        assert!(failed.contains(found), "{plant} in {phase}: {failed}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let again = "again: the same flags, then --seed 7 --run 3\n";
        assert!(text.contains(again), "{text}");
    }
}

#[test]
fn the_flags_that_repeat_a_run_make_the_same_run() {
    let flags = "--plant hang --phase set-up --signal stop --step mapped --one-device --runs 1 \
                 --world-size 2,3 --timeout-ms 700 --patience-ms 4000";
    let failed = |flags: &str| {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let (output, report) = kill(&flags);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        let again = text.split_once("the same flags, then ").unwrap().1;
        let again = again.lines().next().unwrap().to_owned();
        // What was found may be told by another survivor.
        let scenario = report["failed"][0].as_str().unwrap();
        let scenario = scenario.split_once(" after its word").unwrap().0;
        (scenario.to_owned(), again)
    };
    let first = failed(flags);
    assert_eq!(failed(&format!("{flags} {}", first.1)), first);
    // Flags that pick a run give way to those behind them.
    let other = failed(&format!("{flags} --seed 7 --run 3 {}", first.1));
    assert_eq!(other, first);
}

#[test]
fn a_rank_that_stops_before_the_probe_of_a_shared_device_is_named_instead_of_the_device() {
    let flags = [
        "--phase",
        "set-up",
        "--step",
        "mapped",
        "--signal",
        "stop",
        "--one-device",
    ];
    let (output, report) = kill(&[&flags[..], &["--world-size", "2", "--runs", "12"]].concat());
    assert!(output.status.success(), "{:#?}", report["failed"]);
    // One that is stopped before it has given its part to the last exchange is missed there, and
    // nobody comes to the probe.
    let errors = &report["lines"]["SetUp/Stop"]["errors"];
    assert!(errors["peer-timeout"].as_u64() >= Some(1), "{errors}");
}
