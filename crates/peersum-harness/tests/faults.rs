//! The cases of `peersum-harness faults`, which are made for a GPU, on the emulator.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn every_fault_is_told_to_all_ranks_and_the_process_lives_on() {
    // A busy machine is allowed any delay short of a hang; what a quiet one takes is a figure of
    // the command.
    let patient = ["--grace-ms", "30000", "--abort-ms", "30000"];
    let output = Command::new(env!("CARGO_BIN_EXE_peersum-harness"))
        .args(["faults", "--device", "emulator"])
        .args(patient)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for case in [
        "TwoCommunicators",
        "GraphReplays",
        "AbsentRank",
        "Abort",
        "Disagreement",
    ] {
        assert!(text.contains(&format!("{case}: passed")), "{case}");
    }
    for disagreement in ["FP8", "the scale of FP8, in a kernel of its own"] {
        let told = format!("{disagreement}: all ranks are told both sides");
        assert!(text.contains(&told), "{disagreement}");
    }
}
