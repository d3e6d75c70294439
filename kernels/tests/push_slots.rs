//! The slots of push.cu, move.cu and norm.cu: two calls that can be in progress at once never share
//! a slot.
//!
//! The models in `models` have no addresses. Here the kernels themselves run, on a platform that
//! records each slot that they send to, poll and empty (`push_slots/driver.cpp`). While a rank is
//! in one call, peers may be in the next call, which uses the other half. The call after that
//! starts only when this one has emptied its slots. So the slots of any call of one half must
//! differ from those of any call of the other half, whatever the algorithms and sizes of the two.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use peersum_kernels::abi;

const UNIT: u64 = abi::PEERSUM_UNIT_BYTES as u64;
const GROUP: u64 = abi::PEERSUM_SLOT_GROUP as u64;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    OneShot,
    TwoShot,
    ReduceScatter,
    AllGather,
    Broadcast { root: u64 },
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::OneShot => "one_shot",
            Kind::TwoShot => "two_shot",
            Kind::ReduceScatter => "reduce_scatter",
            Kind::AllGather => "all_gather",
            Kind::Broadcast { .. } => "broadcast",
        }
    }

    /// Whether units keep every bit. Then one with an empty mark has a second slot.
    fn moves(self) -> bool {
        matches!(self, Kind::AllGather | Kind::Broadcast { .. })
    }
}

/// One call, and the half of the slots that its epoch selects.
#[derive(Debug, Clone, Copy)]
struct Call {
    kind: Kind,
    /// Of the message, or of a rank's chunk.
    units: u64,
    parity: u64,
    /// The rows of a call that normalises them.
    rows: Option<Rows>,
    /// Every how many units one holds empty marks; 0 if none does.
    marked: u64,
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

/// The largest call, in units. The host's `capacity_units` and `slot_units` compute the same.
fn capacity_units(world_size: u64, push_half_bytes: u64, kind: Kind) -> u64 {
    let slots = |bytes: u64| bytes / (sources(world_size) * GROUP * UNIT) * GROUP;
    match kind {
        Kind::OneShot | Kind::ReduceScatter => slots(push_half_bytes),
        Kind::TwoShot => slots(push_half_bytes / 2) * world_size,
        Kind::AllGather | Kind::Broadcast { .. } => slots(push_half_bytes / 2),
    }
}

/// A driver's kernels.
#[derive(Debug, Clone, Copy)]
enum Kernels {
    Push,
    Move,
    Norm,
}

/// The driver with these kernels for a world size. It is built once for all tests.
fn driver(kernels: Kernels, world_size: u64) -> &'static Path {
    static DRIVERS: [[OnceLock<PathBuf>; 9]; 3] = [const { [const { OnceLock::new() }; 9] }; 3];
    DRIVERS[kernels as usize][world_size as usize].get_or_init(|| compile(kernels, world_size))
}

