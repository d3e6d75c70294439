//! Residual and weight of a call with RMSNorm are each rank's own, whatever the route: an owner of
//! a two-shot gathers the sum and never its normalised rows.

use half::bf16;
use peersum::RmsNorm;
use peersum::dispatch::Route;
use peersum::reference::{self, NormNumbers};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{Comm, Content, expected, input, on_ranks, plan, settings};

const HIDDEN: usize = 96;
const ROWS: usize = 6;
const LEN: usize = HIDDEN * ROWS;
const SEED: u64 = 41;
const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 1.0,
};

fn residual(rank: u32) -> Vec<bf16> {
    input(SEED + 1, rank, LEN, Content::Ordinary)
}

fn weight(rank: u32) -> Vec<bf16> {
    input(SEED + 2, rank, HIDDEN, Content::Ordinary)
}

/// Output and residual of a rank with the residual and the weight of `side`.
fn results(world_size: u32, side: u32) -> [Vec<bf16>; 2] {
    let sum = expected(SEED, world_size, LEN, Content::Ordinary);
    let kept = reference::add_residual(&sum, &residual(side));
    [reference::rms_norm(&kept, &weight(side), NUMBERS), kept]
}

/// What all ranks would get if the owner of each chunk gathered its own results.
fn results_of_owners(world_size: u32) -> [Vec<bf16>; 2] {
    let unit = 16 / size_of::<bf16>();
    let chunk = (LEN / unit).div_ceil(world_size as usize) * unit;
    let mut gathered = results(world_size, 0);
    for owner in 1..world_size {
        let start = chunk * owner as usize;
        for (gathered, own) in gathered.iter_mut().zip(results(world_size, owner)) {
            gathered[start..].copy_from_slice(&own[start..]);
        }
    }
    gathered
}

fn first_difference(found: &[bf16], expected: &[bf16]) -> Option<usize> {
    assert_eq!(found.len(), expected.len());
    let mut pairs = found.iter().zip(expected);
    pairs.position(|(found, expected)| found.to_bits() != expected.to_bits())
}

/// Makes one call. Returns output and residual.
fn call(comm: &mut Comm, route: Route) -> [Vec<bf16>; 2] {
    comm.force_plan(plan(route, 2, 16)).unwrap();
    let own = input(SEED, comm.rank(), LEN, Content::Ordinary);
    let weight = EmulatorBuffer::from_slice(&weight(comm.rank()));
    let norm = RmsNorm {
        weight: &weight,
        epsilon: NUMBERS.epsilon,
        weight_offset: NUMBERS.weight_offset,
    };
    let mut residual = EmulatorBuffer::from_slice(&residual(comm.rank()));
    let mut output = EmulatorBuffer::from_slice(&vec![bf16::NAN; LEN]);
    let mut symmetric = comm.symmetric_alloc::<bf16>(LEN).unwrap();
    symmetric.as_view_mut().copy_from_slice(&own);
    match route {
        Route::SymmetricTwoShot => {
            let mut buffer = symmetric.as_view_mut();
            comm.all_reduce_add_rms_norm_in_place(&mut buffer, &mut residual, &norm)
        }
        Route::SymmetricOneShot => {
            comm.all_reduce_add_rms_norm(&*symmetric, &mut residual, &norm, &mut output)
        }
        _ => {
            let input = EmulatorBuffer::from_slice(&own);
            comm.all_reduce_add_rms_norm(&input, &mut residual, &norm, &mut output)
        }
    }
    .unwrap();
    comm.synchronize().unwrap();
    let output = match route {
        Route::SymmetricTwoShot => symmetric.to_vec(),
        _ => output.to_vec(),
    };
    [output, residual.to_vec()]
}

#[test]
fn each_rank_normalises_with_its_own_residual_and_weight_by_every_route() {
    for world_size in [2, 3] {
        for route in Route::ALL {
            let found = on_ranks(world_size, settings, |comm| call(comm, route));
            for (rank, found) in found.iter().enumerate() {
                let own = results(world_size, rank as u32);
                for (found, own) in found.iter().zip(&own) {
                    let wrong = first_difference(found, own);
                    assert_eq!(wrong, None, "{route:?}, rank {rank} of {world_size}");
                }
            }
        }
    }
}

/// The control: the comparison above tells an owner's rows from a rank's own.
#[test]
fn rows_that_an_owner_has_normalised_are_told_from_a_ranks_own() {
    for world_size in [2, 3] {
        let gathered = results_of_owners(world_size);
        for rank in 0..world_size {
            let own = results(world_size, rank);
            for (gathered, own) in gathered.iter().zip(&own) {
                assert!(first_difference(gathered, own).is_some(), "rank {rank}");
            }
        }
    }
}
