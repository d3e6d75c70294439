//! The slots of push.cu: two calls that can be in progress at once never share a slot.
//!
//! The models in `models` have no addresses. Here the kernels themselves run, on a platform that
//! records each slot that they send to, poll and empty (`push_slots/driver.cpp`). While a rank is
//! in one call, peers may be in the next call, which uses the other half. The call after that
//! starts only when this one has emptied its slots. So the slots of any call of one half must
//! differ from those of any call of the other half, whatever the algorithms and sizes of the two.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use peersum_kernels::abi;

const UNIT: u64 = abi::PEERSUM_UNIT_BYTES as u64;
const GROUP: u64 = abi::PEERSUM_SLOT_GROUP as u64;

/// One call, and the half of the slots that its epoch selects.
#[derive(Debug, Clone, Copy)]
struct Call {
    is_two_shot: bool,
    units: u64,
    parity: u64,
}

/// The slots of one call, as ranges of unit indices counted from the first slot.
type Slots = Vec<(u64, u64)>;

fn sources(world_size: u64) -> u64 {
    if world_size == 2 { 1 } else { world_size }
}

/// Size in bytes of both halves of one slot group. `push_half_bytes` must be a multiple of it.
fn both_halves_bytes(world_size: u64) -> u64 {
    2 * sources(world_size) * GROUP * UNIT
}

/// The largest call, in units. The host's `capacity_units` computes the same.
fn capacity_units(world_size: u64, push_half_bytes: u64, is_two_shot: bool) -> u64 {
    let slots = |bytes: u64| bytes / (sources(world_size) * GROUP * UNIT) * GROUP;
    match is_two_shot {
        true => slots(push_half_bytes / 2) * world_size,
        false => slots(push_half_bytes),
    }
}

/// Builds the driver for a world size. Each test has an executable of its own.
fn compile(test: &str, world_size: u64) -> std::path::PathBuf {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR"));
    let driver =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("push_slots_{test}_{world_size}"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-w", "-fno-strict-aliasing"])
        .args([
            "-DPEERSUM_DTYPE=f32",
            &format!("-DPEERSUM_WORLD_SIZE={world_size}"),
        ])
        .arg("-I")
        .arg(kernels)
        .arg(kernels.join("tests/push_slots/driver.cpp"))
        .arg("-o")
        .arg(&driver)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {compiler}: {error}"));
    assert!(
        output.status.success(),
        "{compiler}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    driver
}

/// The slots that each call uses at every rank.
fn slots_of(driver: &Path, push_half_bytes: u64, calls: &[Call]) -> Vec<Slots> {
    let mut child = Command::new(driver)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    for call in calls {
        let algorithm = if call.is_two_shot {
            "two_shot"
        } else {
            "one_shot"
        };
        let elements = call.units * UNIT / size_of::<f32>() as u64;
        let parity = call.parity;
        text += &format!("{algorithm} {push_half_bytes} {elements} {parity} 2 32\n");
    }
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Slots> = answers
        .lines()
        .zip(calls)
        .map(|(line, call)| {
            line.split_whitespace()
                .map(|range| {
                    let bounds = range.split_once('-').map(|(begin, end)| {
                        let bound = |text: &str| text.parse().ok();
                        bound(begin).zip(bound(end))
                    });
                    bounds
                        .flatten()
                        .unwrap_or_else(|| panic!("{call:?}: {line}"))
                })
                .collect()
        })
        .collect();
    assert_eq!(answers.len(), calls.len());
    answers
}

/// Calls of both algorithms and both halves: the smallest, the largest, and some in between.
fn calls(world_size: u64, push_half_bytes: u64) -> Vec<Call> {
    let mut calls = Vec::new();
    for is_two_shot in [false, true] {
        let most = capacity_units(world_size, push_half_bytes, is_two_shot);
        assert!(
            most > 0,
            "{world_size} ranks, {push_half_bytes} bytes a half"
        );
        for units in [1, GROUP + 1, most / 2 + 1, most - 1, most] {
            for parity in [0, 1] {
                calls.push(Call {
                    is_two_shot,
                    units: units.min(most).max(1),
                    parity,
                });
            }
        }
    }
    calls
}

/// The first pair of calls of different halves that share a slot, and that slot.
fn shared_slot(calls: &[Call], slots: &[Slots]) -> Option<(Call, Call, u64)> {
    let of_parity = |parity: u64| {
        calls
            .iter()
            .zip(slots)
            .filter(move |(call, _)| call.parity == parity)
    };
    of_parity(0).find_map(|(even, even_slots)| {
        of_parity(1).find_map(|(odd, odd_slots)| {
            even_slots.iter().find_map(|&(begin, end)| {
                let shares = |&&(from, to): &&(u64, u64)| from < end && begin < to;
                let (from, _) = odd_slots.iter().find(shares)?;
                Some((*even, *odd, begin.max(*from)))
            })
        })
    })
}

#[test]
fn no_two_slots_that_can_be_in_use_at_once_share_an_address() {
    for world_size in 2..=8 {
        let driver = compile("promise", world_size);
        for pairs_of_groups in (1..=9).chain([16, 21]) {
            let push_half_bytes = pairs_of_groups * both_halves_bytes(world_size);
            let calls = calls(world_size, push_half_bytes);
            let slots = slots_of(&driver, push_half_bytes, &calls);
            let context = format!("{world_size} ranks, {push_half_bytes} bytes a half");
            if let Some(shared) = shared_slot(&calls, &slots) {
                panic!("{context}: {shared:?}");
            }
            for (call, slots) in calls.iter().zip(&slots) {
                let end = slots.iter().map(|(_, end)| *end).max();
                assert!(
                    end.unwrap() * UNIT <= 2 * push_half_bytes,
                    "{context}: {call:?} uses slots past the end of the push memory"
                );
            }
        }
    }
}

/// The control: sizes at which version 0.1 used one slot for both a one-shot and a two-shot call.
#[test]
fn a_push_half_that_is_not_a_multiple_of_both_halves_of_a_group_is_caught() {
    for (world_size, push_half_bytes) in [
        (2, 8704),
        (3, 8192),
        (4, 10240),
        (5, 8192),
        (6, 8192),
        (7, 8192),
        (8, 10240),
    ] {
        let driver = compile("control", world_size);
        let calls = calls(world_size, push_half_bytes);
        let slots = slots_of(&driver, push_half_bytes, &calls);
        assert!(
            shared_slot(&calls, &slots).is_some(),
            "{world_size} ranks, {push_half_bytes} bytes a half"
        );
    }
}