fn compile(kernels: Kernels, world_size: u64) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let driver = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "push_slots_{kernels:?}_{world_size}_{}",
        std::process::id()
    ));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let (dtype, record) = match kernels {
        Kernels::Push => ("f32", "PUSH"),
        Kernels::Move => ("u8", "MOVE"),
        Kernels::Norm => ("f32", "NORM"),
    };
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-w", "-fno-strict-aliasing"])
        .args([
            &format!("-DRECORD_{record}"),
            &format!("-DPEERSUM_DTYPE={dtype}"),
            &format!("-DPEERSUM_WORLD_SIZE={world_size}"),
        ])
        .arg("-I")
        .arg(folder)
        .arg(folder.join("tests/push_slots/driver.cpp"))
        .arg("-o")
        .arg(&driver)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {compiler}: {error}"));
    assert!(
        output.status.success(),
        "{compiler}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // A name of its own while it is written, since another process may build the same.
    let name = driver.with_file_name(format!("push_slots_{kernels:?}_{world_size}"));
    std::fs::rename(driver, &name).unwrap();
    name
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
        let algorithm = call.kind.name();
        let element_bytes = if call.kind.moves() { 1 } else { 4 };
        let elements = call.units * UNIT / element_bytes;
        let (parity, marked) = (call.parity, call.marked);
        let root = match call.kind {
            Kind::Broadcast { root } => root,
            _ => 0,
        };
        let (cluster, threads, hidden) = match call.rows {
            Some(rows) => {
                let hidden = rows.units * UNIT / size_of::<f32>() as u64;
                (rows.blocks, rows.threads, hidden)
            }
            None => (1, 32, 0),
        };
        text += &format!(
            "{algorithm} {push_half_bytes} {elements} {parity} 2 {cluster} {threads} {hidden} \
             {root} {marked}\n"
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

/// Calls of these kinds and both halves: the smallest, the largest, and some in between. Of the
/// units of one that moves data none is marked, some are, or all.
fn calls(world_size: u64, push_half_bytes: u64, kinds: &[Kind]) -> Vec<Call> {
    let mut calls = Vec::new();
    for &kind in kinds {
        let most = capacity_units(world_size, push_half_bytes, kind);
        assert!(
            most > 0,
            "{world_size} ranks, {push_half_bytes} bytes a half"
        );
        let marks: &[u64] = if kind.moves() { &[1, 3, 1, 0, 1] } else { &[0] };
        let sizes = [1, GROUP + 1, most / 2 + 1, most - 1, most];
        for (units, &marked) in sizes.into_iter().zip(marks.iter().cycle()) {
            calls.extend([0, 1].map(|parity| Call {
                kind,
                units: units.min(most).max(1),
                parity,
                rows: None,
                marked,
            }));
        }
    }
    calls
}

/// Those of push.cu.
const PUSH_KINDS: [Kind; 3] = [Kind::OneShot, Kind::TwoShot, Kind::ReduceScatter];

/// Those of move.cu. Roots are the first rank, the last and one in between.
fn moving_kinds(world_size: u64) -> Vec<Kind> {
    let mut roots = vec![0, world_size / 2, world_size - 1];
    roots.dedup();
    let broadcasts = roots.into_iter().map(|root| Kind::Broadcast { root });
    [Kind::AllGather].into_iter().chain(broadcasts).collect()
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

/// Calls of push.cu and move.cu, with their slots.
fn ordinary_calls(world_size: u64, push_half_bytes: u64) -> (Vec<Call>, Vec<Slots>) {
    let mut all = calls(world_size, push_half_bytes, &PUSH_KINDS);
    let mut slots = slots_of(driver(Kernels::Push, world_size), push_half_bytes, &all);
    let moves = calls(world_size, push_half_bytes, &moving_kinds(world_size));
    let moving = driver(Kernels::Move, world_size);
    slots.extend(slots_of(moving, push_half_bytes, &moves));
    all.extend(moves);
    (all, slots)
}

#[test]
fn no_two_slots_that_can_be_in_use_at_once_share_an_address() {
    for world_size in 2..=8 {
        for pairs_of_groups in (1..=9).chain([16, 21]) {
            let push_half_bytes = pairs_of_groups * both_halves_bytes(world_size);
            let (calls, slots) = ordinary_calls(world_size, push_half_bytes);
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
            for pair in calls.iter().zip(&slots).filter(|(it, _)| it.kind.moves()) {
                assert_has_second_slots(pair, push_half_bytes);
            }
        }
    }
}

/// Slots behind the first `push_half_bytes` are those of escaped units alone: as many of them as of
/// the first slots if all units are marked.
fn assert_has_second_slots((call, slots): (&Call, &Slots), push_half_bytes: u64) {
    let boundary = push_half_bytes / UNIT;
    assert!(
        slots
            .iter()
            .all(|&(begin, end)| end <= boundary || begin >= boundary)
    );
    let count = |is_second: bool| -> u64 {
        slots
            .iter()
            .filter(|(begin, _)| (*begin >= boundary) == is_second)
            .map(|(begin, end)| end - begin)
            .sum()
    };
    match (call.kind, call.marked) {
        (_, 0) => assert_eq!(count(true), 0, "{call:?}"),
        (Kind::AllGather, 1) => assert_eq!(count(true), count(false), "{call:?}"),
        // Tokens need no second slot.
        (Kind::Broadcast { .. }, 1) => assert!(count(true) >= call.units, "{call:?}"),
        _ => assert!(count(true) > 0, "{call:?}"),
    }
}

/// The control: sizes at which version 0.1 used one slot for both a one-shot and a two-shot call.
/// The second slots of all-gathers and broadcasts would be shared, too.
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
        let (calls, slots) = ordinary_calls(world_size, push_half_bytes);
        // A broadcast has second slots of its root alone, which at some of these sizes lie apart.
        for kind in [Kind::TwoShot, Kind::AllGather] {
            let beside: (Vec<Call>, Vec<Slots>) = calls
                .iter()
                .zip(&slots)
                .filter(|(call, _)| call.kind == Kind::OneShot || call.kind == kind)
                .map(|(call, slots)| (*call, slots.clone()))
                .unzip();
            assert!(
                shared_slot(&beside.0, &beside.1).is_some(),
                "{world_size} ranks, {push_half_bytes} bytes a half, {kind:?}"
            );
        }
    }
}

/// The control: a unit more than the host puts into a call.
#[test]
fn a_unit_more_than_fits_would_be_seen_to_leave_its_slots() {
    for world_size in [2, 3, 8] {
        let push_half_bytes = 4 * both_halves_bytes(world_size);
        let end = |kind: Kind, more: u64| {
            let kernels = if kind.moves() {
                Kernels::Move
            } else {
                Kernels::Push
            };
            let units = capacity_units(world_size, push_half_bytes, kind) + more;
            let call = Call {
                kind,
                units,
                parity: 0,
                rows: None,
                marked: 0,
            };
            end_of(&slots_of(
                driver(kernels, world_size),
                push_half_bytes,
                &[call],
            ))
        };
        let scatter = |more| end(Kind::ReduceScatter, more);
        assert!(scatter(0) <= 2 * push_half_bytes && scatter(1) > 2 * push_half_bytes);
        // Behind the end of its first slots lie the second ones.
        for kind in moving_kinds(world_size) {
            let first_slots = |more| end(kind, more);
            assert!(first_slots(0) <= push_half_bytes && first_slots(1) > push_half_bytes);
        }
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
        kind: Kind::OneShot,
        units: rows * shape.units,
        parity,
        rows: Some(shape),
        marked: 0,
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
        let norm = driver(Kernels::Norm, world_size);
        for pairs_of_groups in [1, 2, 7, 40] {
            let push_half_bytes = pairs_of_groups * both_halves_bytes(world_size);
            let capacity = capacity_units(world_size, push_half_bytes, Kind::OneShot);
            let (mut all, mut slots) = ordinary_calls(world_size, push_half_bytes);
            for shape in shapes() {
                let most = capacity / shape.slots();
                let rows = [1, most / 2, most];
                let normalising: Vec<Call> = rows
                    .into_iter()
                    .filter(|&rows| (1..=most).contains(&rows))
                    .flat_map(|rows| norm_calls(shape, rows))
                    .collect();
                slots.extend(slots_of(norm, push_half_bytes, &normalising));
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
        let norm = driver(Kernels::Norm, world_size);
        // A multiple of each shape's slots.
        let push_half_bytes = 96 * both_halves_bytes(world_size);
        for shape in shapes() {
            let most = capacity_units(world_size, push_half_bytes, Kind::OneShot) / shape.slots();
            let slots = slots_of(norm, push_half_bytes, &norm_calls(shape, most + 1));
            let end = end_of(&slots);
            assert!(
                end > 2 * push_half_bytes,
                "{world_size} ranks, {shape:?}: {end}"
            );
        }
    }
}
