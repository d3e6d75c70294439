//! How large blocks the registers of the compiled kernels leave room for in a seat.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

#[path = "loader/toolchain.rs"]
#[allow(dead_code, reason = "this test needs no NVRTC")]
mod toolchain;

use peersum_artifact::{Algorithm, Arch, Family, Manifest, ManifestModule, Target, WorldSize};

/// The warps of a multiprocessor have their registers in this many parts.
const PARTS: u32 = 4;
const REGISTERS_OF_A_PART: u32 = 16_384;
const WARP_THREADS: u32 = 32;

/// The most threads that handle units in a block that takes at most half of each part, its signal
/// threads included. A thread's registers are allocated in steps of eight.
fn most_threads_in_a_seat(registers: u32, world_size: WorldSize) -> u32 {
    let of_a_warp = registers.next_multiple_of(8) * WARP_THREADS;
    let warps = REGISTERS_OF_A_PART / 2 / of_a_warp * PARTS;
    (warps * WARP_THREADS - world_size.get()) / WARP_THREADS * WARP_THREADS
}

/// What the dispatch tables ask for, and the fused kernel for rows of 8192 elements of two bytes.
fn wanted_threads(module: &ManifestModule, algorithm: Algorithm) -> u32 {
    match (module.key.family, algorithm) {
        (Family::Push, Algorithm::OneShot) if module.key.world_size == WorldSize::MIN => 512,
        (Family::Norm, Algorithm::Clustered) => 256,
        (Family::Norm, _) => 352,
        _ => 224,
    }
}

#[test]
fn on_sm_90_a_seat_has_room_for_the_blocks_that_the_tables_ask_for() {
    let sm_90 = Target::Cubin(Arch::new(9, 0));
    let mut seen = 0;
    for directory in toolchain::cubins() {
        let manifest = Manifest::read_dir(&directory).unwrap();
        for module in manifest.modules.iter().filter(|it| it.target == sm_90) {
            for &algorithm in module.key.algorithms() {
                let name = module.key.entry_point(algorithm);
                let mut all = module.entry_points.iter();
                let entry_point = all.find(|it| it.name == name).unwrap();
                let registers = entry_point.resources.unwrap().registers;
                let most = most_threads_in_a_seat(registers, module.key.world_size);
                let wanted = wanted_threads(module, algorithm);
                assert!(most >= wanted, "{name}: {registers} registers");
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "no kernel for sm_90");
}
