//! Rows that several blocks share, a cluster.

use std::time::Duration;

use half::bf16;
use peersum::dispatch::{Placement, Plan, Route};
use peersum::reference::{self, NormNumbers};
use peersum::{Fp8PerToken, RmsNorm};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{
    Comm, Content, assert_all_nan, assert_bits, expected, failure, input, on_ranks, plan, settings,
};

const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 0.0,
};

/// Forces the fused kernel on a grid, and returns the grid that a call of these rows launches.
fn launch(comm: &mut Comm, blocks: u32, threads: u32, rows: u32, hidden: usize) -> Plan {
    let grid = plan(Route::PushOneShot, blocks, threads);
    comm.force_plan(grid).unwrap();
    comm.force_fused(Some(true));
    comm.fused_launch::<bf16>(Placement::Ordinary, rows, hidden as u32)
        .unwrap()
}

/// Normalises rows with FP8 and one scale a row: both exchanges of a cluster.
fn check(comm: &mut Comm, seed: u64, rows: usize, hidden: usize) {
    let len = rows * hidden;
    let own: Vec<bf16> = input(seed, comm.rank(), len, Content::Ordinary);
    let weight: Vec<bf16> = input(seed + 1, 0, hidden, Content::Ordinary);
    let norm = RmsNorm {
        weight: &EmulatorBuffer::from_slice(&weight),
        epsilon: NUMBERS.epsilon,
        weight_offset: NUMBERS.weight_offset,
    };
    let mut buffer = EmulatorBuffer::from_slice(&own);
    let mut values = EmulatorBuffer::from_slice(&vec![0u8; len]);
    let mut scales = EmulatorBuffer::from_slice(&vec![0f32; rows]);
    let fp8 = Fp8PerToken {
        values: &mut values,
        scales: &mut scales,
    };
    comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8)
        .unwrap();
    comm.synchronize().unwrap();
    let sum: Vec<bf16> = expected(seed, comm.world_size(), len, Content::Ordinary);
    let normalised = reference::rms_norm(&sum, &weight, NUMBERS);
    let (expected_values, expected_scales) = reference::fp8_per_token(&normalised, hidden);
    assert_bits(&buffer.to_vec(), &normalised, &(rows, hidden));
    assert_bits(&scales.to_vec(), &expected_scales, &(rows, hidden));
    assert_eq!(values.to_vec(), expected_values, "{rows} x {hidden}");
}

#[test]
fn rows_in_clusters_of_every_size_have_the_references_bits() {
    // The grid that is asked for, the rows, the blocks of a cluster, the threads of each for a pair
    // and for a larger group.
    let grids = [
        ((1, 64), 1, 1, [64, 64]),
        ((2, 16), 1, 2, [16, 16]),
        ((4, 64), 2, 2, [64, 64]),
        ((4, 8), 1, 4, [8, 8]),
        ((8, 64), 2, 4, [16, 32]),
        ((8, 16), 1, 8, [8, 16]),
        ((8, 64), 1, 8, [8, 16]),
    ];
    for world_size in [2, 3] {
        on_ranks(
            world_size,
            || settings().max_blocks(16),
            |comm| {
                for ((blocks, threads), rows, size, threads_of_block) in grids {
                    let found = launch(comm, blocks, threads, rows, 1024);
                    assert_eq!(
                        (found.blocks, found.threads),
                        (rows * size, threads_of_block[usize::from(world_size > 2)])
                    );
                    check(comm, u64::from(blocks + threads), rows as usize, 1024);
                }
                // 5 of 8 blocks have a unit; the last unit of the last row is in a block that is
                // not full.
                for (hidden, blocks) in [(640, 5), (328, 6)] {
                    assert_eq!(launch(comm, 8, 16, 1, hidden).blocks, blocks, "{hidden}");
                    check(comm, 3, 1, hidden);
                }
                // Rows of many units a thread.
                assert_eq!(launch(comm, 8, 8, 1, 32768).blocks, 8);
                check(comm, 4, 1, 32768);
                // More rows than clusters: each block has rows of its own.
                assert_eq!(launch(comm, 4, 16, 3, 1024).blocks, 3);
                check(comm, 5, 3, 1024);
            },
        );
    }
}

#[test]
fn a_peer_that_never_comes_makes_the_whole_row_of_a_cluster_nan() {
    let late = || {
        settings()
            .max_blocks(16)
            .timeout(Duration::from_millis(300))
    };
    on_ranks(2, late, |comm| {
        launch(comm, 8, 16, 1, 1024);
        check(comm, 6, 1, 1024);
        if comm.rank() == 1 {
            return;
        }
        let weight = EmulatorBuffer::from_slice(&[bf16::ONE; 1024]);
        let norm = RmsNorm {
            weight: &weight,
            epsilon: 0.0,
            weight_offset: 0.0,
        };
        let mut buffer = EmulatorBuffer::from_slice(&[bf16::ONE; 1024]);
        comm.all_reduce_rms_norm_in_place(&mut buffer, &norm)
            .unwrap();
        failure(comm.synchronize());
        assert_all_nan(&buffer.to_vec());
    });
}
