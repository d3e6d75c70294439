//! Push calls behind each other, whatever the size of their slots.

use peersum::dispatch::Route;
use peersum_emulator::EmulatorBuffer;

use crate::stage::{Content, assert_bits, expected, input, on_ranks, plan, settings};

/// Calls that are on their way at once.
const CALLS: usize = 12;

/// Sizes at which 0.1 had slots of one algorithm in those of the other, with their neighbours.
const SIZES: [(u32, usize); 14] = [
    (2, 8704),
    (2, 8192),
    (3, 8192),
    (3, 9216),
    (4, 10240),
    (4, 8192),
    (5, 8192),
    (5, 1),
    (6, 8192),
    (6, 12288),
    (7, 8192),
    (7, 14336),
    (8, 10240),
    (8, 16384),
];

#[test]
fn one_shot_and_two_shot_pushes_alternate_whatever_the_size_of_the_slots() {
    for (world_size, push_half_bytes) in SIZES {
        on_ranks(
            world_size,
            || settings().push_half_bytes(push_half_bytes),
            |comm| {
                // The largest calls in one piece and less, in both orders of the two algorithms.
                for len in [push_half_bytes / 8 / world_size as usize, 64, 1] {
                    let len = len.max(1);
                    for first in [0, 1] {
                        let mut buffers: Vec<_> = (0..CALLS as u64)
                            .map(|seed| {
                                let own = input::<f32>(seed, comm.rank(), len, Content::Ordinary);
                                EmulatorBuffer::from_slice(&own)
                            })
                            .collect();
                        for (call, buffer) in buffers.iter_mut().enumerate() {
                            let route = match (call + first) % 2 {
                                0 => Route::PushTwoShot,
                                _ => Route::PushOneShot,
                            };
                            comm.force_plan(plan(route, 2, 8)).unwrap();
                            comm.all_reduce_in_place(buffer).unwrap();
                        }
                        comm.synchronize().unwrap();
                        for (seed, buffer) in (0..).zip(&buffers) {
                            let sum = expected::<f32>(seed, world_size, len, Content::Ordinary);
                            let context = (world_size, push_half_bytes, len, seed);
                            assert_bits(&buffer.to_vec(), &sum, &context);
                        }
                    }
                }
            },
        );
    }
}
