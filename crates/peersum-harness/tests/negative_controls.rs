//! The grid sees every protocol that is broken on purpose. `cargo xtask test` turns the feature on.
#![cfg(feature = "negative-controls")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn the_grid_fails_on_every_broken_protocol_and_passes_on_the_sound_ones() {
    let output = Command::new(env!("CARGO_BIN_EXE_peersum-harness"))
        .arg("negative-controls")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    assert!(said.starts_with("sound protocols: pass"));
    let moves = ["all_reduce", "all_gather", "reduce_scatter", "broadcast"];
    for (broken, ops) in [
        ("NoRearm", &moves[..]),
        ("NoClosingBarrier", &["all_reduce"]),
        ("LaneUnchecked", &moves),
        ("EpochNotAdvanced", &moves),
        ("NoOpeningBarrier", &["all_reduce"]),
        ("RankOrderReversed", &["all_reduce", "reduce_scatter"]),
        ("NoRowBarrier", &["rms_norm"]),
        ("TreeOfBlock", &["rms_norm"]),
        ("WeightBeforeWait", &["rms_norm"]),
    ] {
        for op in ops {
            assert!(
                said.lines()
                    .any(|line| line.starts_with(&format!("{broken} in {op}: seen"))),
                "{broken} in {op}"
            );
        }
    }
}
