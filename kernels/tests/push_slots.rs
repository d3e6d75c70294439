//! The slots of push.cu and norm.cu: two calls that can be in progress at once never share a slot.
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
    /// The rows of a call that normalises them.
    rows: Option<Rows>,
}

/// The shape of a call's rows: units of a row, the blocks that share it, and the threads of a block
/// that handle units.
#[derive(Debug, Clone, Copy)]
struct Rows {
    units: u64,
    blocks: u64,
    threads: u64,
}

impl Rows {
    /// Slots of a row from one source. The host's `RowShape` computes the same.
    fn slots(self) -> u64 {
        self.units.next_multiple_of(GROUP)
    }
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
fn compile(test: &str, world_size: u64, flags: &[&str]) -> std::path::PathBuf {
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
        .args(flags)
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
        let (cluster, threads, hidden) = match call.rows {
            Some(rows) => {
                let hidden = rows.units * UNIT / size_of::<f32>() as u64;
                (rows.blocks, rows.threads, hidden)
            }
            None => (1, 32, 0),
        };
        text += &format!(
            "{algorithm} {push_half_bytes} {elements} {parity} 2 {cluster} {threads} {hidden}\n"
        );
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
                    rows: None,
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
        let driver = compile("promise", world_size, &[]);
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
        let driver = compile("control", world_size, &[]);
        let calls = calls(world_size, push_half_bytes);
        let slots = slots_of(&driver, push_half_bytes, &calls);
        assert!(
            shared_slot(&calls, &slots).is_some(),
            "{world_size} ranks, {push_half_bytes} bytes a half"
        );
    }
}

/// Shapes of rows: fewer units than threads, as many, and up to 64 for each thread; on one block
/// and on two.
fn shapes() -> [Rows; 9] {
    [
        (1, 1, 32),
        (33, 1, 64),
        (125, 1, 96),
        (360, 1, 160),
        (360, 1, 32),
        (2048, 1, 32),
        (128, 2, 64),
        (360, 2, 128),
        (360, 2, 64),
    ]
    .map(|(units, blocks, threads)| Rows {
        units,
        blocks,
        threads,
    })
}

/// Calls of both halves that normalise `rows` rows.
fn norm_calls(shape: Rows, rows: u64) -> [Call; 2] {
    [0, 1].map(|parity| Call {
        is_two_shot: false,
        units: rows * shape.units,
        parity,
        rows: Some(shape),
    })
}

/// The last slot that one of the calls uses, as an address.
fn end_of(slots: &[Slots]) -> u64 {
    let ends = slots.iter().flatten().map(|(_, end)| *end * UNIT);
    ends.max().unwrap()
}

#[test]
fn a_push_that_normalises_shares_no_slot_with_a_call_of_the_other_half() {
    for world_size in 2..=8 {
        let push = compile("beside_norm", world_size, &[]);
        let norm = compile("norm", world_size, &["-DRECORD_NORM"]);
        for pairs_of_groups in [1, 2, 7, 40] {
            let push_half_bytes = pairs_of_groups * both_halves_bytes(world_size);
            let capacity = capacity_units(world_size, push_half_bytes, false);
            let mut all = calls(world_size, push_half_bytes);
            let mut slots = slots_of(&push, push_half_bytes, &all);
            for shape in shapes() {
                let most = capacity / shape.slots();
                let rows = [1, most / 2, most];
                let normalising: Vec<Call> = rows
                    .into_iter()
                    .filter(|&rows| (1..=most).contains(&rows))
                    .flat_map(|rows| norm_calls(shape, rows))
                    .collect();
                slots.extend(slots_of(&norm, push_half_bytes, &normalising));
                all.extend(normalising);
            }
            let context = format!("{world_size} ranks, {push_half_bytes} bytes a half");
            if let Some(shared) = shared_slot(&all, &slots) {
                panic!("{context}: {shared:?}");
            }
            assert!(end_of(&slots) <= 2 * push_half_bytes, "{context}");
        }
    }
}

/// The control: a row more than the host puts into a call.
#[test]
fn a_row_more_than_fits_would_be_seen_to_leave_the_slots() {
    for world_size in [2, 3, 8] {
        let norm = compile("norm_control", world_size, &["-DRECORD_NORM"]);
        // A multiple of each shape's slots.
        let push_half_bytes = 96 * both_halves_bytes(world_size);
        for shape in shapes() {
            let most = capacity_units(world_size, push_half_bytes, false) / shape.slots();
            let slots = slots_of(&norm, push_half_bytes, &norm_calls(shape, most + 1));
            let end = end_of(&slots);
            assert!(
                end > 2 * push_half_bytes,
                "{world_size} ranks, {shape:?}: {end}"
            );
        }
    }
}
