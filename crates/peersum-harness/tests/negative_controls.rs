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
    for broken in [
        "NoRearm",
        "NoClosingBarrier",
        "LaneUnchecked",
        "EpochNotAdvanced",
        "NoOpeningBarrier",
        "RankOrderReversed",
        "NoRowBarrier",
        "TreeOfBlock",
        "WeightBeforeWait",
    ] {
        assert!(
            said.lines()
                .any(|line| line.starts_with(&format!("{broken}: seen"))),
            "{broken}"
        );
    }
}
