//! The soak on the emulator: it finds no difference where there is none, and one where there is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn soak(more: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_peersum-harness"))
        .args(["soak", "--device", "emulator", "--world-size", "2,3"])
        .args(more)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
    (output, stdout)
}

#[test]
fn a_soak_finds_no_wrong_bit() {
    let (output, stdout) = soak(&["--seconds", "4"]);
    assert!(output.status.success());
    assert!(stdout.contains("0 mismatches, seed "), "{stdout}");
    // Calls of each world size, not of the first alone.
    for line in ["ws2: ", "ws3: "] {
        let calls = stdout.split_once(line).unwrap().1;
        let calls: u64 = calls.split(' ').next().unwrap().parse().unwrap();
        assert!(calls >= 100, "{stdout}");
    }
    let norms = stdout.matches(" calls with RMSNorm, 0 mismatches");
    assert_eq!(norms.count(), 2, "{stdout}");
    let mixed = stdout.matches(" calls of all operations, 0 mismatches");
    assert_eq!(mixed.count(), 2, "{stdout}");
}

#[test]
fn a_changed_bit_is_found_and_named_with_its_seed() {
    let (output, stdout) = soak(&["--seconds", "2", "--seed", "7", "--corrupt"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout.contains("round 1, layer 2"), "{stdout}");
    assert!(stdout.contains("first wrong index 1"), "{stdout}");
    // The calls of each part are compared, for each world size, and each line behind a count says
    // what to run again.
    for what in [
        " calls, ",
        " calls with RMSNorm, ",
        " calls of all operations, ",
    ] {
        let mut lines = stdout.lines();
        for world_size in ["ws2: ", "ws3: "] {
            let line = lines.find(|line| line.starts_with(world_size) && line.contains(what));
            let line = line.unwrap_or_else(|| panic!("no {world_size}{what}"));
            assert!(!line.ends_with(", 0 mismatches"), "{stdout}");
            // A seed of a burst, and the rank that was made to have a wrong result.
            let wrong = lines.next().unwrap().strip_prefix("  seed ").unwrap();
            let (seed, wrong) = wrong.split_once(", rank 0, ").unwrap();
            assert!((7..).contains(&seed.parse().unwrap()), "{stdout}");
            let case = match what.contains("of all") {
                true => "Drawn { what: ",
                false => &world_size[..3],
            };
            assert!(wrong.starts_with(case), "{stdout}");
        }
    }
    assert!(stdout.contains("output, first wrong index 1: "), "{stdout}");
}
